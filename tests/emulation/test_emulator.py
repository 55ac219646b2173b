"""The emulator has every kernel of the package."""

from __future__ import annotations

import re

import emulator


def test_every_source_is_in_the_build_and_in_the_emulator(emulated):
    assert emulator.listed_cuda_sources() == emulator.cuda_sources()
    assert not emulated.failures


def test_every_instance_is_in_the_emulator(emulated):
    listed = [
        "igm::" + name
        for source in emulator.cuda_sources()
        for name in re.findall(r"^IGM_INSTANCE\((.*)\)", source.read_text(), re.M)
    ]
    assert listed
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(emulated.kernels())

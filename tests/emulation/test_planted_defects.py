"""Defects planted into a kernel: the emulator has to catch each, and to let the right form pass."""

from __future__ import annotations

import emulator
import numpy as np
import planted
import pytest

SEEDS = range(4)


def is_wrong(emulated: emulator.Emulator, defect: str) -> bool:
    made, right = planted.product(emulated, defect)
    return not np.array_equal(made, right)


@pytest.mark.sanitized
@pytest.mark.parametrize("seed", SEEDS)
def test_the_right_form_passes(emulated, seed):
    emulated.seed = seed
    assert not is_wrong(emulated, "kNone")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "defect",
    [
        "kMissingBarrier",
        "kMissingSecondBarrier",
        "kMissingWait",
        "kLoadOffByOne",
        "kStoreOffByOne",
        "kWrongFragment",
        "kUninitialisedSum",
        "kUnwritten",
        "kUninitialisedShared",
    ],
)
def test_a_defect_makes_a_wrong_result(emulated, defect, seed):
    emulated.seed = seed
    assert is_wrong(emulated, defect)


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("kPartOfBlock", r"thread \d+ is in barrier at planted\.cu:\d+, others in barrier at planted\.cu:\d+"),
        ("kPartOfWarp", r"stands still: .*threads wait in shuffle_xor at planted\.cu"),
        ("kEarlyEnd", r"32 threads wait in barrier at planted\.cu:\d+, 32 of 64 have ended"),
        ("kSharedOverrun", "a write beyond the dynamic shared memory"),
    ],
)
def test_a_defect_stops_the_launch(emulated, defect, message):
    with pytest.raises(RuntimeError, match=message):
        planted.product(emulated, defect)
    assert not is_wrong(emulated, "kNone")  # nothing of it is left


def test_impossible_launches_are_refused(emulated):
    emulated.capability = (7, 5)
    with pytest.raises(RuntimeError, match=r"needs compute capability 8\.0, this launch is for 75"):
        planted.product(emulated, "kNone")
    for options in ({"shared_bytes": 65 * 1024}, {"threads": 1025}, {"threads": 0}):
        with pytest.raises(RuntimeError, match="compute capability 75 starts no such kernel"):
            planted.product(emulated, "kNone", **options)
    emulated.capability = (8, 0)
    planted.product(emulated, "kNone", shared_bytes=163 * 1024)
    with pytest.raises(RuntimeError, match="whole number of warps"):
        planted.product(emulated, "kNone", threads=33)
    with pytest.raises(RuntimeError, match="no such kernel in the emulator"):
        planted.product(emulated, "kNoneOfThese")
    with pytest.raises(RuntimeError, match="3 bytes of parameters, the kernel takes 32"):
        emulated.run("igm::planted_kernel<igm::Defect::kNone>", 1, 64, b"abc", planted.SHARED)

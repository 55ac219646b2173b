"""What ``import igm_fast`` offers, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import igm_fast


def test_every_public_name_is_there_and_documented():
    for name in igm_fast.__all__:
        assert getattr(igm_fast, name).__doc__, name
    assert set(igm_fast.__all__) <= set(dir(igm_fast))
    assert igm_fast.show_config().startswith("igm_fast:")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'igm_fast' has no attribute 'sam_optimizer'; it has SAM, Activ"):
        _ = igm_fast.sam_optimizer


def test_import_is_light_and_no_use_touches_cuda():
    code = (
        "import sys, igm_fast\n"
        "assert 'torch' not in sys.modules, 'the version needs no torch'\n"
        "igm_fast.SAM, igm_fast.ActivationCovariance, igm_fast.flat_projectors, igm_fast.match_layers\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not {'lightning_fabric', 'matplotlib', 'jsonargparse'} & set(sys.modules), 'a part needs no training'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

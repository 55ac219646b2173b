"""The compiled module: version, one OpenMP runtime, thread count, configuration text, errors of a broken install."""

from __future__ import annotations

import pytest
import torch

import igm_fast
from igm_fast.ops import native


def test_version_is_the_package_version():
    assert native.module().version == igm_fast.__version__


def test_one_openmp_runtime(run_python):
    code = (
        "import igm_fast.ops, torch; from igm_fast.ops import native\n"
        "torch.ones(1000, 1000) @ torch.ones(1000, 1000); native.module().openmp_threads(2)\n"
        "print(len(native.openmp_runtimes()))"
    )
    assert run_python(code).strip() == "1"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_is_the_one_passed(threads):
    assert native.module().openmp_threads(threads) == threads


def test_set_num_threads_is_honoured(monkeypatch):
    """Every operator passes torch.get_num_threads() on, as its last argument."""
    seen: list[int] = []
    monkeypatch.setattr(native.module(), "sam_restore", lambda *arguments: seen.append(arguments[-1]))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.ops.igm_fast.sam_restore([torch.zeros(3)], [torch.zeros(3)])
    assert seen == [1, 2]


def test_show_config_names_what_matters():
    text = native.show_config()
    for word in ("igm_fast", igm_fast.__version__, "build", "kernels", "threads", "openmp", "cuda", torch.__version__):
        assert word in text
    assert native.module().isa() in text


def test_module_prints_the_configuration(run_python):
    code = "import runpy; runpy.run_module('igm_fast', run_name='__main__')"
    assert run_python(code) == native.show_config() + "\n"


@pytest.mark.parametrize(
    "call",
    ["native.module().isa()", "torch.ops.igm_fast.linear_covariance(torch.zeros(99, 99), torch.ones(999, 99).half())"],
)
def test_unknown_instruction_set_is_refused(call, run_python):
    """Also by kernels that run in parallel: an exception must not meet the end of an OpenMP region."""
    code = f"import torch; from igm_fast.ops import native\ntry: {call}\nexcept ValueError as error: print(error)"
    text = run_python(code, IGM_FAST_ISA="sse9")
    assert text.startswith("IGM_FAST_ISA=sse9, expected portable, avx2 or avx512. Unset it")


def test_missing_module_tells_the_way_out(run_python):
    code = (
        "import sys; sys.modules['_igm_fast'] = None\n"
        "try: import igm_fast.ops\n"
        "except ImportError as error: print(error)"
    )
    text = run_python(code)
    assert "the compiled module _igm_fast is missing, expected it beside the package" in text
    assert "pip install ." in text


def test_other_version_tells_the_way_out(run_python):
    code = (
        "import igm_fast; igm_fast.__version__ = '9.9'\n"
        "try: import igm_fast.ops\n"
        "except ImportError as error: print(error)"
    )
    assert "was loaded, expected 9.9" in run_python(code)

"""The three settings of IGM_FAST_CUDA, and a module with CUDA kernels on a machine without a driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest
import torch

ROOT = Path(__file__).parents[2]
# cmake and ninja may only be in the virtual environment that runs this
TOOLS = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

pytestmark = pytest.mark.slow


def configure(folder: Path, setting: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), f"-DIGM_FAST_CUDA={setting}"]
    command += [
        "-DIGM_FAST_STRICT=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    return subprocess.run(command, env=TOOLS | environment, capture_output=True, text=True, check=False)


def test_on_without_nvcc_fails_with_a_way_out(tmp_path):
    done = configure(tmp_path, "ON", CUDACXX="/nowhere/nvcc")
    assert done.returncode != 0
    assert "IGM_FAST_CUDA=ON, but no working nvcc was found" in " ".join(done.stderr.split())


def test_auto_without_nvcc_says_what_is_left_out(tmp_path):
    done = configure(tmp_path, "AUTO", CUDACXX="/nowhere/nvcc")
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels: no working nvcc was found when this was built" in done.stdout


def test_unknown_setting_is_refused(tmp_path):
    done = configure(tmp_path, "MAYBE")
    assert "IGM_FAST_CUDA=MAYBE, expected AUTO, ON or OFF" in done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here; install the CUDA toolkit")
@pytest.mark.timeout(1000)  # half a minute of nvcc on an idle machine, for one architecture
def test_module_with_kernels_works_without_a_driver(tmp_path):
    """Compiled without a warning or spill; imports; refuses CUDA work with a sentence instead of hanging."""
    done = configure(tmp_path, "ON", IGM_FAST_CUDA_ARCHS="90-real")
    assert "built with nvcc" in done.stdout, done.stderr
    ninja = subprocess.run(
        ["cmake", "--build", str(tmp_path)], env=TOOLS, capture_output=True, text=True, check=False, timeout=900
    )
    assert ninja.returncode == 0, ninja.stdout
    (module,) = tmp_path.glob("_igm_fast*.so")
    code = (
        "import torch, importlib.util as util\n"
        f"spec = util.spec_from_file_location('_igm_fast', {str(module)!r})\n"
        "module = util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.build_info()['cuda_architectures'])\n"
        "launches = module.perturb_launches([1], [1], [1], [5], 0, 0.05, False, False, 1, 1)\n"
        "try: module.execute(launches, 10**6, 0)\n"
        "except RuntimeError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    architectures, message = run.stdout.splitlines()
    assert architectures == "90-real"
    assert message.startswith("cuda route: device 1000000 cannot be used (")
    assert torch.cuda.is_available() or "driver" in message

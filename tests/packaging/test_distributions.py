"""The source distribution and the wheel hold what they should, and the wheel runs away from the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import igm_fast

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of this tree, and the wheel that is built from that sdist."""
    copy = tmp_path_factory.mktemp("packaging") / "tree"
    shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy.parent / "dist"), str(copy)]
    done = subprocess.run(
        command, env=os.environ | {"IGM_FAST_CUDA": "OFF"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy.parent / "dist"


def package_files() -> set[str]:
    """Every file of the package in this tree, as a path in the wheel."""
    files = (file for file in (ROOT / "igm_fast").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(ROOT).as_posix() for file in files}


def kernel_sources() -> set[str]:
    """What NVRTC compiles the kernels from, as paths in the wheel."""
    files = [file for pattern in ("*.cu", "*.cuh", "*.hpp") for file in (ROOT / "csrc").rglob(pattern)]
    names = {file.relative_to(ROOT / "csrc").as_posix() for file in files}
    return {f"igm_fast/kernels/{name}" for name in names if not name.startswith("common/execute.")}


def test_sdist_can_be_built_from(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    assert sdist.name == f"igm_fast-{igm_fast.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in archive.getnames()}
    native = {file.relative_to(ROOT).as_posix() for file in (ROOT / "csrc").rglob("*") if file.is_file()}
    wanted = {"CMakeLists.txt", "pyproject.toml", "LICENSE"} | native | package_files()
    assert wanted <= names, f"missing from the sdist: {sorted(wanted - names)}"


def test_wheel_holds_the_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = package_files()
    assert "igm_fast/py.typed" in wanted
    assert any(name.startswith("igm_fast/data/embedded/") and name.endswith(".npz") for name in wanted)
    assert wanted <= names, f"missing from the wheel: {sorted(wanted - names)}"
    rest = {name for name in names - wanted - kernel_sources() if ".dist-info/" not in name}
    assert len(rest) == 1, f"more than the native module beside the package: {sorted(rest)}"
    assert rest.pop().startswith("_igm_fast.")


def test_wheel_holds_all_that_a_kernel_includes(distributions):
    (wheel,) = distributions.glob("*.whl")
    folder = "igm_fast/kernels/"
    with zipfile.ZipFile(wheel) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if name.startswith(folder)}
    assert kernel_sources() == texts.keys()
    included = {name for text in texts.values() for name in re.findall(r'#include "(.+)"', text)}
    assert {folder + name for name in included} <= texts.keys()


def test_wheel_runs_without_the_source_tree(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys, torch\n"
        # an editable install of the same package would answer the import first
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'ScikitBuild' not in type(finder).__name__]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import igm_fast.ops; from igm_fast.ops import native\n"
        "weight = torch.ones(4)\n"
        "torch.ops.igm_fast.sam_perturb([weight], [torch.empty(4)], torch.empty(1), [torch.ones(4)], 2.0)\n"
        "from igm_fast.ops import nvrtc; assert 'igm::perturb_kernel<false, float>' in nvrtc.instances()\n"
        "print(igm_fast.__file__, native.module().__file__, nvrtc.sources(), weight.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package, module, sources, values = done.stdout.split(maxsplit=3)
    assert Path(sources) == tmp_path / "igm_fast" / "kernels"
    assert Path(package).parent.parent == tmp_path
    assert Path(module).parent == tmp_path
    assert values.strip() == "[2.0, 2.0, 2.0, 2.0]"

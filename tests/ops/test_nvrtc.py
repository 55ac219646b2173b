"""The CuPy route without CuPy and without a GPU: NVRTC compiles every kernel, and a stand-in records the launches."""

from __future__ import annotations

import contextlib
import locale
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvrtc_library import Nvrtc, NVRTCError, library_file

from igm_fast.ops import native, nvrtc

LIBRARY = library_file()
needs_nvrtc = pytest.mark.skipif(
    LIBRARY is None, reason="no libnvrtc here; install it: pip install nvidia-cuda-nvrtc-cu12"
)
PERTURB = "igm::perturb_kernel<false, float>"


# ---- the sources -----------------------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["compute_75", "compute_80", "compute_90"])
def test_every_kernel_is_compiled_without_standard_headers(architecture):
    by_file: dict[Path, list[str]] = {}
    for kernel, file in nvrtc.instances().items():
        by_file.setdefault(file, []).append(kernel)
    assert by_file
    with ThreadPoolExecutor(1) as thread:  # NVRTC 12 changes the locale of the thread that calls it
        for file, kernels in by_file.items():
            said = thread.submit(what_is_missing, file, kernels, f"-arch={architecture}").result()
            assert said == "", f"{file}: {said}"


def what_is_missing(file: Path, kernels: list[str], *options: str) -> str:
    """Compile all kernels of a file to PTX; return the compiler's complaint, or which kernels are not there."""
    compiler = Nvrtc(LIBRARY)
    program = compiler.createProgram(file.read_text(encoding="utf-8"), file.name, (), ())
    for kernel in kernels:
        compiler.addNameExpression(program, kernel)
    try:
        compiler.compileProgram(program, (*options, f"-I{nvrtc.sources()}", *nvrtc._OPTIONS))
        entries = set(re.findall(r"\.entry\s+(\w+)", compiler.getPTX(program)))
        return ", ".join(kernel for kernel in kernels if compiler.getLoweredName(program, kernel) not in entries)
    except NVRTCError:
        return compiler.getProgramLog(program)[:3000]
    finally:
        compiler.destroyProgram(program)


@needs_nvrtc
def test_compiling_leaves_the_locale_alone():
    before = locale.getpreferredencoding(False)
    nvrtc.compile_kernel("igm::norm_final_kernel", "sm_80", Nvrtc(LIBRARY))
    assert locale.getpreferredencoding(False) == before


def test_every_listed_instance_is_found():
    """The lists are read as text: nothing in them may be overlooked."""
    for file in nvrtc.sources().rglob("*.cu"):
        text = re.sub(r"//.*", "", file.read_text(encoding="utf-8"))
        assert text.count("IGM_INSTANCE") == list(nvrtc.instances().values()).count(file), file
    assert PERTURB in nvrtc.instances()


@needs_nvrtc
def test_one_kernel_as_binary():
    name, code = nvrtc.compile_kernel(PERTURB, "sm_90", Nvrtc(LIBRARY))
    assert name == "_ZN3igm14perturb_kernelILb0EfEEvNS_12PerturbationIT0_EE"
    assert code.startswith(b"\x7fELF")
    assert name.encode() in code


@needs_nvrtc
def test_an_unknown_architecture_says_what_helps():
    with pytest.raises(RuntimeError, match=r"NVRTC [0-9.]+ did not compile it for sm_1.*Install a CuPy(.|\n)*rch"):
        nvrtc.compile_kernel(PERTURB, "sm_1", Nvrtc(LIBRARY))


def test_an_unknown_kernel_is_a_defect():
    with pytest.raises(RuntimeError, match=r"igm::no_kernel is in no list of kernels in .*please report it"):
        nvrtc.compile_kernel("igm::no_kernel", "sm_90", None)


def test_an_installed_package_brings_its_sources(monkeypatch, tmp_path):
    package = tmp_path / "igm_fast"
    monkeypatch.setattr(nvrtc, "__file__", str(package / "ops" / "nvrtc.py"))
    with pytest.raises(RuntimeError, match=r"CUDA sources are missing, expected them in .*kernels. Reinstall"):
        nvrtc.sources()
    for folder in (tmp_path / "csrc", package / "kernels"):  # the package's own come first
        (folder / "common").mkdir(parents=True)
        (folder / "common" / "device.cuh").touch()
        assert nvrtc.sources() == folder


# ---- launches --------------------------------------------------------------------------------------------------------


class FakeCupy:
    """Records what a GPU would be asked for."""

    __version__ = "0.0"

    class Error(RuntimeError):
        """As CuPy's."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.compiled: list[tuple[str, ...]] = []
        self.shared: list[int] = []
        self.where: list[tuple[Any, ...]] = []
        self.fails = False
        self.cuda = SimpleNamespace(
            Device=lambda index: self._within("device", index),
            Stream=SimpleNamespace(from_external=lambda it: self._within("stream", *it.__cuda_stream__())),
            driver=SimpleNamespace(CUDADriverError=self.Error),
            runtime=SimpleNamespace(CUDARuntimeError=self.Error),
            nvrtc=SimpleNamespace(
                NVRTCError=NVRTCError,
                getVersion=lambda: (12, 4),
                createProgram=lambda *_: 7,
                addNameExpression=lambda _, name: self.compiled.append((name,)),
                compileProgram=self._compile,
                getLoweredName=lambda _, name: f"lowered {name}",
                getCUBIN=lambda _: b"\x7fELF",
                getProgramLog=lambda _: "",
                destroyProgram=lambda _: None,
            ),
        )

    def _compile(self, _: int, options: tuple[str, ...]) -> None:
        self.compiled[-1] += options[:1]

    @contextlib.contextmanager
    def _within(self, *what: Any) -> Any:
        self.where.append(what)
        try:
            yield
        finally:
            self.where.remove(what)

    def RawModule(self, path: str) -> Any:  # noqa: N802 - CuPy's name
        assert Path(path).read_bytes() == b"\x7fELF"
        return SimpleNamespace(get_function=lambda name: FakeKernel(self, name))


class FakeKernel:
    def __init__(self, cupy: FakeCupy, name: str) -> None:
        object.__setattr__(self, "cupy", cupy)
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: int) -> None:
        assert name == "max_dynamic_shared_size_bytes"
        self.cupy.shared.append(value)

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
        if self.cupy.fails:
            raise FakeCupy.Error("CUDA_ERROR_INVALID_VALUE")
        (params,) = args
        # CuPy takes structures by value as numpy scalars or arrays of one element.
        assert isinstance(params, np.ndarray)
        assert params.size == 1
        call = {"name": self.name, "grid": grid, "block": block, "params": params.tobytes(), "shared": shared_mem}
        self.cupy.calls.append(call | {"where": list(self.cupy.where)})


@pytest.fixture
def cupy(monkeypatch, tmp_path) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setenv("IGM_FAST_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index == 1 else (8, index))
    nvrtc._function.cache_clear()
    yield fake
    nvrtc._function.cache_clear()


def perturb_launches() -> list[Any]:
    """Of sam_perturb on two tensors at made-up addresses."""
    tensors = ([256, 512], [768, 1024], [1280, 1536], [20000, 7])
    return native.module().perturb_launches(*tensors, native.DTYPE_CODES[torch.float32], 0.05, False, False, 16, 32)


def with_shared(shared_bytes: int) -> Any:
    return SimpleNamespace(kernel=PERTURB, grid=5, block=256, shared_bytes=shared_bytes, params=b"ab" * 500)


def test_launches_go_to_the_stream_of_the_device_as_they_are(cupy):
    launches = perturb_launches()
    nvrtc.execute(launches, 1, 0x5EED)
    assert [call["name"] for call in cupy.calls] == [f"lowered {launch.kernel}" for launch in launches]
    for call, launch in zip(cupy.calls, launches, strict=True):
        assert (call["grid"], call["block"]) == ((launch.grid,), (launch.block,))
        assert call["params"] == launch.params
        assert call["shared"] == launch.shared_bytes
        assert call["where"] == [("device", 1), ("stream", 0, 0x5EED)]
    assert cupy.where == []
    assert cupy.shared == []


def test_streams_of_cupy_before_14(cupy):
    cupy.cuda.Stream = None
    cupy.cuda.ExternalStream = lambda pointer, device: cupy._within("external", pointer, device)
    nvrtc.execute([with_shared(0)], 1, 0x5EED)
    assert cupy.calls[0]["where"] == [("device", 1), ("external", 0x5EED, 1)]


def test_more_shared_memory_has_to_be_asked_for(cupy):
    nvrtc.execute([with_shared(48 * 1024), with_shared(48 * 1024 + 16), with_shared(99 * 1024)], 0, 0)
    assert cupy.shared == [48 * 1024 + 16, 99 * 1024]
    assert [call["shared"] for call in cupy.calls] == [48 * 1024, 48 * 1024 + 16, 99 * 1024]


def test_a_kernel_is_compiled_once_per_architecture_and_kept(cupy):
    nvrtc.execute([with_shared(0), with_shared(0)], 0, 0)
    nvrtc.execute([with_shared(0)], 1, 0)
    assert cupy.compiled == [(PERTURB, "--gpu-architecture=sm_80"), (PERTURB, "--gpu-architecture=sm_90")]
    nvrtc._function.cache_clear()  # as in another process
    nvrtc.execute([with_shared(0)], 1, 0)
    assert len(cupy.compiled) == 2
    assert [call["name"] for call in cupy.calls] == [f"lowered {PERTURB}"] * 4
    assert {file.suffix for file in nvrtc.cache_folder().iterdir()} == {".cubin", ".name"}


def test_other_sources_and_another_compiler_are_compiled_anew():
    digest = nvrtc._digest(PERTURB, "sm_90", (12, 4))
    assert digest == nvrtc._digest(PERTURB, "sm_90", (12, 4))
    assert len({digest, nvrtc._digest(PERTURB, "sm_80", (12, 4)), nvrtc._digest(PERTURB, "sm_90", (13, 0))}) == 3


def test_sources_are_part_of_the_digest(monkeypatch, tmp_path):
    (tmp_path / "a.cuh").write_text("1")
    monkeypatch.setattr(nvrtc, "sources", lambda: tmp_path)
    nvrtc._sources_digest.cache_clear()
    try:
        before = nvrtc._sources_digest()
        (tmp_path / "a.cuh").write_text("2")
        nvrtc._sources_digest.cache_clear()
        assert nvrtc._sources_digest() != before
    finally:
        nvrtc._sources_digest.cache_clear()


def test_a_failed_launch_says_what_was_launched(cupy):
    cupy.fails = True
    expected = rf"{re.escape(PERTURB)}: launch with grid 5, block 256, 0 bytes .*\(sm_80\).*CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(RuntimeError, match=expected):
        nvrtc.execute([with_shared(0)], 0, 0)
    assert cupy.where == []


def test_a_cache_that_cannot_be_written(cupy, monkeypatch, tmp_path):  # noqa: ARG001
    (tmp_path / "file").touch()
    monkeypatch.setenv("IGM_FAST_KERNEL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RuntimeError, match=r"expected a writable folder. Set IGM_FAST_KERNEL_CACHE to one"):
        nvrtc.execute([with_shared(0)], 0, 0)


def test_where_compiled_kernels_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("IGM_FAST_KERNEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path / "igm_fast" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert nvrtc.cache_folder() == Path.home() / ".cache" / "igm_fast" / "kernels"


# ---- the choice of a route -------------------------------------------------------------------------------------------


@pytest.fixture
def routes(monkeypatch):
    """Say which routes there are, and which one IGM_FAST_CUDA_ROUTE asks for."""

    def set_up(*here: str, asked: str = "") -> None:
        if "built" in here:
            monkeypatch.setattr(native.module(), "execute", lambda *_: None, raising=False)
        else:
            monkeypatch.delattr(native.module(), "execute", raising=False)
        monkeypatch.setattr(native, "find_spec", lambda name: name if name in here else None)
        monkeypatch.setenv("IGM_FAST_CUDA_ROUTE", asked)
        native._cuda_route.cache_clear()

    yield set_up
    native._cuda_route.cache_clear()


@pytest.mark.parametrize(
    ("here", "asked", "taken"),
    [
        (("built",), "", "built"),
        (("built", "cupy"), "", "built"),
        (("cupy",), "", "cupy"),
        (("built", "cupy"), "cupy", "cupy"),
        (("built", "cupy"), "built", "built"),
    ],
)
def test_the_built_kernels_come_first_unless_asked_otherwise(routes, here, asked, taken):
    routes(*here, asked=asked)
    assert native.cuda_route() == taken
    assert ("compiled by CuPy's NVRTC" in native.show_config()) == (taken == "cupy")


def test_launches_take_the_route(routes, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=9))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(nvrtc, "execute", lambda *given: seen.append(("cupy", *given)))
    routes("built", "cupy")
    monkeypatch.setattr(native.module(), "execute", lambda *given: seen.append(("built", *given)), raising=False)
    native.launch("op", [], torch.device("cuda", 3))
    monkeypatch.setenv("IGM_FAST_CUDA_ROUTE", "cupy")
    native.launch("op", [], torch.device("cuda", 3))
    assert seen == [("built", [], 3, 9), ("cupy", [], 3, 9)]


@pytest.mark.parametrize(
    ("here", "asked", "said"),
    [
        ((), "", r"this build has no CUDA kernels \(.*\) and CuPy is not installed"),
        (("built",), "cupy", "IGM_FAST_CUDA_ROUTE=cupy, but CuPy is not installed"),
        (("cupy",), "built", "IGM_FAST_CUDA_ROUTE=built, but this build has no CUDA kernels"),
    ],
)
def test_no_route_says_both_ways_out(routes, here, asked, said):
    routes(*here, asked=asked)
    way_out = r"Rebuild with nvcc on PATH and IGM_FAST_CUDA=ON, or install CuPy \(pip install igm_fast\[cupy\]\)"
    with pytest.raises(
        RuntimeError, match=rf"sam_perturb: CUDA tensors given, expected CPU tensors: {said}.*{way_out}"
    ):
        native.launch("sam_perturb", [], torch.device("cuda", 0))
    assert "off: " in native.show_config()


def test_an_unknown_route_is_refused(routes):
    routes("built", asked="nvcc")
    with pytest.raises(ValueError, match=r"IGM_FAST_CUDA_ROUTE=nvcc, expected built or cupy. Unset it"):
        native.launch("sam_perturb", [], torch.device("cuda", 0))

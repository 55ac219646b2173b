"""What the compiled CUDA kernels take of a multiprocessor: registers, shared memory, spills, resident blocks.

    python tools/kernel_resources.py                    # every kernel for every architecture of a default build
    python tools/kernel_resources.py --archs 80 90 --only update
    python tools/kernel_resources.py --markdown         # also puts the table into docs/kernels.md

No GPU is needed: nvcc makes PTX, ptxas says what the machine code takes, and the block size and the blocks per
multiprocessor that a kernel is written for are in the PTX (IGM_BLOCKS in the sources). Dynamic shared memory is what
the launch plans of a ResNet-18's layers ask for. Exit code 1: a kernel spills registers to memory, or on 8.0, 9.0 or
10.0 fewer blocks fit on a multiprocessor than it is written for. On the others, with half the shared memory or less,
that is only a note.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- resources:begin -->", "<!-- resources:end -->"


@dataclass(frozen=True)
class Device:
    """Limits of a compute capability (CUDA Programming Guide, "Technical Specifications per Compute Capability")."""

    threads: int  # per multiprocessor
    blocks: int
    shared: int  # bytes per multiprocessor
    reserved: int = 1024  # of them, per block, for the driver
    shared_unit: int = 128

    registers: int = 65536  # of 32 bits, per multiprocessor; a warp gets multiples of 256
    warp: int = 32


DEVICES = {
    75: Device(1024, 16, 64 * 1024, reserved=0, shared_unit=256),
    80: Device(2048, 32, 164 * 1024),
    86: Device(1536, 16, 100 * 1024),
    89: Device(1536, 24, 100 * 1024),
    90: Device(2048, 32, 228 * 1024),
    100: Device(2048, 32, 228 * 1024),
    120: Device(1536, 24, 100 * 1024),
}
# What the plans' blocks per multiprocessor are made for.
TUNED = (80, 90, 100)
# Kernels that use matrix units and asynchronous copies are never launched below; there their code only traps.
TENSOR_CORES, NEEDS_TENSOR_CORES = 80, re.compile(r"igm::Unit(Half|Tf32)")


@dataclass(frozen=True)
class Kernel:
    """One kernel compiled for one architecture."""

    name: str
    architecture: int
    registers: int
    spills: int  # bytes, loads and stores
    stack: int
    static_shared: int
    threads: int  # per block
    wanted: int  # blocks per multiprocessor; 0: it does not say
    dynamic_shared: int = 0
    launched_block: int | None = None  # None: no typical launch uses it

    @property
    def resident(self) -> int:
        """Return how many blocks fit on a multiprocessor."""
        device = DEVICES[self.architecture]
        warps = -(-self.threads // device.warp)
        registers = warps * -(-self.registers * device.warp // 256) * 256
        shared = self.static_shared + self.dynamic_shared + device.reserved
        shared = -(-shared // device.shared_unit) * device.shared_unit
        by_shared = device.shared // shared if shared else device.blocks
        return min(device.blocks, device.threads // (warps * device.warp), device.registers // registers, by_shared)

    @property
    def occupancy(self) -> float:
        """Return the share of a multiprocessor's threads that can be there at once."""
        return self.resident * self.threads / DEVICES[self.architecture].threads

    @property
    def complaint(self) -> str | None:
        """Return what is wrong or, on architectures that are not TUNED, what is less than planned."""
        said = f"{self.name} for sm_{self.architecture}"
        if self.spills:
            return f"{said}: {self.spills} bytes of spills with {self.registers} registers, expected none"
        if self.launched_block is not None and self.launched_block > self.threads:
            return f"{said}: launched with blocks of {self.launched_block}, compiled for at most {self.threads} threads"
        if self.resident < self.wanted:
            return (
                f"{said}: {self.resident} blocks of {self.threads} threads fit on a multiprocessor with "
                f"{self.registers} registers and {self.static_shared} + {self.dynamic_shared} bytes of shared memory, "
                f"expected the {self.wanted} of IGM_BLOCKS"
            )
        return None

    @property
    def fails(self) -> bool:
        """Return whether the complaint is more than a note."""
        return self.complaint is not None and (self.spills > 0 or self.architecture in TUNED)


def compile_file(file: Path, architecture: int) -> list[Kernel]:
    """Compile a source and return its kernels.

    Raises:
        RuntimeError: nvcc or ptxas refused it.
    """
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        include = f"-I{ROOT / 'csrc'}"
        _run(["nvcc", "-std=c++17", include, f"-arch=compute_{architecture}", "-ptx", "-o", str(ptx), str(file)])
        said = _run([ptxas(), "-v", f"-arch=sm_{architecture}", "-o", os.devnull, str(ptx)])
        return parse(said, ptx.read_text(encoding="utf-8"), architecture)


def parse(said: str, ptx: str, architecture: int) -> list[Kernel]:
    """Return the kernels of what ``ptxas -v`` said about a PTX file."""
    entries = re.split(r"Compiling entry function '(\w+)'", said)[1:]
    reports = dict(zip(entries[::2], entries[1::2], strict=True))
    bounds = {
        name: (int(threads), int(blocks or 0))
        for name, threads, blocks in re.findall(
            r"\.entry\s+(\w+)\([^)]*\)\s*\.maxntid\s+(\d+)[^\n]*(?:\s*\.minnctapersm\s+(\d+))?", ptx
        )
    }
    kernels = []
    for mangled, report in reports.items():
        if mangled not in bounds:
            raise RuntimeError(f"{demangle(mangled)} has no launch bounds; give it IGM_BLOCKS(threads, resident)")
        kernels.append(
            Kernel(
                demangle(mangled),
                architecture,
                registers=_number(r"Used (\d+) registers", report),
                spills=_number(r"(\d+) bytes spill stores", report) + _number(r"(\d+) bytes spill loads", report),
                stack=_number(r"(\d+) bytes stack frame", report),
                static_shared=_number(r"(\d+) bytes smem", report),
                threads=bounds[mangled][0],
                wanted=bounds[mangled][1],
            )
        )
    return kernels


def demangle(name: str) -> str:
    """Return the instance as launches name it, such as ``igm::perturb_kernel<false, float>``."""
    full = _run(["c++filt", name]).strip().removeprefix("void ").replace("> >", ">>")
    depth = 0
    for place in range(len(full) - 1, -1, -1):  # the last opening parenthesis that the closing one belongs to
        depth += {")": 1, "(": -1}.get(full[place], 0)
        if depth == 0 and full[place] == "(":
            return full[:place]
    return full


def ptxas() -> str:
    """Return the ptxas that nvcc would use."""
    found = shutil.which("ptxas")
    if found:
        return found
    said = _run(["nvcc", "-arch=sm_80", "-cubin", "-dryrun", "-x", "cu", os.devnull])
    (folder,) = re.findall(r"#\$ _HERE_=(.+)", said)
    return str(Path(folder) / "ptxas")


def launched(architecture: int) -> dict[str, tuple[int, int]]:
    """Return kernel → the largest block and the most dynamic shared memory that a launch plan asked for."""
    import typical_launches  # imports torch, which only this needs

    largest: dict[str, tuple[int, int]] = {}
    for launch in typical_launches.launches(divmod(architecture, 10)):
        block, shared = largest.get(launch.kernel, (0, 0))
        largest[launch.kernel] = max(block, launch.block), max(shared, launch.shared_bytes)
    return largest


def report(architectures: Sequence[int], only: str = "") -> list[Kernel]:
    """Return all kernels of all sources whose path holds a word."""
    files = [file for file in sorted((ROOT / "csrc").rglob("*.cu")) if only in str(file.relative_to(ROOT))]
    jobs = [(file, architecture) for file in files if file.name != "execute.cu" for architecture in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [kernel for found in pool.map(lambda job: compile_file(*job), jobs) for kernel in found]
    kernels = [k for k in kernels if k.architecture >= TENSOR_CORES or not NEEDS_TENSOR_CORES.search(k.name)]
    asked = {architecture: launched(architecture) for architecture in architectures}
    names = sorted({name for launches in asked.values() for name in launches})
    return [as_launched(kernel, names, asked[kernel.architecture]) for kernel in kernels]


def as_launched(kernel: Kernel, names: Iterable[str], asked: Mapping[str, tuple[int, int]]) -> Kernel:
    """Return a kernel under the name that launches have for it, and with what they ask for on this architecture."""
    for name in names:
        # The compiler also writes default template arguments.
        if name == kernel.name or (name.endswith(">") and kernel.name.startswith(name[:-1] + ", ")):
            block, shared = asked.get(name, (None, 0))
            return replace(kernel, name=name, launched_block=block, dynamic_shared=shared)
    return kernel


def table(kernels: Iterable[Kernel]) -> str:
    """Return a markdown table with a row per kernel; figures of several architectures stand side by side, in order."""
    by_name: dict[str, dict[int, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    architectures = sorted({architecture for group in by_name.values() for architecture in group})
    of = "/".join(f"{architecture / 10:.1f}" for architecture in architectures)
    titles = ["kernel", "threads", "shared bytes", "spills", f"registers on {of}", "blocks", "% of threads"]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    rows += [_row(name, group, architectures) for name, group in sorted(by_name.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, group: Mapping[int, Kernel], architectures: Sequence[int]) -> list[str]:
    launches = [kernel for kernel in group.values() if kernel.launched_block is not None]
    shared = {
        f"{kernel.static_shared} + {kernel.dynamic_shared}" if launches else f"{kernel.static_shared}"
        for kernel in launches or group.values()
    }
    threads = {str(kernel.threads) for kernel in group.values()}
    figures: tuple[Callable[[Kernel], str], ...] = (
        lambda kernel: str(kernel.registers),
        lambda kernel: str(kernel.resident),
        lambda kernel: f"{100 * kernel.occupancy:.0f}",
    )
    cells = ["/".join(figure(group[a]) if a in group else "–" for a in architectures) for figure in figures]
    spills = sum(kernel.spills for kernel in group.values())
    return [
        f"`{name.replace('igm::', '')}`",
        " or ".join(sorted(threads)),
        " or ".join(sorted(shared)),
        str(spills),
        *cells,
    ]


def rewrite(path: Path, content: str) -> None:
    """Put content between the two markers of a file."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise RuntimeError(f"{path}: expected {BEGIN} and then {END}")
    path.write_text(f"{before}{BEGIN}\n{content}\n{END}{after}", encoding="utf-8")


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=120)
    )
    parser.add_argument("--archs", type=int, nargs="+", default=sorted(DEVICES), choices=sorted(DEVICES), metavar="N")
    parser.add_argument("--only", default="", metavar="WORD", help="sources whose path holds this word")
    parser.add_argument("--markdown", action="store_true", help=f"write the table into {DOCUMENT.relative_to(ROOT)}")
    given = parser.parse_args(arguments)
    if shutil.which("nvcc") is None:
        parser.error("no nvcc on PATH; install the CUDA toolkit")
    kernels = report(given.archs, given.only)
    said = table(kernels)
    print(said)
    if given.markdown:
        rewrite(DOCUMENT, said)
        print(f"Written: {DOCUMENT}")
    for kernel in kernels:
        if kernel.complaint is not None:
            print(f"kernel_resources: {'' if kernel.fails else 'note: '}{kernel.complaint}", file=sys.stderr)
    return 1 if any(kernel.fails for kernel in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Registers, shared memory and spills of the compiled kernels; and that the report of them finds what is wrong."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import kernel_resources as tool  # noqa: E402
import typical_launches  # noqa: E402

from igm_fast.ops import nvrtc  # noqa: E402

PLAIN = tool.Kernel("igm::a<1>", 80, 64, spills=0, stack=0, static_shared=2048, threads=256, wanted=4)

PTX = """
.visible .entry _Z1aIfEvT_(
    .param .f32 _Z1aIfEvT__param_0
)
.maxntid 256, 1, 1
.minnctapersm 4
{
.entry b(
)
.maxntid 128
{
"""
SAID = """
ptxas info    : Compiling entry function '_Z1aIfEvT_' for 'sm_80'
ptxas info    : Function properties for _Z1aIfEvT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 47 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem, 3832 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 352 bytes cmem[0]
"""


@pytest.mark.parametrize(
    ("change", "resident"),
    [
        ({}, 4),  # 65536 / (256 · 64)
        ({"registers": 65}, 3),  # 72 per thread
        ({"registers": 32}, 8),  # 2048 threads
        ({"registers": 32, "architecture": 75}, 4),  # 1024 threads
        ({"registers": 32, "architecture": 86}, 6),
        ({"registers": 16, "threads": 32}, 32),  # blocks
        ({"dynamic_shared": 78 * 1024}, 2),  # with a KiB for the driver: 2 · 81 of 164 KiB
        ({"dynamic_shared": 80 * 1024}, 1),
        ({"dynamic_shared": 99 * 1024 - 2048, "architecture": 120}, 1),
        ({"dynamic_shared": 111 * 1024, "architecture": 90}, 2),
    ],
)
def test_blocks_on_a_multiprocessor(change, resident):
    assert replace(PLAIN, **change).resident == resident


def test_occupancy_is_the_share_of_threads():
    assert PLAIN.occupancy == 0.5


def test_what_the_compiler_says_is_read():
    a, b = tool.parse(SAID, PTX, 80)
    assert a == tool.Kernel("a<float>", 80, 47, spills=20, stack=16, static_shared=2048, threads=256, wanted=4)
    assert b == tool.Kernel("b", 80, 8, spills=0, stack=0, static_shared=0, threads=128, wanted=0)
    with pytest.raises(RuntimeError, match="b has no launch bounds; give it IGM_BLOCKS"):
        tool.parse(SAID, PTX.replace(".maxntid 128", ""), 80)


def test_names_are_those_of_launches():
    assert (
        tool.demangle("_ZN3igm14perturb_kernelILb0EfEEvNS_12PerturbationIT0_EE") == "igm::perturb_kernel<false, float>"
    )
    assert tool.demangle("_ZN3igm17norm_final_kernelENS_9NormFinalE") == "igm::norm_final_kernel"


def test_spills_and_too_few_blocks_are_complaints():
    assert PLAIN.complaint is None
    assert "8 bytes of spills with 64 registers" in str(replace(PLAIN, spills=8).complaint)
    few = replace(PLAIN, registers=128)
    assert "2 blocks of 256 threads fit on a multiprocessor with 128 registers" in str(few.complaint)
    assert "expected the 4 of IGM_BLOCKS" in str(few.complaint)
    assert few.fails
    assert not replace(few, architecture=86).fails  # a note: half the shared memory
    assert replace(PLAIN, spills=8, architecture=86).fails
    assert replace(PLAIN, launched_block=256).complaint is None
    assert "launched with blocks of 512, compiled for at most 256" in str(replace(PLAIN, launched_block=512).complaint)


def test_the_table_has_a_row_per_kernel():
    text = tool.table([PLAIN, replace(PLAIN, architecture=90, registers=32), replace(PLAIN, name="igm::b", spills=4)])
    assert text.splitlines()[0].endswith("| registers on 8.0/9.0 | blocks | % of threads |")
    assert "| `a<1>` | 256 | 2048 | 0 | 64/32 | 4/8 | 50/100 |" in text
    assert "| `b` | 256 | 2048 | 4 | 64/– | 4/– | 50/– |" in text
    launched = replace(PLAIN, launched_block=256, dynamic_shared=512)
    assert "| `a<1>` | 256 | 2048 + 512 | 0 |" in tool.table([launched, replace(PLAIN, architecture=75)])


def test_launches_are_found_by_name_whatever_the_compiler_adds_to_it():
    asked = {"igm::a<1>": (256, 512)}
    names = ["igm::a<1>", "igm::b"]
    assert tool.as_launched(PLAIN, names, asked) == replace(PLAIN, launched_block=256, dynamic_shared=512)
    longer = replace(PLAIN, name="igm::a<1, igm::Tiling<1>>")
    assert tool.as_launched(longer, names, asked) == replace(PLAIN, launched_block=256, dynamic_shared=512)
    assert tool.as_launched(longer, names, {}) == PLAIN
    other = replace(PLAIN, name="igm::a<12>")
    assert tool.as_launched(other, names, asked) == other


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_every_kernel_that_is_launched_is_compiled(capability):
    """By its very name: a kernel that plans ask for and no list has would be noticed on a GPU only."""
    launches = typical_launches.launches(capability)
    assert {launch.kernel for launch in launches} <= set(nvrtc.instances())
    units = [launch.kernel for launch in launches if tool.NEEDS_TENSOR_CORES.search(launch.kernel)]
    assert bool(units) == (capability >= (8, 0))
    limit = {7: 64, 8: 163, 9: 227}[capability[0]]
    assert max(launch.shared_bytes for launch in launches) <= limit * 1024


def test_the_document_has_the_place_for_it(tmp_path):
    text = tool.DOCUMENT.read_text()
    assert text.count(tool.BEGIN) == text.count(tool.END) == 1
    copy = tmp_path / "kernels.md"
    copy.write_text(text)
    tool.rewrite(copy, "new")
    assert f"{tool.BEGIN}\nnew\n{tool.END}" in copy.read_text()
    copy.write_text("nothing")
    with pytest.raises(RuntimeError, match="expected <!-- resources:begin"):
        tool.rewrite(copy, "new")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here; install the CUDA toolkit")
def test_no_kernel_spills_and_all_are_as_resident_as_planned(capsys):
    code = tool.main(["--archs", "80"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "perturb_kernel<false, float>" in captured.out

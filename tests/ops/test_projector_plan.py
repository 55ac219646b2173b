"""What the projector's operators launch on a GPU, checked without one."""

from __future__ import annotations

import pytest
import torch

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import native
from igm_fast.ops.precision import full_float32

core = native.module()
FLOAT32, FLOAT64 = native.DTYPE_CODES[torch.float32], native.DTYPE_CODES[torch.float64]


@pytest.mark.parametrize(("size", "pairs"), [(1, 1), (64, 1), (65, 3), (2304, 666), (4608, 2628)])
@pytest.mark.parametrize("count", [1, 5])
def test_inspect_has_a_block_for_every_pair_of_tiles(size, pairs, count):
    tiles, totals = core.inspect_symmetric_launches(0, FLOAT32, count, size, 0, 0)
    assert (tiles.kernel, tiles.grid, tiles.shared_bytes) == ("igm::inspect_tiles_kernel<float>", count * pairs, 0)
    assert (totals.kernel, totals.grid) == ("igm::inspect_final_kernel", count)
    assert core.inspect_symmetric_workspace(count, size) == count * pairs * 5


def test_nothing_to_inspect():
    assert core.inspect_symmetric_launches(0, FLOAT32, 0, 9, 0, 0) == []
    assert core.inspect_symmetric_launches(0, FLOAT32, 3, 0, 0, 0) == []


def test_the_grid_is_64_bits_wide_and_has_an_end():
    assert core.inspect_symmetric_workspace(1000, 70_000) == 1000 * (1094 * 1095 // 2) * 5  # 2^41 entries
    with pytest.raises(ValueError, match=r"inspect_tiles_kernel: grid 2502500000, .* at most 2147483647 blocks"):
        core.inspect_symmetric_workspace(5000, 64_000)
    assert core.panel_qr_workspace(10_000, 1_000_000, 64) == 10_000 * (7813 + 1) * 64 * 64
    with pytest.raises(ValueError, match="panel_multiply_kernel: grid"):
        core.panel_qr_workspace(2**31, 65, 64)


@pytest.mark.parametrize(("columns", "per_thread"), [(1, 1), (16, 1), (17, 4), (64, 4)])
@pytest.mark.parametrize("rows", [64, 65, 128, 129, 4608])
def test_a_round_covers_all_rows(columns, per_thread, rows):
    gram, factor, multiply = core.panel_qr_launches(0, 0, FLOAT64, 3, rows, columns, 7, 0, 0.0, 0)
    instance = f"<{per_thread}, double>"
    assert (gram.kernel, gram.grid) == (f"igm::panel_gram_kernel{instance}", 3 * -(-rows // 128))
    assert (factor.kernel, factor.grid) == ("igm::panel_factor_kernel<double>", 3)
    assert (multiply.kernel, multiply.grid) == (f"igm::panel_multiply_kernel{instance}", 3 * -(-rows // 64))
    assert {launch.block for launch in (gram, factor, multiply)} == {256}
    assert core.panel_qr_workspace(3, rows, columns) == 3 * (-(-rows // 128) + 1) * columns**2


@pytest.mark.parametrize(("rows", "columns"), [(100, 65), (3, 4)])
def test_panels_that_no_block_can_factorise_are_refused(rows, columns):
    with pytest.raises(ValueError, match=f"panels of {rows} rows and {columns} columns, expected at most 64 columns"):
        core.panel_qr_launches(0, 0, FLOAT32, 1, rows, columns, 0, 0, 0.0, 0)


@pytest.mark.parametrize(("kilobytes", "most"), [(48, 77), (64, 89), (99, 112), (227, 112)])
def test_jacobi_takes_what_fits_into_shared_memory(kilobytes, most):
    assert core.jacobi_most(kilobytes * 1024) == most
    (launch,) = core.jacobi_launches(0, 0, 0, 4, most, kilobytes * 1024)
    assert (launch.kernel, launch.grid, launch.block) == ("igm::jacobi_kernel", 4, 512)
    assert launch.shared_bytes == most * (most + 1) * 8 <= kilobytes * 1024
    with pytest.raises(ValueError, match=f"matrices of {most + 1} × {most + 1}, expected at most {most}"):
        core.jacobi_launches(0, 0, 0, 4, most + 1, kilobytes * 1024)


def test_jacobi_has_a_warp_for_every_pair():
    blocks = [core.jacobi_launches(0, 0, 0, 1, size, 65536)[0].block for size in (1, 2, 3, 16, 31, 32, 88)]
    assert blocks == [32, 32, 64, 256, 512, 512, 512]
    assert core.jacobi_launches(0, 0, 0, 0, 5, 65536) == []
    assert core.jacobi_launches(0, 0, 0, 2, 0, 65536) == []


@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
def test_full_float32_puts_the_setting_back(chosen):
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(chosen)
        with full_float32():
            assert getattr(matmul, "fp32_precision", "ieee") in ("ieee", "none")
        assert matmul.allow_tf32 == (chosen != "highest")
        assert torch.get_float32_matmul_precision() == chosen
    finally:
        torch.set_float32_matmul_precision(before)

"""Matrix units, matrix loads, asynchronous copies, collectives of a warp: what the PTX ISA says of them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

LANES = range(32)


# ---- the policies of matrix_unit.cuh ----------------------------------------------------------------------------

# dtype of elements and of sums, and by how much the product of two numbers may be off (relative to |a b|).
HALF = 2.0**-11
UNITS = {
    "UnitHalf<igm::BFloat16>": (torch.bfloat16, torch.float32, 0.0),
    "UnitHalf<igm::Float16>": (torch.float16, torch.float32, 0.0),
    # Both operands are rounded to 11 bits.
    "UnitTf32": (torch.float32, torch.float32, 2 * HALF + HALF**2),
    # a = big + small + rest, |small| <= 2^-11 |a| and |rest| <= 2^-11 |small|: what is left out is small·small and the
    # rests times the other operand.
    "UnitTf32x3": (torch.float32, torch.float32, 3.1 * HALF**2),
    # The left one has no small part.
    "UnitTf32x2": (torch.float32, torch.float32, 1.1 * HALF**2),
    "UnitPlain<float>": (torch.float32, torch.float32, 0.0),
    "UnitPlain<double>": (torch.float64, torch.float64, 0.0),
}


def unit_product(machine: Any, unit: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """aᵀ b of a [depth, 16] and b [depth, 16], by one warp."""
    _, total, _ = UNITS[unit]
    depth, stride = a.shape[0], 16 + 8
    padded = [
        torch.nn.functional.pad(matrix, (0, stride - 16), value=float("nan")).contiguous().view(torch.uint8).numpy()
        for matrix in (a, b)
    ]
    out = torch.full((16, 16), float("nan"), dtype=total)
    sizes = np.array([depth, stride], np.int32).tobytes()
    shared_bytes = sum(matrix.nbytes for matrix in padded)
    machine.run_arrays(f"igm::unit_product_kernel<igm::{unit}>", 1, 32, [*padded, out.numpy()], sizes, shared_bytes)
    return out


@pytest.mark.sanitized
@pytest.mark.parametrize("unit", list(UNITS))
def test_unit_makes_small_integers_exact(machine, unit):
    element, _, _ = UNITS[unit]
    a, b = (torch.randint(-15, 16, (48, 16)).to(element) for _ in range(2))
    for seed in range(3):
        machine.seed = seed
        right = a.double().mT @ b.double()
        assert torch.equal(unit_product(machine, unit, a, b).double(), right)


@pytest.mark.parametrize("depth", [16, 64])
@pytest.mark.parametrize("unit", list(UNITS))
def test_unit_stays_within_its_bound(machine, unit, depth):
    element, total, product_error = UNITS[unit]
    a, b = ((torch.randn(depth, 16, dtype=torch.float64) * 8).to(element) for _ in range(2))
    if unit == "UnitTf32x2":
        a = a.bfloat16().float()
    right = a.double().mT @ b.double()
    size = a.double().abs().mT @ b.double().abs()
    # Each term is off by product_error; each of at most `depth` additions (and the product of UnitPlain, and the two
    # inner roundings of UnitTf32x3) by a unit of the last place of a partial sum, which is at most `size`: the matrix
    # unit of a GPU cuts off instead of rounding.
    bound = (product_error + (depth + 3) * torch.finfo(total).eps) * 1.01 * size
    assert torch.all((unit_product(machine, unit, a, b).double() - right).abs() <= bound)


@pytest.mark.parametrize("unit", ["UnitTf32", "UnitTf32x3", "UnitTf32x2"])
def test_rows_may_lie_along_the_depth_and_columns_be_loaded_by_halves(machine, unit):
    """The same bits as from the other layout."""
    a, b = torch.randn(32, 16).bfloat16().float(), torch.randn(32, 16)
    by_rows = torch.nn.functional.pad(a.mT, (0, 4), value=float("nan")).contiguous()
    columns = torch.nn.functional.pad(b, (0, 8), value=float("nan")).contiguous()
    out = torch.full((16, 16), float("nan"))
    arrays = [by_rows.numpy(), columns.numpy(), out.numpy()]
    shared_bytes = 4 * (by_rows.numel() + columns.numel())
    kernel = f"igm::rows_product_kernel<igm::{unit}>"
    machine.run_arrays(kernel, 1, 32, arrays, np.array([32, 24], np.int32).tobytes(), shared_bytes)
    assert torch.equal(out, unit_product(machine, unit, a, b))


def test_three_products_are_needed(machine):
    a, b = torch.randn(16, 16), torch.randn(16, 16)
    right, size = a.double().mT @ b.double(), a.double().abs().mT @ b.double().abs()
    errors = {
        unit: ((unit_product(machine, unit, a, b).double() - right).abs() / size).max().item()
        for unit in ("UnitTf32", "UnitTf32x3")
    }
    assert errors["UnitTf32x3"] < 2**-21 < 2**-14 < errors["UnitTf32"]


@pytest.mark.parametrize("unit", list(UNITS))
def test_unit_passes_what_is_not_finite(machine, unit):
    element, _, _ = UNITS[unit]
    a, b = torch.ones(16, 16, dtype=element), torch.ones(16, 16, dtype=element)
    a[3, 2], a[5, 7] = float("nan"), float("inf")
    out = unit_product(machine, unit, a, b)
    assert torch.all(torch.isnan(out[2]))
    # Inf times the rest of the other operand, zero, is NaN in two and three products.
    assert torch.all(torch.isnan(out[7]) if unit in ("UnitTf32x3", "UnitTf32x2") else torch.isposinf(out[7]))
    out[2] = out[7] = 16.0
    assert torch.all(out == 16.0)


# ---- single instructions ---------------------------------------------------------------------------------------------


def fragment_positions(shape: str, lane: int) -> list[tuple[int, int]]:
    """Row and column of the elements that a lane holds, in order (PTX ISA, "Matrix Fragments for mma.m16n8k16/k8")."""
    group, thread = lane >> 2, lane % 4
    if shape == "a of 16 bits":
        return [
            (group if i < 2 or 4 <= i < 6 else group + 8, thread * 2 + (i & 1) + (8 if i >= 4 else 0)) for i in range(8)
        ]
    if shape == "b of 16 bits":
        return [(thread * 2 + (i & 1) + (8 if i >= 2 else 0), group) for i in range(4)]
    if shape == "a of tf32":
        return [(group + (8 if i in (1, 3) else 0), thread + (4 if i >= 2 else 0)) for i in range(4)]
    if shape == "b of tf32":
        return [(thread + 4 * i, group) for i in range(2)]
    return [(group + (8 if i >= 2 else 0), thread * 2 + (i & 1)) for i in range(4)]


def fragment(matrix: np.ndarray, shape: str) -> np.ndarray:
    return np.array([[matrix[position] for position in fragment_positions(shape, lane)] for lane in LANES])


@pytest.mark.sanitized
@pytest.mark.parametrize("element", ["igm::BFloat16", "igm::Float16", "igm::Tf32"])
def test_mma_reads_fragments_as_the_ptx_isa_says(machine, element):
    dtype = {"igm::BFloat16": torch.bfloat16, "igm::Float16": torch.float16, "igm::Tf32": torch.float32}[element]
    bits, depth = ("tf32", 8) if dtype == torch.float32 else ("16 bits", 16)
    # Every element differs from the others, so a confusion of two shows.
    a = torch.randperm(16 * depth).reshape(16, depth).to(dtype)
    b = (torch.randperm(depth * 8).reshape(depth, 8) - 60).to(dtype)
    start = torch.randint(-100, 100, (16, 8)).float()
    words = [
        np.ascontiguousarray(fragment(matrix.view(torch.int32 if bits == "tf32" else torch.int16).numpy(), shape))
        for matrix, shape in ((a, f"a of {bits}"), (b, f"b of {bits}"))
    ]
    d = np.ascontiguousarray(fragment(start.numpy(), "d"))
    machine.seed = 2
    machine.run_arrays(f"igm::fragments_kernel<{element}>", 1, 32, [*words, d])
    right = start.double() + a.double() @ b.double()
    np.testing.assert_array_equal(d, fragment(right.numpy().astype(np.float32), "d"))


def test_mma_of_tf32_does_not_see_the_lower_bits(machine):
    ones = np.full((32, 4), 0x3F800FFF, np.uint32)  # 1 and a bit
    d = np.zeros((32, 4), np.float32)
    machine.run_arrays("igm::fragments_kernel<igm::Tf32>", 1, 32, [ones, ones[:, :2].copy(), d])
    np.testing.assert_array_equal(d, 8.0)


@pytest.mark.sanitized
def test_matrix_load_transposes_four_matrices(machine):
    elements = np.arange(1024, dtype=np.uint16)
    first = np.random.default_rng(0).permutation(128)[:32].astype(np.int32) * 8  # any 16-byte-aligned rows
    words = np.empty((32, 4), np.uint32)
    machine.run_arrays("igm::matrix_load_kernel", 1, 32, [elements, first, words])
    for lane in LANES:
        group, thread = lane // 4, lane % 4
        for matrix in range(4):
            rows = [elements[first[8 * matrix + row] :][:8] for row in range(8)]
            assert words[lane, matrix] & 0xFFFF == rows[2 * thread][group]
            assert words[lane, matrix] >> 16 == rows[2 * thread + 1][group]


@pytest.mark.sanitized
@pytest.mark.parametrize("seed", range(3))
def test_copies_land_group_by_group(machine, seed):
    machine.seed = seed
    source = np.arange(256, dtype=np.uint32).reshape(32, 8)
    seen = np.full((2, 32, 8), 7, np.uint32)
    machine.run_arrays("igm::copy_landing_kernel", 1, 32, [source, seen])
    neighbour = np.roll(source, -1, axis=0)
    np.testing.assert_array_equal(seen[0, :, :4], neighbour[:, :4])
    np.testing.assert_array_equal(seen[1, :, :5], neighbour[:, :5])
    np.testing.assert_array_equal(seen[1, :, 5], 0)


def test_wrong_addresses_are_refused(emulated):
    elements, first, words = np.arange(1024, dtype=np.uint16), np.zeros(32, np.int32), np.empty((32, 4), np.uint32)
    first[9] = 4
    with pytest.raises(RuntimeError, match=r"a row that is not 16-byte aligned at matrix_unit\.cu"):
        emulated.run_arrays("igm::matrix_load_kernel", 1, 32, [elements, first, words])
    first[9] = 1 << 20
    with pytest.raises(RuntimeError, match=r"a row outside shared memory at matrix_unit\.cu"):
        emulated.run_arrays("igm::matrix_load_kernel", 1, 32, [elements, first, words])
    room, seen = np.zeros(32 * 8 + 4, np.uint32), np.empty((2, 32, 8), np.uint32)
    source = room[1:] if room.ctypes.data % 16 == 0 else room
    with pytest.raises(RuntimeError, match=r"a source that is not aligned at matrix_unit\.cu"):
        emulated.run_arrays("igm::copy_landing_kernel", 1, 32, [source, seen])


@pytest.mark.sanitized
def test_rounding_to_tf32(machine):
    edges = [0.0, -0.0, 1.0, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23, 3.4e38, 1e-45, 4e-42]
    special = [float("inf"), float("-inf"), float("nan")]
    values = np.concatenate([np.array(edges + special), np.random.default_rng(0).normal(size=999)]).astype(np.float32)
    rounded = np.empty_like(values)
    machine.run_arrays("igm::rounding_kernel", 1, 32, [values, rounded], bytes(ctypes.c_int64(values.size)))
    finite = np.isfinite(values)
    assert np.all(rounded.view(np.uint32)[finite] & 0x1FFF == 0)
    np.testing.assert_array_equal(rounded[~finite], values[~finite])
    assert rounded[3] == 1 + 2**-10  # ties go away from zero
    assert rounded[4] == 1 + 2**-9
    assert rounded[5] == -1 - 2**-10
    assert rounded[6] == 1.0
    # To nearest: the grid of a number's binade is 2^(exponent - 10) wide; subnormal numbers have the lowest one's.
    exponent = np.maximum(np.frexp(values[finite])[1] - 1, -126)
    distance = np.abs(rounded[finite].astype(np.float64) - values[finite])
    assert np.all(distance <= np.ldexp(0.5, exponent - 10))


@pytest.mark.sanitized
@pytest.mark.parametrize("seed", range(3))
def test_what_lanes_tell_one_another(machine, seed):
    machine.seed = seed
    values = np.arange(64, dtype=np.float32)
    told = np.empty((5, 64), np.float32)
    machine.run_arrays("igm::exchange_kernel", 1, 64, [values, told])
    lane, warp = np.arange(64) % 32, np.arange(64) // 32
    np.testing.assert_array_equal(told[0], 32 * warp + (lane ^ 5))
    np.testing.assert_array_equal(told[1], 32 * warp + lane // 2)
    np.testing.assert_array_equal(told[2], warp)
    np.testing.assert_array_equal(told[3], 1)
    np.testing.assert_array_equal(told[4], 0)

"""Which blocks of lag_product.cuh multiply which positions and lags, and what the plan refuses: without a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any
from unittest import mock

import pytest
import torch

from igm_fast.ops import lags, native
from igm_fast.ops.lag_plan import LagPlan, Slice, lag_plan
from igm_fast.ops.patches import Patches, Window, conv_patches

MAX_GRID = 2**31 - 1
TILE, QUARTER = 64, 32


@dataclasses.dataclass(frozen=True)
class Case:
    samples: int
    sizes: tuple[int, int, int]
    window: Window
    channels: int = 64
    groups: int = 1
    dtype: torch.dtype = torch.float32
    multiprocessors: int = 132
    shared_bytes: int = 226 << 10

    @property
    def plan(self) -> LagPlan:
        return lag_plan(self.window, self.sizes, in_row_pairs=False)

    def problem(self) -> tuple[Any, int]:
        depth, height, width = self.sizes
        row = self.groups * self.channels
        strides = (depth * height * width * row, height * width * row, width * row, row)
        return lags._problem.__wrapped__(
            self.window, (self.samples, *self.sizes), strides, self.groups, self.channels, self.channels, self.dtype,
            False, self.multiprocessors, self.shared_bytes,
        )  # fmt: skip


def window(kernel: tuple[int, int, int], padding: int = 1, dilation: int = 1) -> Window:
    around = tuple(padding if size > 1 else 0 for size in reversed(kernel) for _ in range(2))
    return Window(kernel, (1, 1, 1), around, (dilation,) * 3)


SAME = window((1, 3, 3))
CASES = [
    Case(64, (1, 56, 56), SAME),
    Case(64, (1, 7, 7), SAME, 512),
    Case(3, (1, 9, 50), SAME, 40, shared_bytes=98 << 10),
    Case(3, (1, 9, 11), SAME, 40, 2, torch.bfloat16),
    Case(2, (1, 12, 12), window((1, 5, 5), 2)),
    Case(2, (4, 5, 6), window((3, 3, 3), 1)),
    Case(2, (1, 8, 8), window((1, 3, 3), 0)),
    Case(2, (1, 9, 9), window((1, 3, 3), 2, 2)),
    Case(5, (1, 1, 1), SAME, 4),
]


@pytest.mark.parametrize("case", CASES)
def test_every_product_is_made_once_and_blocks_fill_the_grid(case):
    problem, workspace = case.problem()
    items = problem.plan(MAX_GRID)
    terms = case.plan.terms
    assert sorted(term for item in items for term in item["terms"]) == list(range(len(terms)))
    pairs = case.groups * math.ceil(case.channels / TILE) ** 2
    quarters = 0
    for _, batch in itertools.groupby(items, key=lambda item: item["batch"]):
        blocks = units = 0
        members = list(batch)
        for item in members:
            assert (item["first_block"], item["first_unit"], item["first_quarter"]) == (blocks, units, quarters)
            assert 1 <= item["splits"] <= item["chunks"]
            lag_count = len(item["terms"])
            blocks += pairs * item["splits"]
            units += pairs * 4 * lag_count
            quarters += pairs * item["splits"] * 4 * lag_count
        assert blocks == members[0]["blocks"]
        assert members[0]["shared_bytes"] <= case.shared_bytes
    pitch = math.ceil(case.channels / 4) * 4
    assert workspace == quarters * QUARTER**2 + len(terms) * case.groups * case.channels * pitch


@pytest.mark.parametrize("case", CASES)
def test_a_shift_of_rows_is_the_lag(case):
    """The window's digits and an item's shift lead from a position to the one a lag away, over all gaps."""
    problem, _ = case.problem()
    for item in problem.plan(MAX_GRID):
        extent, inside = item["extent"], item["inside"]
        base = item["window"][0]
        for axis in range(3):
            assert 0 <= item["window"][axis + 1] < extent[axis]
            base = base * extent[axis] + item["window"][axis + 1]
        for shift, number in zip(item["shifts"], item["terms"], strict=True):
            term = case.plan.terms[number]
            assert isinstance(term.left, Slice)
            steps = term.shift
            assert base + shift == (steps[0] * extent[1] + steps[1]) * extent[2] + steps[2]
            assert 0 <= shift <= item["rows"] - item["chunk"]
            for axis in range(3):
                held = term.left.held[axis] is not None
                assert inside[axis] == (1 if held else case.sizes[axis])
                assert extent[axis] - inside[axis] >= abs(steps[axis])


@pytest.mark.parametrize("case", CASES)
def test_the_chunks_of_the_left_operand_hold_every_position_once(case):
    problem, _ = case.problem()
    for item in problem.plan(MAX_GRID):
        extent, inside = item["extent"], item["inside"]
        seen = []
        for chunk in range(item["chunks"]):
            run, within = divmod(chunk, item["run_chunks"])
            for row in range(item["chunk"]):
                first = within * item["chunk"] + row
                if first >= item["run_length"]:
                    continue
                line, x = divmod(first, extent[2])
                plane, y = divmod(line, extent[1])
                up, z = divmod(plane, extent[0])
                sample, z = run // item["planes"] + up, run % item["planes"] + z
                if sample < case.samples and (z < inside[0] and y < inside[1] and x < inside[2]):
                    seen.append((sample, z, y, x))
        assert len(seen) == len(set(seen)) == case.samples * math.prod(inside)


def test_a_3x3_kernel_fills_the_registers_with_twelve_lags():
    (whole, *rest) = Case(64, (1, 56, 56), SAME).problem()[0].plan(MAX_GRID)
    assert len(whole["terms"]) == 12
    assert whole["parts"] == 1
    assert sorted(len(item["terms"]) for item in rest) == [1] * 5 + [3] * 4
    assert sum(item["only_lower"] for item in rest) == 5
    assert [item["parts"] for item in rest if len(item["terms"]) == 3] == [1] * 4  # as many warps as lags
    assert all(item["parts"] == 4 or item["chunks"] < 4 for item in rest if len(item["terms"]) == 1)


@pytest.mark.parametrize(("size", "channels"), [(56, 64), (28, 128), (14, 256), (7, 512)])
@pytest.mark.parametrize("multiprocessors", [108, 132])
def test_blocks_keep_all_multiprocessors_busy(size, channels, multiprocessors):
    """The longest item's blocks come in whole waves, or nearly; the short ones fill what is left."""
    case = Case(64, (1, size, size), SAME, channels, multiprocessors=multiprocessors)
    whole = case.problem()[0].plan(MAX_GRID)[0]
    blocks = math.ceil(channels / TILE) ** 2 * whole["splits"]
    assert blocks / (math.ceil(blocks / multiprocessors) * multiprocessors) > 0.75


def test_a_chunk_is_as_long_as_shared_memory_allows():
    """Of 227, 163 and 99 KiB; halves take half the room."""
    for dtype, expected in ((torch.float32, [128, 64, 32]), (torch.bfloat16, [128, 128, 64])):
        chunks = []
        for shared_bytes in (226 << 10, 162 << 10, 98 << 10):
            (first, *_) = Case(8, (1, 56, 56), SAME, dtype=dtype, shared_bytes=shared_bytes).problem()[0].plan(MAX_GRID)
            chunks.append(first["chunk"])
        assert chunks == expected


def test_numbers_beyond_32_bits_are_planned_or_refused():
    many = Case(40_000, (1, 56, 56), SAME)  # 8e9 elements: byte offsets need 35 bits
    assert sum(item["chunks"] for item in many.problem()[0].plan(MAX_GRID)) < 2**31
    with pytest.raises(ValueError, match=r"input of 102760448000 bytes.*at most 34359738352.*fewer samples"):
        Case(128_000, (1, 56, 56), SAME).problem()
    with pytest.raises(ValueError, match=r"positions.*at most 2147483647.*fewer samples"):
        Case(660_000, (1, 56, 56), SAME, channels=4).problem()
    with pytest.raises(ValueError, match="an axis of 600000"):
        Case(1, (1, 1, 600_000), SAME, channels=4).problem()
    with pytest.raises(ValueError, match=r"grid \d+.*at most 16 blocks"):
        CASES[0].problem()[0].plan(16)


def test_what_cannot_be_multiplied_so_is_refused():
    with pytest.raises(ValueError, match="float64"):
        dataclasses.replace(CASES[0], dtype=torch.float64).problem()
    with pytest.raises(ValueError, match="16 bytes"):
        dataclasses.replace(CASES[0], channels=63).problem()
    with pytest.raises(ValueError, match="shared memory"):
        dataclasses.replace(CASES[0], shared_bytes=1 << 10).problem()


def patches_of(shape: tuple[int, ...], kernel: int = 3, stride: int = 1, groups: int = 1, **kwargs: Any) -> Patches:
    x = torch.empty(shape, device="meta", **kwargs)
    return conv_patches("t", 2, x, (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 4, (1, 1), groups)


@pytest.mark.parametrize(
    ("patches", "dtype", "capability", "pays"),
    [
        (patches_of((64, 64, 56, 56)), torch.float32, (9, 0), True),
        (patches_of((64, 128, 28, 28)), torch.float32, (8, 0), True),
        (patches_of((64, 256, 14, 14)), torch.float32, (9, 0), True),
        (patches_of((64, 512, 7, 7), dtype=torch.bfloat16), torch.float32, (9, 0), True),
        (patches_of((64, 64, 56, 56)), torch.float32, (7, 5), False),
        (patches_of((64, 64, 56, 56)), torch.float64, (9, 0), False),
        (patches_of((64, 64, 56, 56), dtype=torch.float64), torch.float32, (9, 0), False),
        (patches_of((64, 64, 56, 56), stride=2), torch.float32, (9, 0), False),
        (patches_of((64, 64, 56, 56), kernel=1), torch.float32, (9, 0), False),
        (patches_of((64, 64, 56, 56), groups=64), torch.float32, (9, 0), False),
    ],
)
def test_lags_are_chosen_where_they_need_fewer_products(patches, dtype, capability, pays):
    with mock.patch.object(native, "capability", return_value=capability):
        assert lags.lags_pay_cuda(patches, dtype) == pays

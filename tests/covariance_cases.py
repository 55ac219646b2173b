"""Cases, float64 expectations and bounds for the covariance operators on a GPU: emulated, and on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import oracles
import torch
from bounds import UNIT, assert_within, gamma
from hypothesis import strategies as st

INPUTS = list(UNIT)
SUMS = [torch.float32, torch.float64]
SAME = ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
POINTWISE = ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bits(*tensors: torch.Tensor) -> list[bytes]:
    return [tensor.cpu().double().numpy().tobytes() for tensor in tensors]  # NaN equals itself


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values (or, expanded, some of them) with other strides; what lies between them is NaN."""
    if layout == "channels_last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "slice":
        padded = [size + 2 for size in values.shape[1:-1]]
        store = values.new_full((values.shape[0], *padded, 2 * values.shape[-1]), float("nan"))
        view = store[(slice(None), *[slice(1, -1)] * len(padded), slice(None, None, 2))]
        return view.copy_(values)
    if layout == "transposed":
        return values.mT.contiguous().mT
    if layout == "expanded":
        return values[:, :1, ..., :1].expand_as(values)
    return values


@dataclass(frozen=True)
class Case:
    """Input of a convolution, its geometry (as operators and oracle take it) and the dtype of the sums."""

    input: torch.Tensor
    geometry: tuple
    sums: torch.dtype = torch.float32

    @property
    def axes(self) -> int:
        return self.input.dim() - 2

    @property
    def patches(self) -> np.ndarray:
        """What the sums see: [positions, groups, d], rounded to the dtype of the outputs before any product."""
        return oracles.conv_patches(self.input.detach().cpu().to(self.sums).double().numpy(), *self.geometry)

    @property
    def groups(self) -> int:
        return self.geometry[-1]

    @property
    def dim(self) -> int:
        return self.input.shape[1] // self.groups * math.prod(self.geometry[0])

    @property
    def arguments(self) -> list:
        return [list(value) for value in self.geometry[:-1]] + [self.groups]


def draw_conv(draw: st.DrawFn) -> tuple[torch.Tensor, tuple]:
    """An input of any layout, and a geometry that fits it."""
    axes = draw(st.sampled_from([2, 2, 3]))
    kernel_size = draw(st.tuples(*[st.integers(1, 4 if axes == 2 else 2)] * axes))
    stride = draw(st.tuples(*[st.integers(1, 3)] * axes))
    dilation = draw(st.tuples(*[st.integers(1, 3)] * axes))
    padding = draw(st.tuples(*[st.integers(0, 4 if axes == 2 else 2)] * (2 * axes)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    span = [dilation[axis] * (kernel_size[axis] - 1) + 1 for axis in range(axes)]
    around = [padding[i] + padding[i + 1] for i in range(0, 2 * axes, 2)][::-1]
    sizes = [max(1, span[axis] - around[axis]) + draw(st.integers(0, 7)) for axis in range(axes)]
    shape = (draw(st.integers(0, 3)), groups * draw(st.sampled_from([1, 2, 3, 7])), *sizes)
    values = randn(*shape, seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from(INPUTS)))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "slice", "transposed", "expanded"]))
    return laid_out(values, layout), (kernel_size, stride, padding, dilation, groups)


@st.composite
def conv_cases(draw: st.DrawFn) -> Case:
    return Case(*draw_conv(draw), draw(st.sampled_from(SUMS)))


def draw_rows(draw: st.DrawFn) -> torch.Tensor:
    """An input of a linear layer of 1 to 5 dimensions: a slice, in any order of them, expanded, with NaN around it."""
    shape = draw(st.lists(st.integers(0, 4) | st.integers(1, 4), min_size=1, max_size=5))
    shape[-1] = draw(st.integers(0, 12))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 2])] * len(shape)))
    order = draw(st.permutations(range(len(shape))) | st.just(range(len(shape))))
    dtype = draw(st.sampled_from(INPUTS))
    window = tuple(slice(None, size * step, step) for size, step in zip(shape, steps, strict=True))
    stored = [shape[axis] * steps[axis] + 1 for axis in order]
    view = torch.full(stored, float("nan"), dtype=dtype).permute(list(np.argsort(list(order))))[window]
    view.copy_(randn(*shape, seed=draw(st.integers(0, 99)), dtype=dtype))
    expanded = draw(st.sampled_from([None, None, *range(len(shape))]))
    if expanded is not None and shape[expanded] > 1:
        view = view.narrow(expanded, 0, 1).expand(shape)
    return view


@st.composite
def rows_cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.dtype]:
    return draw_rows(draw), draw(st.sampled_from(SUMS))


def as_conv(rows: torch.Tensor, sums: torch.dtype) -> Case:
    """The same rows as one image of height 1, for the oracle."""
    flat = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
    return Case(flat.T[None, :, None], POINTWISE, sums)


# Several tiles of 64 and of 128 rows, several splits of 128 positions; (1, 1) twice so that channels_last is 1×1, too.
LARGE = [
    ((2, 35, 14, 13), POINTWISE),
    ((1, 152, 5, 4), POINTWISE),
    ((1, 17, 5, 60), ((2, 2), (2, 1), (0, 1, 1, 0), (1, 1), 1)),
    ((3, 24, 9, 8), SAME),
    ((1, 46, 4, 5), ((3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 2)),
    ((2, 10, 9, 9), ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 10)),
    ((1, 4, 3, 41), ((1, 20), (1, 1), (9, 10, 0, 0), (1, 2), 1)),
    ((1, 2, 6, 7, 9), ((3, 2, 3), (1, 2, 1), (1, 1, 1, 0, 1, 2), (2, 1, 1), 1)),
]

# ---- bounds ----------------------------------------------------------------------------------------------------------

# What a product of two numbers x, y may be off by, relative to |x y|:
# - three products of TF32 instead of one: x = big + small + rest with |rest| ≤ 2⁻²²|x| (11 bits each), so x y loses two
#   rests and small·small, 3·2⁻²² together; the matrix unit truncates while it adds eight products up, 2⁻²³ for each of
#   the three instructions that a product goes through, twice: 8·2⁻²² together are plenty.
# - TF32: both factors are rounded to 11 bits.
# - products of halves are exact; sums as above.
TF32X3 = 8 * 2.0**-22
TF32 = 2.1 * 2.0**-11 + TF32X3


def per_product(sums: torch.dtype, tf32: bool) -> float:
    return 0.0 if sums == torch.float64 else TF32 if tf32 else TF32X3


def assert_covariance(case: Case, actual: torch.Tensor, alpha: float, start: float, tf32: bool = False) -> None:
    """One addition per position and a few per partial sum, besides the products."""
    patches = case.patches
    rows = len(patches)
    expected = start + alpha * np.einsum("pgi,pgj->gij", patches, patches)
    magnitude = abs(start) + abs(alpha) * np.einsum("pgi,pgj->gij", np.abs(patches), np.abs(patches))
    bound = (gamma(2 * rows + 8, case.sums) + gamma(rows, torch.float64) + per_product(case.sums, tf32)) * magnitude
    result = actual.double().cpu().numpy()
    assert np.array_equal(result, result.swapaxes(1, 2), equal_nan=True)
    assert_within(result, expected, bound)


def assert_sketch(
    case: Case, results: list[torch.Tensor], omega: torch.Tensor, alpha: float, tf32: bool = False
) -> None:
    """Sums that began at 1, 2 and 3: two products of that kind for the sketch, float64 sums for the moments."""
    patches, given = case.patches, omega.detach().double().cpu().numpy()
    rows, _, dim = patches.shape
    sketch, total, trace = (result.double().cpu().numpy() for result in results)
    expected = 1 + alpha * np.einsum("pgi,pgj,gjk->gik", patches, patches, given, optimize=True)
    magnitude = np.einsum("pgi,pgj,gjk->gik", np.abs(patches), np.abs(patches), np.abs(given), optimize=True)
    relative = gamma(2 * (rows + dim) + 16, case.sums) + gamma(rows + dim, torch.float64)
    assert_within(sketch, expected, (relative + 2.1 * per_product(case.sums, tf32)) * (1 + abs(alpha) * magnitude))

    sums, squares = 2 + alpha * patches.sum(0), 3 + alpha * (patches**2).sum((0, 2))
    magnitudes = 2 + abs(alpha) * np.abs(patches).sum(0), 3 + abs(alpha) * (patches**2).sum((0, 2))
    moments = zip((total, trace), (sums, squares), magnitudes, (rows, rows * dim), strict=True)
    for actual, value, size, terms in moments:
        bound = 1.01 * UNIT[case.sums] * np.abs(value) + 2 * gamma(terms + 5, torch.float64) * size
        assert_within(actual, value, bound)

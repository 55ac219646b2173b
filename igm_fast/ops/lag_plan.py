"""Which products of single positions make up the exact covariance of a convolution: no patch is ever formed.

Taps i and j of the kernel see positions that lie δ = δⱼ − δᵢ apart. Of the block C_ij = Σ_p x[p + δᵢ] x[p + δⱼ]ᵀ only
the ends of the sum depend on more than δ, so that

    C_ij = R(δ) − (terms of the positions at the border that no patch puts under taps i and j)
    R(δ) = Σ_q x[q] x[q + δ]ᵀ over all positions of the input, x = 0 outside

and R(−δ) = R(δ)ᵀ. A 3×3 kernel needs 13 products of C×C over the input for its 81 blocks, and thin ones for the border
by inclusion and exclusion over the axes: a term holds some axes at one coordinate and sums over the others. With a
stride s the input falls into sᵃˣᵉˢ phases x_φ[r] = x[s·r + φ], each tap reads one of them, and R is between phases.

Where the kernel is three high, rows are taken in pairs (a₀, a₁), with b₀ … b₃ the rows that they meet: the bilinear
algorithms F(3,2) and F(2,2) of Winograd (*Arithmetic Complexity of Computations*, 1980) make R at the vertical lags
0, 1, 2 of four products of half the length, and at 1, 2 of three:

    m₁ = a₀(b₀ − b₂)ᵀ   m₂ = (a₀ + a₁)(b₁ + b₂)ᵀ   m₃ = (a₀ − a₁)(b₂ − b₁)ᵀ   m₄ = a₁(b₁ − b₃)ᵀ
    R(0) = m₁ + (m₂ + m₃)/2   R(1) = (m₂ − m₃)/2   R(2) = (m₂ + m₃)/2 − m₄
    n₁ = a₀(b₂ − b₁)ᵀ   n₂ = (a₀ + a₁) b₂ᵀ   n₃ = a₁(b₂ − b₃)ᵀ      R(1) = n₂ − n₁   R(2) = n₂ − n₃

9 products over the input instead of 13. Only sums of two are multiplied, so that rounding grows by a small factor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from igm_fast.ops.patches import Window

Triple = tuple[int, int, int]  # one number per axis


@dataclass(frozen=True)
class Slice:
    """One phase of the input, with some axes held at a coordinate (None: all of them)."""

    phase: Triple
    held: tuple[int | None, int | None, int | None] = (None, None, None)


Operand = str | Slice  # sums of the rows of pairs by name, or a part of the input


@dataclass(frozen=True)
class Term:
    """The product Σ_q left[q] right[q + shift]ᵀ; ``shift`` counts along the axes that are not held."""

    left: Operand
    right: Operand
    shift: Triple


Weighted = list[tuple[float, Term]]


@dataclass(frozen=True)
class LagPlan:
    """Which products are made, and which of them each block of C adds up.

    Attributes:
        terms: the products, each once.
        first: sources of the pair of taps (i, j): first[i·taps + j] … first[i·taps + j + 1] − 1.
        code: of a source: 2·term, + 1 where the product is transposed.
        weight: of a source.
        positions: over how many positions of a sample all products sum.
    """

    terms: tuple[Term, ...]
    first: Tensor  # [taps² + 1] int64
    code: Tensor  # int64
    weight: Tensor  # float64
    positions: int


@dataclass(frozen=True)
class _Pair:
    """Two taps: which phases they read, how far apart, and the coordinates of the first that count."""

    phases: tuple[Triple, Triple]
    lag: Triple
    inside: tuple[range, ...]  # per axis: both taps inside of the input
    seen: tuple[range, ...]  # per axis: where a patch puts the first tap


@lru_cache(maxsize=256)
def lag_plan(window: Window, sizes: Triple, in_row_pairs: bool = True) -> LagPlan:
    """Return the plan for inputs [N, C, *sizes] under a window.

    Without row pairs all products are of plain positions and all weights 1 or -1, whatever the window.
    """
    taps = list(itertools.product(*(range(size) for size in window.kernel_size)))
    index: dict[Term, int] = {}
    first, code, weight = [0], [], []
    for i, j in itertools.product(taps, taps):
        swapped = j < i  # only one of the pairs (i, j) and (j, i) has products of its own
        pair = _pair(window, sizes, j, i) if swapped else _pair(window, sizes, i, j)
        # Where the kernel is larger than the input, some taps are never inside of it together.
        whole = _in_row_pairs(pair.lag) if in_row_pairs and pairs_rows(window) else _whole(pair)
        for factor, term in whole + _border(pair) if all(pair.inside) else []:
            code.append(2 * index.setdefault(term, len(index)) + swapped)
            weight.append(factor)
        first.append(len(code))
    positions = sum(_positions(term, window, sizes) for term in index)
    weights = torch.tensor(weight, dtype=torch.float64)
    return LagPlan(tuple(index), torch.tensor(first), torch.tensor(code), weights, positions)


def pairs_rows(window: Window) -> bool:
    """Return whether rows are taken in pairs."""
    return window.stride == (1, 1, 1) and window.kernel_size[:2] == (1, 3) and window.dilation[1] == 1


def phase_sizes(window: Window, sizes: Sequence[int]) -> Triple:
    """Return depth, height and width of the largest phase."""
    depth, height, width = (math.ceil(size / stride) for size, stride in zip(sizes, window.stride, strict=True))
    return depth, height, width


def gaps(window: Window, depth: int) -> Triple:
    """Return how many zeros follow each row and each plane of a phase, so that no shift runs into the next one."""
    above, beside = (math.ceil((window.span(axis) - 1) / window.stride[axis]) for axis in (1, 2))
    return 0, above if depth > 1 else 0, beside


def _pair(window: Window, sizes: Triple, i: Sequence[int], j: Sequence[int]) -> _Pair:
    phases, lags, inside, seen = [], [], [], []
    for axis, stride in enumerate(window.stride):
        before, after = window.around(axis)
        outputs = (sizes[axis] + before + after - window.span(axis)) // stride + 1
        # Output o puts the tap at o·stride + at: at place o + offset of the phase.
        (offset, phase), (other, other_phase) = (
            divmod(tap[axis] * window.dilation[axis] - before, stride) for tap in (i, j)
        )
        lag = other - offset
        length, other_length = (-(-(sizes[axis] - p) // stride) for p in (phase, other_phase))
        phases.append((phase, other_phase))
        lags.append(lag)
        inside.append(range(max(0, -lag), min(length, other_length - lag)))
        seen.append(range(offset, offset + outputs))
    (z, z2), (y, y2), (x, x2) = phases
    return _Pair(((z, y, x), (z2, y2, x2)), (lags[0], lags[1], lags[2]), tuple(inside), tuple(seen))


def _whole(pair: _Pair) -> Weighted:
    """R(δ)."""
    left, right = map(Slice, pair.phases)
    return [(1.0, Term(left, right, pair.lag))]


def _in_row_pairs(lag: Triple) -> Weighted:
    """R(δ) by the formulas of the module's docstring, where pairs_rows() holds; lag (0, y, x)."""
    y, shift = lag[1], (0, 0, lag[2])
    if lag[2] < 0:  # the vertical lag is 1 or 2 here
        products = {1: (-1.0, Term("a0", "b2-b1", shift)), 2: (-1.0, Term("a1", "b2-b3", shift))}
        return [(1.0, Term("a0+a1", "b2", shift)), products[y]]
    m2, m3 = Term("a0+a1", "b1+b2", shift), Term("a0-a1", "b2-b1", shift)
    return {
        0: [(1.0, Term("a0", "b0-b2", shift)), (0.5, m2), (0.5, m3)],
        1: [(0.5, m2), (-0.5, m3)],
        2: [(0.5, m2), (0.5, m3), (-1.0, Term("a1", "b1-b3", shift))],
    }[y]


def _border(pair: _Pair) -> Weighted:
    """What R(δ) has too much for one pair of taps, with alternating signs for positions left out along several axes."""
    choices: list[list[int | None]] = [
        [None, *(q for q in inside if q not in seen)] for inside, seen in zip(pair.inside, pair.seen, strict=True)
    ]
    terms: Weighted = []
    for z, y, x in itertools.product(*choices):
        count = sum(q is not None for q in (z, y, x))
        if count:
            (dz, dy, dx), (left, right) = pair.lag, pair.phases
            moved = (None if z is None else z + dz, None if y is None else y + dy, None if x is None else x + dx)
            shift = (dz if z is None else 0, dy if y is None else 0, dx if x is None else 0)
            terms.append((-1.0 if count % 2 else 1.0, Term(Slice(left, (z, y, x)), Slice(right, moved), shift)))
    return terms


def _positions(term: Term, window: Window, sizes: Triple) -> int:
    padded = [size + gap for size, gap in zip(phase_sizes(window, sizes), gaps(window, sizes[0]), strict=True)]
    if isinstance(term.left, str):
        return padded[0] * math.ceil(sizes[1] / 2) * padded[2]
    return math.prod(size for size, q in zip(padded, term.left.held, strict=True) if q is None)

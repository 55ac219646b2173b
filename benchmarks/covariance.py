"""What do activation covariances cost, exact and as a sketch, beside unfold and library calls?

Exact: C += Σ u uᵀ over the patches u of a layer's input. Sketch: Y += Σ u (uᵀΩ), Ω with 64 + 10 columns (32 where
d = 64); for a convolution XΩ is a convolution and Xᵀ(XΩ) its weight gradient, which is what the "two library calls"
are. Ours also sums u and |u|² for every sketch; the peers do not, so the comparison leans towards them. All add to
their result, as over the batches of a data set. flops are those of one triangle: a smarter way may need fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

import igm_fast.ops  # noqa: F401 - registers torch.ops.igm_fast
from benchmarks.agreement import Agree, close_to
from benchmarks.timing import Effort, Function, Record, compare

QUESTION = "activation covariance of a layer, exact and as a sketch, against unfold+mm, einsum and library calls"

SKETCH_COLUMNS = 64 + 10
# Sums of up to 25,088 products in float32, blocked by every library: about 1e-6 in practice.
TOLERANCE = 1e-5
BATCH = 8
# unfold+mm has two forms; each layer gets the faster: one product over a copy with all samples side by side for maps
# smaller than this, else one product per sample.
_SMALL_MAP = 10

AddTo = Callable[[Tensor], Tensor]

_ops = torch.ops.igm_fast


@dataclass(frozen=True)
class Layer:
    """A convolution's geometry and input size; a linear layer has kernel 0."""

    channels: int
    size: int  # height and width, or rows of a linear layer
    kernel: int = 3
    stride: int = 1

    @property
    def label(self) -> str:
        """Return what tables show."""
        if self.kernel == 0:
            return f"Linear {self.channels}, {self.size} rows"
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}×{self.kernel}{stride} C{self.channels} H{self.size}"


LAYERS = (
    Layer(64, 56),
    Layer(128, 28),
    Layer(256, 14),
    Layer(512, 7),
    Layer(64, 56, kernel=1),
    Layer(64, 56, stride=2),
    Layer(512, 4096, kernel=0),
)
QUICK_LAYERS = (Layer(8, 10), Layer(8, 10, stride=2), Layer(16, 64, kernel=0))


@dataclass(frozen=True)
class Ways:
    """Ways to the sums of one input; each adds to the tensor that it is given, and returns it."""

    full: AddTo
    unfold_mm: AddTo
    einsum: AddTo
    sketch: AddTo
    library_sketch: AddTo
    forward: Function
    patches: Tensor  # [d, m], float64


def run(effort: Effort) -> Iterator[Record]:
    """Measure every layer, exact and sketch."""
    for layer in QUICK_LAYERS if effort.scale == "quick" else LAYERS:
        generator = torch.Generator().manual_seed(0)
        shape = (layer.size, layer.channels) if layer.kernel == 0 else (BATCH, layer.channels, layer.size, layer.size)
        x = torch.randn(shape, generator=generator).relu()
        dim = layer.channels * max(layer.kernel, 1) ** 2
        columns = min(SKETCH_COLUMNS, dim // 2)
        omega = torch.linalg.qr(torch.randn(dim, columns, generator=generator))[0].contiguous()
        with torch.no_grad():
            ways = _linear(layer, x, omega) if layer.kernel == 0 else _convolution(layer, x, omega)
            yield from _measure(layer, x, omega, ways, effort)


def _measure(layer: Layer, x: Tensor, omega: Tensor, ways: Ways, effort: Effort) -> Iterator[Record]:
    dim, columns = omega.shape
    u, count = ways.patches, ways.patches.shape[1]

    def over_batches(way: AddTo, width: int) -> Function:
        out = torch.zeros(dim, width)
        return lambda: way(out)

    yield from compare(
        layer.label,
        ours={"covariance full": over_batches(ways.full, dim)},
        peers={"unfold+mm": over_batches(ways.unfold_mm, dim), "views+einsum": over_batches(ways.einsum, dim)},
        references={"forward pass": ways.forward},
        agree=close_to(u @ u.T, TOLERANCE),
        effort=effort,
        bytes_moved=x.nbytes + 2 * 4 * dim * dim,
        flops=dim * (dim + 1) * count,
    )
    yield from compare(
        layer.label,
        ours={"covariance sketch": over_batches(ways.sketch, columns)},
        peers={
            "two library calls": over_batches(ways.library_sketch, columns),
            "unfold+mm (exact)": over_batches(ways.unfold_mm, dim),
        },
        references={"forward pass": ways.forward},
        agree=_sketches_agree(u, omega),
        effort=effort,
        bytes_moved=x.nbytes + 3 * 4 * dim * columns,
        flops=4 * dim * columns * count,
    )


def _convolution(layer: Layer, x: Tensor, omega: Tensor) -> Ways:
    kernel, stride, padding = layer.kernel, layer.stride, layer.kernel // 2
    geometry = ([kernel] * 2, [stride] * 2, [padding] * 4, [1, 1], 1)
    dim, columns = omega.shape
    filters = omega.T.reshape(columns, layer.channels, kernel, kernel).contiguous()
    weight = torch.ones(layer.channels, layer.channels, kernel, kernel)
    total, trace = torch.zeros(1, dim), torch.zeros(1)

    def patches(input: Tensor) -> Tensor:
        return functional.unfold(input, kernel, padding=padding, stride=stride)  # [N, d, positions]

    def full(out: Tensor) -> Tensor:
        _ops.conv2d_covariance(out[None], x, *geometry)
        return out

    def unfold_mm(out: Tensor) -> Tensor:
        if layer.size // stride < _SMALL_MAP:
            u = patches(x).transpose(0, 1).flatten(1)
            return out.addmm_(u, u.T)
        for u in patches(x):
            out.addmm_(u, u.T)
        return out

    def einsum(out: Tensor) -> Tensor:
        padded = functional.pad(x, [padding] * 4)
        views = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)  # [N, C, H, W, kh, kw], not a copy
        return out.add_(torch.einsum("nchwij,nehwkl->cijekl", views, views).reshape(dim, dim))

    def sketch(out: Tensor) -> Tensor:
        _ops.conv2d_covariance_sketch(out[None], total, trace, x, omega[None], *geometry)
        return out

    def two_convolutions(out: Tensor) -> Tensor:
        y = functional.conv2d(x, filters, stride=stride, padding=padding)
        gradient = conv2d_weight(x, list(filters.shape), y, stride=stride, padding=padding)
        return out.add_(gradient.reshape(columns, dim).T)

    def forward() -> Tensor:
        return functional.conv2d(x, weight, stride=stride, padding=padding)

    u = patches(x.double()).transpose(0, 1).flatten(1)
    return Ways(full, unfold_mm, einsum, sketch, two_convolutions, forward, u)


def _linear(layer: Layer, x: Tensor, omega: Tensor) -> Ways:
    weight = torch.ones(layer.channels, layer.channels)
    total, trace = torch.zeros(layer.channels), torch.zeros(())

    def full(out: Tensor) -> Tensor:
        _ops.linear_covariance(out, x)
        return out

    def sketch(out: Tensor) -> Tensor:
        _ops.linear_covariance_sketch(out, total, trace, x, omega)
        return out

    return Ways(
        full,
        unfold_mm=lambda out: out.addmm_(x.T, x),  # nothing to unfold here
        einsum=lambda out: out.add_(torch.einsum("mc,me->ce", x, x)),
        sketch=sketch,
        library_sketch=lambda out: out.addmm_(x.T, x @ omega),
        forward=lambda: functional.linear(x, weight),
        patches=x.double().T,
    )


def _sketches_agree(u: Tensor, omega: Tensor) -> Agree:
    """The exact matrix is compared through what the sketch would see of it."""
    check = close_to(u @ (u.T @ omega.double()), TOLERANCE)
    return lambda results: check(
        {name: result if result.shape == omega.shape else result @ omega for name, result in results.items()}
    )

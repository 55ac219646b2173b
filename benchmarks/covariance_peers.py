"""The code that one would use for activation covariances without igm_fast: torch alone, einconv, nngeometry.

Every function takes a layer and its input, does beforehand what need not be done for every batch, and returns what adds
the layer's sums of that input to a tensor, and returns it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

AddTo = Callable[[Tensor], Tensor]
Layer = nn.Conv2d | nn.Linear

# unfold+mm has two forms; each layer gets the faster: one product over a copy with all samples side by side for maps
# smaller than this, else one product per sample.
_SMALL_MAP = 100
CURVLINOPS = (
    "needs backpack-for-pytorch, whose torchvision brings another torch; it forms the factor as nngeometry does, by "
    "unfold and one product"
)


def unfold(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the patches of a convolution's input, ``[N, d, positions]``."""
    return functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


def unfold_mm(layer: Layer, x: Tensor) -> AddTo:
    """Exact sums by unfold and matrix products."""
    if isinstance(layer, nn.Linear):
        return lambda out: out.addmm_(x.T, x)  # nothing to unfold here
    shape = functional.conv2d(x[:1], layer.weight, None, layer.stride, layer.padding).shape

    def add(out: Tensor) -> Tensor:
        if shape[2] * shape[3] < _SMALL_MAP:
            u = unfold(layer, x).transpose(0, 1).flatten(1)
            return out.addmm_(u, u.T)
        for u in unfold(layer, x):
            out.addmm_(u, u.T)
        return out

    return add


def mean_unfold_mm(layer: Layer, x: Tensor) -> AddTo:
    """Sums of the batch's mean input, as in the authors' code."""
    return lambda out: unfold_mm(layer, x.mean(dim=0, keepdim=True))(out)


def two_products(layer: Layer, x: Tensor, omega: Tensor) -> AddTo:
    """The sketch by library calls: a convolution and its weight gradient, or two matrix products."""
    if isinstance(layer, nn.Linear):
        return lambda out: out.addmm_(x.T, x @ omega)
    filters = omega.T.reshape(omega.shape[1], layer.in_channels, *layer.kernel_size).contiguous()

    def add(out: Tensor) -> Tensor:
        y = functional.conv2d(x, filters, None, layer.stride, layer.padding)
        gradient = conv2d_weight(x, list(filters.shape), y, layer.stride, layer.padding)
        return out.add_(gradient.reshape(filters.shape[0], -1).T)

    return add


def libraries(layer: Layer, x: Tensor) -> tuple[dict[str, AddTo], dict[str, str]]:
    """Return exact sums by the libraries that are here, and why others are not."""
    if isinstance(layer, nn.Linear):
        return {}, {}
    ways, missing = dict[str, AddTo](), {"curvlinops": CURVLINOPS}
    if importlib.util.find_spec("einconv") and torch.backends.opt_einsum.is_available():
        ways["einconv"] = _einconv(layer, x)
    else:  # without opt_einsum torch contracts from left to right, 3 to 60 times slower
        missing["einconv"] = "einconv or opt_einsum is not installed: pip install igm_fast[bench]"
    if importlib.util.find_spec("nngeometry"):
        ways["nngeometry"] = _nngeometry(layer, x)
    else:
        missing["nngeometry"] = "not installed: pip install --no-deps nngeometry (its torchvision brings another torch)"
    return ways, missing


def _einconv(layer: nn.Conv2d, x: Tensor) -> AddTo:
    """KFC's input factor as a simplified tensor network; the network is built beforehand, for the peer's good."""
    from einconv.expressions import convNd_kfc

    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    equation, operands, (_, *shape) = convNd_kfc.einsum_expression(x, layer.kernel_size, **options)
    samples = len(x)  # it divides by them
    return lambda out: out.add_(torch.einsum(equation, *operands).reshape(shape), alpha=samples)


def _nngeometry(layer: nn.Conv2d, x: Tensor) -> AddTo:
    """The input factor of its KFAC representation, without the rest of it."""
    from nngeometry.backend.torch_hooks.grads import Conv2dJacobianFactory
    from nngeometry.layercollection import Conv2dLayer

    described = Conv2dLayer(layer.in_channels, layer.out_channels, layer.kernel_size, bias=False)

    def add(out: Tensor) -> Tensor:
        Conv2dJacobianFactory.kfac_xx(out, layer, described, x, None)
        return out

    return add

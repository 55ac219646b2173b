"""The launches that the CUDA operators make of a ResNet-18's layers and weights, listed without a GPU.

The operators' CUDA functions run on CPU tensors with a recorder in place of what starts kernels. Only sizes matter:
no kernel runs, and what torch itself computes on the way is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import igm_fast.ops  # noqa: F401  defines the operators
from igm_fast.layers import conv_geometry, observable_layers
from igm_fast.models import ResNet18
from igm_fast.ops import native
from igm_fast.ops.library import CUDA_KERNELS

SAMPLES, PICTURE, PLAIN_CHANNELS = 2, 224, 64
COLUMNS = 80  # of a sketch
BLOCK, STEPS = 40, 2  # of truncated_eigh's start; more columns do not change a kernel's block
RANK = 32  # of projectors

Call = tuple[str, tuple[Any, ...], dict[str, Any]]  # operator, arguments, options


def launches(capability: tuple[int, int]) -> list[Any]:
    """Return all launches on a device of this compute capability."""
    recorded: list[Any] = []
    with (
        mock.patch.object(native, "launch", lambda _op, made, _device: recorded.extend(made)),
        mock.patch.object(native, "capability", return_value=capability),
        torch.no_grad(),
    ):
        for op, arguments, options in calls():
            CUDA_KERNELS[op](*arguments, **options)
    return recorded


def calls() -> Iterator[Call]:
    """Yield operators with their arguments."""
    network = ResNet18()
    yield from _statistics(network)
    yield from _projectors()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        yield from _updates([torch.zeros_like(weight, dtype=dtype) for weight in network.parameters()])


def _statistics(network: nn.Module) -> Iterator[Call]:
    for layer, size in _layers(network):
        yield from _of_layer(layer, size, torch.float32, torch.bfloat16, torch.float16)
        torch.backends.cuda.matmul.allow_tf32 = True
        yield from _of_layer(layer, size, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = False
        if layer.in_channels == PLAIN_CHANNELS:  # float64, and what float32 is on a device without matrix units
            yield from _of_layer(layer, size, torch.float64)
    x, d = torch.zeros(64, 512), 512
    yield "linear_covariance", (torch.zeros(d, d), x), {}
    image = [torch.zeros(d, COLUMNS), torch.zeros(d), torch.zeros(())]
    yield "linear_covariance_sketch", (*image, x, torch.zeros(d, COLUMNS)), {}


def _of_layer(layer: nn.Conv2d, size: int, *dtypes: torch.dtype) -> Iterator[Call]:
    d, geometry = layer.weight[0].numel(), conv_geometry(layer)
    for dtype in dtypes:
        x = torch.zeros(SAMPLES, layer.in_channels, size, size, dtype=dtype)
        wide = torch.promote_types(dtype, torch.float32)
        yield "conv2d_covariance", (torch.zeros(1, d, d, dtype=wide), x, *geometry), {}
        omega = torch.zeros(1, d, COLUMNS, dtype=wide)
        image = [torch.zeros_like(omega), torch.zeros(1, d, dtype=wide), torch.zeros(1, dtype=wide)]
        yield "conv2d_covariance_sketch", (*image, x, omega, *geometry), {}


def _layers(network: nn.Module) -> Iterator[tuple[nn.Conv2d, int]]:
    """Every geometry once, with the height of its input."""
    sizes: dict[object, tuple[nn.Conv2d, int]] = {}

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        size = inputs[0].shape[-1]
        sizes.setdefault((layer.in_channels, layer.kernel_size, layer.stride, size), (layer, size))

    handles = [layer.register_forward_pre_hook(hook) for layer in observable_layers(network).values()]
    network.eval()(torch.zeros(1, 3, PICTURE, PICTURE))
    for handle in handles:
        handle.remove()
    yield from sizes.values()


def _projectors() -> Iterator[Call]:
    for d in (64, 576, 2304):
        matrices, start = torch.eye(d).expand(1, d, d).contiguous(), torch.randn(1, d, BLOCK)
        yield "inspect_symmetric", (matrices,), {}
        yield "truncated_eigh", (matrices, start, STEPS), {}


def _updates(weights: list[Tensor]) -> Iterator[Call]:
    def like() -> list[Tensor]:
        return [torch.zeros_like(weight) for weight in weights]

    def states() -> list[Tensor]:
        wide = torch.promote_types(weights[0].dtype, torch.float32)
        return [torch.zeros_like(weight, dtype=wide) for weight in weights]

    for adaptive in (False, True):
        yield "sam_perturb", (like(), like(), torch.zeros(1), like(), 0.05), {"adaptive": adaptive}
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    dims = [weight[0].numel() if weight.dim() == 4 else 0 for weight in weights]
    bases = [torch.zeros(d, min(RANK, d // 8), dtype=wide) for d in dims]
    sigmas = [torch.zeros(basis.shape[1], dtype=wide) for basis in bases]
    complements = [0.99] * len(weights)
    for T in ((bases, sigmas, complements), ([torch.zeros(0, dtype=wide)] * len(weights),) * 2 + (complements,)):
        for momentum in (0.0, 0.9):
            buffers = states() if momentum else []
            yield "projected_sgd_step", (like(), buffers, like(), like(), *T), {"lr": 0.1, "momentum": momentum}
        options = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
        yield "projected_adamw_step", (like(), states(), states(), like(), like(), *T), options

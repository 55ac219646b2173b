"""Moving a model's weights and bringing them back to the bit; directions that suit the size of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from igm_fast.data.seeds import derived_seed


@contextmanager
def weights_kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, tensors may be changed in place; afterwards, whatever happened, they hold the same bits as before."""
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)


def filter_normalised(module: nn.Module, *seed: object) -> dict[str, Tensor]:
    """Return a random direction in which each filter is as long as the module's own, by the parameter's name.

    For filter j of a convolution, or row j of a linear layer's weight: δ_j ← δ_j/‖δ_j‖ · ‖ω_j‖ with Gaussian δ; zero
    for parameters of one dimension (biases, batch norm). H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, *Visualizing
    the Loss Landscape of Neural Nets*, NeurIPS 2018, section 4.

    Gaussians depend on the seed and on the parameter's name and shape alone: models with equal layers get directions
    that differ in length only.
    """
    directions = {}
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            directions[name] = torch.zeros_like(parameter)
            continue
        generator = torch.Generator().manual_seed(derived_seed("direction", *seed, name))
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).flatten(1)
        lengths = parameter.detach().double().cpu().flatten(1).norm(dim=1, keepdim=True)
        directions[name] = (drawn / drawn.norm(dim=1, keepdim=True) * lengths).view(parameter.shape).to(parameter)
    return directions


@torch.no_grad()
def place(
    parameters: Mapping[str, Tensor], origin: Mapping[str, Tensor], *steps: tuple[float, Mapping[str, Tensor]]
) -> None:
    """Set parameters to origin + Σ factor · direction, over the pairs (factor, direction)."""
    for name, parameter in parameters.items():
        moved = origin[name].clone()
        for factor, direction in steps:
            moved.add_(direction[name], alpha=factor)
        parameter.copy_(moved)

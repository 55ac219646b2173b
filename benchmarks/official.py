"""The compute-P stage of the authors' code (njustkmg/IJCAI25-IGM, 2025), written anew from a description of it.

Forward hooks on every Linear and Conv2d take the mean over the batch of what entered the layer, unfold it where it is a
map, and add Σ u uᵀ of its patches to the layer's matrix. Afterwards every matrix goes through ``torch.svd`` with all
singular vectors, and T = U exp(−τ(S − Smin)/(Smax − Smin)) Uᵀ.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from igm_fast.layers import observable_layers


class BatchMeanHooks:
    """``with BatchMeanHooks(network) as hooks: …`` forward passes; ``hooks.sums`` is layer → ``[d, d]``."""

    def __init__(self, network: nn.Module) -> None:
        self.layers = observable_layers(network)
        self.sums: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> BatchMeanHooks:
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def observe(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            u = inputs[0].mean(dim=0, keepdim=True)
            if isinstance(layer, nn.Conv2d):
                u = functional.unfold(u, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].T
            C = u.T @ u
            if name in self.sums:
                self.sums[name] += C
            else:
                self.sums[name] = C

        return observe


def projectors(sums: Mapping[str, Tensor], tau: float) -> dict[str, Tensor]:
    """Return layer → T ``[d, d]``."""
    result = {}
    for name, C in sums.items():
        U, S, _ = torch.svd(C, some=False)
        result[name] = U @ torch.diag(torch.exp(-tau / (S[0] - S[-1]) * (S - S[-1]))) @ U.T
    return result

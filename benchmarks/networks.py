"""The networks whose layers are measured: their inputs, made up, and what enters each layer when they run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.layers import observable_layers
from igm_fast.models import ResNet18


@dataclass(frozen=True)
class Source:
    """What a branch of the audio-video model reads: a spectrogram (one channel) or pictures (three)."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def size(self) -> str:
        """Return such as ``224²`` or ``257×188``."""
        return f"{self.height}²" if self.height == self.width else f"{self.height}×{self.width}"


VIDEO = Source("video", 3, 224, 224)
AUDIO = Source("audio", 1, 257, 188)


def settled(network: nn.Module, x: Tensor) -> nn.Module:
    """Return the network in evaluation mode, batch norm with this batch's statistics: activations stay in range."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = None  # the average over all batches seen, of which this is the only one
    with torch.no_grad():
        network.train()(x)
    return network.eval()


def encoder(source: Source, width: int = 512) -> ResNet18:
    """Return a ResNet-18 for this source, untrained."""
    torch.manual_seed(0)
    return ResNet18(source.channels, width)


def batch(source: Source, samples: int, seed: int = 0) -> Tensor:
    """Return inputs ``[samples, C, H, W]``, smooth as pictures are: coarse noise enlarged, and a little fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(samples, source.channels, 12, 12, generator=generator)
    smooth = functional.interpolate(coarse, size=(source.height, source.width), mode="bicubic")
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


def layer_inputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the input of every Linear and convolution in a forward pass of x, by the layer's name, in order."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs[name] = given[0]

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in observable_layers(network).items()]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return inputs


class Replay:
    """A copy of a network whose layers run their hooks and compute nothing; called with layer → input of that layer.

    It shows what statistics cost beyond the forward passes that bring the inputs.
    """

    def __init__(self, network: nn.Module) -> None:
        self.module = copy.deepcopy(network)
        self.layers = observable_layers(self.module)
        for layer in self.layers.values():
            layer.forward = _nothing  # on this instance; nn.Module runs the hooks around it

    def __call__(self, inputs: Mapping[str, Tensor]) -> None:
        """Call the layers in order."""
        for name, x in inputs.items():
            self.layers[name](x)


def _nothing(x: Tensor) -> Tensor:
    return x


def distinct(network: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the first layer of each geometry and input shape → all layers that share them."""
    layers = observable_layers(network)
    groups: dict[object, list[str]] = {}
    for name, x in inputs.items():
        layer = layers[name]
        geometry = (layer.kernel_size, layer.stride) if isinstance(layer, nn.Conv2d) else ()
        groups.setdefault((x.shape[1:], geometry), []).append(name)
    return {names[0]: names for names in groups.values()}

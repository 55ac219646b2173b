"""Which layers have an activation covariance, how their inputs become patches, and which projector fits which layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from igm_fast.names import nearest

if TYPE_CHECKING:
    from igm_fast.projector import Projector

MatchRule = Literal["name", "shape", "in_features"]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
OBSERVABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Geometry(NamedTuple):
    """A convolution's patches, in the order in which ``torch.ops.igm_fast.conv2d_covariance`` takes them.

    Two axes (height, width), or three for a Conv3d; sequences are images of height 1.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]  # left, right, top, bottom[, front, back]
    dilation: tuple[int, ...]
    groups: int


def observable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the Linear and Conv1d to Conv3d layers inside a module by name; the module itself has the name ``""``."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, OBSERVABLE)}


def in_dimension(layer: nn.Module) -> tuple[int, int]:
    """Return ``(groups, d)``: how many input sides a layer has, and the length of what one output position sees.

    d is in_features, or C/groups·kernel size of a convolution. With groups, each has a covariance of its own.

    Raises:
        TypeError: no Linear, Conv1d, Conv2d or Conv3d.
        ValueError: a lazy layer that has not seen an input yet.
    """
    if not isinstance(layer, OBSERVABLE):
        way_out = ""
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            way_out = ": the weight of a transposed convolution meets single inputs, not patches of them. Leave it out"
        raise TypeError(
            f"{type(layer).__name__} has no input covariance; expected Linear, Conv1d, Conv2d or Conv3d{way_out}"
        )
    if isinstance(layer.weight, nn.UninitializedParameter):
        raise ValueError(f"{type(layer).__name__} has no weight yet; run one forward pass first")
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return groups, layer.weight[0].numel()


def conv_geometry(layer: Convolution) -> Geometry:
    """Return the geometry of a convolution's patches, for inputs as :func:`conv_input` returns them."""
    axes = len(layer.kernel_size)
    flat = (1,) if axes == 1 else ()
    sides = _sides(layer) if layer.padding_mode == "zeros" else [0] * (2 * axes)
    padding = (*sides, 0, 0) if axes == 1 else tuple(sides)
    return Geometry(
        (*flat, *layer.kernel_size), (*flat, *layer.stride), padding, (*flat, *layer.dilation), layer.groups
    )


def conv_input(layer: Convolution, x: Tensor) -> Tensor:
    """Return what a convolution reads as ``[N, C, (D,) H, W]``, padded already unless it pads with zeros."""
    if x.dim() == 1 + len(layer.kernel_size):  # one sample without a batch dimension
        x = x[None]
    if layer.padding_mode != "zeros":
        x = nn.functional.pad(x, _sides(layer), mode=layer.padding_mode)
    return x if x.dim() > 3 else x.unsqueeze(2)


def _sides(layer: Convolution) -> list[int]:
    """Padding as ``torch.nn.functional.pad`` orders it: last axis first, before and after."""
    sides: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        if layer.padding == "valid":
            sides += [0, 0]
        elif layer.padding == "same":  # an odd sum puts the extra element behind, as torch does
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [int(layer.padding[axis])] * 2
    return sides


# ---- matching --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerMatching:
    """Which layer of a network is projected by which projector; ``print`` it.

    Attributes:
        pairs: weights and their projectors, for :meth:`igm_fast.SAM.set_projectors`.
        matched: layer → name of its projector.
        unmatched: layer with parameters → why it is not projected. Biases never are.
        unused: projectors that fit no layer.
    """

    pairs: list[tuple[nn.Parameter, Projector]]
    matched: dict[str, str]
    unmatched: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [f"{layer or '(the module)'} ← {name or '(the module)'}" for layer, name in self.matched.items()]
        lines += [f"{layer or '(the module)'}: not projected: {why}" for layer, why in self.unmatched.items()]
        return "\n".join([*lines, *(f"projector {name}: not used" for name in self.unused)])


def match_layers(
    module: nn.Module, projectors: Mapping[str, Projector], by: MatchRule | Mapping[str, str] = "name"
) -> LayerMatching:
    """Return which projector acts on which layer of a module.

    A projector fits a layer whose input side has its groups and its d; the number of outputs does not matter.

    Args:
        module: the network that trains.
        projectors: by layer of the network that was observed.
        by: ``"name"``: the layer of the same name. ``"shape"``: the layers of equal weight shape, the first with the
            first and so on (the authors' code pairs by shape too). ``"in_features"``: the same with equal groups and d.
            Or a mapping from layer to name of the projector, which must all fit.

    Raises:
        ValueError: an unknown rule; an explicit pair that does not exist or does not fit; ``by="shape"`` for projectors
            that know no weight shape.

    Warns:
        UserWarning: nothing fits.
    """
    layers = observable_layers(module)
    if isinstance(by, str):
        if by not in get_args(MatchRule):
            raise ValueError(f"match_layers: {nearest(by, get_args(MatchRule), 'rule')}")
        partners = {
            layer: name
            for layer, name in _proposed(layers, projectors, by)
            if name in projectors and _fits(layers[layer], projectors[name])
        }
    else:
        partners = dict(by)
        _check_explicit(layers, projectors, partners)
    pairs: list[tuple[nn.Parameter, Projector]] = []
    matched: dict[str, str] = {}
    unmatched: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, part in module.named_modules():
        if not list(part.parameters(recurse=False)):
            continue
        if name not in partners:
            unmatched[name] = _reason(name, part, projectors, by)
        elif id(part.weight) in owners:
            unmatched[name] = f"its weight is that of {owners[id(part.weight)]}, which is projected"
        else:
            owners[id(part.weight)] = name
            matched[name] = partners[name]
            assert isinstance(part.weight, nn.Parameter)
            pairs.append((part.weight, projectors[partners[name]]))
    unused = [name for name in projectors if name not in matched.values()]
    if not pairs:
        warnings.warn(
            f"match_layers: none of {len(projectors)} projectors fits a layer of {type(module).__name__} by {by}; "
            "nothing will be projected. Print the result to see why, or give a mapping {layer: projector}",
            stacklevel=2,
        )
    return LayerMatching(pairs, matched, unmatched, unused)


def _fits(layer: nn.Module, projector: Projector) -> bool:
    return in_dimension(layer) == (projector.groups, projector.dim)


def _proposed(
    layers: Mapping[str, nn.Module], projectors: Mapping[str, Projector], by: MatchRule
) -> Iterator[tuple[str, str]]:
    """Layers and projectors by a rule: the n-th layer of a kind gets the n-th projector of that kind, if there is."""
    if by == "name":
        yield from ((layer, layer) for layer in layers)
        return
    waiting: dict[object, Iterator[str]] = {}
    for kind in {_kind_of_projector(name, projector, by) for name, projector in projectors.items()}:
        waiting[kind] = iter([n for n, p in projectors.items() if _kind_of_projector(n, p, by) == kind])
    for layer, part in layers.items():
        name = next(waiting.get(_kind_of_layer(part, by), iter(())), None)
        if name is not None:
            yield layer, name


def _kind_of_layer(layer: nn.Module, by: MatchRule) -> object:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape) if by == "shape" else in_dimension(layer)


def _kind_of_projector(name: str, projector: Projector, by: MatchRule) -> object:
    if by == "in_features":
        return (projector.groups, projector.dim)
    if projector.weight_shape is None:
        raise ValueError(
            f"match_layers: projector {name!r} knows no weight shape, expected one for by='shape'. Make projectors "
            "from an ActivationCovariance, or match by 'name' or 'in_features'"
        )
    return projector.weight_shape


def _check_explicit(
    layers: Mapping[str, nn.Module], projectors: Mapping[str, Projector], partners: Mapping[str, str]
) -> None:
    for layer, name in partners.items():
        if layer not in layers:
            raise ValueError(f"match_layers: {nearest(layer, layers, 'layer')}")
        if name not in projectors:
            raise ValueError(f"match_layers: {nearest(name, projectors, 'projector')}")
        if not _fits(layers[layer], projectors[name]):
            groups, dim = in_dimension(layers[layer])
            raise ValueError(
                f"match_layers: projector {name!r} has {projectors[name].groups} group(s) of d={projectors[name].dim}, "
                f"expected {groups} of d={dim} for layer {layer!r}. Leave the pair out, or choose another projector"
            )


def _reason(name: str, part: nn.Module, projectors: Mapping[str, Projector], by: object) -> str:
    if not isinstance(part, OBSERVABLE):
        return f"{type(part).__name__} has no input covariance"
    if by == "name" and name in projectors:
        groups, dim = in_dimension(part)
        other = projectors[name]
        return f"its partner has d={other.dim} ({other.groups} groups), this layer d={dim} ({groups} groups)"
    return "no partner"


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight, for :func:`match_layers` by shape."""
    assert isinstance(layer.weight, torch.Tensor)
    return tuple(layer.weight.shape)

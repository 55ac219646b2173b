"""Geometry of layers against torch's own convolutions, and the rules by which projectors find their layers."""

from __future__ import annotations

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from igm_fast.layers import conv_geometry, conv_input, in_dimension, match_layers, observable_layers
from igm_fast.projector import flat_projectors


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's note on its speed
@given(
    axes=st.sampled_from([1, 2, 3]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    groups=st.sampled_from([1, 2]),
    batch=st.booleans(),
)
def test_patches_times_weights_are_the_convolution(axes, kernel, stride, dilation, padding, mode, groups, batch):
    """With the geometry and input of a layer, the oracle's patches and a product give what the layer gives."""
    if padding == "same":
        stride = 1
    make = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    layer = make(4, 6, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode)
    x = torch.randn(*([2] if batch else []), 4, *([9, 8, 7][:axes]))
    patches = oracles.conv_patches(conv_input(layer, x).double().numpy(), *conv_geometry(layer))
    _, dim = in_dimension(layer)
    ours = torch.einsum("pgd,god->pgo", torch.from_numpy(patches).float(), layer.weight.view(groups, -1, dim))
    theirs = layer(x if batch else x[None]).flatten(2).movedim(1, 2)  # [N, positions, out]
    torch.testing.assert_close(ours.flatten(1), theirs.flatten(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolutions_are_refused_with_a_reason(make):
    message = "expected Linear, Conv1d, Conv2d or Conv3d: the weight of a transposed convolution meets single inputs"
    with pytest.raises(TypeError, match=f"{make.__name__} has no input covariance; {message}"):
        in_dimension(make(2, 2, 3))


def network(middle: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, middle, 3),
        nn.BatchNorm2d(middle),
        nn.Conv2d(middle, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.Linear(8, 5),
    )


def projectors_of(module: nn.Module):
    matrices = {}
    for name, layer in observable_layers(module).items():
        groups, dim = in_dimension(layer)
        x = torch.randn(groups, 2 * dim, dim)
        matrices[name] = x.mT @ x
    return flat_projectors(matrices)


def test_observable_layers_and_dimensions():
    layers = observable_layers(network())
    assert {name: in_dimension(layer) for name, layer in layers.items()} == {
        "0": (1, 27),
        "2": (2, 36),
        "4": (1, 8),
        "5": (1, 8),
    }
    assert list(observable_layers(nn.Linear(2, 2))) == [""]
    with pytest.raises(
        TypeError, match="BatchNorm2d has no input covariance; expected Linear, Conv1d, Conv2d or Conv3d"
    ):
        in_dimension(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="run one forward pass first"):
        in_dimension(nn.LazyLinear(3))


def test_match_by_name():
    target, projectors = network(12), projectors_of(network())
    matching = match_layers(target, projectors)
    assert matching.matched == {"0": "0", "4": "4", "5": "5"}
    assert [p is target.get_submodule(n).weight for (p, _), n in zip(matching.pairs, "045", strict=True)] == [True] * 3
    assert matching.unmatched == {
        "1": "BatchNorm2d has no input covariance",
        "2": "its partner has d=36 (2 groups), this layer d=54 (2 groups)",
    }
    assert matching.unused == ["2"]
    text = str(matching)
    for part in ("0 ← 0", "1: not projected: BatchNorm2d", "projector 2: not used"):
        assert part in text


def test_match_by_in_features_pairs_in_order():
    target = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2), nn.Linear(8, 1))
    projectors = projectors_of(network())
    matching = match_layers(target, projectors, by="in_features")
    assert matching.matched == {"1": "4", "2": "5"}
    assert matching.unmatched["3"] == "no partner"
    assert matching.unused == ["0", "2"]


def test_match_by_shape_needs_the_shape():
    target = nn.Sequential(nn.Linear(8, 5), nn.Linear(8, 8))
    projectors = projectors_of(network())
    with pytest.raises(ValueError, match="projector '0' knows no weight shape, expected one for by='shape'"):
        match_layers(target, projectors, by="shape")
    from igm_fast.covariance import ActivationCovariance

    source = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5))
    with torch.no_grad(), ActivationCovariance(source) as covariance:
        source(torch.randn(50, 8))
    matching = match_layers(target, flat_projectors(covariance), by="shape")
    assert matching.matched == {"0": "1", "1": "0"}


def test_explicit_pairs_must_fit():
    target, projectors = network(), projectors_of(network())
    assert match_layers(target, projectors, by={"5": "4"}).matched == {"5": "4"}
    with pytest.raises(ValueError, match=r"unknown layer '55'\. Did you mean '5'"):
        match_layers(target, projectors, by={"55": "4"})
    with pytest.raises(ValueError, match="unknown projector 'x'"):
        match_layers(target, projectors, by={"5": "x"})
    with pytest.raises(ValueError, match=r"projector '0' has 1 group\(s\) of d=27, expected 1 of d=8 for layer '5'"):
        match_layers(target, projectors, by={"5": "0"})
    with pytest.raises(ValueError, match=r"unknown rule 'nam'\. Did you mean 'name'"):
        match_layers(target, projectors, by="nam")


def test_tied_weights_are_projected_once():
    target = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    target[1].weight = target[0].weight
    projectors = projectors_of(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    matching = match_layers(target, projectors)
    assert len(matching.pairs) == 1
    assert matching.unmatched == {"1": "its weight is that of 0, which is projected"}


def test_nothing_matched_is_said():
    with pytest.warns(UserWarning, match="none of 4 projectors fits a layer of Linear by name"):
        matching = match_layers(nn.Linear(3, 3), projectors_of(network()))
    assert matching.pairs == []

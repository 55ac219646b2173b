"""Activation covariances and projectors of the large encoders' blocks: every layer is seen, matched and projected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from tiny_bert import CLS, HIDDEN, SEP, TOKENS, save_tiny_bert
from torch import Tensor, nn

from igm_fast import ActivationCovariance, flat_projectors, match_layers
from igm_fast.layers import conv_geometry, observable_layers
from igm_fast.models.bert import Bert
from igm_fast.models.i3d import Mixed
from igm_fast.models.resnet import Bottleneck

Case = tuple[Callable[[], nn.Module], Tensor, set[str]]

LINEAR_OF_BERT = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)


@pytest.fixture(params=["resnet50", "i3d", "bert"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """How the encoder is made, an input, and the names of its layers."""
    generator = torch.Generator().manual_seed(3)
    if request.param == "resnet50":
        names = {"conv1", "conv2", "conv3", "downsample.0"}
        return lambda: Bottleneck(6, 4, 2), torch.rand(3, 6, 9, 8, generator=generator), names
    if request.param == "i3d":
        names = {f"{branch}.conv3d" for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")}
        return lambda: Mixed(6, 3, (2, 3), (2, 2), 2), torch.rand(2, 6, 3, 5, 4, generator=generator), names
    save_tiny_bert(tmp_path)
    rows = torch.randint(4, TOKENS, (5, 9), generator=generator)
    rows[:, 0], rows[:, -1] = CLS, SEP
    names = {f"bert.encoder.layer.{index}.{name}" for index in range(2) for name in LINEAR_OF_BERT}
    return lambda: Bert(tmp_path, HIDDEN, TOKENS, 9), rows, names


def covariance(encoder: nn.Module, x: Tensor) -> tuple[ActivationCovariance, dict[str, Tensor]]:
    """Exact second moments, and what entered each layer."""
    entered: dict[str, Tensor] = {}
    layers = observable_layers(encoder)
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: entered.update({name: inputs[0].detach()}))
        for name, layer in layers.items()
    ]
    with torch.no_grad(), ActivationCovariance(encoder.eval(), estimator="full") as statistics:
        encoder(x)
    for handle in handles:
        handle.remove()
    return statistics, entered


def test_every_layer_has_the_second_moment_of_what_enters_it(case: Case) -> None:
    make, x, names = case
    encoder = make()
    statistics, entered = covariance(encoder, x)
    assert set(statistics) == names
    for name, layer in observable_layers(encoder).items():
        given = entered[name].double().numpy()
        if isinstance(layer, nn.Linear):
            expected = oracles.linear_covariance(given.reshape(-1, given.shape[-1]))
            count = given.size // given.shape[-1]
        else:
            expected = oracles.conv_covariance(given, *conv_geometry(layer))[0]
            count = int(statistics.count(name))
        # float32 sums of `count` products each: their roundings are at most count · 2⁻²³ of the largest entry.
        limit = count * 2.0**-23 * np.abs(expected / count).max()
        np.testing.assert_allclose(statistics[name].double().numpy(), expected / count, rtol=0, atol=limit)


def test_equal_encoders_match_by_name_and_t_acts(case: Case) -> None:
    make, x, names = case
    observed, trains = make(), make()
    statistics, _ = covariance(observed, x)
    projectors = flat_projectors(statistics, tau=0.4)
    matching = match_layers(trains, projectors)
    assert matching.matched == {name: name for name in names}
    assert matching.unused == []
    assert len(matching.pairs) == len(names)
    trains.train()(x).square().sum().backward()
    for name in names:
        weight, projector = trains.get_submodule(name).weight, projectors[name]
        expected = oracles.igm_projector(statistics[name].double().numpy(), 0.4)
        gradient = weight.grad.double().flatten(1).numpy()
        projected = projector.apply(weight.grad).double().flatten(1).numpy()
        # The certificate in operator norm, and float32's own rounding over d products.
        norm = np.linalg.norm(gradient)
        limit = (projector.error_bound + gradient.shape[1] * 2.0**-23) * norm
        assert np.linalg.norm(projected - gradient @ expected) <= limit
        assert np.linalg.norm(projected - gradient) > 2 * limit or norm == 0  # T is not the identity

"""The loss around a run's weights: directions, values, and weights that come back to the bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import run_cases
import torch
import training_cases
from torch import nn

from igm_fast.analyses.directions import filter_normalised, place, weights_kept
from igm_fast.analyses.landscape import branch_losses, measure
from igm_fast.analyses.loaded_run import LoadedRun, fixed_samples, load_run
from igm_fast.methods.late import Late
from igm_fast.training.config import TrainConfig
from igm_fast.training.loop import build_model


def waves_run() -> LoadedRun:
    """An untrained network with batch norm whose statistics are those of no data."""
    data, config, method = training_cases.waves(), TrainConfig(data="waves", width=8), Late()
    model = build_model(method, data, config).eval()
    return LoadedRun(None, config, method, data, model, "best", torch.device("cpu"))


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_filters_of_a_direction_are_as_long_as_the_weights_own():
    model = waves_run().model
    direction = filter_normalised(model, 0, 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert not direction[name].any()
            continue
        lengths = direction[name].flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, parameter.detach().flatten(1).norm(dim=1), rtol=1e-5, atol=0)


def test_equal_layers_get_the_same_gaussian_and_other_seeds_another():
    one, other = nn.Linear(5, 3), nn.Linear(5, 3)
    a, b = filter_normalised(one, 0), filter_normalised(other, 0)
    torch.testing.assert_close(
        nn.functional.normalize(a["weight"], dim=1), nn.functional.normalize(b["weight"], dim=1), rtol=0, atol=1e-6
    )
    assert not torch.allclose(a["weight"], filter_normalised(one, 1)["weight"])


def test_a_filter_of_zeros_stays_where_it_is():
    layer = nn.Linear(5, 3)
    nn.init.zeros_(layer.weight)
    assert not filter_normalised(layer, 0)["weight"].any()


@pytest.mark.parametrize("reestimate", [False, True])
def test_weights_and_statistics_come_back_to_the_bit(reestimate):
    loaded = waves_run()
    before = bits(loaded.model)
    found = measure(loaded, np.array([-1.0, 0.3, 1.0]), fixed_samples(loaded, "test", 20), reestimate=reestimate)
    assert np.ptp(found.plane["fused"]) > 1e-3  # it did move
    for name, value in bits(loaded.model).items():
        assert torch.equal(value, before[name]), name
    norms = [m for m in loaded.model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert all(m.momentum == 0.1 and not m.training for m in norms)


def test_weights_come_back_after_an_exception_too():
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()

    def move_and_fail() -> None:
        with weights_kept([layer.weight]):
            place({"weight": layer.weight}, {"weight": before}, (2.0, {"weight": torch.ones(2, 2)}))
            torch.testing.assert_close(layer.weight.detach(), before + 2)
            raise KeyError

    with pytest.raises(KeyError):
        move_and_fail()
    assert torch.equal(layer.weight, before)


def test_values_are_the_losses_of_a_network_with_the_moved_weights(trained):
    loaded = load_run(trained["igm"]).double()
    samples = fixed_samples(loaded, "test", 30)
    at = np.array([-0.5, 0.0, 0.75])
    found = measure(loaded, at, samples, seed=5, slices=2)
    x, labels = samples[0].inputs["zernike"].numpy(), samples[0].labels.numpy()
    directions = [filter_normalised(loaded.model, 5, number) for number in range(2)]
    names = [
        f"branches.zernike.{layer}.{kind}"
        for layer in ("encoder.fc1", "encoder.fc2", "head")
        for kind in ("weight", "bias")
    ]
    steps = [[direction[name].numpy() for name in names] for direction in directions]
    weights = run_cases.weights(loaded, "zernike")
    for j, beta in enumerate(at):
        for i, alpha in enumerate(at):
            moved = [w + alpha * d + beta * e for w, d, e in zip(weights, *steps, strict=True)]
            assert found.plane["zernike"][j, i] == pytest.approx(run_cases.loss(moved, x, labels), rel=1e-12)
    np.testing.assert_allclose(found.slices["zernike"][0], found.plane["zernike"][1], rtol=1e-12)
    np.testing.assert_allclose(found.slices["zernike"][1], found.plane["zernike"][:, 1], rtol=1e-12)


def test_one_modality_can_move_alone(trained):
    loaded = load_run(trained["igm"])
    found = measure(loaded, np.array([0.0, 1.0]), fixed_samples(loaded, "test", 30), moves="fourier", slices=1)
    assert np.ptp(found.plane["fourier"]) > 0
    assert np.ptp(found.plane["zernike"]) == 0
    with pytest.raises(ValueError, match="unknown modality 'fourrier'"):
        measure(loaded, np.zeros(1), [], moves="fourrier")


def test_reestimated_statistics_are_the_mean_over_training_batches():
    loaded = waves_run()
    samples = fixed_samples(loaded, "train", 24, batch_size=12)
    found = measure(loaded, np.array([0.0]), samples, reestimate=True, slices=1)
    twin = copy.deepcopy(loaded.model)
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm1d)]
    for layer in norms:
        layer.momentum = 1.0  # keeps the statistics of the last batch
    (batch,) = fixed_samples(loaded, "train", 24)  # measured in one batch of up to 512
    twin.train()
    twin(batch.inputs)
    expected = branch_losses(LoadedRun(None, *_rest(loaded, twin)), samples)
    np.testing.assert_allclose([found.plane[b][0, 0] for b in loaded.branches], expected, rtol=1e-5)


def _rest(loaded: LoadedRun, model: nn.Module):
    return loaded.config, loaded.method, loaded.data, model.eval(), "best", loaded.device


def test_several_runs_share_one_figure(trained, tmp_path):
    finding = run_cases.analyze(
        "landscape", [trained["igm"], trained["joint"]], tmp_path, "--points", "5", "--samples", "60", "--split", "test"
    )
    rows = run_cases.read(tmp_path / "landscape.csv")
    assert len(rows) == 2 * 4 * 25
    middle = [float(r["loss"]) for r in rows if (r["branch"], r["alpha"], r["beta"]) == ("fused", "0", "0")]
    for name, loss in zip(("igm", "joint"), middle, strict=True):
        assert f"{name}, seed 3: {loss:.3f} at the weights" in finding.sentence
        loaded = load_run(trained[name])
        assert loss == pytest.approx(branch_losses(loaded, fixed_samples(loaded, "test", 60))[-1], rel=1e-6)


def test_a_run_of_one_modality_has_a_landscape_too(trained, tmp_path):
    finding = run_cases.analyze("landscape", [trained["unimodal"]], tmp_path, "--points", "3", "--samples", "30")
    assert "Loss of zernike" in finding.sentence

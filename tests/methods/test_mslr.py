"""MSLR: the quotient of accuracies, what it does to a step, and the rates that a run logs."""

from __future__ import annotations

import numpy as np
import pytest
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from rich.console import Console
from torch.nn import functional
from training_cases import digits, rows, waves

from igm_fast.methods import together
from igm_fast.methods.mslr import Mslr
from igm_fast.training import loop, run_folder
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import make_fabric
from igm_fast.training.progress import TrainingProgress

THREE = together(["fourier", "zernike", "morphological"], 10)[0]
TWO = together(["left", "right"], 10)[0]


def measured(left, right):
    return {"left": {"accuracy": left}, "right": {"accuracy": right}, "fused": {"accuracy": 0.0}}


def test_rates_follow_the_accuracy():
    method, history = Mslr(window=2, rates="right=0.5"), np.array([[0.2, 0.8], [0.4, 0.6], [0.6, 0.7], [0.3, 0.0]])
    for epoch, (left, right) in enumerate(history):
        expected = np.array([1.0, 0.5])
        if epoch > 2:  # the last accuracy and two before it
            expected *= history[epoch - 1] / history[epoch - 3 : epoch - 1].mean(axis=0)
        factors = method.learning_rate_factors(TWO)
        assert list(factors) == ["left", "right"]
        np.testing.assert_allclose(list(factors.values()), expected, rtol=1e-12)
        method.end_epoch(TWO, epoch, measured(left, right), None)
    again = Mslr(window=2, rates="right=0.5")
    again.load_state_dict(method.state_dict())
    assert again.learning_rate_factors(TWO) == method.learning_rate_factors(TWO)
    assert method.learning_rate_factors(TWO)["right"] == 0.0  # it has lost everything: it waits


def test_nothing_to_compare_with_means_the_common_rate():
    method = Mslr(window=1)
    for accuracy in (0.0, 0.5):
        method.end_epoch(TWO, 0, measured(accuracy, accuracy), None)
    assert set(method.learning_rate_factors(TWO).values()) == {1.0}
    keep = Mslr(window=1, rule="keep", rates=" left = 2.0 ")
    for accuracy in (0.1, 0.5):
        keep.end_epoch(TWO, 0, measured(accuracy, accuracy), None)
    assert keep.learning_rate_factors(TWO) == {"left": 2.0, "right": 1.0}


def test_groups_are_the_modalities():
    data, method = digits(), Mslr(rule="keep", rates="zernike=0.25")
    model, context = workshop(method, data, THREE)
    groups = context.optimizer.param_groups
    assert [group["modality"] for group in groups] == list(THREE.modalities)
    for group, name in zip(groups, THREE.modalities, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in model.branch(name).parameters()]
    for group in groups:
        group["lr"] = 0.1 * method.learning_rate_factors(THREE)[group["modality"]]
    batch, before = batch_of(data), snapshot(model)

    def loss(network):
        features = network.features(double_inputs(batch))
        return functional.cross_entropy(sum(network.branch(n).head(h) for n, h in features.items()), batch.labels)

    gradients = autograd_gradients(model, loss)
    method.step(THREE, batch, 0.0, context)
    updates = {name: (0.025 if ".zernike." in name else 0.1) * g for name, g in gradients.items()}
    assert_moved(model, before, updates)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_logs_and_uses_the_rates(tmp_path, monkeypatch, optimizer):
    seen = []
    step = Mslr.step

    def watched(self, stage, batch, progress, context):
        seen.append({group.get("modality"): group["lr"] for group in context.optimizer.param_groups})
        return step(self, stage, batch, progress, context)

    monkeypatch.setattr(Mslr, "step", watched)
    config = TrainConfig(data="waves", epochs=3, stages=1, batch_size=40, threads=1, lr=0.01, optimizer=optimizer)
    run = run_folder.RunFolder(tmp_path)
    run.create({}, {})
    method, progress = Mslr(window=1, rates="left=0.5"), TrainingProgress(Console(quiet=True), quiet=True)
    loop.Trainer(config, method, waves(), make_fabric(config), run, progress).train()
    run.close()
    table = rows(tmp_path)
    accuracy = {
        name: [
            float(r["value"])
            for r in table
            if (r["split"], r["branch"], r["metric"]) == ("validation", name, "accuracy")
        ]
        for name in ("left", "right")
    }
    for epoch, rates in enumerate(seen):
        common = 0.01 * 0.5 * (1 + np.cos(np.pi * epoch / 3))
        for name, base in (("left", 0.5), ("right", 1.0)):
            change = accuracy[name][1] / accuracy[name][0] if epoch == 2 else 1.0
            assert rates[name] == pytest.approx(common * base * change, rel=1e-12)
            (logged,) = [
                float(r["value"])
                for r in table
                if (r["global_epoch"], r["branch"], r["metric"]) == (str(epoch), name, "lr")
            ]
            assert logged == pytest.approx(rates[name], rel=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mslr(rule="smooth"), "mslr: unknown rule 'smooth'"),
        (lambda: Mslr(window=0), "mslr: window is 0, expected a number ≥ 1"),
        (lambda: Mslr(rates="left"), r"mslr: rates is 'left', expected NAME=FACTOR"),
        (lambda: Mslr(rates="left=-1"), "mslr: the rate of left is -1.0, expected a number > 0"),
        (lambda: Mslr(rates="lefd=1").modalities(["left", "right"]), "unknown modality in rates 'lefd'. Did you mean"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()

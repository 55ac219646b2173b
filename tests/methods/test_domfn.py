"""DOMFN: gate, loss and prediction sample by sample in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from training_cases import digits

from igm_fast.methods.base import Stage, together
from igm_fast.methods.domfn import Domfn

NAMES = ["fourier", "zernike", "morphological"]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def agrees(p, threshold):
    mean = np.mean(p, axis=0)
    return all(np.max((q - mean) ** 2) <= threshold * (1 - 1 / len(p)) ** 2 for q in p)


def loss_of_sample(own, joint, label, threshold, eta):
    p = [softmax(z) for z in own]
    losses = [-np.log(q[label]) for q in p]
    total = sum(losses)
    if agrees(p, threshold):
        mean = np.mean(p, axis=0)
        total += sum(0.5 * loss**2 - eta * np.max((q - mean) ** 2) for q, loss in zip(p, losses, strict=True))
        total -= np.log(softmax(joint)[label])
    return total


def sharp(scale, seed=0):
    """Logits of three modalities and the joint head; the larger, the more they diverge."""
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(scale * rng.normal(size=(40, 4))) for name in [*NAMES, "joint"]}


class Answers(torch.nn.Module):
    """A network that gives these logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, _inputs):
        return self.logits


def context_with(logits):
    return type("Context", (), {"network": Answers(logits)})()


@pytest.mark.parametrize("threshold", [0.05, 0.3, 2.0])
def test_loss_is_gated_per_sample(threshold):
    logits, labels = sharp(2.0), torch.randint(4, (40,))
    method = Domfn(threshold=threshold, eta=0.7)
    batch = type("Batch", (), {"inputs": {}, "labels": labels})()
    found = method.loss(together(NAMES, 1)[0], batch, context_with(logits))
    rows = [[logits[name][i].numpy() for name in [*NAMES, "joint"]] for i in range(40)]
    expected = [loss_of_sample(row[:3], row[3], int(k), threshold, 0.7) for row, k in zip(rows, labels, strict=True)]
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-12)
    fused = np.mean([agrees([softmax(z) for z in row[:3]], threshold) for row in rows])
    assert (fused == 1) if threshold > 1 else (0 < fused < 1)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 2.0])
def test_prediction_is_the_joint_heads_or_the_surest_modalitys(threshold):
    logits = sharp(2.0, 1)
    found = Domfn(threshold=threshold).fuse(logits).numpy()
    for i in range(40):
        p = [softmax(logits[name][i].numpy()) for name in NAMES]
        expected = softmax(logits["joint"][i].numpy()) if agrees(p, threshold) else max(p, key=np.max)
        np.testing.assert_allclose(found[i], expected, rtol=1e-12)


def test_gate_has_the_same_reach_for_any_number_of_modalities():
    """The largest divergence: all others are sure of one class, one modality is sure of another."""
    for modalities in (2, 3, 5):
        sure = torch.zeros(modalities, 1, 4).double()
        sure[:, 0, 0] = 1000.0
        sure[-1, 0] = torch.tensor([0.0, 1000.0, 0.0, 0.0])
        logits = {f"m{i}": z for i, z in enumerate(sure)} | {"joint": torch.tensor([[0.0, 0.0, 9.0, 0.0]]).double()}
        assert Domfn(threshold=0.999).fuse(logits).argmax() == 0  # they diverge; the first of the equally sure ones
        assert Domfn(threshold=1.001).fuse(logits).argmax() == 2


def test_divergence_is_rewarded_and_gate_has_no_gradient():
    """A step against autograd in float64, with the gate written as a constant mask."""
    data, method = digits(), Domfn(threshold=0.004, eta=2.0)
    stage = together(NAMES, 1)[0]
    model, context = workshop(method, data, stage)
    batch, before = batch_of(data), snapshot(model)
    with torch.no_grad():
        logits = model.double()(double_inputs(batch))
        gate = torch.tensor([agrees([softmax(logits[n][i].numpy()) for n in NAMES], 0.004) for i in range(32)])
        model.float()
    assert 0 < gate.sum() < 32

    def loss(network):
        z = network(double_inputs(batch))
        picked = torch.arange(32), batch.labels
        ce = {name: -value.log_softmax(dim=1)[picked] for name, value in z.items()}
        mean = sum(z[name].softmax(dim=1) for name in NAMES) / 3
        extra = ce["joint"]
        for name in NAMES:
            d = ((z[name].softmax(dim=1) - mean) ** 2).max(dim=1).values
            extra = extra + 0.5 * ce[name] ** 2 - 2.0 * d
        return (sum(ce[name] for name in NAMES) + torch.where(gate, extra, torch.zeros(()).double())).mean()

    gradients = autograd_gradients(model, loss)
    assert list(method.step(stage, batch, 0.0, context)) == ["fused"]
    assert_moved(model, before, {name: 0.1 * g for name, g in gradients.items()})


def test_warm_up_trains_the_own_heads_only():
    method, logits, labels = Domfn(warmup_share=0.25), sharp(0.1), torch.randint(4, (40,))
    batch = type("Batch", (), {"inputs": {}, "labels": labels})()
    stage = Stage(0, 0, tuple(NAMES), 8)
    own = sum(torch.nn.functional.cross_entropy(logits[name], labels) for name in NAMES)
    warm = []
    for epoch in range(4):
        method.begin_epoch(stage, epoch, None)
        warm.append(float(method.loss(stage, batch, context_with(logits))) == pytest.approx(float(own), rel=1e-12))
    assert warm == [True, True, False, False]
    method.begin_epoch(Stage(0, 0, tuple(NAMES), 1), 0, None)  # too short for one
    assert not method._warming_up


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": 0.0}, "domfn: threshold is 0.0, expected a number > 0"),
        ({"eta": -1.0}, "domfn: eta is -1.0, expected a number ≥ 0"),
        ({"warmup_share": 1.0}, "domfn: warmup_share is 1.0, expected a share: at least 0, less than 1"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        Domfn(**options)

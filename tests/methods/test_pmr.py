"""PMR: prototypes and the loss against float64 numpy; where its gradient goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, softmax, workshop
from torch.nn import functional
from training_cases import digits, waves

from igm_fast.methods import together
from igm_fast.methods.pmr import Pmr
from igm_fast.training.evaluation import evaluation_mode

THREE = together(["fourier", "zernike", "morphological"], 10)[0]


def class_means(model, data):
    """[M, classes, width] over the training set, in evaluation mode, float64."""
    labels, means = data.train.labels.numpy(), []
    with evaluation_mode(model):
        for name in model.modalities:
            features = model.features(data.train.inputs, [name])[name].double().numpy()
            means.append([features[labels == y].mean(axis=0) for y in range(data.num_classes)])
    return np.array(means)


def begin(method, model, context, epoch=0, stage=THREE):
    with evaluation_mode(model):
        method.begin_epoch(stage, epoch, context)


def test_prototypes_are_blended_class_means():
    data, method = waves(), Pmr(memory=0.3)  # with batch norm: evaluation mode counts
    stage = together(["left", "right"], 10)[0]
    model, context = workshop(method, data, stage)
    begin(method, model, context, 0, stage)
    first = class_means(model, data)
    np.testing.assert_allclose(method.prototypes.numpy(), first, rtol=1e-5, atol=1e-6)
    method.step(stage, batch_of(data, 16), 0.0, context)
    again = Pmr(memory=0.3)
    again.load_state_dict(method.state_dict())
    begin(again, model, context, 1, stage)
    np.testing.assert_allclose(
        again.prototypes.numpy(), 0.7 * class_means(model, data) + 0.3 * first, rtol=1e-5, atol=1e-6
    )


def test_a_class_without_samples_has_no_nan():
    data, method = digits(), Pmr()
    object.__setattr__(data.train, "labels", data.train.labels.clamp(max=8))
    model, context = workshop(method, data, THREE)
    begin(method, model, context)
    overall = model.features(data.train.inputs, ["zernike"])["zernike"].mean(dim=0)
    torch.testing.assert_close(method.prototypes[1, 9], overall.detach(), rtol=1e-5, atol=1e-6)
    method.prototypes[1, 9] = 7.0
    begin(method, model, context, 1)
    assert torch.equal(method.prototypes[1, 9], torch.full((64,), 7.0))
    assert torch.isfinite(method.prototypes).all()


@pytest.mark.parametrize(("mu", "epoch"), [(0.0, 0), (0.5, 0), (0.5, 9)])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_step_pulls_those_that_are_behind(fusion, mu, epoch):
    data, method = digits(), Pmr(alpha=0.7, mu=mu, fusion=fusion)
    model, context = workshop(method, data, THREE)
    with torch.no_grad():  # features that keep the classes apart put a modality ahead
        model.branch("zernike").encoder.fc2.weight *= 20
    begin(method, model, context, epoch)
    batch, prototypes = batch_of(data), method.prototypes.double()

    def posterior(features, m):
        distances = (features[:, None, :] - prototypes[m][None, :, :]).square().sum(dim=2).sqrt()
        return (-distances).log_softmax(dim=1)

    right = []
    for m, name in enumerate(model.modalities):
        features = model.features(batch.inputs, [name])[name].detach().double()
        distances = np.sqrt(((features.numpy()[:, None] - prototypes[m].numpy()[None]) ** 2).sum(axis=2))
        right.append(softmax(-distances)[np.arange(32), batch.labels.numpy()].sum())
    rho = [s / np.mean([other for j, other in enumerate(right) if j != m]) for m, s in enumerate(right)]
    weights = [np.clip(1 / value - 1, 0, 1) for value in rho]
    assert min(weights) == 0.0
    assert max(weights) > 0.0

    def loss(network):
        features = network.features(double_inputs(batch))
        value = functional.cross_entropy(network.classify(features)["joint"], batch.labels)
        for m, name in enumerate(network.modalities):
            log_q = posterior(features[name], m)
            value = value - 0.7 * weights[m] * log_q[torch.arange(32), batch.labels].mean()
            if mu and epoch == 0 and m == int(np.argmax(right)):
                value = value + mu * (log_q.exp() * log_q).sum(dim=1).mean()
        return value

    before, gradients = snapshot(model), autograd_gradients(model, loss)
    method.step(THREE, batch, 0.0, context)
    assert_moved(model, before, {name: 0.1 * g for name, g in gradients.items()})


def test_a_feature_on_its_prototype_has_a_finite_gradient():
    data, method = digits(60), Pmr()
    model, context = workshop(method, data, THREE)
    begin(method, model, context)
    batch = batch_of(data, 4)
    for m, name in enumerate(model.modalities):
        method.prototypes[m, batch.labels[0]] = model.features(batch.inputs, [name])[name][0].detach()
    method.step(THREE, batch, 0.0, context)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Pmr(alpha=-1.0), "pmr: alpha is -1.0, expected a number ≥ 0"),
        (lambda: Pmr(mu=-1.0), "pmr: mu is -1.0"),
        (lambda: Pmr(memory=1.0), "pmr: memory is 1.0, expected a share"),
        (lambda: Pmr(entropy_share=-0.1), "pmr: entropy_share is -0.1"),
        (lambda: Pmr().modalities(["sight"]), "pmr: the data have one modality, sight"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()

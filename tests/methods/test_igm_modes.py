"""IGM's cheaper modes: what SAM costs (perturbation) and when the statistics are taken (statistics)."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from oracles import second_moment
from torch.nn import functional
from training_cases import digits

from igm_fast.methods import Stage, alternating
from igm_fast.methods.igm import Igm
from igm_fast.training.config import TrainConfig

STAGE = Stage(0, 0, ("fourier",), 1)
RHO, LR = 0.2, 0.1


def cross_entropy(network, batch):
    return functional.cross_entropy(network(double_inputs(batch), ["fourier"])["fourier"], batch.labels)


@contextmanager
def counted(module):
    """How often a module's forward runs inside."""
    calls = []
    with module.register_forward_hook(lambda *_: calls.append(1)):
        yield calls


def test_head_mode_perturbs_the_head_and_runs_the_encoder_once():
    """ω − η ∇L(θ, w + ε) with ε = ρ ∇_w L/‖∇_w L‖ of the head alone, in float64."""
    data, method = digits(), Igm(rho=RHO, perturbation="head")
    model, context = workshop(method, data, STAGE)
    batch, before = batch_of(data), snapshot(model)
    first = autograd_gradients(model, lambda network: cross_entropy(network, batch))
    head = {name: g for name, g in first.items() if name.startswith("branches.fourier.head")}
    norm = torch.stack([g.square().sum() for g in head.values()]).sum().sqrt()
    ascended = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, gradient in head.items():
            ascended.get_parameter(name).add_(RHO * gradient / norm)
    second = autograd_gradients(ascended, lambda network: cross_entropy(network, batch))
    with counted(model.branch("fourier").encoder) as calls:
        method.step(STAGE, batch, 0.0, context)
    assert len(calls) == 1
    assert_moved(model, before, {name: LR * g for name, g in second.items()})
    unperturbed = {name: (second[name] - g).abs().max() / g.abs().max() for name, g in first.items()}
    assert min(unperturbed.values()) > 2e-3  # ten times what assert_moved lets pass


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"perturbation": "full"}, [2, 2, 2, 2, 2]),
        ({"perturbation": "periodic", "every": 3}, [2, 1, 1, 2, 1]),
        ({"perturbation": "momentum"}, [1, 1, 1, 1, 1]),
        ({"perturbation": "head"}, [1, 1, 1, 1, 1]),
    ],
)
def test_passes_through_the_encoder(options, passes):
    data, method = digits(), Igm(rho=RHO, **options)
    model, context = workshop(method, data, STAGE, TrainConfig(data="digits3", lr=LR, momentum=0.9))
    counts = []
    for _ in passes:
        with counted(model.branch("fourier").encoder) as calls:
            method.step(STAGE, batch_of(data), 0.0, context)
        counts.append(len(calls))
    assert counts == passes
    assert not context.optimizer.perturbed


def test_momentum_mode_moves_along_the_momentum():
    """The gradient is taken at ω + ρ m/‖m‖."""
    data, method = digits(), Igm(rho=RHO, perturbation="momentum")
    model, context = workshop(method, data, STAGE, TrainConfig(data="digits3", lr=LR, momentum=0.9, weight_decay=0.0))
    batch = batch_of(data)
    method.step(STAGE, batch, 0.0, context)
    names = {parameter: name for name, parameter in model.named_parameters()}
    buffers = {names[p]: s["momentum_buffer"].double() for p, s in context.optimizer.state.items()}
    norm = torch.stack([m.square().sum() for m in buffers.values()]).sum().sqrt()
    ascended, before = copy.deepcopy(model).double(), snapshot(model)
    with torch.no_grad():
        for name, m in buffers.items():
            ascended.get_parameter(name).add_(RHO * m / norm)
    gradients = autograd_gradients(ascended, lambda network: cross_entropy(network, batch))
    method.step(STAGE, batch, 0.0, context)
    assert_moved(model, before, {name: LR * (0.9 * buffers[name] + g) for name, g in gradients.items()})


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("perturbation", ["full", "momentum"])
def test_statistics_that_ride_along_are_those_of_the_first_pass(every, perturbation):
    """C is the mean of u uᵀ over the looked-at batches, each at the weights that it met."""
    data = digits()
    method = Igm(rho=RHO, statistics="ride", statistics_every=every, estimator="full", perturbation=perturbation)
    previous, stage = method.schedule(["fourier", "zernike"], 1, 1)
    config = TrainConfig(data="digits3", lr=LR, momentum=0.9)
    model, context = workshop(method, data, previous, config)
    method.begin_epoch(previous, 0, context)
    seen = []
    head = model.branch("fourier").head
    for _ in range(4):
        with head.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].detach().double().numpy())):
            method.step(previous, batch_of(data), 0.0, context)
    method.end_epoch(previous, 0, {}, context)
    firsts = seen[:: 2 if perturbation == "full" else 1][::every]
    _, context = workshop(method, data, stage, config, model)
    rows = {row["layer"]: row for row in method.prepare(stage, previous, context)}
    expected = second_moment(np.concatenate(firsts))
    assert rows["head"]["count"] == sum(map(len, firsts))
    assert rows["head"]["trace"] == pytest.approx(np.trace(expected), rel=1e-4)
    np.testing.assert_allclose(
        rows["head"]["eigenvalues"], np.linalg.eigvalsh(expected)[::-1], rtol=1e-3, atol=1e-5 * np.trace(expected)
    )


def test_statistics_ride_in_the_last_epoch_of_a_turn_only():
    data, method = digits(), Igm(statistics="ride")
    first, last = method.schedule(["fourier", "zernike"], 2, 1)
    looks = []
    for stage, epoch in ((first, 0), (first, 1), (last, 1)):  # nobody asks after the last stage
        _, context = workshop(method, data, stage)
        method.begin_epoch(stage, epoch, context)
        looks.append(method._riding is not None)
        method.step(stage, batch_of(data), 0.0, context)
        method.end_epoch(stage, epoch, {}, context)
    assert looks == [False, True, False]


def test_state_carries_what_rode_along():
    data, method = digits(), Igm(statistics="ride")
    previous, stage = method.schedule(["fourier", "zernike"], 1, 1)
    model, context = workshop(method, data, previous)
    method.begin_epoch(previous, 0, context)
    method.step(previous, batch_of(data), 0.0, context)
    method.end_epoch(previous, 0, {}, context)
    again = Igm(statistics="ride")
    again.load_state_dict(method.state_dict())
    _, context = workshop(method, data, stage, model=model)
    assert again.prepare(stage, previous, context) == method.prepare(stage, previous, context) != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "had"}, "perturbation"),
        ({"every": 0}, r"igm: every is 0, expected a number ≥ 1"),
        ({"statistics": "along"}, "statistics"),
        ({"statistics_every": 0}, r"statistics_every is 0"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        Igm(**options)


def test_momentum_mode_without_momentum_names_the_way_out():
    with pytest.raises(ValueError, match=r"direction='momentum' with momentum=0.*Set momentum=0\.9"):
        workshop(Igm(perturbation="momentum"), digits(), alternating(["fourier", "zernike"], 1, 1)[0])

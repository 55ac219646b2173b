"""Methods: each one's rule against float64 numpy or autograd, its schedule, and what it must leave alone."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import (
    PLAIN,
    assert_moved,
    autograd_gradients,
    batch_of,
    double_inputs,
    snapshot,
    softmax,
    workshop,
)
from oracles import igm_projector, mla_projector, second_moment
from torch import nn
from torch.nn import functional
from training_cases import digits, waves

from igm_fast.methods import METHODS, Batch, Stage, alternating, together
from igm_fast.methods.igm import Igm
from igm_fast.methods.joint import Joint
from igm_fast.methods.late import Late
from igm_fast.methods.mla import Mla
from igm_fast.methods.unimodal import Unimodal
from igm_fast.training.config import TrainConfig
from igm_fast.training.evaluation import evaluation_mode
from igm_fast.training.loop import build_model

# ---- schedules -------------------------------------------------------------------------------------------------------


@given(modalities=st.integers(1, 4), rounds=st.integers(1, 6), more=st.integers(0, 20))
def test_every_modality_gets_the_same_epochs(modalities, rounds, more):
    names, epochs = [f"m{i}" for i in range(modalities)], rounds + more
    stages = alternating(names, epochs, rounds)
    assert [stage.index for stage in stages] == list(range(modalities * rounds))
    assert all(stage.epochs >= 1 for stage in stages)
    for name in names:
        own = [stage for stage in stages if stage.modalities == (name,)]
        assert sum(stage.epochs for stage in own) == epochs
        assert [stage.round for stage in own] == list(range(rounds))
    assert together(names, epochs) == [Stage(0, 0, tuple(names), epochs)]


@pytest.mark.parametrize("name", METHODS)
def test_budget_and_first_weights_are_those_of_every_method(name):
    data = digits(60)
    method = METHODS[name](modality="zernike") if name == "unimodal" else METHODS[name]()
    model = build_model(method, data, PLAIN)
    stages = method.schedule(model.modalities, 12, 3)
    for modality in model.modalities:
        assert sum(stage.epochs for stage in stages if modality in stage.modalities) == 12
        reference = build_model(Late(), data, PLAIN).branch(modality).encoder
        for mine, theirs in zip(model.branch(modality).encoder.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


# ---- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_late_step_is_sam_on_one_branch(rho):
    data, stage, method = digits(), Stage(1, 0, ("zernike",), 1), Late(rho=rho)
    model, context = workshop(method, data, stage)
    batch, before = batch_of(data), snapshot(model)

    def loss(network):
        return functional.cross_entropy(network(double_inputs(batch), ["zernike"])["zernike"], batch.labels)

    gradients = autograd_gradients(model, loss)
    if rho:
        norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
        moved = copy.deepcopy(model).double()
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                if name in gradients:
                    parameter += rho * gradients[name] / norm
        gradients = autograd_gradients(moved, loss)
    with torch.no_grad():
        expected_loss = float(loss(copy.deepcopy(model).double()))
    losses = method.step(stage, batch, 0.0, context)
    assert float(losses["zernike"]) == pytest.approx(expected_loss, rel=1e-5)
    assert_moved(model, before, {name: 0.1 * g for name, g in gradients.items()})


def test_joint_step_is_one_loss_over_all_encoders():
    data, method = digits(), Joint()
    stage = together(["fourier", "zernike", "morphological"], 1)[0]
    model, context = workshop(method, data, stage)
    batch, before = batch_of(data), snapshot(model)
    gradients = autograd_gradients(
        model, lambda network: functional.cross_entropy(network(double_inputs(batch))["joint"], batch.labels)
    )
    assert list(method.step(stage, batch, 0.0, context)) == ["fused"]
    assert_moved(model, before, {name: 0.1 * g for name, g in gradients.items()})


@pytest.mark.parametrize(("tau", "estimator"), [(0.4, "full"), (4.0, "full"), (4.0, "sketch")])
def test_igm_step_is_the_papers_equation(tau, estimator):
    """ω − η ĝ T: T from the second moments of the modality before over the training set, in float64 numpy."""
    data, method = digits(), Igm(tau=tau, rho=0.0, estimator=estimator, statistics="pass", tol=1e-6)
    previous, stage = alternating(["fourier", "zernike"], 1, 1)
    model, context = workshop(method, data, stage)
    with evaluation_mode(model):
        spectra = method.prepare(stage, previous, context)
    method.attach(stage, context)

    layers, fed = {"encoder.fc1": None, "encoder.fc2": None, "head": None}, {}
    source = copy.deepcopy(model.branch("fourier")).double()
    for layer in layers:
        source.get_submodule(layer).register_forward_hook(
            lambda _m, inputs, _o, layer=layer: fed.update({layer: inputs[0].detach().numpy()})
        )
    source(data.train.inputs["fourier"].double())

    batch, before = batch_of(data), snapshot(model)
    gradients = autograd_gradients(
        model,
        lambda network: functional.cross_entropy(network(double_inputs(batch), ["zernike"])["zernike"], batch.labels),
    )
    expected = {}
    for name, gradient in gradients.items():
        layer = name.removeprefix("branches.zernike.").removesuffix(".weight")
        if layer in ("encoder.fc2", "head"):  # fc1: 76 inputs against 47, no partner
            T = igm_projector(second_moment(fed[layer]), tau)
            gradient = torch.from_numpy(gradient.numpy() @ T)
        expected[name] = 0.1 * gradient
    # What T itself may be wrong by, in operator norm, as its certificate says.
    bound = max(row["error_bound"] for row in spectra)
    assert bound < (1e-4 if estimator == "full" else 0.05)
    method.step(stage, batch, 0.0, context)
    assert_moved(model, before, expected, rtol=2e-4 + 8 * bound)
    assert [row["layer"] for row in spectra] == ["encoder.fc2", "head"]
    assert {(row["source"], row["target"], row["stage"]) for row in spectra} == {("fourier", "zernike", 1)}
    for row in spectra:
        assert row["count"] == len(data.train)
        assert row["trace"] == pytest.approx(np.trace(second_moment(fed[row["layer"]])), rel=1e-4)


def test_igm_first_stage_has_no_projector():
    data, method = digits(60), Igm(statistics="pass")
    stage = Stage(0, 0, ("fourier",), 1)
    _, context = workshop(method, data, stage)
    assert method.prepare(stage, None, context) == []
    assert method.projectors == {}


def test_igm_statistics_leave_model_and_random_numbers_alone():
    data, method = waves(), Igm(statistics="pass")
    previous, stage = alternating(["left", "right"], 1, 1)
    model, context = workshop(method, data, stage)
    before, random = snapshot(model), torch.get_rng_state()
    with evaluation_mode(model):
        method.prepare(stage, previous, context)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_mla_steps_in_turn_and_protects_what_was_learned():
    """Two batches against the equations: shared head by turns, its gradient times P, P by its closed form."""
    data, method = digits(), Mla(alpha=0.5, alpha_decay=1.0)
    stage = together(["fourier", "zernike", "morphological"], 1)[0]
    model, context = workshop(method, data, stage)
    expected, means = copy.deepcopy(model).double(), []
    for start in (0, 32):
        inputs, labels = data.train.__getitems__(range(start, start + 32))
        batch = Batch(inputs, labels)
        for name in stage.modalities:
            expected.zero_grad()
            features = expected.features(double_inputs(batch), [name])[name]
            functional.cross_entropy(expected.shared_head(features), labels).backward()
            P = torch.from_numpy(mla_projector(means, 0.5, 64))
            with torch.no_grad():
                for parameter in expected.parameters():
                    if parameter.grad is None:
                        continue
                    projected = parameter is expected.shared_head.weight
                    parameter -= 0.1 * (parameter.grad @ P if projected else parameter.grad)
                    parameter.grad = None
            means.append(features.detach().mean(dim=0).numpy())
        assert list(method.step(stage, batch, 0.0, context)) == list(stage.modalities)
    np.testing.assert_allclose(method.projector.numpy(), mla_projector(means, 0.5, 64), atol=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert not model.shared_head._forward_pre_hooks


def test_mla_alpha_falls_within_an_epoch():
    data, method = digits(), Mla(alpha=0.1, alpha_decay=0.1)
    stage = together(["fourier"], 1)[0]
    _, context = workshop(method, data, stage)
    seen = []
    method._protect = lambda _mean, alpha: seen.append(alpha)
    for progress in (0.0, 0.5):
        method.step(stage, batch_of(data), progress, context)
    assert seen == pytest.approx([0.1, 0.1**1.5])


# ---- fusion ----------------------------------------------------------------------------------------------------------


def test_fusion_rules():
    rng = np.random.default_rng(0)
    z = {name: rng.normal(size=(6, 4)) * scale for name, scale in (("a", 1.0), ("b", 5.0), ("c", 0.1))}
    logits = {name: torch.from_numpy(value) for name, value in z.items()}
    p = {name: softmax(value) for name, value in z.items()}
    mean = np.mean(list(p.values()), axis=0)
    for method in (Late(), Igm(), METHODS["igm-no-sam"]()):
        np.testing.assert_allclose(method.fuse(logits).numpy(), mean, rtol=1e-12)
    surety = np.exp([np.sum(q * np.log(q), axis=1) for q in p.values()])  # exp(−entropy) [M, B]
    weights = surety / surety.sum(axis=0)
    fused = softmax(np.einsum("mb,mbk->bk", weights, np.stack(list(z.values()))))
    np.testing.assert_allclose(Mla().fuse(logits).numpy(), fused, rtol=1e-12)
    joint = torch.from_numpy(rng.normal(size=(6, 4)))
    np.testing.assert_allclose(Joint().fuse({**logits, "joint": joint}).numpy(), softmax(joint.numpy()), rtol=1e-12)


# ---- frozen branches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Late(rho=0.05), Igm()], ids=["late", "igm"])
def test_other_branches_keep_every_bit(method):
    """No forgetting: weights and batch norm statistics of modalities that wait are untouched by a stage."""
    data = waves()
    previous, stage = alternating(["left", "right"], 1, 1)
    model, context = workshop(method, data, stage, TrainConfig(lr=0.1))
    with evaluation_mode(model):
        method.prepare(stage, previous, context)
    method.attach(stage, context)
    before = snapshot(model)
    for _ in range(3):
        method.step(stage, batch_of(data, 16), 0.0, context)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("branches.left"), name


def test_batch_norm_sees_the_first_pass_only():
    """The second pass of SAM is made at weights that are never kept: it must not enter the running statistics."""
    data, stage, method = waves(), Stage(0, 0, ("left",), 1), Late(rho=0.05)
    model, context = workshop(method, data, stage)
    once, batch = copy.deepcopy(model), batch_of(data, 16)
    once(batch.inputs, ["left"])
    method.step(stage, batch, 0.0, context)
    for (name, mine), expected in zip(model.named_buffers(), once.buffers(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, msg=name)


# ---- state and options -----------------------------------------------------------------------------------------------


def test_igm_state_carries_the_projectors():
    data, method = digits(60), Igm(tau=2.0, statistics="pass")
    previous, stage = alternating(["fourier", "zernike"], 1, 1)
    model, context = workshop(method, data, stage)
    with evaluation_mode(model):
        method.prepare(stage, previous, context)
    again = Igm(tau=2.0)
    again.load_state_dict(method.state_dict())
    gradient = torch.randn(5, 64)
    for name, projector in method.projectors.items():
        torch.testing.assert_close(again.projectors[name].apply(gradient), projector.apply(gradient), rtol=0, atol=0)


def test_mla_state_carries_p():
    method = Mla()
    method.projector = torch.rand(4, 4, dtype=torch.float64)
    again = Mla()
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.projector, method.projector)


def test_no_partner_is_said_and_recorded():
    class Odd(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.head = nn.Linear(size, 3)

    data, method = waves(), Igm()
    previous, stage = alternating(["left", "right"], 1, 1)
    _, context = workshop(method, data, stage)
    branches = {"left": Odd(4), "right": Odd(5)}
    model = type("Model", (), {"branch": lambda _self, name: branches[name]})()
    with pytest.warns(UserWarning, match="no layer of right has a partner in left"):
        rows = method.prepare(stage, previous, dataclasses.replace(context, model=model))
    assert rows == []
    method.attach(stage, context)
    assert "trained without projection" in method.warnings()[0]
    again = Igm()
    again.load_state_dict(method.state_dict())
    assert again.warnings() == method.warnings()


@pytest.mark.parametrize("rule", ["name", "shape", "in_features"])
def test_only_layers_with_a_partner_are_measured(rule):
    data, method = digits(60), Igm(match=rule, statistics="pass")
    previous, stage = alternating(["fourier", "zernike"], 1, 1)
    model, context = workshop(method, data, stage)
    with evaluation_mode(model):
        rows = method.prepare(stage, previous, context)
    assert [row["layer"] for row in rows] == [
        "encoder.fc2",
        "head",
    ]  # fc1 of fourier reads 76 numbers, nothing else does


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Igm(rho=-0.1), "igm: rho is -0.1, expected a number ≥ 0"),
        (lambda: Igm(rho=float("nan")), "rho is nan"),
        (lambda: Igm(tau=-0.1), "igm: tau is -0.1, expected a number ≥ 0"),
        (lambda: Igm(tau=float("inf")), "tau is inf"),
        (lambda: Igm(tol=0.0), "tol is 0.0"),
        (lambda: Igm(estimator="sketsch"), "unknown estimator 'sketsch'. Did you mean 'sketch'"),
        (lambda: Igm(projector_method="eigh"), "projector_method is eigh with estimator sketch, expected auto"),
        (lambda: Igm(projector_method="sketch", estimator="full"), "projector_method is sketch with estimator full"),
        (lambda: METHODS["igm-no-sam"](tau=-1.0), "igm-no-sam: tau is -1.0"),
        (lambda: Late(rho=-1.0), "late: rho is -1.0"),
        (lambda: Mla(alpha=0.0), "mla: alpha is 0.0"),
        (lambda: Unimodal().modalities(["sight", "sound"]), "no modality given, expected one of sight, sound"),
        (lambda: Unimodal("sigth").modalities(["sight", "sound"]), "Did you mean 'sight'"),
        (lambda: Igm().modalities(["sight"]), "one modality, sight; expected at least two"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        make()


def test_methods_are_registered_by_name():
    assert list(METHODS) == [  # in the order of the paper's table
        *("unimodal", "joint", "late", "ogr-gb", "ogm", "ogm-ge", "domfn", "mses", "pmr", "agm", "mslr", "reconboost"),
        *("smv", "mmpareto", "mla", "sam", "igm-no-sam", "igm"),
    ]
    assert METHODS["igm-no-sam"]().rho == 0.0
    with pytest.raises(TypeError):
        METHODS["igm-no-sam"](rho=0.1)

"""What the protocols set of IGM and MLA, each against its rule: layers, projector, partners, mixup, noise, form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, softmax, workshop
from oracles import second_moment
from protocol_cases import last_weights, trained
from torch.nn import functional
from training_cases import vectors

from igm_fast.data import from_tensors
from igm_fast.data.seeds import derived_seed
from igm_fast.methods import METHODS, Stage, alternating, together
from igm_fast.methods.igm import Igm, _of_length
from igm_fast.methods.late import Late
from igm_fast.methods.mixup import mix
from igm_fast.methods.mla import Mla
from igm_fast.training.config import TrainConfig
from igm_fast.training.evaluation import evaluation_mode

PLAIN = TrainConfig(data="vectors", momentum=0.0, weight_decay=0.0, lr=0.1, width=8, head_widths="6,5", seed=3)
HEAD = ["head.0", "head.2", "head.3"]


def prepared(method, data, stage, previous):
    """Model, context and the rows of spectra.json at the start of a stage."""
    model, context = workshop(method, data, stage, PLAIN)
    with evaluation_mode(model):
        rows = method.prepare(stage, previous, context)
    method.attach(stage, context)
    return model, context, rows


def entering(model, modality, x):
    """What enters each linear layer of a branch, float64 numpy."""
    seen, branch = {}, model.branch(modality)
    layers = {name: layer for name, layer in branch.named_modules() if isinstance(layer, torch.nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _layer, inputs, name=name: seen.update({name: inputs[0].detach().double().numpy()})
        )
        for name, layer in layers.items()
    ]
    branch(x)
    for hook in hooks:
        hook.remove()
    return seen


# ---- what is projected -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"layers": "none"}, {"tau": 0.0, "statistics": "pass"}])
def test_without_projection_igm_is_late_fusion_with_sam_bit_for_bit(options, tmp_path):
    run = trained(Igm(**options), vectors(), tmp_path / "igm")
    assert run.read_json("spectra.json", []) == []
    weights = last_weights(run)
    for name, value in last_weights(trained(Late(rho=0.05), vectors(), tmp_path / "late")).items():
        assert torch.equal(value, weights[name]), name
    projected = last_weights(trained(Igm(), vectors(), tmp_path / "projected"))
    assert not all(torch.equal(value, weights[name]) for name, value in projected.items())


@pytest.mark.parametrize("match", ["name", "shape"])
def test_heads_only(match):
    method = Igm(layers="heads", statistics="pass", match=match)
    previous, stage = alternating(["left", "right"], 1, 1)
    _, context, rows = prepared(method, vectors(), stage, previous)
    assert [row["layer"] for row in rows] == HEAD
    assert len(context.optimizer._projections) == 3


def test_named_targets_are_projected_and_others_are_not(tmp_path):
    method = Igm(projected_targets="right")
    run = trained(method, vectors(), tmp_path, head_widths="6,5")
    assert {row["target"] for row in run.read_json("spectra.json", [])} == {"right"}
    with pytest.raises(ValueError, match=r"projected_targets: unknown modality 'rigth'\. Did you mean 'right'"):
        Igm(projected_targets="left, rigth").modalities(["left", "right"])


def test_mla_spectrum():
    """T = α(αI + C)⁻¹."""
    method = Igm(projector="mla", alpha=0.3, tau=0.0, statistics="pass", estimator="full", tol=1e-6)
    previous, stage = alternating(["left", "right"], 1, 1)
    data = vectors()
    model, _, _ = prepared(method, data, stage, previous)
    for name, u in entering(model, "left", data.train.inputs["left"]).items():
        expected = 0.3 * np.linalg.inv(0.3 * np.eye(u.shape[1]) + second_moment(u))
        np.testing.assert_allclose(method.projectors[name].dense().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("place", "others"), [(1, ["a"]), (2, ["a", "b"]), (3, ["b", "c"]), (5, ["a", "b"])])
def test_all_partners_meet_in_the_exponent(place, others):
    """T = exp(−τ mean_j (C_j − λmin I)/(λmax − λmin)) over the other modalities that were trained before."""
    method = Igm(tau=3.0, partners="all", estimator="full", statistics="pass", tol=1e-6)
    stages = alternating(["a", "b", "c"], 2, 2)
    data = vectors(("a", "b", "c"))
    model, context, rows = prepared(method, data, stages[place], stages[place - 1])
    assert {row["source"] for row in rows} == {"+".join(others)}
    seen = {m: entering(model, m, data.train.inputs[m]) for m in others}
    for name in ("encoder.fc1", "encoder.fc2", *HEAD):
        exponents = []
        for m in others:
            C = second_moment(seen[m][name])
            values = np.linalg.eigvalsh(C)
            exponents.append((C - values[0] * np.eye(len(C))) / (values[-1] - values[0]))
        values, U = np.linalg.eigh(np.mean(exponents, axis=0))
        expected = (U * np.exp(-3.0 * values)) @ U.T
        np.testing.assert_allclose(method.projectors[name].dense().numpy(), expected, atol=2e-5)
    assert len(context.optimizer._projections) == 5


def test_statistics_of_batch_means_are_taken_over_batches_as_training_makes_them():
    method = Igm(estimator="batch_mean", statistics="pass", layers="heads")
    previous, stage = alternating(["left", "right"], 1, 1)
    data = vectors(samples=64)
    model, _, rows = prepared(method, data, stage, previous)
    order = np.random.default_rng(derived_seed("statistics", 3, 1)).permutation(64)
    u = entering(model, "left", data.train.inputs["left"])["head.0"]
    means = np.stack([u[part].mean(axis=0) for part in np.split(order, 2)])  # the workshop's batches have 32 samples
    assert rows[0]["count"] == 2
    assert rows[0]["trace"] == pytest.approx(np.trace(second_moment(means)), rel=1e-4)


# ---- mixup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixup", "added"), [("plain", False), ("official", True)])
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_mixup_step(mixup, added, rho):
    """The gradient is that of λ CE(z, y) + (1 − λ) CE(z, y′), at ω and, with SAM, at ω + ε with the same draws."""
    data, stage, method = vectors(), Stage(2, 1, ("left",), 1), Igm(mixup=mixup, mixup_alpha=0.7, rho=rho)
    model, context = workshop(method, data, stage, PLAIN)
    context = dataclasses.replace(context, seed=11)
    method.begin_epoch(stage, 4, context)
    method._batches = 6
    draws = np.random.default_rng(derived_seed("mixup", 11, 2, 4, 6))
    share, order = draws.beta(0.7, 0.7), torch.from_numpy(draws.permutation(32))
    batch, before = batch_of(data), snapshot(model)
    x = double_inputs(batch)["left"]
    x = share * x + (1 - share) * x[order]

    def loss(network):
        z = network({"left": x}, ["left"])["left"]
        own = functional.cross_entropy(z, batch.labels)
        blend = share * own + (1 - share) * functional.cross_entropy(z, batch.labels[order])
        return 0.7 * blend + 0.3 * own if added else blend

    gradients = autograd_gradients(model, loss)
    if rho:
        norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
        ascended, _ = workshop(method, data, stage, PLAIN)
        ascended = ascended.double()
        with torch.no_grad():
            for name, g in gradients.items():
                ascended.get_parameter(name).add_(rho * g / norm)
        gradients = autograd_gradients(ascended, loss)
    method.step(stage, batch, 0.0, context)
    assert_moved(model, before, {name: 0.1 * g for name, g in gradients.items()})


def test_draws_differ_between_batches_epochs_stages_and_seeds():
    data, method = vectors(), Igm(mixup="plain")
    batch, shares = batch_of(data), set()
    for stage, epoch, place, seed in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        turn = Stage(stage, 0, ("left",), 3)
        _, context = workshop(method, data, turn, PLAIN)
        context = dataclasses.replace(context, seed=seed)
        method.begin_epoch(turn, epoch, context)
        method._batches = place
        shares.add(method._mixed(turn, batch, context).share)
    assert len(shares) == 5


def test_token_ids_are_never_mixed():
    ids = torch.randint(1, 9, (12, 5))
    data = from_tensors(*[({"text": ids, "x": torch.randn(12, 4)}, torch.arange(12) % 3)] * 3, name="words")
    batch = batch_of(data, 12)
    mixed = mix(batch, "text", 1.0, np.random.default_rng(0))
    assert torch.equal(mixed.inputs["text"], ids)
    assert mixed.share == 1.0
    z = torch.randn(12, 3)
    assert torch.equal(mixed.loss(z), functional.cross_entropy(z, batch.labels))
    other = mix(batch, "x", 1.0, np.random.default_rng(0))
    assert torch.equal(other.inputs["text"], ids)
    assert not torch.equal(other.inputs["x"], batch.inputs["x"])


# ---- the authors' noise ----------------------------------------------------------------------------------------------


def test_noise_has_its_length_for_each_tensor_and_none_without_a_gradient():
    assert _of_length(0.1, torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.06, 0.08])
    assert _of_length(0.1, torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_official_perturbation_makes_one_pass_through_the_encoder():
    data, stage, method = vectors(), Stage(0, 0, ("left",), 1), Igm(perturbation="official", mixup="official")
    model, context = workshop(method, data, stage, PLAIN)
    calls = []
    with model.branch("left").encoder.register_forward_hook(lambda *_: calls.append(1)):
        losses = method.step(stage, batch_of(data), 0.0, context)
    assert calls == [1]
    assert losses["left"].isfinite()
    assert not context.optimizer.perturbed


# ---- MLA as its code does it -----------------------------------------------------------------------------------------


def test_official_mla_does_not_project():
    data, method = vectors(), Mla(form="official")
    stage = together(["left", "right"], 1)[0]
    config = TrainConfig(data="vectors", momentum=0.0, weight_decay=0.0, lr=0.1, width=8)
    model, context = workshop(method, data, stage, config)
    batch = batch_of(data)
    for name in stage.modalities:
        before = snapshot(model)
        gradients = autograd_gradients(
            model,
            lambda network, name=name: functional.cross_entropy(
                network(double_inputs(batch), [name])[name], batch.labels
            ),
        )
        method.step(Stage(0, 0, (name,), 1), batch, 0.0, context)
        assert_moved(model, before, {n: 0.1 * g for n, g in gradients.items()})
    assert method.state_dict() == {"projector": None}


def test_official_mla_weighs_whole_batches():
    """e = −Σ q log q over all entries of q, the softmax over the samples."""
    rng = np.random.default_rng(0)
    z = {name: rng.normal(size=(6, 4)) * scale for name, scale in (("a", 1.0), ("b", 2.0), ("c", 0.5))}
    entropies = []
    for values in z.values():
        q = softmax(values.T).T
        entropies.append(-np.sum(q * np.log(q)))
    weights = np.exp(max(entropies) - np.array(entropies))
    weights /= weights.sum()
    fused = Mla(form="official").fuse({name: torch.from_numpy(values) for name, values in z.items()})
    expected = softmax(np.einsum("m,mbk->bk", weights, np.stack(list(z.values()))))
    np.testing.assert_allclose(fused.numpy(), expected, rtol=1e-12)


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_ratio": -1.0}, "noise_ratio is -1.0, expected a number ≥ 0"),
        ({"flat_ratio": 1.0}, "flat_ratio is 1.0, expected a share"),
        ({"mixup": "offical"}, "unknown mixup 'offical'. Did you mean 'official'"),
        ({"mixup_alpha": 0.0}, "mixup_alpha is 0.0, expected a number > 0"),
        ({"layers": "head"}, "unknown layers 'head'. Did you mean 'heads'"),
        ({"projector": "mlaa"}, "unknown projector 'mlaa'. Did you mean 'mla'"),
        ({"alpha": -1.0}, "alpha is -1.0, expected a number > 0"),
        ({"partners": "al"}, "unknown partners 'al'. Did you mean 'all'"),
        ({"partners": "all"}, "partners is all with estimator sketch, statistics ride, .*expected full or batch_mean"),
        ({"partners": "all", "estimator": "full", "statistics": "pass", "match": "shape"}, "match shape"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Igm(**options)


def test_igm_without_sam_takes_the_same_options_but_those_of_sam():
    method = METHODS["igm-no-sam"](tau=0.0, mixup="official", layers="heads")
    assert (method.flat_ratio, method.rho, method.noise_ratio) == (0.0, 0.0, 0.0)
    with pytest.raises(TypeError):
        METHODS["igm-no-sam"](noise_ratio=1e-10)
    with pytest.raises(ValueError, match="unknown form 'offical'"):
        Mla(form="offical")

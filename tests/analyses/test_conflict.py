"""Angles between gradients, before and after a projector, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import run_cases
import torch
import training_cases
from scipy.linalg import expm

from igm_fast.analyses import conflict
from igm_fast.analyses.finding import NotApplicable
from igm_fast.analyses.loaded_run import LoadedRun, fixed_samples, load_run, mla_projector
from igm_fast.methods.late import Late
from igm_fast.training.config import TrainConfig
from igm_fast.training.loop import build_model


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_projection_of_a_head_is_that_of_the_equations(trained):
    """Gradient of zernike's head; T of what enters fourier's head over all training samples."""
    loaded, tau = load_run(trained["igm"]), 1.3
    layers = {layer.place: layer for layer in conflict.projected_layers(loaded, tau)}
    (batch,) = conflict.training_batches_of(loaded, 1)
    found = {a.place: a for a in conflict.projection_angles(loaded, list(layers.values()), [batch])}
    assert sorted(found) == [
        f"{target}/{layer}" for target in ("fourier", "morphological", "zernike") for layer in ("encoder.fc2", "head")
    ]

    (everything,) = fixed_samples(loaded.double(), "train", 10**6, batch_size=10**6)
    u = run_cases.forward(run_cases.weights(loaded, "fourier"), everything.inputs["fourier"].numpy())[1]
    C = u.T @ u / len(u)
    values, vectors = np.linalg.eigh(C)
    T = expm(-tau * (C - values[0] * np.eye(len(C))) / (values[-1] - values[0]))
    x, labels = batch.inputs["zernike"].double().numpy(), batch.labels.numpy()
    G = run_cases.gradient(run_cases.weights(loaded, "zernike"), x, labels)[4]

    shares = values[::-1] / values.sum()
    k = round(float(np.exp(-(shares * np.log(np.maximum(shares, 1e-300))).sum())))
    leading = vectors[:, ::-1][:, :k]
    layer, angle = layers["zernike/head"], found["zernike/head"]
    assert layer.leading.shape == (1, 8, k)
    # The model's gradient is float32, whose rounding is 6e-8 an operation.
    assert angle.cosine == pytest.approx(cosine(G, G @ T), abs=1e-5)
    assert angle.norm_ratio == pytest.approx(np.linalg.norm(G @ T) / np.linalg.norm(G), rel=1e-5)
    assert angle.energy_before == pytest.approx(np.square(G @ leading).sum() / np.square(G).sum(), rel=1e-4)
    assert angle.energy_after == pytest.approx(np.square(G @ T @ leading).sum() / np.square(G @ T).sum(), rel=1e-4)
    assert angle.energy_after < angle.energy_before
    assert layer.isotropic_norm_ratio == pytest.approx(np.sqrt(np.trace(T @ T) / len(T)), rel=1e-6)
    assert layer.isotropic_energy == k / 8


def test_removed_is_the_mean_norm_ratio_over_batches(trained):
    loaded = load_run(trained["igm"])
    removed = conflict.removed_by_projection(loaded, batches=3, tau=0.8)
    layers = conflict.projected_layers(loaded, 0.8)
    angles = conflict.projection_angles(loaded, layers, conflict.training_batches_of(loaded, 3))
    for place, value in removed.items():
        assert value == pytest.approx(np.mean([a.norm_ratio for a in angles if a.place == place]), rel=1e-12)
    assert len(angles) == 3 * len(removed) == 3 * 6
    assert all(np.exp(-0.8) <= value < 1 for value in removed.values())


def test_gradients_on_a_shared_head_and_after_the_projector(trained):
    loaded, P = load_run(trained["mla"]), mla_projector(trained["mla"])
    (batch,) = conflict.training_batches_of(loaded, 1)
    found = {(a.kind, a.place): a for a in conflict.shared_angles(loaded, [batch], P)}
    G = {}
    for name in loaded.model.modalities:
        x = batch.inputs[name].double().numpy()
        G[name] = run_cases.gradient(run_cases.weights(loaded, name), x, batch.labels.numpy())[4]
    GP = {name: g @ P.numpy() for name, g in G.items()}
    assert len(found) == 9
    one, other = "fourier", "morphological"
    expected = {
        ("shared", f"{one} – {other}"): (G[one], G[other]),
        ("P", one): (G[one], GP[one]),
        ("shared after P", f"{one} – {other}"): (GP[one], GP[other]),
    }
    for key, (a, b) in expected.items():
        assert found[key].cosine == pytest.approx(cosine(a, b), abs=1e-4), key
        assert found[key].norm_ratio == pytest.approx(np.linalg.norm(b) / np.linalg.norm(a), rel=1e-4), key
    assert len(conflict.shared_angles(loaded, [batch])) == 3
    assert conflict.shared_angles(load_run(trained["igm"]), [batch]) == []


def test_joint_and_own_gradient_of_an_encoder(trained):
    loaded = load_run(trained["joint"])
    (batch,) = conflict.training_batches_of(loaded, 1)
    found = {a.place: a for a in conflict.joint_angles(loaded, [batch])}
    assert list(found) == ["fourier/encoder", "zernike/encoder", "morphological/encoder"]
    head, labels = loaded.model.joint_head, batch.labels.numpy()
    W, b = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    own, features = {}, {}
    for number, name in enumerate(loaded.model.modalities):
        encoder = loaded.model.branch(name).encoder
        layers = [
            p.detach().double().numpy() for layer in (encoder.fc1, encoder.fc2) for p in (layer.weight, layer.bias)
        ]
        own[name] = [*layers, W[:, 8 * number : 8 * number + 8], b]
        features[name] = run_cases.forward(own[name], batch.inputs[name].double().numpy())[1]
    z = np.concatenate(list(features.values()), axis=1) @ W.T + b
    for name, parameters in own.items():
        # The joint loss sees this encoder through its block, beside logits that the others give: a bias per sample.
        x = batch.inputs[name].double().numpy()
        gradients = [run_cases.flat(run_cases.gradient(parameters, x, labels)[:4])]
        block = parameters[4]
        dz = (run_cases.softmax(z) - np.eye(len(b))[labels]) / len(labels)
        hidden, feature, _ = run_cases.forward(parameters, x)
        df = (dz @ block) * (feature > 0)
        dh = (df @ parameters[2]) * (hidden > 0)
        gradients.append(run_cases.flat([dh.T @ x, dh.sum(0), df.T @ hidden, df.sum(0)]))
        assert found[name + "/encoder"].cosine == pytest.approx(cosine(*gradients), abs=1e-5)


def test_batch_norm_is_that_of_training_and_keeps_its_statistics():
    data, config, method = training_cases.waves(), TrainConfig(data="waves", width=8, batch_size=16), Late()
    model = build_model(method, data, config).eval()
    loaded = LoadedRun(None, config, method, data, model, "best", torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = conflict.training_batches_of(loaded, 2)
    weight = model.branch("left").head.weight
    (found,) = conflict._gradients(loaded, batches[0], "left", [weight])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    model.train()
    loss = torch.nn.functional.cross_entropy(model(batches[0].inputs, ["left"])["left"], batches[0].labels)
    torch.testing.assert_close(found, torch.autograd.grad(loss, [weight])[0])


def test_a_zero_gradient_has_no_angle():
    assert conflict._angle(torch.zeros(3), torch.ones(3)) == (0.0, 0.0)


@pytest.mark.parametrize("method", ["igm", "mla", "joint"])
def test_files_and_sentence(trained, tmp_path, method):
    finding = run_cases.analyze("conflict", [trained[method]], tmp_path, "--batches", "3", "--tau", "0.4")
    rows = run_cases.read(tmp_path / "conflict.csv")
    projected = [float(r["norm_ratio_mean"]) for r in rows if r["kind"] == "projection"]
    assert f"leaves {np.mean(projected):.3f} of the gradient's length" in finding.sentence
    assert {r["kind"] for r in rows} == {"projection"} | {
        "igm": set(),
        "mla": {"shared", "P", "shared after P"},
        "joint": {"joint"},
    }[method]
    assert ("negative on" in finding.sentence) == (method != "igm")


def test_one_modality_has_no_conflict(trained, tmp_path):
    with pytest.raises(NotApplicable, match="one modality, zernike"):
        run_cases.analyze("conflict", [trained["unimodal"]], tmp_path)

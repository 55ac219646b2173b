"""Sharpness against float64 numpy and dense Hessians of a small network."""

from __future__ import annotations

import numpy as np
import pytest
import run_cases
import torch
from scipy import stats
from torch.nn import functional

from igm_fast.analyses import sharpness
from igm_fast.analyses.layer_directions import DRAWS, STEP, Rise, layer_rises, rises_along
from igm_fast.analyses.loaded_run import branch_loss, fixed_samples, load_run
from igm_fast.analyses.objective import Objective
from igm_fast.data.seeds import derived_seed

BRANCH = "morphological"  # 6 inputs: 218 weights at width 8


@pytest.fixture
def case(trained):
    """Objective of one branch in two batches; weights, inputs and labels in numpy."""
    loaded = load_run(trained["igm"]).double()
    batches = fixed_samples(loaded, "train", 60, batch_size=40)
    x = np.concatenate([batch.inputs[BRANCH].numpy() for batch in batches])
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    return Objective(loaded, BRANCH, batches), run_cases.weights(loaded, BRANCH), x, labels


def dense_hessian(objective: Objective) -> np.ndarray:
    loaded, names = objective._loaded, list(objective.parameters)
    shapes = [objective.parameters[name].shape for name in names]
    batches = objective._batches

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        sums = []
        for batch in batches:
            logits = torch.func.functional_call(loaded.model, weights, (batch.inputs, [BRANCH]))[BRANCH]
            sums.append(functional.cross_entropy(logits, batch.labels, reduction="sum"))
        return torch.stack(sums).sum() / sum(len(batch.labels) for batch in batches)

    return torch.autograd.functional.hessian(loss, objective.origin).numpy()


def test_value_and_gradient_are_those_of_all_samples_together(case):
    objective, weights, x, labels = case
    assert objective.size == sum(w.size for w in weights)
    np.testing.assert_array_equal(objective.origin.numpy(), run_cases.flat(weights))
    assert objective.value() == pytest.approx(run_cases.loss(weights, x, labels), rel=1e-12)
    expected = run_cases.flat(run_cases.gradient(weights, x, labels))
    np.testing.assert_allclose(objective.gradient().numpy(), expected, rtol=0, atol=1e-13 * np.abs(expected).max() * 60)


def test_moving_restores_every_bit(case):
    objective, weights, x, labels = case
    step = torch.linspace(-1, 1, objective.size, dtype=torch.float64)
    moved = run_cases.unflat(run_cases.flat(weights) + step.numpy(), weights)
    assert objective.value(step) == pytest.approx(run_cases.loss(moved, x, labels), rel=1e-12)
    np.testing.assert_array_equal(objective.origin.numpy(), run_cases.flat(weights))


def test_sam_and_adaptive_sharpness(case):
    objective, weights, x, labels = case
    w, g = run_cases.flat(weights), run_cases.flat(run_cases.gradient(weights, x, labels))
    steps = {
        ("sam", "0.05"): 0.05 * g / np.linalg.norm(g),
        ("sam", "0.1"): 0.1 * g / np.linalg.norm(g),
        ("adaptive", "0.5"): 0.5 * w**2 * g / np.linalg.norm(w * g),
    }
    found = sharpness.sam_sharpness(objective, [0.05, 0.1], [0.5])
    assert [(measure, setting) for measure, setting, _, _ in found] == list(steps)
    for (_, _, value, _), step in zip(found, steps.values(), strict=True):
        expected = run_cases.loss(run_cases.unflat(w + step, weights), x, labels) - run_cases.loss(weights, x, labels)
        assert expected > 1e-3
        assert value == pytest.approx(expected, rel=1e-9)


def test_sharpness_without_a_gradient_is_zero():
    class Plateau:
        origin = torch.ones(3)

        def value(self, step=None):
            assert step is None or torch.isfinite(step).all()
            return 2.0

        def gradient(self):
            return torch.zeros(3)

    found = sharpness.sam_sharpness(Plateau(), [0.1], [0.5])
    assert found == [("sam", "0.1", 0.0, None), ("adaptive", "0.5", 0.0, None)]


def test_m_sharpness_is_the_mean_over_batches_each_with_its_own_gradient(case):
    objective, weights, x, labels = case
    w, expected = run_cases.flat(weights), 0.0
    for part in (slice(0, 40), slice(40, 60)):
        g = run_cases.flat(run_cases.gradient(weights, x[part], labels[part]))
        moved = run_cases.unflat(w + 0.05 * g / np.linalg.norm(g), weights)
        rise = run_cases.loss(moved, x[part], labels[part]) - run_cases.loss(weights, x[part], labels[part])
        expected += rise * (part.stop - part.start) / 60
    assert sharpness.m_sharpness(objective, 0.05) == pytest.approx(expected, rel=1e-9)


def test_average_sharpness_over_its_draws(case):
    objective, weights, x, labels = case
    w, generator = run_cases.flat(weights), torch.Generator().manual_seed(derived_seed("average sharpness"))
    rises = []
    for _ in range(5):
        z = torch.randn(w.size, generator=generator, dtype=torch.float64).numpy()
        moved = run_cases.unflat(w + 0.1 * np.abs(w) * z, weights)
        rises.append(run_cases.loss(moved, x, labels) - run_cases.loss(weights, x, labels))
    mean, error = sharpness.average_sharpness(objective, 0.1, draws=5)
    assert mean == pytest.approx(np.mean(rises), rel=1e-9)
    assert error == pytest.approx(np.std(rises, ddof=1) / np.sqrt(5), rel=1e-9)


def test_hessian_products_largest_eigenvalue_and_trace_against_the_dense_hessian(case):
    objective = case[0]
    H = dense_hessian(objective)
    v = torch.randn(objective.size, dtype=torch.float64)
    np.testing.assert_allclose(
        objective.hessian_product(v).numpy(), H @ v.numpy(), rtol=0, atol=1e-12 * np.abs(H).sum()
    )
    assert sharpness.largest_eigenvalue(objective) == pytest.approx(np.linalg.eigvalsh(H)[-1], rel=2e-4)
    probes = 200
    mean, error = sharpness.hessian_trace(objective, probes)
    # Random signs: the variance of vᵀHv is twice the sum of squares off the diagonal.
    deviation = np.sqrt(2 * (np.square(H).sum() - np.square(np.diag(H)).sum()) / probes)
    assert abs(mean - np.trace(H)) < 4 * deviation
    assert error == pytest.approx(deviation, rel=0.3)
    assert sharpness.hessian_trace(objective, 1)[1] is None


def test_rise_along_an_eigenvector_is_that_of_the_moved_weight(case):
    objective, weights, x, labels = case
    hidden = run_cases.forward(weights, x)[0]
    C = hidden.T @ hidden / len(hidden)
    numbers, values, rises = rises_along(
        objective, objective.parameters[f"branches.{BRANCH}.encoder.fc2.weight"], torch.tensor(C)
    )
    assert numbers == list(range(1, 9))
    eigenvalues, vectors = np.linalg.eigh(C)
    np.testing.assert_allclose(values, np.maximum(eigenvalues[::-1], 0), rtol=0, atol=1e-12 * eigenvalues[-1])
    W = weights[2]
    generator = torch.Generator().manual_seed(derived_seed("outputs", *W.shape))
    outputs = torch.randn(DRAWS, len(W), generator=generator, dtype=torch.float64).numpy()
    outputs *= STEP * np.linalg.norm(W) / np.linalg.norm(outputs, axis=1, keepdims=True)
    u = vectors[:, -1]  # the largest, the first number
    expected = np.mean(
        [
            run_cases.loss([*weights[:2], W + sign * np.outer(a, u), *weights[3:]], x, labels)
            - run_cases.loss(weights, x, labels)
            for a in outputs
            for sign in (1, -1)
        ]
    )
    assert rises[0] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(objective.origin.numpy(), run_cases.flat(weights))


def test_every_layer_of_every_modality_has_rises(trained):
    loaded = load_run(trained["joint"]).double()
    rises = layer_rises(loaded, fixed_samples(loaded, "train", 40), "joint")
    layers = {(r.modality, r.layer) for r in rises}
    assert layers == {(m, f"encoder.fc{i}") for m in ("fourier", "zernike", "morphological") for i in (1, 2)}


def test_rank_correlation_by_layer():
    def rise(layer, value, height):
        return Rise("r", "m", layer, 1, value, height)

    rises = [rise("up", v, v**3) for v in (1.0, 2.0, 3.0)] + [rise("flat", 1.0, 0.5), rise("flat", 1.0, 0.6)]
    rises += [rise("mixed", v, h) for v, h in ((1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (4.0, 3.0))]
    found = sharpness.rank_correlations(rises)
    assert found == {("m", "up"): pytest.approx(1.0), ("m", "mixed"): pytest.approx(0.6)}


def test_runs_of_a_method_are_averaged():
    def measurement(run, method, value):
        return sharpness.Measurement(run, method, "fused", "sam", "0.05", value)

    rows = sharpness.method_rows(
        [measurement("a", "igm", 1.0), measurement("b", "igm", 3.0), measurement("c", "mla", 5.0)]
    )
    assert [row[:2] + row[6:] for row in rows] == [("igm", 2, "2", "1.41"), ("mla", 1, "5", None)]


def test_files_and_sentence(trained, tmp_path):
    folders = [trained[name] for name in ("igm", "mla", "joint")]
    options = ("--samples", "40", "--probes", "2", "--rho", "0.05")
    finding = run_cases.analyze("sharpness", folders, tmp_path, *options)
    rows = run_cases.read(tmp_path / "sharpness.csv")
    fused = {r["method"]: float(r["value"]) for r in rows if (r["measure"], r["branch"]) == ("sam", "fused")}
    assert "SAM sharpness at ρ = 0.05: " + ", ".join(f"{m} {v:.4g}" for m, v in fused.items()) in finding.sentence
    loaded = load_run(trained["mla"]).double()
    objective = Objective(loaded, "fused", fixed_samples(loaded, "train", 40))
    ((_, _, expected, _),) = sharpness.sam_sharpness(objective, [0.05], [])
    assert fused["mla"] == pytest.approx(expected, rel=1e-5)
    directions = run_cases.read(tmp_path / "sharpness-directions.csv")
    of_layer = [
        r for r in directions if (r["run"], r["modality"], r["layer"]) == ("mla, seed 3", "zernike", "encoder.fc2")
    ]
    rho = stats.spearmanr([float(r["eigenvalue"]) for r in of_layer], [float(r["rise"]) for r in of_layer]).statistic
    (written,) = [
        r
        for r in rows
        if (r["method"], r["measure"], r["branch"], r["layer"]) == ("mla", "spearman", "zernike", "encoder.fc2")
    ]
    assert float(written["value"]) == pytest.approx(rho, abs=1e-5)


def test_a_loss_that_lanczos_cannot_follow_is_said(case, monkeypatch):
    monkeypatch.setattr(sharpness, "LANCZOS_RESTARTS", 1)
    monkeypatch.setattr(sharpness, "LANCZOS_VECTORS", 2)
    monkeypatch.setattr(sharpness, "LANCZOS_TOLERANCE", 1e-14)
    with pytest.raises(ValueError, match="did not converge in 1 restarts"):
        sharpness.largest_eigenvalue(case[0])


def test_fused_loss_moves_all_branches(trained):
    loaded = load_run(trained["igm"]).double()
    batches = fixed_samples(loaded, "train", 20)
    objective = Objective(loaded, "fused", batches)
    assert objective.size == sum(p.numel() for p in loaded.model.parameters())
    assert objective.value() == pytest.approx(float(branch_loss(loaded, batches[0], "fused").detach()), rel=1e-14)

"""Eigenvalues of activations by each estimator, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import run_cases

from igm_fast.analyses.loaded_run import fixed_samples, load_run
from igm_fast.analyses.spectra import Eigenvalues, effective_rank, layer_spectra, tau_of

SAMPLES = 150


def activations(loaded, modality):
    """Inputs of the three layers, batch by batch, float64."""
    parameters = run_cases.weights(loaded, modality)
    inputs = {"encoder.fc1": [], "encoder.fc2": [], "head": []}
    for batch in fixed_samples(loaded, "train", SAMPLES, batch_size=loaded.config.batch_size):
        x = batch.inputs[modality].double().numpy()
        hidden, features, _ = run_cases.forward(parameters, x)
        for name, values in zip(inputs, (x, hidden, features), strict=True):
            inputs[name].append(values)
    return inputs


@pytest.mark.parametrize("estimator", ["raw", "centered", "batch_mean"])
def test_eigenvalues_are_those_of_the_matrix_of_the_estimator(trained, estimator):
    loaded = load_run(trained["igm"])
    tau = 0.7
    found = {s.layer: s for s in layer_spectra(loaded, "zernike", tau, samples=SAMPLES) if s.estimator == estimator}
    inputs = activations(loaded, "zernike")
    assert list(found) == list(inputs)
    for name, batches in inputs.items():
        u = np.concatenate(batches)
        if estimator == "batch_mean":
            u = np.stack([batch.mean(axis=0) for batch in batches])
        C = (
            (u - u.mean(axis=0) * (estimator == "centered")).T
            @ (u - u.mean(axis=0) * (estimator == "centered"))
            / len(u)
        )
        expected = np.linalg.eigvalsh(C)[::-1]
        # Weyl: each eigenvalue moves by no more than the matrix does, d roundings of its norm.
        atol = 4 * len(C) * np.finfo(float).eps * expected[0]
        np.testing.assert_allclose(found[name].values, np.maximum(expected, 0), rtol=0, atol=atol)
        share = (expected - expected[-1]) / (expected[0] - expected[-1])
        np.testing.assert_allclose(found[name].sigma, np.exp(-tau * share), rtol=0, atol=1e-12)


def test_summary_of_a_known_spectrum():
    s = Eigenvalues("m", "l", "raw", np.array([4.0, 2.0, 2.0, 0.0]), np.array([0.5, 0.9, 0.995, 1.0]))
    assert s.effective_rank == pytest.approx(np.exp(0.5 * np.log(2) + 0.5 * np.log(4)))
    assert (s.numerical_rank, s.second, s.damped) == (3, 0.5, 0.5)
    assert effective_rank(np.zeros(3)) == 0.0
    assert effective_rank(np.ones(7)) == 7.0


def test_tau_is_the_runs_own_unless_it_is_asked_for(trained):
    igm, joint = load_run(trained["igm"]), load_run(trained["joint"])
    igm.method.tau = 0.9
    assert (tau_of(igm, None), tau_of(joint, None), tau_of(igm, 2.0)) == (0.9, 0.4, 2.0)
    with pytest.raises(ValueError, match="tau=-1"):
        tau_of(igm, -1.0)


def test_files_and_sentence(trained, tmp_path):
    finding = run_cases.analyze("spectra", [trained["igm"]], tmp_path, "--tau", "0.4", "--samples", str(SAMPLES))
    assert [path.name for path in finding.figures] == ["spectra.png", "spectra-stages.png"]
    rows = run_cases.read(tmp_path / "spectra.csv")
    assert len(rows) == 3 * 3 * 3  # modalities, layers, estimators
    ranks = [float(r["effective_rank"]) / float(r["d"]) for r in rows if r["estimator"] == "batch_mean"]
    assert f"batch_mean {np.median(ranks):.0%} of d" in finding.sentence
    numbers = run_cases.read(tmp_path / "spectra-eigenvalues.csv")
    assert len(numbers) == sum(int(r["d"]) for r in rows)


def test_layers_can_be_chosen(trained, tmp_path):
    run_cases.analyze("spectra", [trained["joint"]], tmp_path, "--layers", "encoder.fc2")
    assert {r["layer"] for r in run_cases.read(tmp_path / "spectra.csv")} == {"encoder.fc2"}
    with pytest.raises(ValueError, match=r"unknown layer 'encoder.fc9'.*encoder\.fc2"):
        run_cases.analyze("spectra", [trained["joint"]], tmp_path, "--layers", "encoder.fc9")

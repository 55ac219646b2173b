"""Sensitivity: what is varied, what T keeps, what is said."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from grid_cases import sentence, table

from igm_fast import analyze
from igm_fast.analyses import sensitivity
from igm_fast.analyses.sensitivity import PARAMETERS, mean_eigenvalue
from igm_fast.reports.record import Spectrum, read_run
from igm_fast.training.command import parse


@pytest.mark.parametrize(
    ("parameter", "value"), [(p, value) for p in PARAMETERS.values() for value in p.values], ids=str
)
def test_training_understands_every_value(parameter, value):
    method = parse(["--method", "igm", "--data", "digits3", *parameter.row(value).flags]).method
    assert getattr(method, parameter.option) == pytest.approx(value)
    if parameter.option == "flat_ratio":
        assert method.mixup == "official"
    if parameter.option == "noise_ratio":
        assert method.perturbation == "official"


@pytest.mark.parametrize("parameter", PARAMETERS.values(), ids=PARAMETERS)
def test_the_default_is_among_the_values(parameter):
    assert parameter.default in parameter.values


def test_mean_eigenvalue_is_the_trace_of_the_projector():
    """Against a dense T = U diag(σ) Uᵀ + c (I − U Uᵀ) of two groups of six directions, rank 2 each."""
    rng = np.random.default_rng(0)
    sigma, complement, trace = rng.uniform(0.5, 0.9, (2, 2)), 0.97, 0.0
    for values in sigma:
        basis, _ = np.linalg.qr(rng.normal(size=(6, 2)))
        trace += np.trace(basis @ np.diag(values) @ basis.T + complement * (np.eye(6) - basis @ basis.T))
    known = np.sort(sigma.ravel())
    spectrum = Spectrum(1, "a", "conv", 12, 2, "sketch", 0.0, np.ones(4), known, complement)
    assert mean_eigenvalue(spectrum) == pytest.approx(trace / 12, rel=1e-12)


def test_what_a_real_projector_leaves(igm_run):
    """Eigenvalues of T lie in [exp(−tau), 1]: so does what it leaves of any gradient, and of its trace."""
    run = {0: read_run(igm_run)}
    assert math.exp(-0.4) <= sensitivity.kept_gradient(run) < 1.0
    assert math.exp(-0.4) <= sensitivity.kept_trace(run) < 1.0
    assert sensitivity.kept_gradient({0: replace(run[0], spectra=())}) == 1.0


def test_the_grid_of_tau(stand_in, tmp_path):
    gain = [0.1, 0.102, 0.101]
    stand_in(lambda cell: 0.7 + 0.02 * cell.seed + (gain[cell.seed] if cell.row == "igm-tau-0.8" else 0.0))
    assert analyze.main(["sensitivity", "--data", "digits3", "--seeds", "3", "--out", str(tmp_path)]) == 0
    lines = [line for line in table(tmp_path / "sensitivity-tau.csv") if line["branch"] == "fused"]
    assert [float(line["value"]) for line in lines] == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert {line["mean_trace_of_T"] for line in lines} == {"1.0"}  # the stand-in projects nothing
    said = sentence(tmp_path / "sensitivity-tau.json")
    assert "highest at tau = 0.8 (0.821 ± 0.021)" in said
    assert "differs significantly from the default 0.4 at 0.8 by +0.101" in said
    assert "goes from 1.000 at 0 to 1.000 at 6.4, tr(T)/d from 1.000 to 1.000." in said
    assert (tmp_path / "sensitivity-tau.png").stat().st_size < 200_000


def test_nothing_significant_is_said_so(stand_in, tmp_path):
    stand_in(lambda cell: 0.7 + 0.01 * cell.seed)
    words = ["sensitivity", "--data", "digits3", "--parameter", "flat_ratio", "--seeds", "2", "--out", str(tmp_path)]
    assert analyze.main(words) == 0
    said = sentence(tmp_path / "sensitivity-flat-ratio.json")
    assert "differs nowhere significantly from that at the default 0.3" in said

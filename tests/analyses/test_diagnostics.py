"""Calibration, classes, gaps and projectors by hand."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import run_cases
import torch

from igm_fast.analyses import diagnostics
from igm_fast.analyses.loaded_run import mla_projector
from igm_fast.methods.mla import Mla
from igm_fast.reports.record import Measurement, Run, Spectrum, read_run


def test_reliability_by_hand():
    p = np.array([[0.95, 0.05], [0.92, 0.08], [0.35, 0.65], [0.0, 1.0], [0.5, 0.5]])
    found = diagnostics.reliability(p, np.array([0, 1, 1, 1, 0]))
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 3]
    np.testing.assert_allclose(found.accuracy[[5, 6, 9]], [1, 1, 2 / 3])
    np.testing.assert_allclose(found.confidence[[5, 6, 9]], [0.5, 0.65, 2.87 / 3])
    assert np.isnan(found.accuracy[0])
    assert found.ece == pytest.approx((0.5 + 0.35 + 3 * (2.87 - 2) / 3) / 5)


def test_a_perfect_classifier_is_calibrated():
    found = diagnostics.reliability(np.eye(3), np.arange(3))
    assert (found.ece, found.counts[-1]) == (0.0, 3)


def test_accuracy_by_class_leaves_out_classes_without_a_sample():
    p = np.eye(3)[[0, 0, 1, 1]]
    found = diagnostics.class_accuracy(p, np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(found, [2 / 3, 1.0, np.nan])


def test_gap_between_modalities_over_training(tmp_path):
    values = {"a": [0.5, 0.6], "b": [0.2, 0.9], "fused": [1.0, 1.0]}
    metrics = tuple(
        Measurement(epoch, 0, epoch, "a+b", "validation", branch, "accuracy", value)
        for branch, series in values.items()
        for epoch, value in enumerate(series)
    )
    np.testing.assert_allclose(diagnostics.modality_gap(Run(tmp_path, metrics)), [(0.5, 0.3), (1.0, 0.3)])
    alone = Run(tmp_path, tuple(m for m in metrics if m.branch == "a"))
    assert diagnostics.modality_gap(alone) == []


def test_a_low_rank_projector_has_d_eigenvalues():
    spectrum = Spectrum(1, "a", "l", 5, 2, "sketch", 0.0, np.array([3.0, 1.0]), np.array([0.6, 0.9]), 0.99)
    np.testing.assert_array_equal(diagnostics.all_of_projector(spectrum), [0.6, 0.9, 0.99, 0.99, 0.99])


def test_profiles_are_those_of_t_at_each_stage_and_of_p_at_the_end(trained):
    igm = diagnostics.profiles(read_run(trained["igm"]), "igm")
    assert {p.layer for p in igm} == {"encoder.fc2", "head"}
    # 2 rounds over 3 modalities, an epoch each: five stages have a projector.
    assert sorted({p.done for p in igm}) == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert all(len(p.values) == 8 and np.exp(-0.4) - 1e-6 <= p.values[0] <= p.values[-1] <= 1 + 1e-6 for p in igm)
    (mla,) = diagnostics.profiles(read_run(trained["mla"]), "mla")
    expected = np.linalg.eigvalsh(mla_projector(trained["mla"]).numpy())
    np.testing.assert_allclose(mla.values, expected, rtol=0, atol=1e-14)
    assert mla.mean == pytest.approx(expected.mean())
    shares = expected / expected.sum()
    assert mla.share == pytest.approx(np.exp(-(shares * np.log(shares)).sum()) / 8)
    assert mla.done == 1.0
    assert diagnostics.profiles(read_run(trained["joint"]), "joint") == []


def test_entropy_weights_are_those_that_mla_fuses_with():
    logits = {name: torch.randn(6, 4, dtype=torch.float64) for name in ("a", "b", "c")}
    weights = diagnostics.entropy_weights({name: z.softmax(dim=1).numpy() for name, z in logits.items()})
    fused = sum(torch.as_tensor(weights[name])[:, None] * z for name, z in logits.items()).softmax(dim=1)
    torch.testing.assert_close(fused, Mla().fuse(logits), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(sum(weights.values()), 1.0)


def test_files_and_sentence(trained, tmp_path):
    folders = [trained[name] for name in ("igm", "mla", "joint", "unimodal")]
    finding = run_cases.analyze("diagnostics", folders, tmp_path)
    for folder in folders:
        record = read_run(folder)
        found = diagnostics.reliability(record.probabilities[record.headline].astype(np.float64), record.labels)
        assert f"calibration error {found.ece:.3f}" in finding.sentence
    rows = run_cases.read(tmp_path / "diagnostics.csv")
    subjects = {
        label: {r["subject"] for r in rows if r["run"].startswith(label)} for label in ("igm", "mla", "unimodal")
    }
    ranks = {"effective rank / d", "mean eigenvalue"}
    assert subjects["igm"] == {"ece", "modality gap"} | ranks
    assert subjects["mla"] == subjects["igm"] | {"mean entropy weight"}
    assert subjects["unimodal"] == {"ece"}
    classes = run_cases.read(tmp_path / "diagnostics-classes.csv")
    assert len(classes) == 10 * (4 + 4 + 4 + 1)


def test_a_run_without_predictions_says_so(trained, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(trained["igm"], copied)
    (copied / "predictions.npz").unlink()
    with pytest.raises(ValueError, match=r"no predictions\.npz"):
        run_cases.analyze("diagnostics", [copied], tmp_path)

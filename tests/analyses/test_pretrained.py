"""Pretrained encoders: where weights come from, and in which order runs are trained."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from grid_cases import MODALITIES, sentence, table

from igm_fast import analyze
from igm_fast.analyses import pretrained
from igm_fast.training.command import parse

JITTER = [0.0, 0.03, 0.01]


def accuracy(cell) -> float:
    better = "--pretrained" in cell.flags
    return 0.6 + JITTER[cell.seed] + (0.1 + 0.002 * cell.seed if better else 0.0)


def test_weights_come_from_the_same_seed(stand_in, tmp_path):
    trained = stand_in(accuracy)
    assert analyze.main(["pretrained", "--data", "digits3", "--seeds", "3", "--out", str(tmp_path)]) == 0
    rows = [*(f"unimodal-{name}" for name in MODALITIES), "joint", "mla", "igm"]
    assert [cell.row for cell in trained[:18]] == rows * 3  # all from scratch before any pretrained one
    assert [cell.row for cell in trained[18:]] == [f"{row}-pretrained" for row in rows] * 3
    for cell in trained[18:]:
        sources = dict(pair.split("=") for pair in cell.flags[1].split(","))
        assert list(sources) == list(MODALITIES)
        for name, source in sources.items():
            assert Path(source) == tmp_path / "cells" / "digits3" / f"unimodal-{name}" / f"seed{cell.seed}"
            assert Path(source, "result.json").exists()
    lines = table(tmp_path / "pretrained.csv")
    means = {(line["method"], line["encoders"]): float(line["accuracy_mean"]) for line in lines if line["seeds"] == "3"}
    assert means["igm", "pretrained"] - means["igm", "scratch"] == pytest.approx(0.102)
    said = sentence(tmp_path / "pretrained.json")
    assert "igm from 0.613 ± 0.015 to 0.715 ± 0.016, +0.102 (p" in said
    assert "come on top of the row's own" in said
    assert (tmp_path / "pretrained.png").stat().st_size < 200_000


def test_weights_from_elsewhere_and_flags_of_their_own(stand_in, tmp_path):
    trained = stand_in(accuracy)
    words = ["pretrained", "--data", "digits3", "--seeds", "1", "--out", str(tmp_path)]
    assert analyze.main([*words, "--pretrained", "fourier=w.pt", "--pretrained_flags", "--lr 1e-5"]) == 0
    assert trained[0].flags == ()
    assert trained[-1].flags == ("--pretrained", "fourier=w.pt", "--lr", "1e-5")
    assert "come from outside" in sentence(tmp_path / "pretrained.json")


def test_training_understands_the_sources(tmp_path):
    arguments = argparse.Namespace(out=tmp_path, data="digits3", pretrained=None, pretrained_flags="")
    for pair in pretrained.plan(arguments, list(MODALITIES)):
        cell = pair.pretrained.cell("digits3", 4)
        own = ["--modality", cell.modality] if cell.modality else []
        config = parse(["--method", cell.method, "--data", "digits3", *own, *cell.flags]).config
        assert config.sources()["zernike"] == tmp_path / "cells" / "digits3" / "unimodal-zernike" / "seed4"

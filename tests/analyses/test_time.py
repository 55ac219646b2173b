"""Training time: what is counted, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from grid_cases import EPOCHS, MODALITIES, constant, sentence, table, write_cell

from igm_fast import analyze
from igm_fast.analyses import time
from igm_fast.analyses.time import Cost
from igm_fast.data import load_dataset
from igm_fast.reports.comparison import Cell
from igm_fast.reports.record import read_run


@pytest.mark.parametrize("method", ["joint", "late"])
def test_encoder_updates_are_epochs_times_batches(method, tmp_path):
    """Every modality trains two epochs, together with the others or alone; a last batch of one sample is none."""
    cell = Cell("digits3", method, None, 0)
    write_cell(tmp_path, cell, 0.5)
    samples = len(load_dataset("digits3").train)
    batches = samples // 64 + (samples % 64 >= 2)
    assert time.encoder_updates(read_run(tmp_path / cell.folder)) == dict.fromkeys(MODALITIES, EPOCHS * batches)


def test_cost_per_update():
    cost = Cost({}, 10.0, 4.0, 300.0, 8, {"a": 150, "b": 50})
    assert cost.processor_per_1000_updates == pytest.approx(20.0)


def test_quartiles():
    assert time.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert time.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_the_whole_analysis(stand_in, tmp_path):
    trained = stand_in(constant)
    words = [
        "time",
        "--data",
        "digits3",
        "--seeds",
        "3",
        "--methods",
        "unimodal",
        "late",
        "igm",
        "--out",
        str(tmp_path),
    ]
    assert analyze.main(words) == 0
    rows = [*(f"time-unimodal-{name}" for name in MODALITIES), "time-late", "time-igm"]
    assert [cell.row for cell in trained] == rows * 3  # interleaved; apart from runs that had company
    lines = {line["row"]: line for line in table(tmp_path / "time.csv")}
    assert list(lines) == [row.removeprefix("time-") for row in rows]
    igm = lines["igm"]
    assert float(igm["processor_seconds_median"]) == np.median([5.0, 6.0, 7.0])
    assert (float(igm["processor_seconds_q1"]), float(igm["processor_seconds_q3"])) == (5.5, 6.5)
    assert float(igm["peak_memory_mb_median"]) == 300
    assert float(igm["train_seconds_median"]) == 6
    assert float(igm["other_seconds_median"]) == 1  # of ten, nine are in named phases
    assert float(igm["seconds_per_epoch_median"]) == pytest.approx(10 / (EPOCHS * 3))
    stages = table(tmp_path / "time-stages.csv")
    assert [s["trained"] for s in stages if (s["row"], s["seed"]) == ("time-igm", "0")] == list(MODALITIES)
    said = sentence(tmp_path / "time.json")
    assert said.startswith("Median processor time of a run is 6.0 s for late; relative to it: ")
    assert "igm 1.00×" in said
    assert "Of igm's seconds, 20.0% go to statistics and decomposition" in said
    assert (tmp_path / "time.png").stat().st_size < 200_000


def test_one_run_at_a_time_unless_asked(stand_in, tmp_path, monkeypatch):
    stand_in(constant)
    seen = []
    genuine = time.train_grid
    monkeypatch.setattr(time, "train_grid", lambda *given: (seen.append(given[2].jobs), genuine(*given))[1])
    words = ["time", "--data", "digits3", "--seeds", "1", "--methods", "late", "--out", str(tmp_path)]
    analyze.main(words)
    analyze.main([*words, "--jobs", "2"])
    assert seen == [1, 2]


def test_an_unknown_method_is_answered(tmp_path, capsys):
    assert analyze.main(["time", "--data", "digits3", "--methods", "img", "--out", str(tmp_path)]) == 1
    assert "Did you mean 'igm'" in capsys.readouterr().err

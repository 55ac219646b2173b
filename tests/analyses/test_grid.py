"""Grids: which runs are trained, kept and refused, and what is said of them."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pytest
from grid_cases import MODALITIES, table
from rich.console import Console
from scipy import stats

from igm_fast.analyses import grid
from igm_fast.analyses.grid import GridError, Row
from igm_fast.comparing import cells

ROWS = [Row("late", "late"), Row("late-sam", "late", ("--rho", "0.05"))]


def asked(out, *words: str, flags: tuple[str, ...] = ()) -> argparse.Namespace:
    """The options of a grid, checked as the command line checks them."""
    parser = argparse.ArgumentParser()
    grid.add_grid_arguments(parser)
    arguments = parser.parse_args(["--data", "digits3", "--out", str(out), "--seeds", "2", "--jobs", "1", *words])
    arguments.flags = list(flags)
    grid.check_grid_arguments(arguments, pytest.fail)
    arguments.out.mkdir(exist_ok=True)
    return arguments


def accuracy(cell) -> float:
    return 0.7 + 0.01 * cell.seed + (0.05 if "--rho" in cell.flags else 0.0)


def test_a_grid_is_trained_seed_by_seed_and_read(stand_in, tmp_path):
    trained = stand_in(accuracy)
    runs = grid.train_grid("some", ROWS, asked(tmp_path), Console())
    assert [(cell.row, cell.seed) for cell in trained] == [("late", 0), ("late-sam", 0), ("late", 1), ("late-sam", 1)]
    assert list(runs) == ["late", "late-sam"]
    assert grid.scores(runs["late-sam"], "fused") == {0: pytest.approx(0.75), 1: pytest.approx(0.76)}
    assert grid.branches(runs) == [*MODALITIES, "fused"]
    lines = table(tmp_path / "some-runs.csv")
    assert len(lines) == 2 * 2 * 4
    assert (tmp_path / "cells" / "digits3" / "late-sam" / "seed1" / "result.json").exists()


def test_finished_runs_are_kept_and_shared(stand_in, tmp_path, capsys):
    trained = stand_in(accuracy)
    grid.train_grid("some", ROWS, asked(tmp_path), Console())
    grid.train_grid("other", [*ROWS, Row("igm", "igm")], asked(tmp_path), Console())
    assert [cell.row for cell in trained[4:]] == ["igm", "igm"]
    assert "4 of 6 runs are finished already and kept." in capsys.readouterr().out


def test_other_flags_in_the_same_folder_are_refused(stand_in, tmp_path):
    stand_in(accuracy)
    grid.train_grid("some", ROWS, asked(tmp_path), Console())
    with pytest.raises(ValueError, match="trained with no flags; now asked for: --epochs 6"):
        grid.train_grid("some", ROWS, asked(tmp_path, flags=("--epochs", "6")), Console())


def test_a_flag_that_the_grid_varies_is_refused(stand_in, tmp_path):
    trained = stand_in(accuracy)
    with pytest.raises(ValueError, match=r"--rho=0\.1 after -- is what some varies"):
        grid.train_grid("some", ROWS, asked(tmp_path, flags=("--rho=0.1",)), Console())
    assert trained == []


def test_quick_is_small_and_says_so(tmp_path):
    arguments = asked(tmp_path, "--seeds", "5", "--quick", flags=("--lr", "0.1"))
    assert arguments.seeds == grid.QUICK_SEEDS
    assert arguments.flags == [*grid.QUICK_FLAGS, "--lr", "0.1"]
    assert grid.with_quick_note("T helps.", arguments).endswith("to be a result. T helps.")
    assert grid.with_quick_note("T helps.", asked(tmp_path)) == "T helps."


def test_a_failed_run_is_named_with_its_log_and_the_others_are_kept(tmp_path, monkeypatch):
    """With real processes: the first row writes a result, the second ends with an error."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import json, sys, pathlib\n"
        "words = sys.argv[1:]\n"
        "if '--rho' in words: sys.exit('out of coffee')\n"
        "out = pathlib.Path(words[words.index('--out') + 1]); out.mkdir()\n"
        "scores = {'accuracy': 0.5}\n"
        "(out / 'result.json').write_text(json.dumps({'test': {'fused': scores}, 'seconds': 1.0}))\n"
    )
    genuine = cells.train_command
    command = lambda out, cell, flags: [sys.executable, str(script), *genuine(out, cell, flags)[3:]]  # noqa: E731
    monkeypatch.setattr(cells, "train_command", command)
    with pytest.raises(GridError, match=r"1 of 2 runs failed.*digits3 late-sam seed 0 \(log: .*late-sam/seed0\.log\)"):
        grid.train_grid("some", ROWS, asked(tmp_path / "out", "--seeds", "1"), Console())
    assert (tmp_path / "out" / "cells" / "digits3" / "late" / "seed0" / "result.json").exists()
    assert "out of coffee" in (tmp_path / "out" / "cells" / "digits3" / "late-sam" / "seed0.log").read_text()


def test_the_seed_enters_the_flags():
    cell = Row("a", "igm", ("--pretrained", "video=cells/seed{seed}"), None).cell("watch", 3)
    assert cell.flags == ("--pretrained", "video=cells/seed3")
    assert cell.row == "a"


def test_tests_against_one_row():
    """Against scipy's paired t-test; Holm by hand: the smaller p counts twice."""
    by_row = {
        "igm": {0: 0.80, 1: 0.82, 2: 0.81},
        "joint": {0: 0.70, 1: 0.71, 2: 0.72},
        "late": {0: 0.80, 1: 0.81, 2: 0.82},
    }
    tests = grid.tests_against("igm", by_row)
    p = {row: stats.ttest_rel(list(by_row[row].values()), list(by_row["igm"].values())).pvalue for row in tests}
    assert tests["joint"]["p"] == pytest.approx(p["joint"], rel=1e-6)
    assert tests["joint"]["p_holm"] == pytest.approx(2 * p["joint"], rel=1e-6)
    assert tests["late"]["p_holm"] == pytest.approx(max(p["late"], 2 * p["joint"]), rel=1e-6)
    assert tests["joint"]["difference"] == pytest.approx(-0.1)
    assert tests["joint"]["low"] < -0.1 < tests["joint"]["high"]


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ({"difference": 0.0126, "p_holm": 0.02}, "+0.013 (p = 0.020)"),
        ({"difference": -0.001, "p_holm": 0.7}, "-0.001 (p = 0.700, not significant)"),
        ({"difference": -0.2, "p_holm": 1e-5}, "-0.200 (p < 0.001)"),
        ({"difference": 0.5, "p_holm": None}, "+0.500 (one seed: not tested)"),
    ],
)
def test_a_difference_in_words(test, words):
    assert grid.difference_words(test) == words


def test_tidy_rows_are_means_over_seeds(stand_in, tmp_path):
    stand_in(accuracy)
    runs = grid.train_grid("some", ROWS, asked(tmp_path), Console())
    lines = grid.tidy_rows(runs, {"late": ["late", "none"], "late-sam": ["late-sam", "SAM"]})
    line = dict(zip(("row", "sam", *grid.TIDY_COLUMNS), lines[-1], strict=True))
    assert (line["row"], line["sam"], line["branch"], line["seeds"]) == ("late-sam", "SAM", "fused", 2)
    assert line["map_mean"] == pytest.approx(np.mean([0.75, 0.76]))
    assert line["map_std"] == pytest.approx(np.std([0.75, 0.76], ddof=1))

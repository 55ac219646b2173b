"""Equal tuning: which settings are tried, what decides, what is written down; training is the stand-in of the table."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml
from test_compare import calls, run, trainer  # noqa: F401 - a fixture

from igm_fast.comparing import tuning
from igm_fast.methods import METHODS
from igm_fast.reports.comparison import Cell
from igm_fast.training.config import config_keys, from_flat, option_keys

IGM = Cell("watch", "igm", None, 0)


def test_every_value_of_the_grids_is_accepted():
    grids = yaml.safe_load(tuning.GRIDS.read_text())
    assert set(grids) <= {"every method", *METHODS}
    for name, method in METHODS.items():
        for key, values in tuning.grid(name, 0.02).items():
            assert key in [*config_keys(), *option_keys(method)], f"{name} has no {key}"
            for value in values:
                from_flat({"method": name, key: value})


def test_learning_rates_are_factors_of_the_runs_own():
    assert tuning.grid("igm", 0.02)["lr"] == [0.005, 0.01, 0.02, 0.04, 0.08]
    assert tuning.grid("igm", 1e-5)["lr"] == [2.5e-6, 5e-6, 1e-5, 2e-5, 4e-5]


def test_the_default_comes_first_and_no_setting_twice():
    trials = tuning.plan_trials(IGM, 12, 2, [])
    assert trials[0].settings == {"lr": 0.02, "weight_decay": 1e-4, "tau": 0.4, "rho": 0.05}
    assert trials[0].flags == ()
    assert [trial.number for trial in trials] == list(range(12))
    assert len({tuple(trial.settings.values()) for trial in trials}) == 12
    assert trials[3].flags == tuple(w for k, v in trials[3].settings.items() for w in (f"--{k}", str(v)))
    assert [cell.seed for cell in trials[3].cells] == [1000, 1001]
    assert str(trials[3].cells[0]) == "watch igm-trial3 seed 1000"


def test_more_trials_later_are_added():
    few, many = tuning.plan_trials(IGM, 4, 1, []), tuning.plan_trials(IGM, 9, 1, [])
    assert many[:4] == few


def test_what_the_command_gives_is_fixed_and_leaves_the_grid():
    trials = tuning.plan_trials(IGM, 5, 1, ["--lr", "0.1", "--rho=0.2"])
    assert all(set(trial.settings) == {"weight_decay", "tau"} for trial in trials)


def test_the_settings_of_a_row_are_fixed_too():
    row = Cell("watch", "late", None, 0, "late:rho=0.05", ("--rho=0.05", "--weight_decay=0"))
    trials = tuning.plan_trials(row, 3, 1, [])
    assert trials[0].flags == row.flags
    assert trials[1].flags[:3] == (*row.flags, "--lr")
    assert all(set(trial.settings) == {"lr"} for trial in trials)
    assert trials[1].cells[0].row == "late:rho=0.05-trial1"


def test_the_default_that_is_not_in_the_grid_is_tried_too(tmp_path):
    (tmp_path / "own.yaml").write_text("tau: 3.0\n")
    trials = tuning.plan_trials(IGM, 3, 1, ["--config", str(tmp_path / "own.yaml")])
    assert trials[0].settings["tau"] == 3.0
    assert all("--tau" in trial.flags for trial in trials[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "16"], "--tune 16: late has 15 settings to try (of lr, weight_decay)"),
        (["--tune", "2", "--", "--lr", "0.1", "--weight_decay", "0"], "late has 1 settings to try (of no free key)"),
        (["--tune", "3", "--", "--selection", "test"], "selected on the test set"),
        (["--tune", "3", "--", "--tau", "1"], "tau is an option of"),
    ],
)
def test_what_cannot_be_tuned_is_said_before_anything_runs(trainer, capsys, arguments, message):  # noqa: F811
    assert run(trainer, "--methods", "late", "igm", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not trainer.exists()


def test_a_tuned_comparison(trainer, capsys):  # noqa: F811
    """The stand-in's validation accuracy is best with decay 0.001 and its test accuracy worst; trial 0 has neither."""
    arguments = ["--methods", "unimodal", "late", "igm", "--seeds", "2", "--tune", "6", "--tune_seeds", "1"]
    assert run(trainer, *arguments) == 0
    printed = capsys.readouterr().out
    assert "igm-trial0 seed 1000: validation accuracy 0.810" in printed
    tuned = yaml.safe_load((trainer / "tuned.yaml").read_text())
    assert (tuned["trials"], tuned["seeds"]) == (6, [1000])
    assert list(tuned["data"]["watch"]) == ["unimodal-red", "unimodal-blue", "late", "igm"]
    trials = tuning.plan_trials(IGM, 6, 1, [])
    works = [t.number for t in trials if t.settings["weight_decay"] == 0.001 and t.settings["lr"] < 0.07]
    assert tuned["data"]["watch"]["igm"]["trial"] == works[0]
    assert tuned["data"]["watch"]["igm"]["validation_accuracy"] == pytest.approx(0.76 + 0.1)
    assert tuned["data"]["watch"]["igm"]["validation_accuracy_of_default"] == pytest.approx(0.81)
    chosen = trials[works[0]]
    reported = [call for call in calls(trainer, "igm") if "--seed 0" in call or "--seed 1" in call]
    assert len(reported) == 2
    assert all(call.endswith(" ".join(chosen.flags)) for call in reported)
    table = (trainer / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| igm "))
    assert "weight_decay 0.001" in row
    assert "Tuned: 6 settings of every row, the row's own among them, each with seeds 1000;" in table
    assert "Chosen settings" in (trainer / "report.html").read_text()
    rows = list(csv.DictReader((trainer / "tuning.csv").read_text().splitlines()))
    assert len(rows) == 4 * 6
    failed = [row for row in rows if row["validation_accuracy"] == ""]
    assert [row["settings"] for row in failed if row["method"] == "igm"] == [
        " ".join(f"{k}={v}" for k, v in trial.settings.items()) for trial in trials if trial.settings["lr"] > 0.07
    ]

    assert run(trainer, *arguments) == 0  # finished runs are kept, trials that failed are tried again
    assert len(calls(trainer, "igm")) == 2
    assert len(calls(trainer, "igm-trial0")) == 1
    assert run(trainer, *arguments[:6]) == 2  # without --tune the settings would be others
    assert "Runs with different settings cannot share a table" in capsys.readouterr().err


def test_the_own_settings_win_a_draw(trainer):  # noqa: F811
    assert run(trainer, "--methods", "igm", "--seeds", "1", "--tune", "3", "--", "--weight_decay", "0.0001") == 0
    tuned = yaml.safe_load((trainer / "tuned.yaml").read_text())["data"]["watch"]["igm"]
    assert (tuned["trial"], tuned["changed"]) == (0, {})
    assert "| its own |" in (trainer / "table.md").read_text()


def test_a_row_whose_trials_all_fail_is_missing(trainer, capsys):  # noqa: F811
    arguments = ["--methods", "late", "igm", "--seeds", "1", "--tune", "2", "--tune_seeds", "1"]
    assert run(trainer, *arguments, "--", "--lr", "0.09") == 1
    assert "watch igm seed 0 has no result" in capsys.readouterr().err
    missing = json.loads((trainer / "comparison.json").read_text())["missing"]
    assert [entry["tail"] for entry in missing] == ["no trial of its row has finished with every seed"] * 2


def test_a_scheduler_tunes_by_numbers_that_stay(trainer, capsys):  # noqa: F811
    arguments = ["--methods", "igm", "--seeds", "2", "--tune", "2", "--tune_seeds", "2"]
    assert run(trainer, *arguments, "--list") == 0
    listed = capsys.readouterr()
    assert len(listed.out.splitlines()) == 6
    assert listed.out.splitlines()[4:] == ["# known when the trials of its row are finished"] * 2
    assert "cells 0 to 3 are trials, 4 to 5 the table" in listed.err
    for number in ("0", "2", "3"):
        assert run(trainer, *arguments, "--cell", number) == 0
    assert run(trainer, *arguments, "--cell", "4") == 2
    assert "whose setting is not known yet" in capsys.readouterr().err
    assert run(trainer, *arguments, "--collect") == 1
    assert run(trainer, *arguments, "--cell", "1") == 0
    for number in ("4", "5"):
        assert run(trainer, *arguments, "--cell", number) == 0
    assert run(trainer, *arguments, "--collect") == 0
    assert len(calls(trainer, "igm")) == 2


def test_equal_means_of_float32_scores_are_a_draw(tmp_path):
    """0.7 and 0.9 against 0.8 twice: their float32 means differ in the eighth decimal."""
    trials = tuning.plan_trials(IGM, 3, 2, [])[:2]
    for trial, scores in zip(trials, [(0.7, 0.9), (0.8, 0.8)], strict=True):
        for cell, score in zip(trial.cells, scores, strict=True):
            folder = tmp_path / cell.folder
            folder.mkdir(parents=True)
            result = {"validation": {"fused": {"accuracy": float(np.float32(score))}}}
            (folder / "result.json").write_text(json.dumps(result))
    assert np.mean(np.float32([0.8, 0.8]), dtype=np.float64) > np.mean(np.float32([0.7, 0.9]), dtype=np.float64)
    assert tuning.choose(tmp_path, trials) is trials[0]

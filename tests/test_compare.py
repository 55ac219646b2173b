"""The comparison command with a stand-in for training: keeping, resuming, failing, stopping, refusing to mix."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_report import outline

from igm_fast import compare
from igm_fast.reports import comparison as tables
from igm_fast.reports import statistics
from igm_fast.reports.comparison import Cell
from igm_fast.reports.comparison_html import write_comparison_report

# Writes what the comparison reads of a run. Accuracy is exact: the first `right` of 100 samples are correct.
TRAINER = """
import json, sys, time
from pathlib import Path
import numpy as np
arguments = sys.argv[1:]
def option(name, default=None):
    return arguments[arguments.index(name) + 1] if name in arguments else default
method, data, seed, out = option("--method"), option("--data"), int(option("--seed")), Path(option("--out"))
with (out.parent / "calls.txt").open("a") as calls:
    calls.write(" ".join(arguments) + "\\n")
out.mkdir(parents=True, exist_ok=True)
(out / "config.yaml").write_text(f"method: {method}\\nseed: {seed}\\nout: {out}\\nepochs: {option('--epochs', 2)}\\n")
if "--reject" in arguments and method == option("--reject"):
    sys.exit(2)
if "--fail" in arguments and f"{method}{seed}" == option("--fail"):
    print("line before"); sys.exit("RuntimeError: out of coffee")
if "--hang" in arguments and f"{method}{seed}" == option("--hang"):
    (out / "checkpoints").mkdir(); (out / "checkpoints" / "last.safetensors").touch(); time.sleep(60)
right = {"late": 80, "joint": 75, "mla": 81, "unimodal": 60}.get(method, 81) + (seed * 3) % 5
labels = np.arange(100) % 4
fused = np.eye(4)[np.where(np.arange(100) < right, labels, (labels + 1) % 4)]
modality = option("--modality")
branches = [modality] if modality else ["red", "blue", "fused"]
np.savez(out / "predictions.npz", labels=labels, **{branch: fused for branch in branches})
scores = {branch: {"accuracy": right / 100, "map": right / 100, "macro_f1": right / 100} for branch in branches}
result = {"method": method, "data": data, "seed": seed, "classes": list("abcd"), "test": scores, "validation": scores,
    "modalities": [modality] if modality else ["red", "blue"], "data_fingerprint": f"{data}{seed}", "selected_epoch": 1,
    "seconds": 1.5 + seed, "num_parameters": 10}
(out / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Replace the training process; the rest of the command line stays as it is."""
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    genuine = compare.train_command

    def command(out, cell, flags):
        return [sys.executable, str(script), *genuine(out, cell, flags)[3:]]

    monkeypatch.setattr(compare, "train_command", command)
    monkeypatch.setattr(compare, "known_methods", lambda: ["unimodal", "late", "joint", "mla", "igm-no-sam", "igm"])
    monkeypatch.setattr(compare, "known_data", lambda: ["watch", "emoji"])
    monkeypatch.setattr(compare, "modality_names", lambda data: ["red", "blue"])  # noqa: ARG005
    return tmp_path / "table"


def run(out: Path, *arguments: str) -> int:
    return compare.main(["--out", str(out), "--jobs", "2", *arguments])


def calls(out: Path, row: str, data: str = "watch") -> list[str]:
    return (out / "cells" / data / row / "calls.txt").read_text().splitlines()


def test_a_whole_comparison(trainer, capsys):
    assert run(trainer, "--methods", "unimodal", "late", "joint", "igm", "--seeds", "3") == 0
    printed = capsys.readouterr().out
    assert "[15/15]" in printed
    assert {path.name for path in trainer.iterdir()} == {
        *("cells", "comparison.json", "comparison.png", "report.html", "table.csv", "table.md")
    }
    content = json.loads((trainer / "comparison.json").read_text())["data"]["watch"]
    assert list(content["methods"]) == ["unimodal-red", "unimodal-blue", "late", "joint", "igm"]
    igm = content["methods"]["igm"]["fused"]["accuracy"]
    assert igm["values"] == {"0": 0.81, "1": 0.84, "2": 0.82}
    assert igm["mean"] == pytest.approx(np.mean([0.81, 0.84, 0.82]))
    assert igm["std"] == pytest.approx(np.std([0.81, 0.84, 0.82], ddof=1))
    rows = list(csv.DictReader((trainer / "table.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 + 3 * 3 * 3  # unimodal rows have one branch, the others three
    assert {row["branch"] for row in rows if row["method"] == "unimodal-red"} == {"red"}
    table = (trainer / "table.md").read_text()
    assert "**0.823 ± 0.015**" in table
    assert table in printed
    assert "not significant" in table  # the same difference in three seeds: Wilcoxon's p is 0.25
    assert outline(trainer / "report.html").sections == ["overview", "watch", "cells", "machine"]


def test_a_terminal_gets_a_bar_and_a_table_that_fits(trainer, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(compare, "Console", functools.partial(Console, file=screen, force_terminal=True, width=90))
    assert run(trainer, "--methods", "late", "igm", "--seeds", "2") == 0
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "4/4" in said
    lines = said.splitlines()
    row = next(line for line in lines if line.strip().startswith("late ") and "±" in line)
    assert "not significant" in row
    assert len(row) <= 90


def test_tests_are_holm_adjusted_within_a_metric(trainer):
    run(trainer, "--methods", "late", "joint", "igm", "--seeds", "4")
    tests = json.loads((trainer / "comparison.json").read_text())["data"]["watch"]["tests"]
    accuracy = [test for test in tests if test["metric"] == "accuracy"]
    assert len(tests) == 3 * len(accuracy)
    p = [test["p_wilcoxon"] if test["p_t"] is None else test["p_t"] for test in accuracy]
    assert [test["p_holm"] for test in accuracy] == pytest.approx(statistics.holm(p))


def test_finished_cells_are_kept_and_more_seeds_are_added(trainer, capsys):
    assert run(trainer, "--methods", "igm", "late", "--seeds", "1") == 0
    assert run(trainer, "--methods", "igm", "late", "--seeds", "2") == 0
    assert "2 of 4 runs are finished already" in capsys.readouterr().out
    assert [call.split("--seed ")[1][0] for call in calls(trainer, "igm")] == ["0", "1"]


def test_a_failed_cell_is_reported_and_the_others_go_on(trainer, capsys):
    flags = ["--", "--fail", "late1"]
    assert run(trainer, "--methods", "late", "igm", "--seeds", "3", *flags) == 1
    printed = capsys.readouterr()
    assert "out of coffee" in printed.out
    assert "seed1.log" in printed.err
    content = json.loads((trainer / "comparison.json").read_text())
    assert content["data"]["watch"]["methods"]["late"]["seeds"] == [0, 2]
    assert next(t for t in content["data"]["watch"]["tests"] if t["method"] == "late")["seeds"] == [0, 2]
    assert [failure["name"] for failure in content["failed"]] == ["watch late seed 1"]
    assert "1 run failed" in (trainer / "report.html").read_text()
    assert "late (2 of 3 seeds)" in (trainer / "table.md").read_text()
    run(trainer, "--methods", "late", "igm", "--seeds", "3", *flags)
    assert "--overwrite" in calls(trainer, "late")[-1]  # it had left no checkpoint


def test_everything_failed(trainer):
    assert run(trainer, "--methods", "igm", "--seeds", "1", "--", "--fail", "igm0") == 1
    assert "nothing to compare" in (trainer / "report.html").read_text()


def test_a_method_that_rejects_the_flags_is_asked_once(trainer):
    arguments = ["--methods", "late", "igm", "--seeds", "4", "--jobs", "1", "--", "--reject", "late"]
    assert run(trainer, *arguments) == 1
    assert len(calls(trainer, "late")) == 1
    assert len(calls(trainer, "igm")) == 4
    assert len(json.loads((trainer / "comparison.json").read_text())["failed"]) == 4


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopping_keeps_finished_cells_and_resumes_the_others(trainer, capsys, stop):
    hanging = trainer / "cells" / "watch" / "igm" / "seed1"

    def stop_when_hanging():
        while not (hanging / "checkpoints" / "last.safetensors").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), stop)

    watcher = threading.Thread(target=stop_when_hanging)
    watcher.start()
    arguments = ["--methods", "igm", "--seeds", "2", "--jobs", "1", "--", "--hang", "igm1"]
    assert run(trainer, *arguments) == 130
    watcher.join()
    assert "same command again" in capsys.readouterr().err
    assert (trainer / "cells/watch/igm/seed0/result.json").exists()
    command = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(hanging) not in command
    assert "--resume" in compare.train_command(trainer, Cell("watch", "igm", None, 1), [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "imgm"], "unknown method 'imgm'. Did you mean 'igm'"),
        (["--data", "wach"], "unknown data set 'wach'. Did you mean 'watch'"),
        (["--seeds", "0"], "--seeds must be at least 1; given 0"),
        (["--methods", "late", "--reference", "igm"], "unknown compared method 'igm'"),
        (["--reference", "unimodal"], "one row per modality"),
        (["--", "--seed=3"], "--seed=3 after -- is set by compare itself"),
    ],
)
def test_wrong_usage(trainer, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_code:
        run(trainer, *arguments)
    assert exit_code.value.code == 2
    assert message in capsys.readouterr().err
    assert not trainer.exists()


def test_other_flags_are_not_mixed(trainer, capsys):
    assert run(trainer, "--methods", "igm", "--seeds", "1", "--", "--epochs", "2") == 0
    assert run(trainer, "--methods", "igm", "--seeds", "2", "--", "--epochs", "3") == 2
    assert "was trained with --epochs 2; now asked for: --epochs 3" in capsys.readouterr().err
    assert len(calls(trainer, "igm")) == 1


def test_other_settings_are_not_mixed(trainer, capsys):
    """A default that changed between two versions shows in config.yaml only."""
    run(trainer, "--methods", "igm", "--seeds", "2")
    config = trainer / "cells/watch/igm/seed1/config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 9"))
    assert run(trainer, "--methods", "igm", "--seeds", "3") == 2
    assert "epochs: 9 and 2" in capsys.readouterr().err


def test_other_data_are_not_mixed(trainer, capsys):
    run(trainer, "--methods", "late", "igm", "--seeds", "1")
    path = trainer / "cells/watch/igm/seed0/result.json"
    path.write_text(path.read_text().replace("watch0", "other"))
    assert run(trainer, "--methods", "late", "igm", "--seeds", "2") == 2
    assert "different data (fingerprints other and watch0)" in capsys.readouterr().err


def test_one_seed_is_tested_by_mcnemar(trainer):
    run(trainer, "--methods", "joint", "igm", "--seeds", "1")
    content = json.loads((trainer / "comparison.json").read_text())["data"]["watch"]
    (test,) = content["mcnemar"]
    assert (test["only_first"], test["only_second"]) == (0, 6)
    assert test["p"] == pytest.approx(2 / 2**6)
    assert "one seed, McNemar p = 0.031" in (trainer / "table.md").read_text()


def test_several_data_sets_have_a_table_each(trainer):
    assert run(trainer, "--methods", "joint", "igm", "--seeds", "2", "--data", "watch", "emoji") == 0
    table = (trainer / "table.md").read_text()
    assert "### watch" in table
    assert "### emoji" in table
    assert outline(trainer / "report.html").sections == ["overview", "watch", "emoji", "cells", "machine"]


def test_all_methods_and_the_default_reference(trainer):
    arguments, flags = compare._parse(["--methods", "all", "--out", str(trainer), "--", "--tau", "4"])
    assert len(arguments.methods) == 6
    assert arguments.reference == "igm"
    assert flags == ["--tau", "4"]
    assert compare._parse(["--methods", "late", "joint"])[0].reference == "joint"


def test_help_is_for_newcomers(capsys):
    with pytest.raises(SystemExit) as exit_code:
        compare.main(["--help"])
    assert exit_code.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("report.html", "Ctrl-C", "--seeds", "-- --epochs 6"))


def test_the_command_that_is_run():
    command = compare.train_command(Path("runs/t"), Cell("watch", "unimodal", "gyroscope", 3), ["--epochs", "2"])
    assert command[1:3] == ["-m", "igm_fast.train"]
    expected = "--method unimodal --data watch --modality gyroscope --seed 3"
    folder = "runs/t/cells/watch/unimodal-gyroscope/seed3"
    assert " ".join(command[3:]) == f"{expected} --out {folder} --threads 1 --epochs 2"


def test_verdict_words():
    test = {
        "method": "late",
        "metric": "accuracy",
        "seeds": [0, 1],
        "mean_difference": 0.01,
        "interval": [0.001, 0.019],
    }
    test |= {"p_t": 0.0004, "p_holm": 0.0008, "significant": True, "note": ""}
    assert tables.verdict(test) == "+0.010 [+0.001, +0.019], p < 0.001"
    test |= {"p_holm": 0.2, "significant": False}
    assert tables.verdict(test) == "+0.010 [+0.001, +0.019], p = 0.200, not significant"


def test_no_comparison_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"comparison\.json"):
        write_comparison_report(tmp_path)

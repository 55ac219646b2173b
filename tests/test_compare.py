"""The comparison command with a stand-in for training: keeping, resuming, failing, stopping, refusing to mix."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import re
import signal
import socket
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
from igm_fast.comparing import cells
from igm_fast.comparing.locks import Locked, acquire
from igm_fast.data import load_dataset
from igm_fast.reports import comparison as tables
from igm_fast.reports import statistics
from igm_fast.reports.comparison import Cell
from igm_fast.reports.comparison_html import write_comparison_report
from igm_fast.training.command import parse

# Writes what the comparison reads of a run. Accuracy is exact: the first `right` of 100 samples are correct. Strong
# decay makes validation better and test worse, so that who looks at test when tuning is found out; a high lr diverges.
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
decay, selection = option("--weight_decay", "0.0001"), option("--selection", "validation")
(out / "config.yaml").write_text(f"method: {method}\\nseed: {seed}\\nout: {out}\\nepochs: {option('--epochs', 2)}\\n"
    f"weight_decay: {decay}\\nselection: {selection}\\nprotocol: paper\\n")
if "--reject" in arguments and method == option("--reject"):
    sys.exit(2)
if "--fail" in arguments and f"{method}{seed}" == option("--fail"):
    print("line before"); sys.exit("RuntimeError: out of coffee")
if "--hang" in arguments and f"{method}{seed}" == option("--hang"):
    (out / "checkpoints").mkdir(); (out / "checkpoints" / "last.safetensors").touch(); time.sleep(60)
if float(option("--lr", 0)) > 0.07:
    sys.exit("TrainingError: the loss is nan")
if "--slow" in arguments:
    time.sleep(0.3)
right = {"late": 80, "joint": 75, "mla": 81, "unimodal": 60}.get(method, 81) + (seed * 3) % 5
right -= 5 * (decay == "0.001")
labels = np.arange(100) % 4
fused = np.eye(4)[np.where(np.arange(100) < right, labels, (labels + 1) % 4)]
modality = option("--modality")
branches = [modality] if modality else ["red", "blue", "fused"]
np.savez(out / "predictions.npz", labels=labels, **{branch: fused for branch in branches})
scores = {branch: {"accuracy": right / 100, "map": right / 100, "macro_f1": right / 100} for branch in branches}
better = {branch: {"accuracy": right / 100 + 0.1 * (decay == "0.001")} for branch in branches}
result = {"method": method, "data": data, "seed": seed, "classes": list("abcd"), "test": scores, "validation": better,
    "modalities": [modality] if modality else ["red", "blue"], "data_fingerprint": f"{data}{seed}", "selected_epoch": 1,
    "seconds": 1.5 + seed, "processor_seconds": 3.0 + 2 * seed, "peak_memory": 250_000_000, "num_parameters": 10}
(out / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Replace the training process; the rest of the command line stays as it is."""
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    genuine = cells.train_command

    def command(out, cell, flags):
        return [sys.executable, str(script), *genuine(out, cell, flags)[3:]]

    monkeypatch.setattr(cells, "train_command", command)
    monkeypatch.setattr(compare, "train_command", command)
    monkeypatch.setattr(compare, "known_methods", lambda: ["unimodal", "late", "joint", "mla", "igm-no-sam", "igm"])
    monkeypatch.setattr(compare, "known_data", lambda: ["watch", "emoji", "digits3"])
    monkeypatch.setattr(compare, "modality_names", lambda data, flags: ["red", "blue"])  # noqa: ARG005
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
    assert [failure["name"] for failure in content["missing"]] == ["watch late seed 1"]
    assert "1 run has no result" in (trainer / "report.html").read_text()
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
    assert len(json.loads((trainer / "comparison.json").read_text())["missing"]) == 4


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
    assert not list(hanging.parent.glob("*.lock"))
    assert "--resume" in cells.train_command(trainer, Cell("watch", "igm", None, 1), [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "imgm"], "unknown method 'imgm'. Did you mean 'igm'"),
        (["--data", "wach"], "unknown data set 'wach'. Did you mean 'watch'"),
        (["--seeds", "0"], "--seeds must be at least 1; given 0"),
        (["--methods", "late", "--reference", "igm"], "unknown compared method 'igm'"),
        (["--reference", "unimodal"], "one row per modality"),
        (["--", "--seed=3"], "--seed=3 after -- is set by compare itself"),
        (["--methods", "late:rho"], "--methods late:rho: expected NAME:key=value,key=value"),
        (["--methods", "lat:rho=1"], "unknown method 'lat'"),
        (["--methods", "late:seed=1"], "seed is set by compare itself"),
        (["--methods", "unimodal:lr=1", "--reference", "unimodal:lr=1"], "one row per modality"),
        (["--cell", "0", "--collect"], "not allowed with argument"),
        (["--tune", "1"], "--tune must be at least 2: one setting leaves nothing to choose; given 1"),
        (["--tune", "3", "--tune_seeds", "0"], "--tune_seeds must be at least 1; given 0"),
        (["--tune", "3", "--seeds", "1001"], "--seeds is 1001, expected at most 1000"),
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
    assert all(word in said for word in ("report.html", "Ctrl-C", "--seeds", "-- --epochs 6", "--quick", "--cell K"))


def test_the_command_that_is_run():
    command = cells.train_command(Path("runs/t"), Cell("watch", "unimodal", "gyroscope", 3), ["--epochs", "2"])
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


def test_costs_and_the_dash_of_older_results(trainer):
    run(trainer, "--methods", "late", "igm", "--seeds", "2")
    for seed in (0, 1):
        path = trainer / f"cells/watch/late/seed{seed}/result.json"
        older = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("processor_seconds", "peak_memory")}
        path.write_text(json.dumps(older))
    assert run(trainer, "--methods", "late", "igm", "--seeds", "2", "--collect") == 0
    head, _, late, igm = [line for line in (trainer / "table.md").read_text().splitlines() if line.startswith("|")]
    assert "| CPU seconds | memory MB |" in head
    assert "| – | – |" in late
    assert "| 4.0 ± 1.4 | 250 |" in igm  # 3 and 5 seconds
    rows = {row["method"]: row for row in csv.DictReader((trainer / "table.csv").read_text().splitlines())}
    assert (rows["igm"]["processor_seconds"], rows["igm"]["peak_memory"]) == ("5.0", "250000000")
    assert (rows["late"]["processor_seconds"], rows["late"]["peak_memory"]) == ("", "")
    assert '<td data-value="4.0">4.0 ± 1.4</td>' in (trainer / "report.html").read_text()


def test_quick_is_a_check_and_says_so(trainer, capsys):
    assert run(trainer, "--quick") == 0
    said = "A check that every method runs, no result"
    assert said in capsys.readouterr().out
    assert all(said in (trainer / name).read_text() for name in ("table.md", "report.html"))
    content = json.loads((trainer / "comparison.json").read_text())
    assert list(content["data"]) == ["digits3"]
    assert len(content["cells"]) == 2 * (1 + len(compare.known_methods()))  # two modalities
    assert all("--epochs 2 --stages 1" in call for call in calls(trainer, "igm", "digits3"))


def test_what_is_given_beside_quick_wins():
    arguments, flags = compare._parse(["--quick", "--methods", "igm", "--", "--epochs", "1"])
    assert (arguments.methods, arguments.seeds, arguments.data) == (["igm"], 2, ["digits3"])
    assert parse(["--data", "digits3", *flags]).settings["epochs"] == 1


def test_a_comparison_without_quick_says_nothing_of_it(trainer, capsys):
    run(trainer, "--methods", "igm", "--seeds", "1")
    assert "no result" not in capsys.readouterr().out


def test_cells_one_by_one_and_the_table_afterwards(trainer, capsys):
    arguments = ["--methods", "late", "igm", "--seeds", "2"]
    assert run(trainer, *arguments, "--list") == 0
    listed = capsys.readouterr()
    assert len(listed.out.splitlines()) == 4
    assert "--method igm --data watch --seed 1" in listed.out.splitlines()[3]
    assert "4 cells: 0 to 3" in listed.err
    for number in ("3", "0"):
        assert run(trainer, *arguments, "--cell", number) == 0
    assert not (trainer / "table.md").exists()
    assert [len(list((trainer / "cells/watch" / row).glob("*/result.json"))) for row in ("late", "igm")] == [1, 1]
    assert run(trainer, *arguments, "--collect") == 1
    captured = capsys.readouterr()
    assert "watch late seed 1 has no result" in captured.err
    assert "watch igm seed 0 has no result" in captured.err
    assert run(trainer, *arguments, "--cell", "3") == 0  # a job that is given again
    assert len(calls(trainer, "igm")) == 1
    for number in ("1", "2"):
        run(trainer, *arguments, "--cell", number)
    assert run(trainer, *arguments, "--collect") == 0
    assert json.loads((trainer / "comparison.json").read_text())["missing"] == []


def test_runs_started_by_hand_from_the_list_count(trainer, capsys):
    arguments = ["--methods", "igm", "--seeds", "2"]
    run(trainer, *arguments, "--list")
    for line in capsys.readouterr().out.splitlines():
        subprocess.run(line, shell=True, check=True)
    assert run(trainer, *arguments, "--collect") == 0
    assert run(trainer, *arguments, "--list", "--", "--epochs", "5") == 2
    assert "now asked for: --epochs 5" in capsys.readouterr().err


def test_a_cell_out_of_range(trainer, capsys):
    assert run(trainer, "--methods", "igm", "--seeds", "2", "--cell", "2") == 2
    assert "--cell 2: expected 0 to 1" in capsys.readouterr().err


def test_a_failed_cell_has_an_exit_code_for_the_scheduler(trainer):
    assert run(trainer, "--methods", "igm", "--seeds", "1", "--cell", "0", "--", "--fail", "igm0") == 1


def lock_of(out: Path, host: str, pid: int) -> Path:
    path = out / "cells/watch/igm/seed0.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": host, "pids": [pid], "since": "2025-01-01T00:00:00+00:00"}))
    return path


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_cell_that_another_process_trains_is_left_to_it(trainer, capsys):
    lock = lock_of(trainer, socket.gethostname(), os.getpid())
    assert run(trainer, "--methods", "igm", "late", "--seeds", "1") == 1
    captured = capsys.readouterr()
    assert f"being trained by process {os.getpid()} on {socket.gethostname()}" in captured.out
    assert f"remove {lock}" in captured.out
    assert "watch igm seed 0 has no result" in captured.err
    assert not (trainer / "cells/watch/igm/calls.txt").exists()
    assert len(calls(trainer, "late")) == 1
    assert lock.exists()


def test_the_lock_of_another_machine_is_never_taken(trainer, capsys):
    lock_of(trainer, "elsewhere", ended_process())
    assert run(trainer, "--methods", "igm", "--seeds", "1", "--cell", "0") == 1
    assert "on elsewhere since 2025" in capsys.readouterr().out


def test_the_lock_of_a_killed_process_is_taken_over(trainer):
    lock = lock_of(trainer, socket.gethostname(), ended_process())
    assert run(trainer, "--methods", "igm", "--seeds", "1") == 0
    assert not lock.exists()


def test_a_half_written_lock_is_explained(trainer, capsys):
    lock_of(trainer, "", 0).write_text("")
    assert run(trainer, "--methods", "igm", "--seeds", "1") == 1
    assert "is being written. If this stays so, its process was killed: remove that file" in capsys.readouterr().out


def test_a_stale_lock_goes_to_one_of_many(tmp_path):
    """Every round has threads that all find the same lock of a dead process; descriptors, and so flocks, are apart."""
    dead = ended_process()
    for _ in range(20):
        path, barrier, got = lock_of(tmp_path, socket.gethostname(), dead), threading.Barrier(4), []

        def take(path=path, barrier=barrier, got=got):
            barrier.wait()
            with contextlib.suppress(Locked):
                got.append(acquire(path))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()


def test_a_lock_lives_as_long_as_the_training_it_is_for(tmp_path):
    path = tmp_path / "seed0.lock"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as training:
        acquire(path).share(training.pid)
        held = json.loads(path.read_text())
        path.write_text(json.dumps(held | {"pids": [ended_process(), training.pid]}))  # its comparison was killed
        with pytest.raises(Locked):
            acquire(path)
        training.communicate(b"\n")
    acquire(path).release()


def test_two_comparisons_share_a_folder(trainer):
    """Each cell is trained once, whoever comes first."""
    outcomes: list[list[dict[str, str]]] = []
    console = Console(file=io.StringIO())
    plan = [Cell("watch", method, None, seed) for seed in range(4) for method in ("late", "igm")]

    def train():
        outcomes.append(cells.run_cells(trainer, plan, ["--slow"], 2, console))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells.signal, "signal", lambda *_: signal.SIG_DFL)  # only the main thread may set handlers
        threads = [threading.Thread(target=train) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [sorted(call.split("--seed ")[1][0] for call in calls(trainer, row)) for row in ("late", "igm")] == [
        ["0", "1", "2", "3"]
    ] * 2
    assert len(outcomes) == 2


def test_selection_on_test_stands_under_the_table(trainer):
    run(trainer, "--methods", "late", "igm", "--seeds", "1", "--", "--selection", "test")
    said = "Selected on the test set (protocol paper): all rows."
    assert all(said in (trainer / name).read_text() for name in ("table.md", "report.html"))


def test_the_modalities_are_read_with_the_flags_of_the_data(monkeypatch, tmp_path):
    asked = []

    def load(name, seed, options):
        asked.append((name, seed, options))
        return load_dataset("digits3")

    monkeypatch.setattr(compare, "load_dataset", load)
    (tmp_path / "own.yaml").write_text("data_root: /ignored\nskip_bad: true\ntau: 2\nout: null\n")
    flags = ["--config", str(tmp_path / "own.yaml"), "--data_root", "/data", "--tau", "4", "--protocol", "official"]
    rows = compare.plan(["unimodal", "igm"], ["digits3"], 1, flags)
    assert [cell.row for cell in rows] == ["unimodal-fourier", "unimodal-zernike", "unimodal-morphological", "igm"]
    ((name, seed, options),) = asked
    assert (name, seed, options.root, options.skip_bad, options.protocol) == (
        *("digits3", 0, Path("/data"), True, "official"),
    )


def test_a_data_set_that_cannot_be_read_is_wrong_usage(trainer, capsys, monkeypatch):
    monkeypatch.undo()
    arguments = ["--methods", "unimodal", "igm", "--data", "digits3", "--out", str(trainer), "--", "--data_root", "x"]
    assert compare.main(arguments) == 2
    assert "compare: " in capsys.readouterr().err
    assert not trainer.exists()


def test_a_row_with_settings_of_its_own(trainer, capsys):
    assert run(trainer, "--methods", "late", "late:rho=0.05,epochs=8", "igm", "--seeds", "2") == 0
    assert all(call.endswith("--rho=0.05 --epochs=8") for call in calls(trainer, "late:rho=0.05,epochs=8"))
    content = json.loads((trainer / "comparison.json").read_text())["data"]["watch"]
    assert list(content["methods"]) == ["late", "late:rho=0.05,epochs=8", "igm"]
    assert run(trainer, "--methods", "late:roh=0.05", "igm") == 2
    assert "unknown option 'roh'. Did you mean 'rho'" in capsys.readouterr().err
    rows = compare.plan(["unimodal:lr=0.1"], ["digits3"], 1, [])
    assert [(cell.row, cell.flags) for cell in rows] == [
        ("unimodal-red:lr=0.1", ("--lr=0.1",)),
        ("unimodal-blue:lr=0.1", ("--lr=0.1",)),
    ]
    arguments, _ = compare._parse(["--methods", "all", "late:rho=0.05"])
    assert arguments.methods == [*compare.known_methods(), "late:rho=0.05"]

"""The command line of analyses: what is found, what is refused, how one failure leaves the others alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from igm_fast import analyze
from igm_fast.analyses import KINDS, analyses
from igm_fast.analyses.finding import Finding, NotApplicable, write_csv

GRIDS = {"ablation", "interaction", "pretrained", "sensitivity", "time"}


def stand_in(name: str, kind: str, failure: Exception | None = None) -> SimpleNamespace:
    """An analysis that writes a table, or fails."""

    def add_arguments(parser):
        parser.add_argument("--depth", type=int, default=3)

    def run(arguments, console):  # noqa: ARG001
        if failure is not None:
            raise failure
        rows = [[str(folder)] for folder in getattr(arguments, "runs", [])]
        table = write_csv(arguments.out / f"{name}.csv", ("run",), rows)
        return Finding(name, name.title(), f"depth {arguments.depth}", [], [table])

    return SimpleNamespace(KIND=kind, __doc__=f"What {name} does.", add_arguments=add_arguments, run=run)


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").touch()
    (folder / "result.json").touch()
    return folder


@pytest.fixture
def two(monkeypatch):
    known = {"one": stand_in("one", "run"), "several": stand_in("several", "runs"), "train": stand_in("train", "grid")}
    monkeypatch.setattr(analyze, "analyses", lambda: known)
    return known


def test_every_analysis_is_found_and_explains_itself(capsys):
    known = analyses()
    assert {name for name, module in known.items() if module.KIND == "grid"} == GRIDS
    assert all(module.KIND in KINDS for module in known.values())
    assert analyze.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, module in known.items():
        summary = module.__doc__.partition("\n")[0].rstrip(".")
        assert f"  {name:<14}{summary}" in said
        assert analyze.main([name, "--help"]) == 0
        assert "--out FOLDER" in capsys.readouterr().out


@pytest.mark.usefixtures("two")
def test_one_analysis_of_a_run(run_folder, capsys):
    assert analyze.main(["one", str(run_folder), "--depth", "5"]) == 0
    out = run_folder / "analysis"
    content = json.loads((out / "one.json").read_text())
    assert content["sentence"] == "depth 5"
    assert content["command"] == f"python -m igm_fast.analyze one {run_folder} --depth 5"
    assert (out / "one.csv").read_text() == f"run\n{run_folder}\n"
    assert capsys.readouterr().out == f"one: depth 5\npage: {out / 'analysis.html'}\n"


@pytest.mark.usefixtures("two")
def test_several_runs_and_a_folder_of_ones_own(run_folder, tmp_path):
    out = tmp_path / "elsewhere" / "deep"
    assert analyze.main(["several", str(run_folder), str(run_folder), "--out", str(out)]) == 0
    assert (out / "several.csv").read_text() == f"run\n{run_folder}\n{run_folder}\n"
    assert analyze.main(["one", str(run_folder), str(run_folder)]) == 2  # looks at one


def test_every_analysis_of_a_run(two, run_folder, capsys):
    two["absent"] = stand_in("absent", "run", NotApplicable("a joint run has no projector"))
    assert analyze.main([str(run_folder)]) == 0
    assert {path.name for path in (run_folder / "analysis").iterdir()} == {
        *("one.csv", "one.json", "several.csv", "several.json", "analysis.html")
    }
    assert "absent: left out, a joint run has no projector" in capsys.readouterr().out


def test_a_failure_leaves_the_others_alone(two, run_folder, capsys):
    two["aa"] = stand_in("aa", "run", ValueError("weights are missing"))
    assert analyze.main([str(run_folder)]) == 1
    said = capsys.readouterr()
    assert "analyze aa: weights are missing" in said.err
    assert "several: depth 3" in said.out


def test_a_failed_analysis_alone(two, run_folder, capsys):
    two["one"] = stand_in("one", "run", FileNotFoundError("no such file"))
    assert analyze.main(["one", str(run_folder)]) == 1
    assert capsys.readouterr().err == "analyze one: no such file\n"


def test_stopping(two, tmp_path, capsys):
    two["train"] = stand_in("train", "grid", KeyboardInterrupt())
    assert analyze.main(["train", "--out", str(tmp_path)]) == 130
    assert "give the same command again to go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ablaton"], "unknown analysis 'ablaton'. Did you mean 'ablation'"),
        (["runs/none"], "Nor is there a run folder runs/none"),
        ([], "RUN"),
        (["one", "runs/none"], "runs/none is no run folder: it has no config.yaml"),
        (["one"], "RUN"),
        (["ablation", "--dat", "watch"], "--dat"),
        (["ablation", "--data", "wach"], "Did you mean 'watch'"),
        (["ablation", "--seeds", "0"], "--seeds must be at least 1; given 0"),
        (["ablation", "--", "--seed", "3"], "--seed after -- is set by the analysis itself"),
        (["sensitivity", "--parameter", "sigma"], "invalid choice: 'sigma'"),
    ],
)
def test_wrong_usage(two, words, message, capsys):
    two |= {name: module for name, module in analyses().items() if name in GRIDS}
    assert analyze.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("two")
def test_an_unfinished_run_says_how_to_go_on(run_folder, capsys):
    (run_folder / "result.json").unlink()
    for words in ([str(run_folder)], ["one", str(run_folder)]):
        assert analyze.main(words) == 2
        assert f"python -m igm_fast.train --resume --out {run_folder}" in capsys.readouterr().err

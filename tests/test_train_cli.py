"""python -m igm_fast.train and .evaluate as a user meets them: files, messages, exit codes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from oracles import average_precision
from training_cases import SHORT, assert_same_run, result, rows, run

from igm_fast import evaluate, train
from igm_fast.data import load_dataset
from igm_fast.methods import METHODS
from igm_fast.methods.igm import Igm
from igm_fast.training.command import parse
from igm_fast.training.progress import TrainingProgress


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    assert run(folder) == 0
    return folder


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


# ---- a run's folder --------------------------------------------------------------------------------------------------


def test_files_of_a_run(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert names >= {
        *("config.yaml", "environment.json", "metrics.csv", "spectra.json", "timing.json", "result.json"),
        *("predictions.npz", "report.html", "checkpoints/last.safetensors", "checkpoints/best.safetensors"),
    }
    assert not [name for name in names if name.endswith(".tmp")]
    assert any(name.startswith("tensorboard/events") for name in names)
    facts = json.loads((finished / "environment.json").read_text())
    assert facts["torch"] == torch.__version__
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    assert settings["method"] == "igm"
    assert settings["lr"] == 0.05  # the preset of digits3
    assert "overwrite" not in settings


def test_metrics_are_complete(finished):
    table = rows(finished)
    assert list(table[0]) == ["global_epoch", "stage", "epoch", "trained", "split", "branch", "metric", "value"]
    branches = ["fourier", "zernike", "morphological"]
    for epoch in range(6):  # three modalities, two rounds, one epoch each
        own = [row for row in table if int(row["global_epoch"]) == epoch and row["split"] != "test"]
        assert {row["stage"] for row in own} == {str(epoch)}
        assert {row["trained"] for row in own} == {branches[epoch % 3]}
        train_rows = {(row["branch"], row["metric"]) for row in own if row["split"] == "train"}
        assert train_rows == {(branches[epoch % 3], "loss"), (branches[epoch % 3], "lr")}
        validation = {(row["branch"], row["metric"]) for row in own if row["split"] == "validation"}
        metrics = ("loss", "accuracy", "map", "macro_f1")
        assert validation == {(branch, metric) for branch in [*branches, "fused"] for metric in metrics}


def test_result_agrees_with_predictions_metrics_and_data(finished):
    content = result(finished)
    data = load_dataset("digits3", 0)
    assert content["data_fingerprint"] == data.fingerprint
    with np.load(finished / "predictions.npz") as arrays:
        assert arrays["labels"].tolist() == data.test.labels.tolist()
        for branch, scores in content["test"].items():
            p = arrays[branch].astype(np.float64)
            assert scores["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == arrays["labels"]))
            precisions = [average_precision(p[:, k], arrays["labels"] == k) for k in range(10)]
            assert scores["map"] == pytest.approx(np.mean(precisions), rel=1e-5)
        np.testing.assert_allclose(
            arrays["fused"], np.mean([arrays[m] for m in content["modalities"]], axis=0), rtol=1e-5
        )
    selected = [row for row in rows(finished) if row["global_epoch"] == str(content["selected_epoch"])]
    for split in ("validation", "test"):
        found = {
            (row["branch"], row["metric"]): float(row["value"])
            for row in selected
            if row["split"] == split and row["metric"] != "loss"
        }
        assert found == {(b, metric): v for b, scores in content[split].items() for metric, v in scores.items()}
    best = max(
        float(row["value"])
        for row in rows(finished)
        if (row["split"], row["branch"], row["metric"]) == ("validation", "fused", "accuracy")
    )
    assert content["validation"]["fused"]["accuracy"] == best
    assert content["warnings"] == []


def test_spectra_and_times(finished):
    spectra = json.loads((finished / "spectra.json").read_text())
    assert [(row["stage"], row["source"], row["target"], row["layer"]) for row in spectra[:3]] == [
        (1, "fourier", "zernike", "encoder.fc2"),
        (1, "fourier", "zernike", "head"),
        (2, "zernike", "morphological", "encoder.fc2"),
    ]
    for row in spectra:
        damping = np.ravel(row["projector_eigenvalues"])
        assert np.all((damping >= np.exp(-0.4) * (1 - 1e-5)) & (damping <= 1 + 1e-5))
    timing = json.loads((finished / "timing.json").read_text())
    phases = ("train", "statistics", "decomposition", "evaluation", "checkpoint")
    assert all(timing[phase] > 0 for phase in phases)
    assert sum(timing[phase] for phase in phases) <= timing["total"]
    assert [row["stage"] for row in timing["per_stage"]] == list(range(6))


def test_tensorboard_has_the_same_numbers(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    written = [event.value for event in events.Scalars("validation/fused/accuracy")]
    wanted = [
        float(row["value"])
        for row in rows(finished)
        if (row["split"], row["branch"], row["metric"]) == ("validation", "fused", "accuracy")
    ]
    assert written == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "igm"])
def test_every_method_trains_digits3_above_chance(name, tmp_path, capsys):
    flags = ["--modality", "zernike"] if name == "unimodal" else []
    assert run(tmp_path, "--method", name, *flags, "--epochs", "4") == 0
    branch = "zernike" if name == "unimodal" else "fused"
    assert result(tmp_path)["test"][branch]["accuracy"] > 0.4  # ten classes
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("test accuracy: ")
    assert str(tmp_path / "report.html") in out


def test_late_is_its_unimodal_runs(tmp_path):
    """The control has no exchange at all: each branch is bit for bit the model trained alone."""
    assert run(tmp_path / "late", "--method", "late") == 0
    late = [
        row["value"]
        for row in rows(tmp_path / "late")
        if row["trained"] == row["branch"] == "zernike" and row["split"] == "validation"
    ]
    assert run(tmp_path / "alone", "--method", "unimodal", "--modality", "zernike") == 0
    alone = [row["value"] for row in rows(tmp_path / "alone") if row["split"] == "validation"]
    assert late == alone


def test_igm_without_projector_is_late_fusion(tmp_path, finished):
    """The first round's first stage is the same bits; τ → 0 makes all of it the same to round-off."""
    flags = ("--rho", "0.05")
    assert run(tmp_path / "late", "--method", "late", *flags) == 0
    first = [row for row in rows(tmp_path / "late") if row["stage"] == "0"]
    assert first == [row for row in rows(finished) if row["stage"] == "0"]
    assert rows(tmp_path / "late") != rows(finished)
    assert run(tmp_path / "igm", "--tau", "1e-9", *flags) == 0
    for mine, theirs in zip(rows(tmp_path / "igm"), rows(tmp_path / "late"), strict=True):
        if mine["metric"] == "loss":
            assert float(mine["value"]) == pytest.approx(float(theirs["value"]), rel=1e-3), mine


# ---- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_gives_the_numbers_of_the_result(finished, capsys):
    assert evaluate.main([str(finished)]) == 0
    record = json.loads((finished / "evaluation.json").read_text())
    assert record["scores"] == result(finished)["test"]
    assert f"{record['scores']['fused']['accuracy']:.4f}" in capsys.readouterr().out
    assert evaluate.evaluate(finished, "validation")["scores"] == result(finished)["validation"]
    last = evaluate.evaluate(finished, "validation", "last")["scores"]
    final = [row for row in rows(finished) if row["global_epoch"] == "5" and row["split"] == "validation"]
    assert {(r["branch"], r["metric"]): float(r["value"]) for r in final if r["metric"] != "loss"} == {
        (branch, metric): value for branch, scores in last.items() for metric, value in scores.items()
    }


def test_evaluate_says_what_is_wrong(tmp_path, finished, monkeypatch, capsys):
    assert evaluate.main([str(tmp_path)]) == 1
    assert "is no run folder" in said(capsys)
    assert evaluate.main([str(finished), "--split", "train"]) == 2
    assert evaluate.main(["--help"]) == 0
    monkeypatch.setattr(evaluate, "load_dataset", lambda name, _seed, _options: load_dataset(name, 5))
    assert evaluate.main([str(finished)]) == 1
    assert "other data" in said(capsys)


# ---- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "imgm"], "unknown method 'imgm'. Did you mean 'igm'"),
        (["--data", "wach"], "unknown data set 'wach'. Did you mean 'watch'?"),
        (["--tua", "3"], "unknown option 'tua'. Did you mean 'tau'"),
        (["--method", "joint", "--tau", "3"], "tau is an option of igm-no-sam, igm, not of joint"),
        (["--optimizer", "adamm"], "unknown optimizer 'adamm'. Did you mean 'adam'"),
        (["--match=nmae"], "unknown match 'nmae'. Did you mean 'name'?"),
        (["--rho", "-1"], "igm: rho is -1.0, expected a number ≥ 0"),
        (["--tau=-1"], "igm: tau is -1.0, expected a number ≥ 0"),
        (["--lr", "fast"], "--lr: expected a float. Got value: fast"),
        (["--epochs", "1"], "stages is 2, expected at most epochs, which is 1"),
        (["--method", "unimodal"], "no modality given, expected one of fourier, zernike, morphological"),
        (["--method", "unimodal", "--modality", "zernyke"], "Did you mean 'zernike'"),
        (["--resume", "--overwrite"], "resume and overwrite are both given"),
        (["--config", "none.yaml"], "none.yaml: no such file"),
        (["igm"], "unexpected 'igm'"),
        pytest.param(
            ["--accelerator", "cuda"],
            "finds no CUDA device; use --accelerator cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here"),
        ),
    ],
)
def test_wrong_usage(tmp_path, capsys, flags, message):
    short = [] if flags == ["igm"] else SHORT
    assert run(tmp_path / "run", *flags, short=short) == 2
    assert message in said(capsys)
    assert not (tmp_path / "run").exists()


def test_folders_in_the_way(tmp_path, finished, capsys):
    assert run(finished) == 2
    assert "finished run" in said(capsys)
    (tmp_path / "letters").write_text("")
    assert run(tmp_path / "letters") == 2
    assert "is a file" in said(capsys)


def test_help_shows_each_methods_options(capsys):
    for name, method in METHODS.items():
        assert train.main(["--method", name, "--help"]) == 0
        text = capsys.readouterr().out
        assert "examples:" in text
        for key in parse(["--method", name, *(["--modality", "gyroscope"] if name == "unimodal" else [])]).settings:
            assert f"--{key}" in text, (name, key)
        assert (method.__doc__ or "").splitlines()[0] in text


def test_settings_come_from_preset_file_and_flags_in_this_order(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("data: digits3\nlr: 3e-3\ntau: 2\nout: null\n")
    assert train.main(["--lr", "0.5", "--config", str(file), "--print_config"]) == 0
    text = capsys.readouterr().out
    settings = yaml.safe_load(text)
    assert (settings["lr"], settings["tau"], settings["batch_size"]) == (0.5, 2.0, 64)
    assert settings["out"] == "runs/igm-digits3-0"
    file.write_text(text)
    assert parse(["--config", str(file)]).settings == settings
    assert parse(["--data", "digits3"]).settings["lr"] == 0.05
    file.write_text("lrr: 1\n")
    assert train.main(["--config", str(file)]) == 2
    assert "unknown option 'lrr'. Did you mean 'lr'?" in said(capsys)


def test_default_folder_names_the_run():
    assert parse([]).config.out == "runs/igm-watch-0"
    named = parse(["--method", "unimodal", "--modality", "gyroscope", "--seed", "3"])
    assert named.config.out == "runs/unimodal-gyroscope-watch-3"
    assert parse(["--batch-size=32", "--centered"]).method.centered


# ---- failing, stopping and going on ----------------------------------------------------------------------------------


def test_nan_fails_with_its_place_and_the_folder_goes_on(tmp_path, finished, monkeypatch, capsys):
    loss = Igm.loss

    def spoiled(self, stage, batch, context):
        return loss(self, stage, batch, context) * (torch.nan if stage.index == 3 else 1.0)

    monkeypatch.setattr(Igm, "loss", spoiled)
    assert run(tmp_path) == 1
    message = said(capsys)
    assert "the loss of fourier is nan in stage 4 (fourier), epoch 1, batch 1 of 19" in message
    assert f"--resume --out {tmp_path}" in message
    assert not (tmp_path / "result.json").exists()
    monkeypatch.undo()
    assert run(tmp_path, "--resume") == 0
    assert_same_run(tmp_path, finished)


def test_ctrl_c_says_how_to_go_on(tmp_path, finished, monkeypatch, capsys):
    def interrupted(_self, stage, *_rest):
        if stage.index == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "epoch", interrupted)
    assert run(tmp_path) == 130
    assert f"stopped. Go on with: python -m igm_fast.train --resume --out {tmp_path}" in said(capsys)
    assert run(tmp_path) == 2
    assert "unfinished run. Go on with --resume" in said(capsys)
    monkeypatch.undo()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0  # the settings are the run's own
    assert "resumed after 3 epochs" in capsys.readouterr().out
    assert_same_run(tmp_path, finished)
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert "is finished already" in capsys.readouterr().out


def test_resume_refuses_other_settings_and_damage(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "epoch", stop)
    assert run(tmp_path) == 130
    monkeypatch.undo()
    assert run(tmp_path, "--resume", "--lr", "0.5", "--method", "late") == 2
    assert "method was igm, now late; lr was 0.05, now 0.5; tau was 0.4, now None" in said(capsys)
    path = tmp_path / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert run(tmp_path, "--resume") == 1
    assert f"{path} is damaged" in said(capsys)
    assert run(tmp_path, "--overwrite") == 0
    assert run(tmp_path / "nothing-yet", "--resume") == 0  # a scheduler may always say --resume


def test_module_runs_and_is_quiet_where_there_is_no_terminal(tmp_path):
    command = [sys.executable, "-m", "igm_fast.train", *SHORT[:-1], "--method", "joint", "--out", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == f"joint on digits3, seed 0, into {tmp_path / 'x'}"
    assert lines[1].startswith("stage 1/1 fourier+zernike+morphological: 2 epochs, loss ")
    assert lines[2].startswith("test accuracy: ")
    assert lines[3].startswith(f"report: {tmp_path / 'x' / 'report.html'}")


def test_csv_is_what_the_report_reads(finished):
    from igm_fast.reports.record import read_run

    record = read_run(Path(finished))
    with (finished / "metrics.csv").open() as file:
        assert len(record.metrics) == sum(1 for _ in csv.reader(file)) - 1
    assert record.headline == "fused"

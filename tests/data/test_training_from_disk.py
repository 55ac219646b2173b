"""Two epochs on the tiny trees through the command line: workers, cache and resuming change no bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from training_cases import assert_same_run
from trees import crema_d_tree, ksounds_tree

from igm_fast.evaluate import main as evaluate
from igm_fast.train import main as train
from igm_fast.training import loop

SMALL = ("--encoders", "audio=small,video=small", "--epochs", "2", "--stages", "1", "--stage_epochs", "",
         "--width", "8", "--head_widths", "", "--batch_size", "3", "--threads", "1", "--quiet")  # fmt: skip


@pytest.fixture
def crema_d(tmp_path: Path) -> Path:
    return crema_d_tree(tmp_path / "crema-d", train=4, test=2, frames=2, classes=("NEU", "ANG"))


@pytest.fixture
def ksounds(tmp_path: Path) -> Path:
    return ksounds_tree(tmp_path / "ksounds", train=4, test=2, frames=4, classes=("bowling", "singing"))


def run(name: str, root: Path, out: Path, *flags: str) -> int:
    return train(["--data", name, "--data_root", str(root), "--out", str(out), *SMALL, *flags])


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("name", ["crema-d", "ksounds"])
@pytest.mark.parametrize("protocol", ["paper", "official"])
def test_two_epochs(name: str, protocol: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue(name.replace("-", "_"))
    flags = () if protocol == "paper" else ("--protocol", "official")
    assert run(name, root, tmp_path / "run", "--method", "igm", *flags) == 0
    found = result(tmp_path / "run")
    assert found["modalities"] == ["audio", "video"]
    assert found["num_test"] == 4
    assert found["skipped"] == []
    assert any("do not select by them" in warning for warning in found["warnings"]) == (protocol == "official")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["protocol"] == protocol
    assert evaluate([str(tmp_path / "run")]) == 0


def test_workers_and_cache_change_no_bit(crema_d: Path, tmp_path: Path) -> None:
    flags = ("--method", "igm")
    assert run("crema-d", crema_d, tmp_path / "plain", *flags) == 0
    for number in range(2):  # a cold cache, then a warm one
        out = tmp_path / f"cached{number}"
        assert run("crema-d", crema_d, out, *flags, "--workers", "2", "--cache", str(tmp_path / "cache")) == 0
        assert_same_run(tmp_path / "plain", out)


def test_a_resumed_run_sees_the_same_augmentation(
    crema_d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--method", "joint", "--epochs", "3")
    assert run("crema-d", crema_d, tmp_path / "whole", *flags) == 0
    original = loop.Trainer._save

    def stop(self: loop.Trainer, *arguments: object) -> None:
        original(self, *arguments)
        if self.position.global_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_save", stop)
        assert run("crema-d", crema_d, tmp_path / "parts", *flags) == 130
    assert train(["--resume", "--out", str(tmp_path / "parts"), "--quiet", "--workers", "1"]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_broken_set_is_refused_or_trained_without(
    crema_d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (crema_d / "AudioWAV" / "1001_DFA_NEU_XX.wav").unlink()
    assert run("crema-d", crema_d, tmp_path / "run", "--method", "joint") == 2
    said = capsys.readouterr().err
    assert "annotations/train.csv:1: AudioWAV/1001_DFA_NEU_XX.wav: no such sound file" in said
    assert "--skip_bad trains without them" in said
    assert run("crema-d", crema_d, tmp_path / "run", "--method", "joint", "--skip_bad") == 0
    (skipped,) = result(tmp_path / "run")["skipped"]
    assert "annotations/train.csv:1: AudioWAV/1001_DFA_NEU_XX.wav" in skipped


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_file_that_breaks_during_training_ends_the_run_with_its_name(
    crema_d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    original = loop.Trainer.train

    def break_first(self: loop.Trainer) -> dict:
        for sample in self.data.train.samples:
            (crema_d / sample["audio"]).unlink()
        return original(self)

    monkeypatch.setattr(loop.Trainer, "train", break_first)
    assert run("crema-d", crema_d, tmp_path / "run", "--method", "joint", "--workers", workers) == 1
    said = capsys.readouterr().err
    assert ".wav: no such sound file" in said
    assert "Traceback" not in said


def test_without_a_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--data", "crema-d", "--out", str(tmp_path / "run"), *SMALL]) == 2
    assert "expected --data_root DIR" in capsys.readouterr().err

"""Two gloo ranks make the run of one rank, to round-off; started by Fabric and by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_cases import SHORT, rows, run

from igm_fast.training.checkpoint import load
from igm_fast.training.devices import is_first_process
from igm_fast.training.run_folder import RunFolder


def train_on_two(out: Path, *flags: str, launcher: tuple[str, ...] = ()) -> None:
    flags = (*SHORT, "--devices", "2", "--strategy", "ddp", "--accelerator", "cpu", "--out", str(out), *flags)
    command = [sys.executable, *launcher, "-m", "igm_fast.train", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def assert_equal_to_round_off(one: Path, two: Path) -> None:
    """Sums over a batch are split in two: gradients differ by float32 rounding, and 100 steps carry that on."""
    a, b = (load(folder / "checkpoints" / "last.safetensors", "")["model"] for folder in (one, two))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    mine, theirs = rows(one), rows(two)
    assert len(mine) == len(theirs)
    for row, other in zip(mine, theirs, strict=True):
        if row["metric"] == "loss" and row["split"] != "test":
            assert float(other["value"]) == pytest.approx(float(row["value"]), rel=1e-3), row
    spectra = [RunFolder(folder).read_json("spectra.json", []) for folder in (one, two)]
    for row, other in zip(*spectra, strict=True):
        assert (other["layer"], other["count"]) == (row["layer"], row["count"])
        assert other["trace"] == pytest.approx(row["trace"], rel=1e-3)


@pytest.mark.slow
# Each finds the other rank in another way: sums of statistics, features, probes on copies, scores that decide, samples.
@pytest.mark.parametrize("method", ["igm", "mla", "ogr-gb", "mses", "smv"])
def test_two_ranks_equal_one(tmp_path, method):
    """Statistics, SAM's ε and MLA's P are those of the whole batch; every batch is shared unequally, 31 to 30."""
    flags = ("--method", method, "--batch_size", "61")
    assert run(tmp_path / "one", *flags) == 0
    train_on_two(tmp_path / "two", *flags)
    assert_equal_to_round_off(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_torchrun(tmp_path):
    assert run(tmp_path / "one") == 0
    train_on_two(tmp_path / "two", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    assert_equal_to_round_off(tmp_path / "one", tmp_path / "two")


def test_rank_before_launch():
    assert is_first_process({})
    assert is_first_process({"RANK": "0", "LOCAL_RANK": "0"})
    assert not is_first_process({"RANK": "2", "LOCAL_RANK": "0"})  # first of another node
    assert not is_first_process({"LOCAL_RANK": "1"})

"""kill -9 in the middle of training, twice; the run goes on bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_cases import assert_same_run, run

FLAGS = ("--data", "digits3", "--epochs", "30", "--stages", "2", "--threads", "1", "--quiet")


def kill_after(folder: Path, epochs: int) -> None:
    """Train in a process of its own, and kill it once so many epochs stand in metrics.csv."""
    command = [sys.executable, "-m", "igm_fast.train", *FLAGS, "--resume", "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.csv"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and f"\n{epochs}," in metrics.read_text():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert not (folder / "result.json").exists()


@pytest.mark.slow
def test_killed_twice_equals_never_killed(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_after(killed, 10)  # in the first stage
    kill_after(killed, 38)  # in the third, with projectors and momentum
    assert run(killed, "--resume", short=FLAGS) == 0
    assert run(whole, short=FLAGS) == 0
    assert_same_run(killed, whole)

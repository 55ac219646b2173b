"""A stand-in for training: grids get run folders with the scores that a test asks for, in no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import training_cases
from grid_cases import write_cell
from training_cases import run as train

from igm_fast.analyses import grid
from igm_fast.comparing.cells import write_request
from igm_fast.reports.comparison import Cell

Scores = Callable[[Cell], float]


@pytest.fixture
def stand_in(monkeypatch) -> Callable[[Scores], list[Cell]]:
    """Give grids the fused accuracy of a function; the returned list grows by every cell that was trained."""

    def install(accuracy: Scores) -> list[Cell]:
        trained: list[Cell] = []

        def run_cells(out: Path, waiting: Sequence[Cell], flags: Sequence[str], jobs: int, *rest: object) -> list:
            assert (jobs >= 1, len(rest)) == (True, 1)
            for cell in waiting:
                write_request(out, cell, flags, 0)
                write_cell(out, cell, accuracy(cell))
                trained.append(cell)
            return []

        monkeypatch.setattr(grid, "run_cells", run_cells)
        return trained

    return install


@pytest.fixture(scope="session")
def igm_run(tmp_path_factory) -> Path:
    """A real run of IGM on digits3, two epochs a modality, with the weights at the end of each stage."""
    folder = tmp_path_factory.mktemp("run") / "igm"
    assert train(folder, "--method", "igm", "--rho", "0", "--keep_stages", "true") == 0
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Short runs on digits3, by method; for the analyses that look at runs."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ("--width", "8", "--seed", "3")
    for name in ("igm", "mla", "joint"):
        assert training_cases.run(folder / name, "--method", name, *flags) == 0
    assert training_cases.run(folder / "unimodal", "--method", "unimodal", "--modality", "zernike", *flags) == 0
    return {name: folder / name for name in ("igm", "mla", "joint", "unimodal")}

"""Figures of grids: nothing is cut off, also with long names, several lines of setting and a single seed."""

from __future__ import annotations

import pytest
from grid_cases import MODALITIES

from igm_fast import analyze
from igm_fast.analyses import interaction
from igm_fast.analyses.interaction import Course
from igm_fast.reports import figures

GRIDS = (
    ("ablation",),
    ("ablation", "--full"),
    ("sensitivity", "--parameter", "flat_ratio"),
    ("sensitivity", "--parameter", "noise"),
    ("interaction",),
    ("pretrained",),
    ("time", "--methods", "all"),
)


@pytest.mark.parametrize("seeds", ["1", "2"])
@pytest.mark.parametrize("words", GRIDS, ids=" ".join)
def test_nothing_is_cut_off(stand_in, monkeypatch, tmp_path, words, seeds):
    stand_in(lambda cell: 0.8 + 0.013 * cell.seed + 0.001 * len(cell.row))
    course = Course(MODALITIES, {branch: [0.1, 0.5, 0.6, 0.8] for branch in (*MODALITIES, "fused")})
    monkeypatch.setattr(interaction, "measure", lambda folder: course)  # noqa: ARG005 - of any run
    drawn, save = [], figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (drawn.append((figure, path)), save(figure, path)))
    common = ["--data", "digits3", "--seeds", seeds, "--quick", "--out", str(tmp_path)]
    assert analyze.main([words[0], *common, *words[1:]]) == 0
    ((figure, path),) = drawn
    assert path.stat().st_size < 200_000
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    assert (box.x0 >= 0, box.y0 >= 0, box.x1 <= size[0], box.y1 <= size[1]) == (True, True, True, True)

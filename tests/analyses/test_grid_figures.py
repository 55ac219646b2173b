"""Figures of grids: nothing is cut off, also with long names, several lines of setting and a single seed."""

from __future__ import annotations

import io

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
    assert path.stat().st_size < (400_000 if "--full" in words else 200_000)
    figure.savefig(io.BytesIO())  # the SVG before was laid out for fewer dots per inch
    box, (width, height), pixel = figure.get_tightbbox(), figure.get_size_inches(), 1 / figure.dpi
    assert min(box.x0, box.y0) >= -pixel
    assert box.x1 <= width + pixel
    assert box.y1 <= height + pixel

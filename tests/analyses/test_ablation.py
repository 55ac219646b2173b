"""The ablation's rows, table and sentence."""

from __future__ import annotations

import pytest
from grid_cases import sentence, table

from igm_fast import analyze
from igm_fast.analyses import ablation
from igm_fast.training.command import parse

GAIN = {"joint": 0.0, "late": 0.02, "late-sam": 0.03, "igm-no-sam": 0.08, "igm": 0.10}
JITTER = [0.0, 0.012, -0.004]


def accuracy(cell) -> float:
    return 0.7 + GAIN[cell.row] + JITTER[cell.seed] * (1 + len(cell.row) / 10)


def test_the_papers_rows(stand_in, tmp_path):
    stand_in(accuracy)
    assert analyze.main(["ablation", "--data", "digits3", "--seeds", "3", "--out", str(tmp_path)]) == 0
    lines = table(tmp_path / "ablation.csv")
    fused = {line["row"]: line for line in lines if line["branch"] == "fused"}
    factors = {row: (line["schedule"], line["sam"], line["gm"], line["mixup"]) for row, line in fused.items()}
    assert factors == {
        "joint": ("joint", "none", "none", "none"),
        "late": ("alternating", "none", "none", "none"),
        "late-sam": ("alternating", "true", "none", "none"),
        "igm-no-sam": ("alternating", "none", "all", "none"),
        "igm": ("alternating", "true", "all", "none"),
    }
    assert len(lines) == 5 * 4
    expected = sum(0.8 + jitter * 1.3 for jitter in JITTER) / 3
    assert float(fused["igm"]["accuracy_mean"]) == pytest.approx(expected)
    assert fused["igm"]["p_holm"] == ""
    assert float(fused["joint"]["difference"]) == pytest.approx(0.7 + sum(JITTER) * 1.5 / 3 - expected)
    assert 0 < float(fused["joint"]["p_holm"]) < 0.05
    said = sentence(tmp_path / "ablation.json")
    assert f"with both parts is {expected:.3f} ±" in said
    assert "with the projector alone 0.7" in said
    assert "Holm-adjusted for 4 comparisons" in said
    assert "highest mean" not in said  # that of the method itself needs no further word
    assert (tmp_path / "ablation.png").stat().st_size < 200_000
    assert "ablation.csv" in (tmp_path / "analysis.html").read_text()


def test_one_seed_is_not_tested(stand_in, tmp_path):
    stand_in(accuracy)
    assert analyze.main(["ablation", "--data", "digits3", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert "one seed: not tested" in sentence(tmp_path / "ablation.json")


def test_another_row_that_is_best_is_named(stand_in, tmp_path):
    stand_in(lambda cell: 0.9 if cell.row == "late" else accuracy(cell))
    analyze.main(["ablation", "--data", "digits3", "--seeds", "2", "--out", str(tmp_path)])
    said = sentence(tmp_path / "ablation.json")
    assert "The highest mean of all 5 rows is that of late." in said


def test_the_full_grid_has_every_combination_once():
    rows = ablation.full_grid()
    assert len({(f.schedule, f.sam, f.gm, f.mixup) for f in rows}) == len(rows) == 2 + 3 * 4 * 3
    assert len({f.row.label for f in rows}) == len(rows)
    assert len({f.words for f in rows}) == len(rows)
    assert {f.row for f in ablation.paper_grid()} <= {f.row for f in rows}


@pytest.mark.parametrize("factors", ablation.full_grid(), ids=lambda f: f.row.label)
def test_every_row_is_what_it_says(factors):
    """Training understands the flags, and the method made of them has the row's factors."""
    row = factors.row
    method = parse(["--method", row.method, "--data", "digits3", *row.flags]).method
    if factors.sam != "official":
        assert (method.rho > 0) == (factors.sam == "true")
    if row.method != "igm":
        return
    assert (method.perturbation == "official") == (factors.sam == "official")
    assert method.mixup == factors.mixup
    assert method.layers == {"none": "none", "heads": "heads", "all": "all", "mla": "all"}[factors.gm]
    assert method.projector == ("mla" if factors.gm == "mla" else "flat")

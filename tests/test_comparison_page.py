"""The comparison's page with as many rows as the paper's table, in a browser as narrow as a phone and in a wide one."""

from __future__ import annotations

import json

import pytest
from test_report import CHROMIUM, browse, outline

from igm_fast.methods import METHODS
from igm_fast.reports import comparison as tables
from igm_fast.reports.comparison import Cell
from igm_fast.reports.comparison_html import write_comparison_report
from igm_fast.reports.record import Run

MODALITIES = ["fourier", "zernike", "morphological"]
PROBE = """<script>
  const table = document.querySelector("table[aria-label='Results on digits3']");
  table.querySelector("th:nth-child(2) button").click();
  const values = [...table.tBodies[0].rows].map(row => Number(row.cells[1].dataset.value));
  table.parentElement.scrollLeft = 10000;
  const first = table.tBodies[0].rows[0].cells[0].getBoundingClientRect();
  const image = document.querySelector("figure img");
  image.decode().then(() => parent.postMessage(JSON.stringify({
    sorted: values.every((v, i) => i === 0 || values[i - 1] <= v), rows: values.length,
    name_is_seen: first.left >= 0 && first.right <= innerWidth, width: innerWidth, image: image.naturalWidth,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth}), "*"));
</script></body>"""
# A browser's window has a least width, a frame has none.
FRAME = """<!DOCTYPE html><title></title>
<script>addEventListener("message", event => document.title = event.data)</script>
<iframe src="page.html" style="border: 0" width="{width}" height="844"></iframe>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Twenty rows, three modalities, tuned, selected on test, a cell missing: everything that a page can have."""
    out = tmp_path_factory.mktemp("table")
    rows = [("unimodal", name) for name in MODALITIES] + [(name, None) for name in METHODS if name != "unimodal"]
    runs = {}
    for place, (method, modality) in enumerate(rows):
        for seed in range(3):
            branches = [modality] if modality else [*MODALITIES, "fused"]
            score = 0.6 + 0.01 * ((7 * place) % 20) + 0.003 * seed
            test = {branch: {"accuracy": score, "map": score, "macro_f1": score} for branch in branches}
            result = {"test": test, "modalities": branches[:3], "data_fingerprint": str(seed), "seconds": 2.0}
            result |= {"processor_seconds": 3.5, "peak_memory": 450_000_000}
            config = "protocol: official\nselection: test\n"
            runs[Cell("digits3", method, modality, seed)] = Run(out, result=result, config=config)
    chosen = {"trial": 2, "settings": {"lr": 0.04, "tau": 6.4}, "changed": {"lr": 0.04, "tau": 6.4}}
    chosen |= {"validation_accuracy": 0.9, "validation_accuracy_of_default": 0.88}
    comparison = tables.compare_runs(runs, "igm")
    comparison |= {"missing": [{"name": "digits3 igm seed 3", "log": "igm.log", "tail": "<out of memory>"}]}
    comparison |= {"tuning": {"trials": 8, "seeds": [1000, 1001], "data": {"digits3": {"igm": chosen}}}}
    (out / "comparison.json").write_text(json.dumps(comparison))
    return write_comparison_report(out)


def test_everything_is_on_the_page(report):
    text = report.read_text()
    assert outline(report).sections == ["overview", "digits3", "tuning", "cells", "machine"]
    assert "Selected on the test set (protocol official): all rows." in text
    assert "1 run has no result and is missing below: digits3 igm seed 3" in text
    assert "&lt;out of memory&gt;" in text
    assert '<td class="words">lr 0.04, tau 6.4</td>' in text
    assert '<td class="words">its own</td>' in text
    assert "<summary>The same tests of MAP</summary>" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not opened in a browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_twenty_rows_in_a_browser(report, tmp_path, width):
    (tmp_path / "page.html").write_text(report.read_text().replace("</body>", PROBE))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width))
    answer = browse(frame, tmp_path / "profile")
    assert not [line for line in answer.stderr.splitlines() if "CONSOLE" in line]
    found = json.loads(answer.stdout.split("<title>")[1].split("</title>")[0])
    assert found.pop("image") > 0
    rows = len(METHODS) - 1 + len(MODALITIES)
    assert found == {"sorted": True, "rows": rows, "name_is_seen": True, "width": width, "overflow": 0}

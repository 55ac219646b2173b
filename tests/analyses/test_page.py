"""Findings and the page that is made of them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from test_report import CHROMIUM, browse, outline

from igm_fast.analyses.finding import Finding, load_finding, save_finding, write_csv
from igm_fast.analyses.page import MOST_ROWS, write_page


def found(folder: Path, name: str = "spectra", title: str = "Singular <values>", rows: int = 3) -> Finding:
    """An analysis with one figure and one table."""
    figure = Figure(figsize=(2, 1.5))
    figure.subplots().plot([0, 1])
    figure.savefig(folder / f"{name}.png")
    content = [["a & b", i, 0.1 * i, None] for i in range(rows)]
    table = write_csv(folder / f"{name}.csv", ("row", "seed", "accuracy", "p"), content)
    return Finding(name, title, f"T keeps 0.75 of {name}, p < 0.001.", [folder / f"{name}.png"], [table])


def test_a_finding_is_kept_and_read_again(tmp_path):
    finding = found(tmp_path)
    path = save_finding(finding, tmp_path, "python -m igm_fast.analyze spectra RUN")
    assert path == tmp_path / "spectra.json"
    assert json.loads(path.read_text())["figures"] == ["spectra.png"]  # the folder may be moved
    assert load_finding(path) == (finding, "python -m igm_fast.analyze spectra RUN")


def test_figures_must_lie_below_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"elsewhere\.png"):
        save_finding(Finding("a", "A", "s", [Path("elsewhere.png")], []), tmp_path, "c")


def test_the_page_holds_every_finding_with_its_numbers(tmp_path):
    for name, title in (("time", "Training time"), ("ablation", "Ablation: SAM × T")):
        save_finding(found(tmp_path, name, title), tmp_path, f"analyze {name} --seeds 3")
    (tmp_path / "raw.json").write_text("[1, 2]")  # no finding
    page = write_page(tmp_path)
    text = page.read_text()
    parsed = outline(page)
    assert parsed.sections == ["ablation:-sam-×-t", "training-time"]
    assert "T keeps 0.75 of ablation, p &lt; 0.001." in text
    assert "analyze time --seeds 3" in text
    sources = [image["src"] for image in parsed.images if image["src"].startswith("data:image/png")]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == [
        (tmp_path / "ablation.png").read_bytes(),
        (tmp_path / "time.png").read_bytes(),
    ]
    assert re.search(r'<td class="words">a &amp; b</td><td data-value="1.0">1</td><td data-value="0.1">0.1</td>', text)
    assert '<td data-value="">–</td>' in text


def test_names_are_escaped(tmp_path):
    save_finding(found(tmp_path), tmp_path, "c")
    assert "Singular &lt;values&gt;" in write_page(tmp_path).read_text()


def test_a_long_table_is_shortened_and_says_so(tmp_path):
    save_finding(found(tmp_path, rows=MOST_ROWS + 5), tmp_path, "c")
    text = write_page(tmp_path).read_text()
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 5} rows; all are in spectra.csv." in text
    assert text.count("a &amp; b") == MOST_ROWS


def test_a_missing_figure_is_named(tmp_path):
    save_finding(found(tmp_path), tmp_path, "python -m igm_fast.analyze spectra RUN")
    (tmp_path / "spectra.png").unlink()
    with pytest.raises(ValueError, match=r"spectra\.png is missing.*Give again: python -m igm_fast"):
        write_page(tmp_path)


@pytest.mark.parametrize("content", ['{"sentence": 1}', '{"sentence": "a", "figures": 3, "tables": []}', "{"])
def test_a_damaged_finding_is_named(tmp_path, content):
    (tmp_path / "time.json").write_text(content)
    with pytest.raises(ValueError, match=r"time\.json"):
        write_page(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not opened in a browser")
def test_browser_opens_the_page_with_a_clean_console(tmp_path):
    save_finding(found(tmp_path), tmp_path, "c")
    page = write_page(tmp_path)
    probe = """<script>Promise.all([...document.querySelectorAll("figure img")].map(image => image.decode())).then(
      () => document.title = `wide ${document.documentElement.scrollWidth - document.documentElement.clientWidth}`);
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", probe))
    answer = browse(page, tmp_path / "profile")
    assert [line for line in answer.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<title>wide 0</title>" in answer.stdout

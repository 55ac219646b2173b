"""Reports of run folders: every section, unfinished runs, odd names, and what a browser says to the page."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from igm_fast.reports import figures, page
from igm_fast.reports.html import NO_PROJECTORS, write_report
from igm_fast.reports.record import COLUMNS, Spectrum, read_run

SECTIONS = ["result", "curves", "stages", "spectra", "time", "confusion", "configuration"]


def write_run(folder: Path, *, method: str = "igm", modalities=("accelerometer", "gyroscope"), seed: int = 0) -> Path:
    """Write a run folder as training writes it: two rounds over the modalities, three epochs a stage."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    branches = [*modalities, "fused"]
    rows, epoch = [], 0
    for stage in range(2 * len(modalities)):
        trained = modalities[stage % len(modalities)]
        for inner in range(3):
            rows.append(
                (epoch, stage, inner, trained, "train", trained, "loss", 2.0 / (1 + epoch) + 0.1 * rng.random())
            )
            rows.append((epoch, stage, inner, trained, "train", trained, "lr", 0.02))
            for place, branch in enumerate(branches):
                accuracy = 0.4 + 0.4 * (1 - np.exp(-epoch / 4)) + 0.03 * place
                rows.append((epoch, stage, inner, trained, "validation", branch, "accuracy", accuracy))
            epoch += 1
    with (folder / "metrics.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    classes = ["<walk> & run", "sit", "stand", "stairs"]
    labels = rng.integers(0, len(classes), 200)
    probabilities = {}
    for branch in branches:
        logits = rng.normal(size=(200, len(classes)))
        logits[np.arange(200), labels] += 1.5
        probabilities[branch] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = {
        branch: {"accuracy": float((p.argmax(axis=1) == labels).mean()), "map": 0.7, "macro_f1": 0.6}
        for branch, p in probabilities.items()
    }
    np.savez(folder / "predictions.npz", labels=labels, **probabilities)
    spectra = []
    for stage in range(1, 2 * len(modalities)):
        source, target = modalities[(stage - 1) % len(modalities)], modalities[stage % len(modalities)]
        for depth, (layer, dim) in enumerate([("conv1", 21), ("conv2", 160), ("conv3", 192), ("head", 64)]):
            known = min(dim, 64)
            eigenvalues = np.exp(-np.arange(known) / (2 + depth)) * 3.0
            damping = np.exp(-0.4 * eigenvalues / eigenvalues[0])
            spectrum = {"stage": stage, "source": source, "target": target, "layer": layer, "dim": dim, "groups": 1}
            spectrum |= {"rank": known, "route": "sketch", "error_bound": 3.1e-3, "count": 100_000, "trace": 12.5}
            spectra.append(spectrum | {"eigenvalues": eigenvalues.tolist(), "projector_eigenvalues": damping.tolist()})
    timing = {"train": 20.0, "statistics": 1.2, "decomposition": 0.3, "evaluation": 2.5, "checkpoint": 0.2}
    stages = [{"stage": s, "trained": modalities[s % len(modalities)], "train": 5.0, "total": 6.0} for s in range(4)]
    result = {"method": method, "data": "watch", "seed": seed, "classes": classes, "modalities": list(modalities)}
    result |= {"data_fingerprint": "c0ffee", "selected_epoch": epoch - 2, "validation": scores, "test": scores}
    result |= {"seconds": 25.0, "num_parameters": 81_234}
    dump(folder / "spectra.json", spectra)
    dump(folder / "timing.json", timing | {"total": 25.0, "per_stage": stages})
    dump(folder / "environment.json", {"python": "3.12", "torch": "2.13", "platform": "<Linux> & more", "threads": 2})
    dump(folder / "result.json", result)
    (folder / "config.yaml").write_text(f"method: {method}\ndata: watch\nseed: {seed}\ntau: 0.4\n")
    return folder


def dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


class Outline(html.parser.HTMLParser):
    """Sections, pictures, addresses and unclosed elements of a page."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag == "img":
            self.images.append(attributes)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(path: Path) -> Outline:
    parsed = Outline(path.read_text(encoding="utf-8"))
    assert parsed.open == []
    assert all(address.startswith(("data:", "#", "cells/")) for address in parsed.addresses)
    assert all(image["src"] for image in parsed.images)
    return parsed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "igm")
    return write_report(folder)


def test_finished_run_has_every_section_figure_and_png(finished):
    parsed = outline(finished)
    assert parsed.sections == SECTIONS
    figures_shown = [image for image in parsed.images if image["src"].startswith("data:image/svg")]
    assert len(figures_shown) == 4
    assert all(image["alt"] for image in figures_shown)
    names = {path.name for path in (finished.parent / "figures").iterdir()}
    assert names == {"curves.png", "spectra.png", "time.png", "confusion.png"}


def test_numbers_of_the_run_stand_on_the_page(finished):
    text = finished.read_text()
    run = read_run(finished.parent)
    assert f"{run.result['test']['fused']['accuracy']:.3f}" in text
    assert f"{np.bincount(run.labels).max() / 200:.3f}" in text  # chance
    assert "81234" in text
    assert "tau: 0.4" in text
    assert "3.1e-03" in text


def test_names_are_escaped(finished):
    text = finished.read_text()
    assert "<Linux>" not in text
    assert "<walk>" not in text
    assert "&lt;Linux&gt; &amp; more" in text


def test_a_method_without_projectors_says_so(tmp_path):
    folder = write_run(tmp_path / "joint", method="joint")
    dump(folder / "spectra.json", [])
    path = write_report(folder)
    assert outline(path).sections == SECTIONS
    assert path.read_text().count(NO_PROJECTORS) == 2  # spectra and time


def test_a_unimodal_run_reports_its_modality(tmp_path):
    folder = write_run(tmp_path / "one", method="unimodal", modalities=("gyroscope",))
    result = json.loads((folder / "result.json").read_text())
    for part in ("test", "validation"):
        del result[part]["fused"]
    dump(folder / "result.json", result)
    text = write_report(folder).read_text()
    assert f"Test accuracy of gyroscope: {result['test']['gyroscope']['accuracy']:.3f}" in text


@pytest.mark.parametrize(
    "removed", [["result.json", "predictions.npz"], ["result.json", "timing.json", "spectra.json"]]
)
def test_an_unfinished_run_shows_what_is_there(tmp_path, removed):
    folder = write_run(tmp_path / "run")
    for name in removed:
        (folder / name).unlink()
    with (folder / "metrics.csv").open("a") as file:
        file.write("99,7,2,gyroscope,validation,fused,accuracy,0.8")  # killed while writing: no end of line
    path = write_report(folder)
    assert outline(path).sections == SECTIONS
    assert "not finished" in path.read_text()
    assert (folder / "figures" / "curves.png").exists()
    assert max(m.global_epoch for m in read_run(folder).metrics) == 11


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("method: igm\n")
    assert outline(write_report(tmp_path)).sections == SECTIONS


def test_an_epoch_repeated_after_a_resume_counts_once(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.csv").open("a") as file:
        file.write("11,3,2,gyroscope,validation,fused,accuracy,0.125\n")
    points = read_run(folder).series("validation", "fused", "accuracy")
    assert len(points) == 12
    assert points[-1].value == 0.125


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.csv", ",".join(COLUMNS) + "\n1,x,0,a,train,a,loss,1.0\n", r"metrics\.csv, line 2"),
        ("metrics.csv", "a,b\n", "expected the columns"),
        ("result.json", "{", r"result\.json is not readable JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)


def test_no_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "missing")


def test_damped_shares_from_their_definitions():
    """d = 4, known eigenvalues of C and T; the two unknown directions of T are the complement."""
    spectrum = Spectrum(0, "a", "fc", 4, 2, "truncated", 0.0, np.array([3.0, 1.0]), np.array([0.5, 0.8]), 0.9)
    T = np.diag([0.5, 0.8, 0.9, 0.9])
    assert spectrum.damped_random == pytest.approx(1 - np.trace(T @ T) / 4)
    assert spectrum.damped_along_activations == pytest.approx((3 * (1 - 0.25) + 1 * (1 - 0.64)) / 4)


def test_two_extreme_eigenvalues_are_no_spectrum(tmp_path):
    """The polynomial route knows λmax and λmin: drawn as numbers 1 and 2 they would look like a flat spectrum."""
    folder = write_run(tmp_path / "run")
    rows = json.loads((folder / "spectra.json").read_text())
    for row in (row for row in rows if row["layer"] == "conv3"):
        row |= {"route": "polynomial", "eigenvalues": [3.0, 2.9], "projector_eigenvalues": [0.67, 1.0]}
    dump(folder / "spectra.json", rows)
    text = write_report(folder).read_text()
    assert "Not shown: 2 whose T is a polynomial of C" in text
    assert {text.get_text() for text in figures.spectra(read_run(folder)).legends[0].get_texts()} == {
        "conv1",
        "conv2",
        "head",
    }
    dump(folder / "spectra.json", [row | {"route": "polynomial"} for row in rows])
    assert "Not shown: 8 whose T" in write_report(folder).read_text()


def test_time_beyond_the_named_phases_is_called_other():
    assert figures.phase_seconds({"train": 3.0, "statistics": 0.0, "total": 4.0}) == {"train": 3.0, "other": 1.0}
    assert figures.phase_seconds({}) == {}


@pytest.mark.parametrize("modalities", [("accelerometer", "gyroscope"), ("fourier", "zernike", "morphological")])
def test_no_legend_or_label_is_cut_off(tmp_path, modalities):
    run = read_run(write_run(tmp_path / "run", modalities=modalities))
    classes = [f"a class with a long name {i}" for i in range(9)]
    matrix = np.eye(9, dtype=np.int64)
    drawn = [figures.curves(run), figures.spectra(run), figures.time_per_phase(run), figures.confusion(matrix, classes)]
    scores = {"watch": {"unimodal-morphological": {0: 0.7, 1: 0.71}, "igm": {0: 0.8, 1: 0.85}, "late": {}}}
    for figure in [*drawn, figures.comparison(scores, "igm")]:
        figure.savefig(io.BytesIO())
        parts = [*figure.legends, *(axes for axes in figure.axes)]
        for box in (part.get_tightbbox() for part in parts):
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= figure.bbox.x1 + 1
            assert box.y1 <= figure.bbox.y1 + 1


def test_figures_are_the_same_bytes_each_time(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert figures.save(figures.curves(run), tmp_path / "a.png") == figures.save(
        figures.curves(run), tmp_path / "b.png"
    )


def test_figures_need_no_global_state(tmp_path):
    """A figure must neither start pyplot (a display, a global list of figures) nor leave settings behind."""
    run, png = write_run(tmp_path / "run"), tmp_path / "curves.png"
    program = (
        "import sys, matplotlib; from pathlib import Path; from igm_fast.reports import figures, record\n"
        f"figures.save(figures.curves(record.read_run(Path({str(run)!r}))), Path({str(png)!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['font.size'] == matplotlib.rcParamsDefault['font.size']"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_table_cells_sort_by_their_numbers():
    shown = page.table("t", ["name", "p"], [["a", ("< 0.001", 0.0004)], ["b", None], ["<c>", 2]])
    assert 'data-value="0.0004">&lt; 0.001<' in shown
    assert 'data-value="">–<' in shown
    assert "&lt;c&gt;" in shown


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
]


def browse(path: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    command = [CHROMIUM, *BROWSER_FLAGS, f"--user-data-dir={profile}", "--dump-dom", path.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the page is not opened in a browser")
def test_browser_opens_the_page_with_a_clean_console(finished, tmp_path):
    """A script added to a copy sorts a table, enlarges a figure and writes what it found into the page's title."""
    probe = """<script>
      document.querySelector("table.sortable th:nth-child(2) button").click();
      const column = [...document.querySelectorAll("table.sortable")][0].tBodies[0].rows;
      const values = [...column].map(row => Number(row.cells[1].dataset.value));
      document.querySelector("figure button").click();
      const images = [...document.querySelectorAll("figure img")];
      Promise.all(images.map(image => image.decode())).then(() => document.title = JSON.stringify({
        sorted: values.every((v, i) => i === 0 || values[i - 1] <= v), rows: values.length,
        enlarged: document.querySelector("dialog").open, widths: images.map(image => image.naturalWidth),
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth}));
    </script></body>"""
    copy = tmp_path / "probe.html"
    copy.write_text(finished.read_text().replace("</body>", probe))
    answer = browse(copy, tmp_path / "profile")
    console = [line for line in answer.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", answer.stdout)[1]))
    assert found["sorted"]
    assert found["rows"] == 3
    assert found["enlarged"]
    assert len(found["widths"]) == 4
    assert min(found["widths"]) > 100
    assert found["overflow"] <= 0
    assert re.findall(r'<section id="([^"]+)"', answer.stdout) == SECTIONS


def test_embedded_pictures_are_svg(finished):
    source = next(image["src"] for image in outline(finished).images if "svg" in image["src"])
    assert b"<svg" in base64.b64decode(source.split(",", 1)[1])[:600]

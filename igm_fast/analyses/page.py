"""analysis.html: all findings in a folder on one self-contained page, made from their NAME.json files alone."""

from __future__ import annotations

import base64
import csv
import json
import math
from pathlib import Path

from igm_fast.analyses.finding import Finding, load_finding
from igm_fast.reports import page
from igm_fast.reports.page import Markup

MOST_ROWS = 300  # of a table on the page; longer ones make a phone slow


def write_page(folder: Path) -> Path:
    """Write ``analysis.html`` from the findings in a folder, in alphabetical order, and return its path.

    Raises:
        ValueError: a NAME.json is not readable, or a figure or table that it names is missing.
    """
    found = sorted((load_finding(path) for path in sorted(folder.glob("*.json")) if _is_finding(path)), key=_by_title)
    sections = {finding.title: _section(finding, command, folder) for finding, command in found}
    count = "1 analysis" if len(found) == 1 else f"{len(found)} analyses"
    lead = f"{count} in {folder.resolve().name}. Every sentence below speaks of the numbers of these runs only."
    path = folder / "analysis.html"
    closing = "Made by igm_fast.analyze. Each figure lies beside this page as PNG, its numbers as CSV."
    path.write_text(page.page("Analyses", lead, sections, closing), encoding="utf-8")
    return path


def _is_finding(path: Path) -> bool:
    """Other JSON may lie in the folder: records of the runs of a grid, raw numbers."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return True  # said by load_finding
    return isinstance(content, dict) and "sentence" in content


def _by_title(found: tuple[Finding, str]) -> str:
    return found[0].title


def _section(finding: Finding, command: str, folder: Path) -> list[Markup]:
    missing = [path for path in (*finding.figures, *finding.tables) if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]} is missing, but {folder / finding.name}.json names it. Give again: {command}, "
            f"or remove that .json"
        )
    captions = [finding.sentence, *(path.stem for path in finding.figures[1:])]
    parts = [
        page.figure(_address(path), f"{finding.title}: {path.stem}", caption)
        for path, caption in zip(finding.figures, captions, strict=False)
    ] or [page.paragraph(finding.sentence)]
    parts += [page.folded(f"Numbers: {path.name}", _table(path)) for path in finding.tables]
    return [*parts, page.folded("Command", page.preformatted(command))]


def _address(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _table(path: Path) -> Markup:
    with path.open(newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    shown = [[_cell(value) for value in row] for row in rows[:MOST_ROWS]]
    words = [i for i in range(len(columns)) if any(row[i] is not None and isinstance(row[i], str) for row in shown)]
    table = page.table(path.name, columns, shown, words=words)
    if len(rows) <= MOST_ROWS:
        return table
    return Markup(table + page.paragraph(f"The first {MOST_ROWS} of {len(rows)} rows; all are in {path.name}.", "soft"))


def _cell(value: str) -> object:
    """Return a number where a cell holds one, so that the table sorts by it; its digits stay those of the file."""
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return value
    return (f"{number:.4g}" if len(value) > 8 else value), number

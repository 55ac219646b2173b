"""What an analysis found: a sentence with its figures and tables, and the file that keeps it for the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from igm_fast.reports.record import read_json
from igm_fast.training.run_folder import write_text


class NotApplicable(ValueError):  # noqa: N818 - an answer, not an accident
    """The run is in order, but has nothing that this analysis could show; the message says why."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one analysis.

    ``sentence`` says what is to be seen, in this outcome's own numbers. ``figures`` (PNG) and ``tables`` (CSV) lie
    below the folder that the analysis was asked to write into.
    """

    name: str
    title: str
    sentence: str
    figures: list[Path]
    tables: list[Path]


def save_finding(finding: Finding, folder: Path, command: str) -> Path:
    """Write ``NAME.json`` into the folder that figures and tables lie in, and return its path.

    Args:
        finding: what was found.
        folder: written into.
        command: that repeats the analysis.

    Raises:
        ValueError: a figure or table does not lie below the folder.
    """
    content = {
        "name": finding.name,
        "title": finding.title,
        "sentence": finding.sentence,
        "figures": [path.relative_to(folder).as_posix() for path in finding.figures],
        "tables": [path.relative_to(folder).as_posix() for path in finding.tables],
        "command": command,
    }
    path = folder / f"{finding.name}.json"
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def load_finding(path: Path) -> tuple[Finding, str]:
    """Return a finding and its command from a file that :func:`save_finding` wrote.

    Raises:
        ValueError: the file is no finding.
    """
    content = read_json(path, None)
    try:
        figures, tables = ([path.parent / name for name in content[kind]] for kind in ("figures", "tables"))
        finding = Finding(content["name"], content["title"], content["sentence"], figures, tables)
        return finding, content["command"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what an analysis writes ({error!r}). Remove it, or give that analysis again"
        ) from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a table in one piece and return its path; None becomes an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
    return path

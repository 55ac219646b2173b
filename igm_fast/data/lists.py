"""Reading the lists of a data set: rows with their line numbers, file names that stay inside the root."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from igm_fast.data.problems import Problem

LONGEST_NAME = 240  # file systems allow 255 bytes, an extension included

Row = tuple[int, list[str]]


def read_rows(root: Path, name: str, problems: list[Problem], delimiter: str = ",") -> list[Row]:
    """Return the rows of a CSV file with their line numbers (from 1), without blank lines.

    UTF-8 with or without a byte-order mark, any line ends, quoted fields. A file that is missing or no text goes to
    ``problems`` and gives no rows.
    """
    path = root / name
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            return [(reader.line_num, [field.strip() for field in row]) for row in reader if any(map(str.strip, row))]
    except FileNotFoundError:
        problems.append(Problem(name, None, "the list is missing", f"Put it there: {path}"))
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8 ({error.object[error.start : error.start + 1]!r})"
        problems.append(Problem(name, None, what, "Save the list as UTF-8"))
    except (OSError, csv.Error) as error:
        problems.append(
            Problem(name, None, f"not readable as CSV ({error})", "Correct the quotes, or replace the file")
        )
    return []


def unsafe_name(name: str) -> str | None:
    """Return what is wrong with a file name in a list, None if it stays inside the root."""
    path = PurePosixPath(name)
    if not name or "\0" in name:
        return f"the name {name!r} is empty or holds a NUL"
    if path.is_absolute() or ".." in path.parts or "\\" in name or name[1:2] == ":":
        return f"the name {name!r} leads out of the data set's folder"
    if longest := next((part for part in path.parts if len(part.encode()) > LONGEST_NAME), None):
        return f"the name {longest[:20]}… is longer than {LONGEST_NAME} bytes, as no file name can be"
    return None


def missing_file(root: Path, name: str) -> tuple[str, str] | None:
    """Return what is wrong with a file and how to mend it, None if it is there and not empty."""
    path = root / name
    if not path.is_file():
        return f"{name} is missing", "Copy the file there, or delete the line"
    if path.stat().st_size == 0:
        return f"{name} is empty", "Copy the file again, or delete the line"
    return None


def first_difference(root: Path, expected: Sequence[str]) -> Problem | None:
    """Return a problem for the first expected file or folder (with a slash at its end) that is not there."""
    for name in expected:
        path = root / name
        if not (path.is_dir() if name.endswith("/") else path.is_file()):
            there = sorted(other.name for other in path.parent.iterdir())[:5] if path.parent.is_dir() else []
            beside = f"; beside it lie {', '.join(there)}" if there else ""
            kind = "folder" if name.endswith("/") else "file"
            return Problem(name, None, f"the {kind} is missing{beside}", f"Expected: {', '.join(expected)}")
    return None

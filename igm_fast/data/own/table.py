"""The table of one's own data: ``data.csv`` or ``data.parquet``, and ``data.yaml`` with what was inferred wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml  # type: ignore[import-untyped]

from igm_fast.data.lists import read_rows
from igm_fast.data.problems import Problem
from igm_fast.names import nearest

ColumnKind = Literal["text", "audio", "image", "video", "array", "numbers", "ignore"]
KINDS: tuple[ColumnKind, ...] = get_args(ColumnKind)

CSV, PARQUET, SETTINGS = "data.csv", "data.parquet", "data.yaml"


@dataclass(frozen=True)
class Row:
    """One sample: its line (of a CSV file from 1, header counted; of a Parquet file from 1) and cells by column."""

    line: int
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The file's name, its columns and its complete rows."""

    file: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ColumnSettings:
    """What ``data.yaml`` says about one modality; None is inferred.

    Args:
        kind: what the column holds; ``"ignore"`` leaves it out.
        encoder: name of an encoder.
        size: images and videos: height and width in pixels.
        rate: audio: samples per second.
        seconds: audio: length; shorter sounds are repeated, longer ones cut.
        frames: videos: how many, spread over the whole.
        augment: images: random box and flip in training.
        standardize: arrays and numbers: mean 0 and standard deviation 1 in the training part, per channel.
    """

    kind: ColumnKind | None = None
    encoder: str | None = None
    size: int | None = None
    rate: int | None = None
    seconds: float | None = None
    frames: int | None = None
    augment: bool | None = None
    standardize: bool | None = None


# Which settings mean something for which kind; kind and encoder do for all.
_MEANT_FOR = {
    "size": ("image", "video"),
    "rate": ("audio",),
    "seconds": ("audio",),
    "frames": ("video",),
    "augment": ("image",),
    "standardize": ("array", "numbers"),
}


def read_table(root: Path, problems: list[Problem]) -> Table:
    """Return the table of a folder; lines of another length than the header go to ``problems``.

    Raises:
        ImportError: a Parquet file without pyarrow.
    """
    there = [name for name in (CSV, PARQUET) if (root / name).is_file()]
    if len(there) != 1:
        what = "both tables are there, expected one" if there else f"no {CSV} and no {PARQUET}"
        problems.append(Problem(CSV, None, what, "Put one table there, with columns label, split and your modalities"))
        return Table(CSV, (), ())
    return _read_csv(root, problems) if there == [CSV] else _read_parquet(root, problems)


def read_settings(root: Path) -> dict[str, ColumnSettings]:
    """Return what ``data.yaml`` says, by modality; nothing where there is no such file.

    Raises:
        ValueError: not YAML, an unknown key or word (with the nearest known one), or a value of the wrong type.
    """
    path = root / SETTINGS
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML ({error}); expected `COLUMN: {{kind: audio}}`") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise ValueError(f"{path}: expected a name and its settings, such as `voice: {{kind: audio, seconds: 3}}`")
    return {str(name): _settings(path, str(name), given) for name, given in content.items()}


def check_settings(root: Path, name: str, given: ColumnSettings, kind: str) -> None:
    """Refuse settings that mean nothing for a kind of modality.

    Raises:
        ValueError: names them.
    """
    for key, kinds in _MEANT_FOR.items():
        if getattr(given, key) is not None and kind not in kinds:
            raise ValueError(
                f"{root / SETTINGS}: {name} has {key}, a setting of {' and '.join(kinds)}, but is of kind {kind}; "
                "take it out, or correct the kind"
            )


def _settings(path: Path, name: str, given: Mapping[Any, Any]) -> ColumnSettings:
    known = [field.name for field in fields(ColumnSettings)]
    for key in given:
        if key not in known:
            raise ValueError(f"{path}: {name}: {nearest(str(key), known, 'setting')}")
    if given.get("kind") is not None and given["kind"] not in KINDS:
        raise ValueError(f"{path}: {name}: {nearest(str(given['kind']), KINDS, 'kind')}")
    for key, value in given.items():
        if problem := _wrong_value(key, value):
            raise ValueError(f"{path}: {name}: {key} is {value!r}, expected {problem}")
    return ColumnSettings(**given)


def _wrong_value(key: str, value: Any) -> str | None:
    """Return what is expected in place of a value, None if it will do."""
    if key in ("augment", "standardize"):
        return None if isinstance(value, bool) else "true or false"
    if key in ("kind", "encoder"):
        return None if isinstance(value, str) else "a name"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key == "seconds":
        return None if number and 0 < value < 1e5 else "a positive number"
    return None if number and isinstance(value, int) and 0 < value < 1e6 else "a positive whole number"


def _read_csv(root: Path, problems: list[Problem]) -> Table:
    lines = read_rows(root, CSV, problems)
    header = lines[0][1] if lines else []
    if problems or not _usable(CSV, header, len(lines) - 1, problems):
        return Table(CSV, (), ())
    rows = []
    for line, cells in lines[1:]:
        if len(cells) == len(header):
            rows.append(Row(line, dict(zip(header, cells, strict=True))))
        else:
            what = f"{len(cells)} cells, expected {len(header)} as the header has"
            problems.append(Problem(CSV, line, what, 'Complete the line; put cells with commas into quotes ("…")'))
    return Table(CSV, tuple(header), tuple(rows))


def _read_parquet(root: Path, problems: list[Problem]) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet is read by pyarrow, which is missing; pip install 'igm_fast[parquet]'") from error
    try:
        content = pyarrow.parquet.read_table(root / PARQUET)
    except (pyarrow.ArrowException, OSError) as error:
        problems.append(Problem(PARQUET, None, f"not readable as Parquet ({error})", "Write the table again"))
        return Table(PARQUET, (), ())
    if not _usable(PARQUET, content.column_names, content.num_rows, problems):
        return Table(PARQUET, (), ())
    rows = tuple(
        Row(line, {name: _cell(value) for name, value in row.items()})
        for line, row in enumerate(content.to_pylist(), start=1)
    )
    return Table(PARQUET, tuple(content.column_names), rows)


def _cell(value: Any) -> Any:
    """Return a cell as CSV would hold it; lists (of numbers) stay lists."""
    return value if isinstance(value, list) else "" if value is None else str(value)


def _usable(file: str, header: Sequence[str], samples: int, problems: list[Problem]) -> bool:
    """Tell whether there are samples and a header that says what they are; add what is wrong to ``problems``."""
    what, fix = "", "Correct the header"
    if samples < 1:
        what, fix = "no sample, only the header" if header else "empty", "Add one line for each sample"
    elif twice := sorted({name for name in header if header.count(name) > 1}):
        what = f"columns occur twice: {', '.join(map(repr, twice))}"
    elif "" in header:
        what = f"column {header.index('') + 1} has no name"
    elif "label" not in header:
        what, fix = f"no column 'label', only {', '.join(header)}", "Name the column with each sample's class so"
    if what:
        problems.append(Problem(file, None if samples < 1 else 1, what, fix))
    return not what

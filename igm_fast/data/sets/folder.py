"""folder: your own data, one table with a line for each sample (data.csv or data.parquet).

A column ``label``, if you like ``split`` and ``group``, and one column for each modality: names of files, text or
numbers. What a column holds is inferred and shown by ``python -m igm_fast.data check folder --root DIR``; ``data.yaml``
overrides it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igm_fast.data.dataset import ModalitySpec, MultimodalData
from igm_fast.data.disk import from_scan
from igm_fast.data.lazy import Reader
from igm_fast.data.options import DataOptions
from igm_fast.data.own.columns import Column, infer_kind, is_number, make_column
from igm_fast.data.own.table import SETTINGS, ColumnSettings, Row, Table, check_settings, read_settings, read_table
from igm_fast.data.problems import BadFile, BrokenData, Problem
from igm_fast.data.scan import PARTS, Entry, Scan
from igm_fast.data.splits import hash_split, split_indices
from igm_fast.names import nearest

MODALITIES = None
CLASSES = None
PUBLISHED: Mapping[str, int] = {}
LAYOUT = """\
data.csv       or data.parquet: columns label, split (train, validation, test), group, and one for each modality
data.yaml      where something was inferred wrongly: COLUMN: {kind: audio, encoder: resnet18, seconds: 3}
...            the files that the table names, at any depth"""

OTHER_COLUMNS = ("label", "split", "group")


@dataclass(frozen=True)
class Modality:
    """A modality with the table's columns that it is made of (several only for numbers) and its kind of column."""

    column: Column
    cells: tuple[str, ...]
    kind: str


def load(seed: int, options: DataOptions) -> MultimodalData:
    """Return the modalities of the table, read when asked.

    Without a column ``split``, 60 / 15 / 25 % are drawn by seed, whole groups where there is a column ``group``. With
    one, but without validation lines, a tenth of the training lines is cut off by a fixed hash.

    Raises:
        BrokenData: problems without ``options.skip_bad``, or a part without samples.
        ValueError: ``data.yaml`` says something that does not fit.
    """
    root = options.existing_root("folder")
    modalities, found = _examine(root, options, seed)
    if (found.problems and not options.skip_bad) or not found.parts["train"]:
        missing = Problem(".", None, "no sample for training is left", "Mend the problems above, or add samples")
        raise BrokenData("folder", root, [*found.problems] or [missing])
    specs: list[ModalitySpec] = []
    readers: dict[str, Reader] = {}
    for modality in modalities:
        training = [entry.source[modality.column.name] for entry in found.parts["train"]]
        spec, readers[modality.column.name] = modality.column.build(training, options)
        specs.append(spec)
    return from_scan("folder", found, readers, specs, seed=seed, options=options, description=_said(modalities, specs))


def scan(root: Path, options: DataOptions) -> Scan:
    """Read the table, infer its columns, and look at the headers of all files; parts as for seed 0."""
    return _examine(root, options, seed=0)[1]


def _said(modalities: Sequence[Modality], specs: Sequence[ModalitySpec]) -> str:
    lines = [
        f"  {spec.name}: {modality.kind}, {spec.kind} {'×'.join(map(str, spec.shape))}, encoder {spec.encoder}"
        for modality, spec in zip(modalities, specs, strict=True)
    ]
    return "\n".join(
        ["Your own table; its columns were taken for", *lines, f"Where this is wrong, say so in {SETTINGS}."]
    )


def _examine(root: Path, options: DataOptions, seed: int) -> tuple[list[Modality], Scan]:
    problems: list[Problem] = []
    table = read_table(root, problems)
    if not table.columns:
        return [], Scan({part: [] for part in PARTS}, problems, ())
    modalities = _modalities(root, table, options, problems)
    if not modalities:
        return [], Scan({part: [] for part in PARTS}, problems, ())
    classes = _classes(table)
    numbers = {name: number for number, name in enumerate(classes)}
    entries: dict[int, Entry] = {}
    for place, row in enumerate(table.rows):
        try:
            entries[place] = _entry(table, row, modalities, numbers)
        except BadFile as error:  # noqa: PERF203 - each line has its own problem
            problems.append(error.problem(root, table.file, row.line))
    parts = _parts(table, [numbers.get(_label(row), 0) for row in table.rows], seed, problems)
    scanned = {part: [entries[place] for place in places if place in entries] for part, places in parts.items()}
    remarks = [*_repeated(table), *_unlearnt(table, scanned, classes)]
    return modalities, Scan(scanned, problems, classes, remarks)


def _modalities(root: Path, table: Table, options: DataOptions, problems: list[Problem]) -> list[Modality]:
    settings, found = read_settings(root), []
    columns = _grouped(table)
    for name in settings:
        if name not in columns:
            raise ValueError(f"{root / SETTINGS}: {nearest(name, columns, 'modality')}")
    for name, cells in columns.items():
        given = settings.get(name, ColumnSettings())
        kind = given.kind or infer_kind(root, [row.cells[cell] for row in table.rows for cell in cells])
        check_settings(root, name, given, kind)
        if kind == "ignore":
            continue
        try:
            ModalitySpec(name, "vector", (1,))
        except ValueError as error:
            fix = f"Rename the column, or leave it out: `{name}: {{kind: ignore}}` in {SETTINGS}"
            problems.append(Problem(table.file, 1, str(error), fix))
            continue
        encoder = options.encoders.get(name, given.encoder or "small")
        found.append(Modality(make_column(root, name, kind, given, encoder), cells, kind))
    if not found:
        what = f"no column holds a modality, beside {', '.join(table.columns)}"
        problems.append(Problem(table.file, 1, what, "Add a column with files, text or numbers"))
    return found


def _grouped(table: Table) -> dict[str, tuple[str, ...]]:
    """Return the columns by modality: ``pose.0``, ``pose.1``, … are one, in the order of their numbers."""
    columns: dict[str, list[tuple[int, str]]] = {}
    for column in table.columns:
        if column not in OTHER_COLUMNS:
            match = re.fullmatch(r"(.+)\.([0-9]{1,6})", column)
            numeric = match is not None and all(is_number(row.cells[column]) for row in table.rows)
            name, number = (match[1], int(match[2])) if match and numeric else (column, 0)
            columns.setdefault(name, []).append((number, column))
    return {name: tuple(column for _, column in sorted(members)) for name, members in columns.items()}


def _classes(table: Table) -> tuple[str, ...]:
    """Return the class names in alphabetical order, whole numbers by size."""
    names = sorted({_label(row) for row in table.rows} - {""})
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        names.sort(key=int)
    return tuple(names)


def _label(row: Row) -> str:
    return str(row.cells["label"])


def _entry(table: Table, row: Row, modalities: Sequence[Modality], numbers: Mapping[str, int]) -> Entry:
    if not _label(row):
        raise BadFile("label", "the cell is empty", "Fill it, or delete the line")
    if "split" in table.columns and row.cells["split"] not in PARTS:
        raise BadFile("split", nearest(str(row.cells["split"]), PARTS, "part").rstrip("."), "Correct the cell")
    source: dict[str, Any] = {
        modality.column.name: modality.column.source([row.cells[cell] for cell in modality.cells])
        for modality in modalities
    }
    group = str(row.cells.get("group", row.line))
    return Entry(source, numbers[_label(row)], group, row.line, table.file)


def _parts(table: Table, labels: Sequence[int], seed: int, problems: list[Problem]) -> dict[str, list[int]]:
    """Return the rows of each part. Broken lines are divided, too: who mends one never moves the others."""
    groups = [str(row.cells["group"]) for row in table.rows] if "group" in table.columns else None
    if "split" not in table.columns:
        try:
            drawn = split_indices(np.asarray(labels, np.int64), seed, None if groups is None else np.asarray(groups))
        except ValueError as error:
            problems.append(Problem(table.file, None, str(error), "Or add a column split: train, validation, test"))
            return {part: [] for part in PARTS}
        return {part: rows.tolist() for part, rows in drawn._asdict().items()}
    said = [row.cells["split"] for row in table.rows]
    parts = {part: [place for place, word in enumerate(said) if word == part] for part in PARTS}
    if not parts["validation"]:
        train = parts["train"]
        ids = ["\t".join(map(str, table.rows[place].cells.values())) for place in train]
        own = None if groups is None else [groups[place] for place in train]
        kept, cut = hash_split(ids, [labels[place] for place in train], groups=own)
        parts |= {"train": [train[row] for row in kept], "validation": [train[row] for row in cut]}
    return parts


def _repeated(table: Table) -> list[Problem]:
    """Return a remark for each sample that stands in an earlier line, too: in two parts it would be known at test."""
    first: dict[str, int] = {}
    remarks = []
    for row in table.rows:
        cells = "\t".join(str(cell) for column, cell in row.cells.items() if column != "split")
        if cells in first:
            fix = "Delete one of them if that is a slip"
            remarks.append(Problem(table.file, row.line, f"the same sample as in line {first[cells]}", fix))
        first.setdefault(cells, row.line)
    return remarks


def _unlearnt(table: Table, parts: Mapping[str, Sequence[Entry]], classes: Sequence[str]) -> list[Problem]:
    """Return a remark for each class of the validation or test part that training never shows."""
    learnt = {entry.label for entry in parts["train"]}
    asked = {entry.label for part in ("validation", "test") for entry in parts[part]}
    return [
        Problem(table.file, None, f"class {classes[label]!r} has no training sample", "Check the column split")
        for label in sorted(asked - learnt)
    ]

"""twitter2015: sentiment towards an entity in a tweet, from its text and image (Yu and Jiang, IJCAI 2019).

The same tweet occurs with several entities: ``$T$`` in the text says where the entity stood that is meant.
"""

from __future__ import annotations

import re
from pathlib import Path

from igm_fast.data.dataset import MultimodalData
from igm_fast.data.lists import first_difference
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import Problem
from igm_fast.data.readers.text import latin_words
from igm_fast.data.scan import PARTS, Entry, Scan
from igm_fast.data.text_image import image_problem, list_text, text_image_data

MODALITIES = ("text", "image")
CLASSES = ("negative", "neutral", "positive")
PUBLISHED = {
    "train": {"negative": 368, "neutral": 1883, "positive": 928},
    "validation": {"negative": 149, "neutral": 670, "positive": 303},
    "test": {"negative": 113, "neutral": 607, "positive": 317},
}
LAYOUT = """\
annotations/train.tsv, dev.tsv, test.tsv   header and columns of TomBERT, or Label, String, ImageID
twitter2015_images/<ImageID>               such as 975807.jpg"""

LISTS = {"train": "annotations/train.tsv", "validation": "annotations/dev.tsv", "test": "annotations/test.tsv"}
IMAGES = "twitter2015_images"


def load(seed: int, options: DataOptions) -> MultimodalData:
    """Return token ids of the text (and of the target, with ``options.use_target``) and images ``[3, 224, 224]``."""
    return text_image_data(
        "twitter2015",
        scan(options.existing_root("twitter2015"), options),
        seed=seed,
        options=options,
        description="Sentiment (three classes) towards an entity in a tweet, from its text and image: Twitter2015 as "
        "prepared for TomBERT (Yu and Jiang, IJCAI 2019).",
    )


def scan(root: Path, options: DataOptions) -> Scan:
    """Read the three lists and look at the headers of the images."""
    if difference := first_difference(root, [*LISTS.values(), f"{IMAGES}/"]):
        return Scan({part: [] for part in PARTS}, [difference], CLASSES)
    problems: list[Problem] = []
    seen: dict[tuple[str, ...], str] = {}
    parts = {part: _entries(root, file, options.use_target, seen, problems) for part, file in LISTS.items()}
    return Scan(parts, problems, CLASSES)


def _entries(
    root: Path, file: str, use_target: bool, seen: dict[tuple[str, ...], str], problems: list[Problem]
) -> list[Entry]:
    entries = []
    for number, row in _rows(root, file, use_target, problems):
        sample = (row["image"], row["text"], row.get("target", ""))
        if sample in seen:
            what = f"image {row['image']} stands with the same text and target in {seen[sample]}"
            problem: Problem | None = Problem(file, number, what, "Delete one of the two lines")
        elif row["label"] not in ("0", "1", "2"):
            what = f"label {row['label']!r}, expected 0 (negative), 1 (neutral) or 2 (positive)"
            problem = Problem(file, number, what, "Correct the label, or delete the line")
        else:
            problem = image_problem(root, IMAGES, row["image"], file, number)
        seen.setdefault(sample, f"{file}:{number}")
        if problem:
            problems.append(problem)
            continue
        text: str | list[str] = latin_words(row["text"])
        if use_target:
            text = [latin_words(row["text"]), latin_words(row["target"])]
        source = {"text": text, "image": f"{IMAGES}/{row['image']}"}
        entries.append(Entry(source, int(row["label"]), row["image"], number, file))
    return entries


def _rows(root: Path, file: str, use_target: bool, problems: list[Problem]) -> list[tuple[int, dict[str, str]]]:
    """Return the lines of a list by column, with their numbers. Quotes and words such as NA mean nothing special."""
    text = list_text(root, file, problems)
    if text is None:
        return []
    lines = [
        (number, [field.strip() for field in line.split("\t")])
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    names = _column_names(lines[0][1]) if lines else []
    needed = ("label", "image", "text", "target") if use_target else ("label", "image", "text")
    if missing := [name for name in needed if name not in names]:
        what = f"the header names no column for {', '.join(missing)}: {' | '.join(lines[0][1]) if lines else 'no line'}"
        fix = "Expected Label, String, ImageID (and a second String for use_target), or TomBERT's own header"
        problems.append(Problem(file, 1, what, fix))
        return []
    rows = []
    for number, fields in lines[1:]:
        if len(fields) == len(names):
            rows.append((number, dict(zip(names, fields, strict=True))))
        else:
            what = f"{len(fields)} fields, expected {len(names)}: {', '.join(names)}"
            problems.append(Problem(file, number, what, "Take tabs out of the text, or complete the line"))
    if any(row["label"] == "-1" for _, row in rows):
        what = "labels count from -1, expected 0 (negative), 1 (neutral) and 2 (positive)"
        problems.append(Problem(file, None, what, "Add 1 to every label"))
        return []
    return rows


def _column_names(header: list[str]) -> list[str]:
    """Return what the columns hold. TomBERT's test.tsv has a label in each line that its header leaves out."""
    names = [re.sub(r"^#[0-9]+ *", "", name).lower() for name in header]
    if names == ["index", "imageid", "string", "string"]:
        names.insert(1, "label")
    if names.count("string") > 1:
        names[len(names) - 1 - names[::-1].index("string")] = "target"
    return [{"imageid": "image", "string": "text"}.get(name, name) for name in names]

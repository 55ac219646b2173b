"""sarcasm: is a tweet sarcastic, from its text and image (Cai, Cai and Wan, ACL 2019)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from igm_fast.data.dataset import MultimodalData
from igm_fast.data.lists import first_difference
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import Problem
from igm_fast.data.readers.text import without_punctuation
from igm_fast.data.scan import PARTS, Entry, Scan
from igm_fast.data.text_image import image_problem, list_text, text_image_data

MODALITIES = ("text", "image")
CLASSES = ("sincere", "sarcastic")
PUBLISHED = {
    "train": {"sincere": 11174, "sarcastic": 8642},
    "validation": {"sincere": 1451, "sarcastic": 959},
    "test": {"sincere": 1450, "sarcastic": 959},
}
LAYOUT = """\
annotations/train_data.json, valid_data.json, test_data.json
                  lists of {"image": "<id>.jpg", "text": "…", "label": 0 or 1}: `prepare sarcasm` makes them
images/<id>.jpg"""

LISTS = {
    "train": "annotations/train_data.json",
    "validation": "annotations/valid_data.json",
    "test": "annotations/test_data.json",
}
IMAGES = "images"


def load(seed: int, options: DataOptions) -> MultimodalData:
    """Return token ids of the text and images ``[3, 224, 224]``.

    Raises:
        ValueError: ``options.use_target``, for these tweets have none.
    """
    if options.use_target:
        raise ValueError("data set 'sarcasm' has no target entities; leave use_target out, or use twitter2015")
    return text_image_data(
        "sarcasm",
        scan(options.existing_root("sarcasm"), options),
        seed=seed,
        options=options,
        description="Is a tweet sarcastic, from its text and image: the tweets of Cai, Cai and Wan (ACL 2019), "
        "validation and test by human labels.",
    )


def scan(root: Path, options: DataOptions) -> Scan:  # noqa: ARG001 - both protocols read the same
    """Read the three lists and look at the headers of the images. A "line" is a place in the JSON list, from 1."""
    if difference := first_difference(root, [*LISTS.values(), f"{IMAGES}/"]):
        return Scan({part: [] for part in PARTS}, [difference], CLASSES)
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    parts = {part: _entries(root, file, seen, problems) for part, file in LISTS.items()}
    return Scan(parts, problems, CLASSES)


def _entries(root: Path, file: str, seen: dict[str, str], problems: list[Problem]) -> list[Entry]:
    entries = []
    for number, item in enumerate(_items(root, file, problems), start=1):
        problem = _item_problem(file, number, item)
        if problem is None:
            # Lists made elsewhere give paths of the machine they were made on; the name is what counts.
            name = item["image"].rsplit("/", 1)[-1]
            if name in seen:
                problem = Problem(file, number, f"image {name} is that of {seen[name]}, too", "Delete one of the two")
            else:
                seen[name] = f"{file}:{number}"
                problem = image_problem(root, IMAGES, name, file, number)
        if problem is not None:
            problems.append(problem)
            continue
        source = {"text": without_punctuation(item["text"]), "image": f"{IMAGES}/{name}"}
        entries.append(Entry(source, int(item["label"]), name, number, file))
    return entries


def _items(root: Path, file: str, problems: list[Problem]) -> list[Any]:
    text = list_text(root, file, problems)
    if text is None:
        return []
    fix = "Make the list with `python -m igm_fast.data prepare sarcasm DOWNLOAD OUT`"
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(Problem(file, getattr(error, "lineno", None), f"is no JSON ({error})", fix))
        return []
    if not isinstance(items, list):
        problems.append(Problem(file, None, f"holds one {type(items).__name__}, expected a list of objects", fix))
        return []
    return items


def _item_problem(file: str, number: int, item: Any) -> Problem | None:
    """Return what is wrong with an entry of a list, but for its image file."""
    keys = sorted(item) if isinstance(item, dict) else []
    if missing := [key for key in ("image", "text", "label") if key not in keys]:
        what = f"has no {', '.join(missing)}, only {', '.join(keys) or item!r}"
        return Problem(file, number, what[:200], 'Expected {"image": …, "text": …, "label": 0 or 1}')
    for key in ("image", "text"):
        if not isinstance(item[key], str) or not _is_unicode(item[key]):
            return Problem(file, number, f"{key} is {item[key]!r}, expected Unicode text"[:200], "Correct the entry")
    # 1.0 and true are no labels, though equal to one
    if str(item["label"]) not in ("0", "1"):
        what = f"label {item['label']!r}, expected 0 (sincere) or 1 (sarcastic)"[:200]
        return Problem(file, number, what, "Correct the label, or delete the entry")
    return None


def _is_unicode(text: str) -> bool:
    """JSON can spell one half of a surrogate pair, which no encoder takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)

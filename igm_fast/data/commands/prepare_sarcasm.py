"""Turn the public text files of the sarcasm tweets into the JSON lists that data set ``sarcasm`` reads.

The files (train.txt, valid2.txt and test2.txt of headacheboy/data-of-multimodal-sarcasm-detection) hold one Python list
per line: ['<id>', '<text>', label] in train, ['<id>', '<text>', hashtag label, human label] in the other two.
Validation and test take the human label; training has only the hashtag's. Training tweets that give themselves away by
a word such as "sarcasm" are left out, as in the authors' experiments.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from igm_fast.data.problems import BadFile
from igm_fast.data.sets.sarcasm import IMAGES, LISTS

FILES = {"train": "train.txt", "validation": "valid2.txt", "test": "test2.txt"}
FIELDS = {"train": 3, "validation": 4, "test": 4}

GIVE_AWAY = frozenset(
    "sarcasm sarcastic reposting <url> joke jokes humour humor irony ironic exgag".split()  # noqa: SIM905 - 11 words
)
"""Words (not parts of words) for which a training tweet is left out: 19,816 of 29,040 stay."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("download", type=Path, metavar="DOWNLOAD", help="folder with the three text files, or text/")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the data set; images belong into OUT/images")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Prepare and report; return the exit code."""
    for line in prepare_sarcasm(arguments.download, arguments.out):
        console.print(line)
    return 0


def prepare_sarcasm(download: Path, out: Path) -> list[str]:
    """Write ``out/annotations/*.json`` and return what was done, a sentence for each list.

    Args:
        download: folder with the three text files, or with them in ``text/``.
        out: the data set's folder; its ``images/`` are looked for, not made.

    Raises:
        BadFile: a file is missing, or a line isn't what it should be.
        FileExistsError: a list is already there.
    """
    for file in LISTS.values():
        if (out / file).exists():
            raise FileExistsError(f"{out / file} is already there; delete it, or give another folder OUT")
    folder = download / "text" if (download / "text").is_dir() else download
    lists = {part: _tweets(folder / name, FIELDS[part]) for part, name in FILES.items()}
    report, names = [], []
    for part, tweets in lists.items():
        kept = [tweet for tweet in tweets if part != "train" or not GIVE_AWAY.intersection(tweet[1].split())]
        items = [{"image": f"{tweet[0]}.jpg", "text": tweet[1], "label": tweet[-1]} for tweet in kept]
        _write(out / LISTS[part], items)
        report.append(_sentence(part, tweets, kept))
        names += [item["image"] for item in items]
    there = sum((out / IMAGES / name).is_file() for name in names)
    report.append(f"{there} of the {len(names)} images lie in {out / IMAGES}")
    return report


def _tweets(path: Path, fields: int) -> list[list[Any]]:
    """Return ``[id, text, label, ...]`` of each line."""
    if not path.is_file():
        fix = "Give the folder of headacheboy/data-of-multimodal-sarcasm-detection"
        raise BadFile(path, f"no such file, expected {', '.join(FILES.values())}", fix)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadFile(path, f"is not UTF-8 ({error.reason})", "Download it again") from error
    return [_tweet(f"{path}:{number}", line, fields) for number, line in enumerate(lines, start=1) if line.strip()]


def _tweet(where: str, line: str, fields: int) -> list[Any]:
    try:
        tweet = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        tweet = None
    if (
        not isinstance(tweet, list)
        or [type(value) for value in tweet] != [str, str] + [int] * (fields - 2)
        or any(label not in (0, 1) for label in tweet[2:])
    ):
        labels = ", ".join(["hashtag label", "human label"][: fields - 2])
        raise BadFile(where, f"{line.strip()[:80]!r} is no ['<id>', '<text>', {labels}]", "Download the file again")
    return tweet


def _sentence(part: str, tweets: list[list[Any]], kept: list[list[Any]]) -> str:
    sarcastic = sum(tweet[-1] for tweet in kept)
    counts = f"{LISTS[part]}: {len(kept)} tweets, {len(kept) - sarcastic} sincere and {sarcastic} sarcastic"
    if part == "train":
        return (
            f"{counts}, by the hashtag's label; {len(tweets) - len(kept)} with a word that gives it away are left out"
        )
    differ = sum(tweet[2] != tweet[3] for tweet in kept)
    return f"{counts}, by the human label, which differs from the hashtag's in {differ}"


def _write(path: Path, items: list[dict[str, Any]]) -> None:
    """Write one entry a line, beside the place, and rename: a list is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    unfinished.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    unfinished.replace(path)

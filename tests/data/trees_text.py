"""Makers of tiny real trees of the two data sets of tweets with an image, and of a tiny random BERT."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TOMBERT = "index\t#1 Label\t#2 ImageID\t#3 String\t#3 String"
TOMBERT_TEST = "index\t#1 ImageID\t#2 String\t#2 String"  # as it is published: five fields below four names

OPINIONS = ("awful", "plain", "lovely")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))


def write_photo(path: Path, size: tuple[int, int] = (20, 30), seed: int = 0, **options: Any) -> Path:
    """Noise of ``(height, width)``, in the format that the name or ``format`` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def tweets(part: str, count: int) -> list[dict[str, Any]]:
    """Tweets about two entities each; the label is in the text."""
    rows = []
    for row in range(count):
        pair, target = (("the vet and $T$", "dog"), ("$T$ and the dog", "vet"))[row % 2]
        text = f"RT @ somebody : {pair} are {OPINIONS[row % 3]} !"
        rows.append({"label": row % 3, "image": f"{part}{row // 2}.jpg", "text": text, "target": target})
    return rows


def write_tweets(path: Path, rows: Sequence[Mapping[str, Any]], header: str = TOMBERT, end: str = "\n") -> None:
    lines = [
        "\t".join(map(str, (number, row["label"], row["image"], row["text"], row["target"])))
        for number, row in enumerate(rows, start=1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in [header, *lines]).encode())


def twitter_tree(root: Path, train: int = 12, validation: int = 6, test: int = 6) -> Path:
    for part, file, count in (("train", "train", train), ("validation", "dev", validation), ("test", "test", test)):
        rows = tweets(part, count)
        header = TOMBERT_TEST if part == "test" else TOMBERT
        write_tweets(root / "annotations" / f"{file}.tsv", rows, header)
        for number, row in enumerate(rows):
            write_photo(root / "twitter2015_images" / row["image"], seed=number)
    return root


def sarcasm_items(part: str, count: int) -> list[dict[str, Any]]:
    return [
        {"image": f"{part}{row}.jpg", "text": f"so {('kind', 'lovely')[row % 2]} # monday emoji_92", "label": row % 2}
        for row in range(count)
    ]


def write_items(path: Path, items: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items), encoding="utf-8")


def sarcasm_tree(root: Path, train: int = 12, validation: int = 6, test: int = 6) -> Path:
    for part, file, count in (("train", "train", train), ("validation", "valid", validation), ("test", "test", test)):
        items = sarcasm_items(part, count)
        write_items(root / "annotations" / f"{file}_data.json", items)
        for number, item in enumerate(items):
            write_photo(root / "images" / item["image"], seed=number)
    return root


def write_vocabulary(folder: Path, tokens: Sequence[str] = VOCABULARY) -> Path:
    """A BERT's directory without weights: what the tokenizer needs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(tokens)}), encoding="utf-8")
    return folder


def write_bert(folder: Path) -> Path:
    """A random BERT of one layer, saved by transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BertConfig, BertModel

    write_vocabulary(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=128, **sizes)).save_pretrained(folder)
    return folder

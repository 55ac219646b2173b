"""A folder with every kind of column: sound, picture, video, arrays, numbers and text."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from trees_video import frame, write_video

COLUMNS = ("label", "split", "voice", "photo", "clip", "pose", "size.0", "size.1", "remark")
SPLITS = ("train",) * 8 + ("validation",) * 4 + ("test",) * 4
CLASSES = ("cat", "dog")


def folder_rows(root: Path) -> list[dict[str, str]]:
    """Write the files of 16 samples of two classes; return the table's rows."""
    for kind in ("voice", "photo", "clip", "pose"):
        (root / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(SPLITS):
        label = CLASSES[number % 2]
        soundfile.write(root / f"voice/{number}.wav", rng.uniform(-0.5, 0.5, 8000 * 2).astype(np.float32), 8000)
        picture = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / f"photo/{number}.jpg")
        write_video(root / f"clip/{number}.avi", [frame(n, (32, 48)) for n in range(6)])
        np.save(root / f"pose/{number}.npy", (10 + rng.normal(size=(3, 20))).astype(np.float32))
        rows.append(
            {
                "label": label,
                "split": split,
                "voice": f"voice/{number}.wav",
                "photo": f"photo/{number}.jpg",
                "clip": f"clip/{number}.avi",
                "pose": f"pose/{number}.npy",
                "size.0": str(number / 4),
                "size.1": "7",
                "remark": f"a {label}, it seems",
            }
        )
    return rows


def write_table(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "data.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)

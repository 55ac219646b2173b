"""Made-up trees of the five data sets on disk, with files of the sizes that real ones have.

Pictures are smooth with some grain, so that a JPEG of them is as long as that of a photograph; sounds are a few tones
in noise. Every file that a benchmark reads has a content of its own. The lists hold the fewest lines that load.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

GESTURES = "nvgesture_{}_correct_v2.lst"


@dataclass(frozen=True)
class Sizes:
    """Seconds of sound, heights and widths, frames of a clip."""

    seconds: float = 10.0
    voice_seconds: float = 2.5
    frame: tuple[int, int] = (360, 480)
    photo: tuple[int, int] = (400, 600)
    clip: tuple[int, int] = (240, 320)


SMALL = Sizes(0.5, 0.5, (36, 48), (40, 60), (24, 32))


def crema_d(root: Path, sizes: Sizes) -> None:
    """Voices of 2.5 s at 16 kHz and three frames each."""
    for part, first, emotions in (("train", 1001, "HAP SAD HAP SAD"), ("test", 1050, "HAP SAD")):
        clips = [(f"{first + number}_DFA_{name}_XX", name) for number, name in enumerate(emotions.split())]
        _text(root / f"annotations/{part}.csv", [f"{clip},{name}" for clip, name in clips])
        for number, (clip, _) in enumerate(clips):
            _sound(root / f"AudioWAV/{clip}.wav", sizes.voice_seconds, 16000, first + number)
            _frames(root / f"Image-01-FPS/{clip}", 3, sizes.frame, first + number)


def ksounds(root: Path, sizes: Sizes) -> None:
    """Sounds of 10 s at 44.1 kHz and ten frames each."""
    for part, labels in (("train", ["bowling", "singing"] * 2), ("test", ["bowling", "singing"])):
        clips = [f"{part:_<7}{number:04}_000002_000012" for number in range(len(labels))]
        lines = [f"{clip},{label}" for clip, label in zip(clips, labels, strict=True)]
        _text(root / f"annotations/{part}.csv", ["youtube_id,label", *lines])
        for number, clip in enumerate(clips):
            _sound(root / f"{part}_wav/{clip}.wav", sizes.seconds, 44100, len(part) + 10 * number)
            _frames(root / f"{part}_img/Image-01-FPS/{clip}", 10, sizes.frame, len(part) + 10 * number)


def twitter2015(root: Path, sizes: Sizes) -> None:
    """Tweets with a photo."""
    for part in ("train", "dev", "test"):
        lines = [f"{number % 3}\t{part} says $T$ is number {number}\t{part}{number}.jpg" for number in range(4)]
        _text(root / f"annotations/{part}.tsv", ["Label\tString\tImageID", *lines])
        for number in range(4):
            _photo(root / f"twitter2015_images/{part}{number}.jpg", sizes.photo, len(part) + 10 * number)


def sarcasm(root: Path, sizes: Sizes) -> None:
    """Tweets with a photo."""
    for part in ("train", "valid", "test"):
        items = [
            {"image": f"{part}{row}.jpg", "text": f"{part} what a lovely day {row}", "label": row % 2}
            for row in range(4)
        ]
        _text(root / f"annotations/{part}_data.json", [json.dumps(items)])
        for number in range(4):
            _photo(root / f"images/{part}{number}.jpg", sizes.photo, len(part) + 10 * number)


def nvgesture(root: Path, sizes: Sizes) -> None:
    """Clips of 80 frames in colour and depth, and their flow, 256×256 float16 as ``nvgesture-flow`` writes it."""
    for part, samples in (("train", [(1, 1), (2, 1), (1, 2), (2, 2)]), ("test", [(1, 5), (2, 5)])):
        lines = []
        for gesture, subject in samples:
            folder = f"Video_data/class_{gesture:02}/subject{subject}_r0"
            for seed, name in enumerate(("sk_color", "sk_depth")):
                _clip(root / folder / f"{name}.avi", sizes.clip, 100 * subject + 10 * gesture + seed)
            flow = np.random.default_rng(gesture).normal(size=(256, 256, 2, 1)) * np.linspace(0.5, 1, 80)
            np.save(root / folder / "sk_color_flow.npy", (flow / subject).astype(np.float16))
            clips = "depth:sk_depth:0:80 color:sk_color:0:80 duo_left:duo_left:0:93"
            lines.append(f"path:./{folder} {clips} label:{gesture} ")
        _text(root / GESTURES.format(part), lines)


TREES: dict[str, Callable[[Path, Sizes], None]] = {
    "crema-d": crema_d,
    "ksounds": ksounds,
    "twitter2015": twitter2015,
    "sarcasm": sarcasm,
    "nvgesture": nvgesture,
}


def _text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _sound(path: Path, seconds: float, rate: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    tones = np.sin(2 * np.pi * times[:, None] * generator.uniform(100, 3000, 4)).sum(axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * tones + generator.normal(0, 0.02, len(times)), rate)


def _picture(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """A field of twelve by sixteen random colours, smoothly magnified, with grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(np.float64)
    return (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def _photo(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_picture(size, seed)).save(path, quality=90)


def _frames(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    for number in range(count):
        _photo(folder / f"{30 * number:05}.jpg", size, 1000 * seed + number)


def _clip(path: Path, size: tuple[int, int], seed: int) -> None:
    """80 frames at 30 a second: a picture that moves sideways."""
    picture = _picture((size[0], size[1] + 160), seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        for number in range(80):
            window = np.ascontiguousarray(picture[:, 2 * number : 2 * number + size[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())

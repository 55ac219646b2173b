"""Makers of tiny real trees of the audio-visual data sets: WAV by soundfile, JPEG by Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")


def write_wav(
    path: Path, seconds: float = 1.5, rate: int = 16000, channels: int = 1, seed: int = 0, **format_: str
) -> None:
    """Noise at a tenth of full scale."""
    samples = np.random.default_rng(seed).uniform(-0.1, 0.1, (round(seconds * rate), channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    soundfile.write(path, samples, rate, **format_)


def write_jpeg(path: Path, height: int = 24, width: int = 32, seed: int = 0, mode: str = "RGB") -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def write_list(path: Path, lines: Sequence[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, "".join(line + end for line in lines).encode())


def crema_d_clips(part: str, each: int, classes: Sequence[str] = EMOTIONS) -> list[tuple[str, str]]:
    """``each`` clips of every emotion, as ``(clip, emotion)``; no clip is in two parts."""
    first = {"train": 1001, "test": 1050}[part]
    return [(f"{first + turn}_DFA_{emotion}_XX", emotion) for turn in range(each) for emotion in classes]


def crema_d_tree(root: Path, train: int = 3, test: int = 2, frames: int = 3, classes: Sequence[str] = EMOTIONS) -> Path:
    """``train`` and ``test`` clips of every emotion."""
    for part, each in (("train", train), ("test", test)):
        clips = crema_d_clips(part, each, classes)
        write_list(root / "annotations" / f"{part}.csv", [f"{clip},{emotion}" for clip, emotion in clips])
        for number, (clip, _) in enumerate(clips):
            write_wav(root / "AudioWAV" / f"{clip}.wav", seed=number)
            for frame in range(frames):
                write_jpeg(root / "Image-01-FPS" / clip / f"{30 * frame:05d}.jpg", seed=10 * number + frame)
    return root


def ksounds_clips(part: str, each: int, classes: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (f"{part}{turn:03d}{place:03d}__000002_000012", name)
        for turn in range(each)
        for place, name in enumerate(classes)
    ]


def ksounds_tree(
    root: Path,
    train: int = 3,
    test: int = 2,
    frames: int = 5,
    classes: Sequence[str] = ("tapping guitar", "bowling", "singing"),
) -> Path:
    """``train`` and ``test`` clips of each of three actions."""
    for part, each in (("train", train), ("test", test)):
        clips = ksounds_clips(part, each, classes)
        lines = ["youtube_id,label", *(f"{clip},{label}" for clip, label in clips)]
        write_list(root / "annotations" / f"{part}.csv", lines)
        for number, (clip, _) in enumerate(clips):
            write_wav(root / f"{part}_wav" / f"{clip}.wav", seconds=0.5, rate=44100, seed=number)
            for frame in range(frames):
                write_jpeg(
                    root / f"{part}_img" / "Image-01-FPS" / clip / f"frame_{frame:05d}.jpg", seed=10 * number + frame
                )
    return root


def rewrite_line(path: Path, line: int, text: str) -> None:
    """Replace a line, counted from 1."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    write_list(path, lines)


def truncate(path: Path, keep: float) -> None:
    """Keep a share of a file's bytes."""
    content = path.read_bytes()
    replace(path, content[: int(keep * len(content))])


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of one that may be linked elsewhere."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def huge_png(side: int = 60000) -> bytes:
    """A PNG of a few bytes that claims side × side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def said(problems: Sequence[object]) -> str:
    return "\n".join(map(str, problems))

"""Arbitrary damage to lists, sounds and images: a clear message of ours or a usable sample, never anything else."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import crema_d_tree, huge_png, ksounds_tree, replace, said

from igm_fast.data import BadFile, DataOptions
from igm_fast.data.readers.audio import SoundReader
from igm_fast.data.readers.frames import FramesReader
from igm_fast.data.sets import crema_d, ksounds


def sound(kind: str, subtype: str | None) -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3000, 2))
    soundfile.write(buffer, samples, 8000, format=kind, subtype=subtype)
    return buffer.getvalue()


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


SOUNDS = [
    sound("WAV", "PCM_16"),
    sound("WAV", "PCM_U8"),
    sound("WAV", "FLOAT"),
    sound("FLAC", None),
    sound("OGG", None),
]
IMAGES = [image("JPEG"), image("PNG")]


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A file cut short, with some bytes changed, or with others put in."""
    content = bytearray(draw(st.sampled_from(whole)))
    content = content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content
    for _ in range(draw(st.integers(0, 8)) if content else 0):
        # Headers are short: half of the changes go there.
        last = draw(st.sampled_from([min(len(content), 64), len(content)])) - 1
        content[draw(st.integers(0, last))] = draw(st.integers(0, 255))
    return bytes(content) + draw(st.binary(max_size=8))


@given(content=damaged(SOUNDS))
@settings(max_examples=120)
def test_damaged_sounds(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.wav").write_bytes(content)
        reader = SoundReader(Path(folder), rate=8000, seconds=0.5)
        try:
            found = reader.load("a.wav")
        except BadFile as error:
            assert error.path.endswith("a.wav") and error.what and error.fix  # noqa: PT017, PT018 - either is right
            return
        assert found.shape == reader.shape
        assert torch.isfinite(found).all()


@given(content=damaged(IMAGES))
@settings(max_examples=120)
def test_damaged_images(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.jpg").write_bytes(content)
        reader = FramesReader(Path(folder), count=1, size=16)
        try:
            decoded = reader.load("a.jpg")
        except BadFile as error:
            assert error.path.endswith("a.jpg")  # noqa: PT017 - either outcome is right
            return
        assert decoded.dtype == torch.uint8
        for generator in (None, torch.Generator()):
            assert torch.isfinite(reader.present([decoded], generator)).all()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    return {"crema-d": crema_d_tree(folder / "c", 1, 1, 1), "ksounds": ksounds_tree(folder / "k", 1, 1, 4)}


FIXED = ["1001_DFA_NEU_XX,NEU", "youtube_id,label", "a,b,c", '"', "../x,NEU", ",", "\0", "\ufeff", f"{'x' * 300},NEU"]
LINES = st.lists(st.one_of(st.sampled_from(FIXED), st.text(max_size=20)), max_size=6)


@given(lines=LINES, end=st.sampled_from(["\n", "\r\n", "\r"]), encoding=st.sampled_from(["utf-8", "utf-16", "cp1252"]))
@settings(max_examples=80)
@pytest.mark.parametrize("module", [crema_d, ksounds], ids=["crema-d", "ksounds"])
def test_arbitrary_lists(module, roots: dict[str, Path], lines: list[str], end: str, encoding: str) -> None:
    root = roots["crema-d" if module is crema_d else "ksounds"]
    replace(root / "annotations" / "train.csv", end.join(lines).encode(encoding, errors="replace"))
    found = module.scan(root, DataOptions())
    assert all(problem.what and problem.fix for problem in found.problems)
    for entry in found.parts["train"]:  # what is left lies in the tree
        assert (root / entry.source["audio"]).resolve().is_relative_to(root.resolve())


def test_an_image_that_claims_to_be_huge(tmp_path: Path) -> None:
    root = crema_d_tree(tmp_path / "c", 1, 1, 1)
    replace(root / "Image-01-FPS" / "1001_DFA_NEU_XX" / "00000.jpg", huge_png())
    (problem,) = crema_d.scan(root, DataOptions()).problems
    assert "annotations/train.csv:1: Image-01-FPS/1001_DFA_NEU_XX/00000.jpg: " in str(problem)
    assert "50 million pixels" in str(problem)


def test_a_sound_that_claims_to_be_huge(tmp_path: Path) -> None:
    content = bytearray(sound("FLAC", None))
    content[21:26] = bytes([content[21] | 0x0F, 255, 255, 255, 255])  # STREAMINFO: 36 bits of samples
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(BadFile, match="states 68719476735 samples in 2 channels, expected at most"):
        SoundReader(tmp_path, 8000, 0.5).load("a.wav")


@pytest.mark.parametrize("rate", [1, 999, 1_000_001])
def test_an_absurd_sampling_rate(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), rate)
    with pytest.raises(BadFile, match=f"has a sampling rate of {rate} Hz, expected 1000 to 1000000"):
        SoundReader(tmp_path, 8000, 0.5).load("a.wav")


def test_a_list_that_names_a_folder_above(tmp_path: Path) -> None:
    root = ksounds_tree(tmp_path / "k", 1, 1, 4)
    for name in ("../../etc/passwd", "/etc/passwd", "a/../../b", "..", "a\\..\\b"):
        replace(root / "annotations" / "train.csv", f"youtube_id,label\n{name},x\n".encode())
        assert "leads out of the data set's folder" in said(ksounds.scan(root, DataOptions()).problems)

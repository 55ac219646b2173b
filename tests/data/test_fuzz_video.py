"""Damaged videos and arrays: one of our sentences, or the right numbers; never another error, never a hang."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees_video import frame, write_video

from igm_fast.data.problems import BadFile
from igm_fast.data.readers.arrays import archive_keys, open_array, read_archive
from igm_fast.data.readers.video import decode_clip, sample_frames

FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Contents of a small file per container."""
    folder = tmp_path_factory.mktemp("videos")
    pictures = [frame(number, (32, 48)) for number in range(12)]
    made = {
        "avi": write_video(folder / "a.avi", pictures),
        "mp4": write_video(folder / "a.mp4", pictures, codec="libx264"),
        "mkv": write_video(folder / "a.mkv", pictures, codec="mjpeg", pixels="yuvj420p"),
    }
    return {suffix: path.read_bytes() for suffix, path in made.items()}


def attempt(path) -> None:
    """Read a file in both ways: frames of the asked shape, or a BadFile."""
    for read in (lambda: decode_clip(path, 3, 9, (16, 16), pad=True), lambda: sample_frames(path, 6, (16, 16))):
        with contextlib.suppress(BadFile):
            clip = read()
            assert clip.shape == (6, 3, 16, 16)
            assert clip.dtype == torch.uint8


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
@FUZZ
@given(data=st.data())
def test_truncated_videos(videos, tmp_path, suffix, data):
    content = videos[suffix]
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    attempt(path)


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
@FUZZ
@given(data=st.data())
def test_videos_with_wrong_bytes(videos, tmp_path, suffix, data):
    content = bytearray(videos[suffix])
    for _ in range(data.draw(st.integers(1, 8))):
        # Headers decide the most: half of the changes hit them.
        place = data.draw(st.integers(0, 400) | st.integers(0, len(content) - 1))
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    path = tmp_path / f"wrong.{suffix}"
    path.write_bytes(content)
    attempt(path)


@FUZZ
@given(content=st.binary(max_size=300))
def test_videos_of_noise(tmp_path, content):
    path = tmp_path / "noise.avi"
    path.write_bytes(content)
    attempt(path)


def arrays() -> dict[str, bytes]:
    plain, packed = io.BytesIO(), io.BytesIO()
    np.save(plain, np.arange(60, dtype=np.float32).reshape(3, 20))
    np.savez_compressed(packed, a=np.arange(60.0), b=np.arange(6))
    return {"npy": plain.getvalue(), "npz": packed.getvalue()}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@settings(FUZZ, max_examples=100)
@given(data=st.data())
def test_damaged_arrays(tmp_path, suffix, data):
    content = bytearray(arrays()[suffix])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"wrong.{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(BadFile):
        values = open_array(path) if suffix == "npy" else read_archive(path, archive_keys(path)[0])
        assert values.nbytes <= 10_000


def test_a_video_that_claims_huge_frames(tmp_path):
    path = write_video(tmp_path / "huge.avi", [frame(0, (32, 48))], codec="rawvideo", pixels="bgr24")
    content = path.read_bytes()
    head = struct.pack("<4sIIii", b"strf", 40, 40, 48, -32)
    assert content.count(head) == 1
    path.write_bytes(content.replace(head, head[:-8] + struct.pack("<ii", 9_000, -9_000)))
    with pytest.raises(BadFile, match="9000×9000 pixels, expected at most 50000000"):
        sample_frames(path, 1, (16, 16))


def test_frames_that_are_larger_than_the_header_says(tmp_path):
    pictures = [frame(number, (32, 48)) for number in range(12)]
    path = write_video(tmp_path / "huge.avi", pictures, codec="mjpeg", pixels="yuvj420p")
    content = path.read_bytes()
    size = (32).to_bytes(2, "big") + (48).to_bytes(2, "big")
    head, last = content.rsplit(size, 1)
    path.write_bytes(head + (9_000).to_bytes(2, "big") * 2 + last)
    with pytest.raises(BadFile):
        decode_clip(path, 8, 12, (16, 16))


def test_a_codec_that_nobody_knows(tmp_path):
    path = write_video(tmp_path / "codec.avi", [frame(0, (32, 48))])
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"QQQQ"))
    with pytest.raises(BadFile, match="codec"):
        sample_frames(path, 1, (16, 16))

"""Frames of a video file, by PyAV: a range by number, or a few spread over the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from igm_fast.data.problems import BadFile
from igm_fast.data.readers.images import MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WAY_OUT = "Copy or convert the file again, or take its line out of the list"


def stated_frames(path: Path) -> int:
    """Return the number of frames that the file's header states, 0 where it states none. Reads the header only.

    Raises:
        BadFile: as for :func:`frame_count`.
    """
    with _video(path) as (_, stream):
        return int(stream.frames)


def frame_count(path: Path) -> int:
    """Return how many frames the file holds, from its packets, without decoding.

    Raises:
        BadFile: missing, empty or unreadable, no video in it, or frames beyond 50 megapixels.
    """
    with _video(path) as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream))


def decode_clip(path: Path, start: int, end: int, size: tuple[int, int], *, pad: bool = False) -> Tensor:
    """Return frames ``start`` to ``end - 1``, counted from 0 at the file's constant frame rate.

    Resized by bilinear interpolation without a filter, as OpenCV's ``resize`` does by default.

    Args:
        path: a file that FFmpeg reads.
        start: number of the first frame.
        end: one past the last.
        size: height and width in pixels.
        pad: missing frames become zeros at the end; otherwise they are an error.

    Returns:
        uint8 ``[end - start, 3, height, width]``, RGB.

    Raises:
        BadFile: as for :func:`frame_count`, or frames are missing.
    """
    if not 0 <= start < end:
        raise BadFile(path, f"frames {start} to {end} are no range", "Expected 0 ≤ start < end")
    with _video(path) as (container, stream):
        frames = _range_of_frames(container, stream, start, end, size)
    if not frames or (len(frames) < end - start and not pad):
        missing = next((number for number in range(start, end) if number not in frames), start)
        raise BadFile(
            str(path), f"has no frame {missing}, expected frames {start} to {end - 1} (counted from 0)", _WAY_OUT
        )
    clip = torch.stack([frames[number] for number in sorted(frames)])
    return functional.pad(clip, (0, 0, 0, 0, 0, 0, 0, end - start - len(clip)))


def sample_frames(path: Path, count: int, size: tuple[int, int]) -> Tensor:
    """Return the middle frames of ``count`` equal segments of the video: uint8 ``[count, 3, height, width]``, RGB.

    Shorter videos repeat frames. Resized as in :func:`decode_clip`.

    Raises:
        BadFile: as for :func:`frame_count`, or a frame cannot be decoded.
    """
    total = frame_count(path)
    wanted = [(2 * segment + 1) * total // (2 * count) for segment in range(count)]
    frames: dict[int, Tensor] = {}
    with _video(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames[number] = _resized(frame.to_ndarray(format="rgb24"), size)
            if number == wanted[-1]:
                break
    if missing := sorted(set(wanted) - set(frames)):
        raise BadFile(path, f"frame {missing[0]} of {total} cannot be decoded", _WAY_OUT)
    return torch.stack([frames[number] for number in wanted])


def frame_of_each_second(path: Path) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first frame of each second as an RGB image of its own size, with its number in the file.

    Raises:
        BadFile: as for :func:`frame_count`, or no frame can be decoded.
    """
    second = -1
    with _video(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if frame.time is None:
                raise ValueError("its frames carry no time")
            if int(frame.time) > second:
                second = int(frame.time)
                yield number, Image.fromarray(frame.to_ndarray(format="rgb24"))
    if second < 0:
        raise BadFile(str(path), "has no frame that can be decoded", _WAY_OUT)


def _range_of_frames(container: Any, stream: Any, start: int, end: int, size: tuple[int, int]) -> dict[int, Tensor]:
    """Return the frames of the range that can be decoded, by number."""
    per_frame = 1 / (stream.guessed_rate * stream.time_base)
    origin = stream.start_time or 0
    # A seek lands on the key frame before the asked time, but in a file without index it may land behind it.
    for target in (start, 0):
        container.seek(origin + int(target * per_frame), stream=stream)
        frames: dict[int, Tensor] = {}
        first = None
        for frame in container.decode(stream):
            if frame.pts is None:
                raise ValueError("its frames carry no time")
            number = round((frame.pts - origin) / per_frame)
            first = number if first is None else first
            if number >= end or (first > start and target > 0):
                break
            if number >= start and not frame.is_corrupt:
                frames[number] = _resized(frame.to_ndarray(format="rgb24"), size)
        if first is not None and first <= start:
            break
    return frames


def _resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    planes = torch.from_numpy(picture).permute(2, 0, 1)
    return functional.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0].contiguous()


@contextmanager
def _video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the file's first video stream; whatever FFmpeg raises inside becomes a BadFile."""
    av = _pyav()
    if not path.is_file():
        raise BadFile(path, "no such file, expected a video", "Copy it there, or take its line out of the list")
    if path.stat().st_size == 0:
        raise BadFile(path, "is empty, expected a video", _WAY_OUT)
    try:
        # The prefix keeps a name with a colon from being read as a protocol, the list a playlist from reaching out.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise BadFile(path, "has no video stream, expected a video such as AVI or MP4", _WAY_OUT)
            stream = container.streams.video[0]
            _check_stream(path, stream)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # frames may differ from the header
            yield container, stream
    except BadFile:
        raise
    except Exception as error:  # whatever a decoder runs into on a broken file
        raise BadFile(path, f"FFmpeg cannot read it ({error})", _WAY_OUT) from error


def _check_stream(path: Path, stream: Any) -> None:
    width, height = stream.width, stream.height
    if stream.codec_context is None or not width or not height:
        raise BadFile(path, "its codec or picture size is unknown to FFmpeg", f"Convert it, say to MPEG-4. {_WAY_OUT}")
    if width * height > MAX_PIXELS:
        raise BadFile(
            str(path), f"has frames of {width}×{height} pixels, expected at most {MAX_PIXELS}", "Scale the video down"
        )
    if not stream.guessed_rate or not stream.time_base:
        raise BadFile(path, "states no frame rate", _WAY_OUT)


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos are read by PyAV, which is missing; pip install 'igm_fast[media]'") from error
    module: ModuleType = av
    return module

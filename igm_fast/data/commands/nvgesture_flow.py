"""Optical flow for NVGesture: Farneback's dense flow of every listed colour clip, written beside the clip."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from igm_fast.data.problems import BadFile, Problem
from igm_fast.data.readers.video import decode_clip
from igm_fast.data.sets.nvgesture import FRAMES, STORED, clips, flow_beside, flow_frames

LARGEST = (
    20.0  # pixels a frame; what moves faster is cut off, as for I3D's Kinetics weights (Carreira & Zisserman 2017)
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--root", type=Path, required=True, help="folder of NVGesture, with the two lists")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Compute the flow that is missing; return how many lines or clips could not be used, at most 1 as exit code."""
    bad = made = there = 0
    for part in ("train", "test"):
        for entry in clips(arguments.root, part, "paper"):
            if isinstance(entry, Problem):
                console.print(str(entry))
                bad += 1
                continue
            target = arguments.root / flow_beside(entry.source["rgb"]["path"])
            if _finished(target):
                there += 1
                continue
            try:
                write_flow(arguments.root, entry.source["rgb"], target)
                made += 1
            except BadFile as error:
                console.print(f"{entry.file}:{entry.line}: {error}")
                bad += 1
    console.print(f"flow of {made} clips computed, of {there} clips already there, {bad} lines with problems")
    return int(bad > 0)


def write_flow(root: Path, source: dict[str, object], target: Path) -> None:
    """Compute the flow of one clip and put it at ``target``, complete or not at all.

    Raises:
        BadFile: the clip cannot be decoded.
    """
    clip = decode_clip(root / str(source["path"]), int(str(source["start"])), int(str(source["end"])), (STORED, STORED))
    flow = farneback(clip.permute(0, 2, 3, 1).numpy())
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".flow")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, flow, allow_pickle=False)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def farneback(clip: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Return the flow from each frame to the next one (G. Farnebäck, SCIA 2003), in units of 20 pixels, within ±1.

    Args:
        clip: ``[T, H, W, 3]`` RGB.

    Returns:
        float16 ``[H, W, 2, T]``, horizontal and vertical. The last frame, which has no next one, repeats the flow
        before it.
    """
    cv2 = _opencv()
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    flow = np.empty((*clip.shape[1:3], 2, len(clip)), np.float16)
    for frame in range(len(clip) - 1):
        moved = cv2.calcOpticalFlowFarneback(grey[frame], grey[frame + 1], None, 0.5, 3, 15, 3, 5, 1.2, 0)
        flow[..., frame] = np.clip(moved, -LARGEST, LARGEST) / LARGEST
    flow[..., -1] = flow[..., -2]
    return flow


def _finished(target: Path) -> bool:
    try:
        return flow_frames(target) == FRAMES
    except BadFile:
        return False


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "optical flow is computed by OpenCV, which is missing; pip install 'igm_fast[flow]'"
        ) from error
    module: ModuleType = cv2
    return module

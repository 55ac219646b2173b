"""Tiny NVGesture trees of real AVI files, and videos whose every frame tells its number."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch

LISTS = {part: f"nvgesture_{part}_correct_cvpr2016_v2.lst" for part in ("train", "test")}

# Two classes; each line: class folder, subject, label as listed.
TRAIN = [(1, 1, 1), (2, 1, 2), (1, 2, 1), (2, 2, 2), (1, 3, 1), (2, 3, 2)]
TEST = [(1, 5, 1), (2, 5, 2)]


def frame(number: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """Eight stripes, dark or bright: the number's bits, which no compression hides. Redder than blue."""
    bits = np.repeat([number >> bit & 1 for bit in range(8)], size[1] // 8)
    picture = np.broadcast_to((60 + 120 * bits)[None, :, None], (*size, 3)).astype(np.uint8)
    return picture + np.array([20, 0, 0], np.uint8)


def numbers(clip: torch.Tensor) -> list[int]:
    """Read the frame numbers ``[T]`` off frames ``[T, 3, H, W]`` as :func:`frame` makes them."""
    stripes = clip[:, 1].to(torch.float64).unflatten(2, (8, -1)).mean(dim=(1, 3))  # [T, 8]
    return ((stripes > 120) * 2 ** torch.arange(8)).sum(dim=1).tolist()


def write_video(
    path: Path, frames, *, codec: str = "mpeg4", pixels: str = "yuv420p", rate: int = 30, missing: tuple[int, ...] = ()
) -> Path:
    """Write RGB frames; the numbers in ``missing`` are left out, with their time."""
    frames = list(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        stream.bit_rate = 4_000_000
        for number, picture in enumerate(frames):
            if number not in missing:
                image = av.VideoFrame.from_ndarray(picture, format="rgb24")
                image.pts = number
                container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def line(gesture: int, subject: int, label: int, start: int = 4, end: int = 84) -> str:
    clips = f"depth:sk_depth:{start}:{end} color:sk_color:{start}:{end} duo_left:duo_left:5:98"
    return f"path:./Video_data/class_{gesture:02}/subject{subject}_r0 {clips} label:{label} "


def nvgesture_tree(root: Path, *, flow: bool = True, frames: int = 90) -> Path:
    """Six training and two test clips, 90 frames each, of subjects 1, 2, 3 and 5."""
    clip = write_video(root / "clip.avi", [frame(number) for number in range(frames)])
    np.save(root / "flow.npy", np.zeros((256, 256, 2, 80), np.float16))
    for part, samples in (("train", TRAIN), ("test", TEST)):
        for gesture, subject, _ in samples:
            folder = root / f"Video_data/class_{gesture:02}/subject{subject}_r0"
            folder.mkdir(parents=True)
            for name in ("sk_color", "sk_depth"):
                (folder / f"{name}.avi").hardlink_to(clip)
            if flow:
                (folder / "sk_color_flow.npy").hardlink_to(root / "flow.npy")
        (root / LISTS[part]).write_text("\n".join(line(*sample) for sample in samples) + "\n")
    return root

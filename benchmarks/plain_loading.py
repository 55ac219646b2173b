"""The loader that one would write for the five data sets: librosa's steps in numpy, Pillow, OpenCV's frame loop.

It follows the description of the authors' code (njustkmg/IJCAI25-IGM, 2025), file by file and sample by sample, written
anew; torchvision's transforms are spelt out in Pillow and numpy. It checks nothing and keeps nothing. The text of a
tweet is handed on: there is nothing to read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Source = Mapping[str, Any]  # modality → path, paths of frames, or a range of a clip, as in igm_fast.data.scan.Entry
Load = Callable[[Path, Source, bool], dict[str, Tensor]]  # root, source, whether to augment

WINDOW, HOP, FLOOR = 512, 353, 1e-7
SIZE, STORED, KEPT, FRAMES = 224, 256, 64, 80
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def crema_d(root: Path, source: Source, augment: bool) -> dict[str, Tensor]:
    """A spectrogram of 3 s and the first frame."""
    return {
        "audio": _spectrogram(root / source["audio"], 22050, 3),
        "video": _frames(root, source["video"], 1, augment)[0],
    }


def ksounds(root: Path, source: Source, augment: bool) -> dict[str, Tensor]:
    """A spectrogram of 10 s and the first three frames."""
    return {
        "audio": _spectrogram(root / source["audio"], 35400, 10),
        "video": _frames(root, source["video"], 3, augment),
    }


def photo(root: Path, source: Source, augment: bool) -> dict[str, Tensor]:
    """The picture of a tweet."""
    with Image.open(root / source["image"]) as file:
        image = file.convert("RGB")
    if augment:
        image = _rand_augment(_random_flip(_random_crop(image, (0.5, 1.0), BICUBIC)))
    else:
        image = image.resize((SIZE, SIZE), BICUBIC)
    return {"image": _normalized(np.asarray(image), CLIP)}


def nvgesture(root: Path, source: Source, augment: bool) -> dict[str, Tensor]:
    """64 of 80 frames in a random crop, or all of them in the centre; flow keeps its frames."""
    start = random.randint(0, FRAMES - KEPT) if augment else 0
    end = start + KEPT if augment else FRAMES
    top, left = (random.randint(0, STORED - SIZE) if augment else (STORED - SIZE) // 2 for _ in range(2))
    rows, columns = slice(top, top + SIZE), slice(left, left + SIZE)
    colour, depth = (_clip(root, source[name]) for name in ("rgb", "depth"))
    flow = torch.from_numpy(np.load(root / source["flow"])).permute(3, 2, 0, 1)
    return {
        "depth": torch.stack([_tensor(depth[rows, columns, :1, t]) for t in range(start, end)]),
        "rgb": torch.stack([_normalized(colour[rows, columns, :, t], IMAGENET) for t in range(start, end)]),
        "flow": flow[:, :, rows, columns].float(),
    }


LOADERS: dict[str, Load] = {
    "crema-d": crema_d,
    "ksounds": ksounds,
    "twitter2015": photo,
    "sarcasm": photo,
    "nvgesture": nvgesture,
}


def batch(load: Load, root: Path, sources: Sequence[Source], *, augment: bool) -> dict[str, Tensor]:
    """Return the samples, stacked by modality."""
    samples = [load(root, source, augment) for source in sources]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _spectrogram(path: Path, rate: int, seconds: int) -> Tensor:
    """librosa.load, repeat, cut, librosa.stft, log; [1, 257, times]."""
    samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), own_rate, rate, quality="HQ")
    wanted = math.ceil(len(samples) * rate / own_rate)
    mono = np.pad(mono, (0, max(wanted - len(mono), 0)))[:wanted]
    while len(mono) < rate * seconds:
        mono = np.tile(mono, 2)
    mono = mono[: rate * seconds].clip(-1, 1)
    padded = np.pad(mono, WINDOW // 2)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.fft.rfft(frames * window, axis=1).T
    return torch.from_numpy(np.log(np.abs(spectrum) + FLOOR).astype(np.float32))[None]


def _frames(root: Path, names: Sequence[str], count: int, augment: bool) -> Tensor:
    pictures = []
    for name in names[:count]:
        with Image.open(root / name) as file:
            picture = file.convert("RGB")
        if augment:
            picture = _random_flip(_random_crop(picture, (0.08, 1.0), BILINEAR))
        else:
            picture = picture.resize((SIZE, SIZE), BILINEAR)
        pictures.append(_normalized(np.asarray(picture), IMAGENET))
    return torch.stack(pictures)


def _clip(root: Path, source: Source) -> NDArray[np.uint8]:
    """[256, 256, 3, 80], as OpenCV decodes it: blue comes first."""
    buffer = np.zeros((STORED, STORED, 3, FRAMES), np.uint8)
    capture = cv2.VideoCapture(str(root / source["path"]))
    capture.set(cv2.CAP_PROP_POS_FRAMES, source["start"])
    for place in range(source["end"] - source["start"]):
        there, frame = capture.read()
        if there:
            buffer[..., place] = cv2.resize(frame, (STORED, STORED))
    capture.release()
    return buffer


def _tensor(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1).copy()).float().div(255)


def _normalized(picture: NDArray[np.uint8], statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    return (_tensor(picture) - mean) / std


def _random_crop(image: Image.Image, scale: tuple[float, float], resampling: Image.Resampling) -> Image.Image:
    for _ in range(10):
        area = image.width * image.height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width <= image.width and height <= image.height:
            left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
            return image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), resampling)
    return image.resize((SIZE, SIZE), resampling)


def _random_flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def _moved(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, BILINEAR, fillcolor=(128, 128, 128))


OPERATIONS: Sequence[Callable[[Image.Image, int], Image.Image]] = (
    lambda image, _: image,
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, _: ImageEnhance.Brightness(image).enhance(1.36),
    lambda image, _: ImageEnhance.Sharpness(image).enhance(1.36),
    lambda image, sign: _moved(image, 1, 0.21 * sign, 0, 0, 1, 0),
    lambda image, sign: _moved(image, 1, 0, 0, 0.21 * sign, 1, 0),
    lambda image, sign: _moved(image, 1, 0, 7 * sign, 0, 1, 0),
    lambda image, sign: _moved(image, 1, 0, 0, 0, 1, 7 * sign),
    lambda image, sign: image.rotate(21 * sign, BILINEAR, fillcolor=(128, 128, 128)),
)


def _rand_augment(image: Image.Image) -> Image.Image:
    """Two operations, each with probability 1/2."""
    for operation in random.choices(OPERATIONS, k=2):
        if random.random() < 0.5:
            image = operation(image, random.choice((-1, 1)))
    return image

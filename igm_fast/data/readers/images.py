"""Still images: decoding by Pillow, resampling, and the augmentations of the image data sets.

An image is uint8 ``[C, H, W]``; functions that work plane by plane take any ``[..., H, W]``, frames too. Every random
choice comes from the generator that is given, so that a sample looks the same whichever worker reads it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from igm_fast.data.problems import BadFile

Filter = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 50_000_000

# Formats that hold photographs. Pillow knows more, and starts Ghostscript for one of them.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")

_REPLACE = "Copy the file again, or take its line out of the list"


def decode_image(path: str | Path) -> Tensor:
    """Return the image of a file as RGB, uint8 ``[3, H, W]``.

    JPEG, PNG, GIF and WebP (first frame), BMP or TIFF, told by content and not by suffix. Grey, palette and CMYK become
    RGB, transparency is dropped, of 16 bits the high eight are kept. EXIF orientation is not applied.

    Raises:
        BadFile: the file is missing, empty, truncated, no image, or has more than 50 million pixels (found out before
            anything is decoded).
    """
    with _opened(Path(path)) as image:
        return _rgb(image)


def check_image(path: str | Path) -> None:
    """Read the header of an image file.

    Raises:
        BadFile: missing, empty, no image, or more than 50 million pixels. What lies behind the header isn't looked at.
    """
    with _opened(Path(path)):
        pass


def resize(image: Tensor, size: tuple[int, int], *, box: Box | None = None, filter: Filter = "bilinear") -> Tensor:
    """Return uint8 ``[..., h, w]``, resampled with the filter as wide as the scale, as Pillow does (antialiasing).

    torch's kernel takes a fifth of Pillow's time or less. Few values differ from Pillow's, by 1 or 2 where roundings
    fall apart, and by more only where a bicubic overshoot is cut off at 0 or 255.

    Args:
        image: uint8 ``[..., H, W]``.
        size: ``(h, w)``; the aspect is not kept.
        box: ``(top, left, height, width)`` in pixels: cut this out first. Pixels outside have no influence.
        filter: ``"bilinear"`` or ``"bicubic"``.
    """
    if box is not None:
        top, left, height, width = box
        image = image[..., top : top + height, left : left + width]
    # One channel at a time: with three, torch 2.13 fails on widths of 1.
    planes = image.reshape(-1, 1, *image.shape[-2:])
    return functional.interpolate(planes, size, mode=filter, antialias=True).view(*image.shape[:-2], *size)


def flip(image: Tensor) -> Tensor:
    """Return the image ``[..., H, W]`` with left and right exchanged."""
    return image.flip(-1)


def random_flip(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return the image ``[..., H, W]``, flipped with probability 1/2."""
    return flip(image) if _coin(generator) else image


def random_resized_crop(
    image: Tensor, size: tuple[int, int], scale: tuple[float, float], filter: Filter, generator: torch.Generator
) -> Tensor:
    """Cut a random box out of an image and resize it to ``size``; see :func:`random_box`.

    Args:
        image: uint8 ``[..., H, W]``.
        size: ``(h, w)`` of the result.
        scale: smallest and largest share of the image's area.
        filter: ``"bilinear"`` or ``"bicubic"``.
        generator: decides the box.
    """
    height, width = image.shape[-2:]
    return resize(image, size, box=random_box(height, width, scale, generator), filter=filter)


def random_box(height: int, width: int, scale: tuple[float, float], generator: torch.Generator) -> Box:
    """Draw ``(top, left, height, width)``: area uniform in ``scale``, log of the aspect uniform in 3/4 … 4/3.

    The box of Inception's training (Szegedy et al., CVPR 2015, section 6). Ten tries; where no box fits, the largest
    centred one of allowed aspect.
    """
    narrow, wide = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * _uniform(*scale, generator)
        aspect = math.exp(_uniform(math.log(narrow), math.log(wide), generator))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _integer(height - h + 1, generator), _integer(width - w + 1, generator), h, w
    h, w = min(height, round(width / narrow)), min(width, round(height * wide))
    return (height - h) // 2, (width - w) // 2, h, w


def rand_augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Apply two operations of magnitude 7 out of 10, each with probability 1/2 (RandAugment, Cubuk et al. 2020).

    Both are drawn with replacement from :data:`OPERATIONS`; each takes an image and a sign, which is drawn too.

    ============================ =========================================================================
    Identity                     nothing
    AutoContrast, Equalize       no parameter; each channel by itself
    Brightness, Sharpness        factor 0.1 + 1.8 · 0.7 = 1.36 (1 is the image itself)
    ShearX, ShearY               ± 0.3 · 0.7 = 0.21 pixels a pixel, from the upper left corner
    TranslateX, TranslateY       ± 10 · 0.7 = 7 pixels
    Rotate                       ± 30° · 0.7 = 21° about the centre
    ============================ =========================================================================

    Moved images are interpolated bilinearly and filled up with grey (128). The probability of 1/2 and the mapping are
    those of ALBEF's training (Li et al., NeurIPS 2021), which the text-image experiments of IGM use.

    Args:
        image: uint8 ``[..., H, W]``.
        generator: decides operations and signs, by six draws whatever comes out.
    """
    operations = tuple(OPERATIONS.values())
    for _ in range(2):
        operation = operations[_integer(len(operations), generator)]
        applied, sign = _coin(generator), 1 if _coin(generator) else -1
        if applied:
            image = _planewise(image, operation, sign)
    return image


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(image / 255 − mean) / std``, float32.

    Args:
        image: uint8 ``[..., C, H, W]``.
        mean: per channel, on a scale of 0 to 1.
        std: per channel, on the same scale.
    """
    shift, scale = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    # In place: a clip is 40 MB, and memory from the system costs three times the arithmetic.
    return image.to(torch.float32, copy=True).div_(255).sub_(shift).div_(scale)


def _affine(plane: Image.Image, *coefficients: float) -> Image.Image:
    """Output pixel (x, y) shows input (ax + by + c, dx + ey + f)."""
    return plane.transform(
        plane.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=128
    )


OPERATIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "Identity": lambda plane, _sign: plane,
    "AutoContrast": lambda plane, _sign: ImageOps.autocontrast(plane),
    "Equalize": lambda plane, _sign: ImageOps.equalize(plane),
    "Brightness": lambda plane, _sign: ImageEnhance.Brightness(plane).enhance(1.36),
    "Sharpness": lambda plane, _sign: ImageEnhance.Sharpness(plane).enhance(1.36),
    "ShearX": lambda plane, sign: _affine(plane, 1, -0.21 * sign, 0, 0, 1, 0),
    "ShearY": lambda plane, sign: _affine(plane, 1, 0, 0, -0.21 * sign, 1, 0),
    "TranslateX": lambda plane, sign: _affine(plane, 1, 0, -7 * sign, 0, 1, 0),
    "TranslateY": lambda plane, sign: _affine(plane, 1, 0, 0, 0, 1, -7 * sign),
    "Rotate": lambda plane, sign: plane.rotate(21 * sign, Image.Resampling.BILINEAR, fillcolor=128),
}
"""The operations of :func:`rand_augment` at magnitude 7, on one channel (a grey Pillow image), with a sign of ± 1."""


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises inside becomes a BadFile."""
    try:
        if not path.is_file():
            raise BadFile(path, "no such image file", "Copy it there, or take its line out of the list")
        if path.stat().st_size == 0:
            raise BadFile(path, "is empty, expected an image", _REPLACE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, transparent palettes: not in the way of the pixels
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(path, f"{image.width}×{image.height} pixels")
                yield image
    except BadFile:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except UnidentifiedImageError as error:
        raise BadFile(path, f"is no image in one of the formats {', '.join(_FORMATS)}", _REPLACE) from error
    except Exception as error:  # whatever a decoder runs into on a broken file
        raise BadFile(path, f"cannot be decoded ({error or type(error).__name__})", _REPLACE) from error


def _too_large(path: Path, found: str) -> BadFile:
    return BadFile(
        path,
        f"is too large ({found}), expected at most {MAX_PIXELS // 10**6} million pixels",
        "Shrink it if it is genuine: a small file can claim a size that fills the memory",
    )


def _rgb(image: Image.Image) -> Tensor:
    if image.mode.startswith("I"):
        image = _high_byte(image)
    pixels = np.array(image.convert("RGB"))  # [H, W, 3]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _high_byte(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of 16-bit grey saturates at 255."""
    values = np.array(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"pixel values from {values.min()} to {values.max()}, expected at most 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _planewise(image: Tensor, operation: Callable[[Image.Image, int], Image.Image], sign: int) -> Tensor:
    """Apply an operation of RandAugment to every channel of ``image``: they need no interleaving then."""
    planes = image.reshape(-1, *image.shape[-2:]).numpy()
    results = np.stack([np.asarray(operation(Image.fromarray(plane), sign)) for plane in planes])
    return torch.from_numpy(results).view(image.shape)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


def _coin(generator: torch.Generator) -> bool:
    return _integer(2, generator) == 1

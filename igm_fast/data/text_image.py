"""What the data sets of tweets with an image share: readers, specifications, checks of the image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from igm_fast.data.dataset import ModalitySpec, MultimodalData
from igm_fast.data.disk import from_scan
from igm_fast.data.lists import unsafe_name
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import BadFile, Problem
from igm_fast.data.readers.images import (
    CLIP_MEAN,
    CLIP_STD,
    check_image,
    decode_image,
    normalize,
    rand_augment,
    random_flip,
    random_resized_crop,
    resize,
)
from igm_fast.data.readers.text import text_modality
from igm_fast.data.scan import Scan

SIZE = 224


@dataclass(frozen=True)
class PhotoReader:
    """An image that comes with a tweet, 224×224 under CLIP's mean and standard deviation.

    Training: a random box of 50 to 100 % of the area, flip, RandAugment; otherwise the whole image. Bicubic.

    Args:
        root: the folder that sources are relative to.
    """

    root: Path

    @property
    def parameters(self) -> str:
        """What decides the decoded image."""
        return "rgb uint8"

    def load(self, source: str) -> Tensor:
        """Return uint8 ``[3, H, W]``."""
        return decode_image(self.root / source)

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return float32 ``[3, 224, 224]``."""
        if generator is None:
            image = resize(decoded, (SIZE, SIZE), filter="bicubic")
        else:
            image = random_resized_crop(decoded, (SIZE, SIZE), (0.5, 1.0), "bicubic", generator)
            image = rand_augment(random_flip(image, generator), generator)
        return normalize(image, CLIP_MEAN, CLIP_STD)


def list_text(root: Path, file: str, problems: list[Problem]) -> str | None:
    """Return the text of a list in UTF-8, without byte-order mark; None, and a problem, if it cannot be read."""
    try:
        return (root / file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"byte {error.object[error.start : error.start + 1]!r} is not UTF-8"
        problems.append(Problem(file, line, what, "Save the list as UTF-8"))
    except OSError as error:
        problems.append(Problem(file, None, f"cannot be read ({error.strerror})", f"Expected: {root / file}"))
    return None


def image_problem(root: Path, folder: str, name: str, file: str, line: int | None) -> Problem | None:
    """Return what is wrong with an image that a list names, judged by its header; None if nothing is.

    Args:
        root: of the data set.
        folder: with the images, relative to the root.
        name: of the image in the list.
        file: the list, relative to the root.
        line: in the list.
    """
    if unsafe := unsafe_name(name):
        return Problem(file, line, unsafe, f"Name a file that lies in {folder}/")
    try:
        check_image(root / folder / name)
    except BadFile as error:
        return Problem(file, line, f"{folder}/{name}: {error.what}", error.fix)
    return None


def text_image_data(name: str, scan: Scan, *, seed: int, options: DataOptions, description: str) -> MultimodalData:
    """Return the data set of a scan whose sources are ``text`` and ``image``.

    Text is proposed to BERT, images to ResNet-50, as in the experiments of IGM.
    """
    options.check_modalities(name, ("text", "image"))
    training = [entry.source["text"] for entry in scan.parts["train"]]
    text, text_reader = text_modality("text", training, options, "bert")
    image = ModalitySpec("image", "image", (3, SIZE, SIZE), encoder="resnet50")
    readers = {"text": text_reader, "image": PhotoReader(options.existing_root(name))}
    return from_scan(name, scan, readers, (text, image), seed=seed, options=options, description=description)

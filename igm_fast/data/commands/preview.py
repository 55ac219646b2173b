"""Draw a sheet of samples as the network sees them: spectrograms, frames, words, with their labels.

Each training sample is shown twice: in the fixed form of evaluation, and as the first epoch augments it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from igm_fast.data import DataOptions, LazyDataset, MultimodalData, Reader, load_dataset, set_module
from igm_fast.data.command import CLEAN
from igm_fast.data.dataset import ModalitySpec
from igm_fast.data.seeds import derived_seed

COLUMN, ROW = 2.4, 1.9  # inches
FRAMES_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("name", help="data set; `python -m igm_fast.data list` names them")
    parser.add_argument("--root", type=Path, help="its folder")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="the picture (default: sheet.png)")
    parser.add_argument("--samples", type=int, default=6, help="how many (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="draws samples and augmentation (default: 0)")
    parser.add_argument("--protocol", choices=("paper", "official"), default="paper", help="as in training")
    parser.add_argument("--skip_bad", "--skip-bad", action="store_true", help="leave out what is broken")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write the sheet."""
    if arguments.samples < 1:
        raise ValueError(f"samples is {arguments.samples}, expected at least 1")
    encoders = dict.fromkeys(getattr(set_module(arguments.name), "MODALITIES", None) or (), "small")
    options = DataOptions(
        root=arguments.root, protocol=arguments.protocol, skip_bad=arguments.skip_bad, encoders=encoders
    )
    data = load_dataset(arguments.name, arguments.seed, options)
    generator = torch.Generator().manual_seed(derived_seed("preview", arguments.seed))
    rows = torch.randperm(len(data.train), generator=generator)[: arguments.samples]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(data, rows.tolist()).savefig(arguments.out, dpi=100)
    console.print(f"{len(rows)} training samples of {arguments.name}: {arguments.out}")
    return CLEAN


def sheet(data: MultimodalData, rows: list[int]) -> Figure:
    """Return a figure with one row for each training sample; per modality the evaluation form and the augmented one."""
    forms = {"evaluation": data.train}
    readers: Mapping[str, Reader] = {}
    if isinstance(data.train, LazyDataset):
        readers = data.train.readers
        forms["training"] = data.train.augmented(data.seed, 0, 0, 0)  # as training keys its first epoch
    columns = len(data.modalities) * len(forms)
    with matplotlib.rc_context({"font.size": 8, "image.interpolation": "nearest"}):
        figure = Figure(figsize=(COLUMN * columns, ROW * len(rows) + 0.3), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, row in zip(grid, rows, strict=True):
            samples = {form: dataset[row] for form, dataset in forms.items()}
            places = [(spec, form) for spec in data.modalities for form in forms]
            for axes, (spec, form) in zip(line, places, strict=True):
                inputs, label = samples[form]
                draw(axes, inputs[spec.name], spec, getattr(readers.get(spec.name), "spell", None))
                axes.set_title(f"{data.classes[label]}: {spec.name}, {form}" if len(forms) > 1 else data.classes[label])
    return figure


def draw(axes: Axes, sample: Tensor, spec: ModalitySpec, spell: Callable[[Tensor], str] | None = None) -> None:
    """Draw one modality of one sample; ``spell`` gives the words of a row of token ids."""
    axes.set_xticks([])
    axes.set_yticks([])
    if spec.kind == "tokens":
        words = spell(sample) if spell else " ".join(str(number) for number in sample.tolist() if number != 0)
        axes.text(0.5, 0.5, words, ha="center", va="center", wrap=True, transform=axes.transAxes)
    elif spec.kind == "image":
        frames = sample if sample.ndim == 4 else sample[None]
        shown = frames[torch.linspace(0, len(frames) - 1, min(len(frames), FRAMES_SHOWN)).round().long()]
        picture = np.concatenate([_picture(frame) for frame in shown], axis=1)
        if sample.shape[0] == 1 and sample.ndim == 3:  # a spectrogram: low frequencies at the bottom
            axes.imshow(picture, aspect="auto", origin="lower")
        else:
            axes.imshow(picture)
    else:
        axes.plot(np.atleast_2d(sample.numpy()).T, linewidth=0.6)


def _picture(frame: Tensor) -> Any:
    """Return ``[H, W]`` or ``[H, W, 3]``, each channel spread over 0 … 1; two channels (flow) as their length."""
    if frame.shape[0] == 2:
        frame = frame.square().sum(dim=0, keepdim=True).sqrt()
    low, high = frame.amin(dim=(1, 2), keepdim=True), frame.amax(dim=(1, 2), keepdim=True)
    scaled = (frame - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return scaled[0].numpy() if len(scaled) == 1 else scaled[:3].permute(1, 2, 0).numpy()

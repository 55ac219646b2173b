"""The encoders by name, and the one function that builds an encoder for a modality."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from igm_fast.data.dataset import ModalitySpec
from igm_fast.models.bert import CONTENT, Bert
from igm_fast.models.i3d import I3D, LEAST_FRAMES
from igm_fast.models.resnet import ResNet18, ResNet50
from igm_fast.models.small import build_small
from igm_fast.names import nearest

Builder = Callable[[ModalitySpec, int, Path | None], nn.Module]


def build_encoder(spec: ModalitySpec, width: int = 64, source: Path | None = None) -> nn.Module:
    """Return the encoder that a modality names, with features ``[B, width]``; its weights follow ``torch.manual_seed``.

    ResNet-50, I3D and BERT have a width of their own (1000, 1024, the configuration's ``hidden_size``); another one is
    reached by a linear layer ``projection`` at their end.

    Args:
        spec: ``spec.encoder`` is the name.
        width: number of features.
        source: where the modality's pretrained weights lie. BERT reads its sizes there; nobody reads weights here:
            :func:`igm_fast.models.load_pretrained` does, and says which ones fitted.

    Raises:
        ValueError: an unknown encoder, one that cannot read this modality, a width that it cannot have, or no
            directory for BERT.
        ImportError: BERT without transformers.
    """
    if spec.encoder not in ENCODERS:
        raise ValueError(f"modality {spec.name!r}: {nearest(spec.encoder, ENCODERS, 'encoder')}")
    if width < 1:
        raise ValueError(f"width is {width}, expected at least 1")
    return ENCODERS[spec.encoder](spec, width, source)


def _small(spec: ModalitySpec, width: int, source: Path | None) -> nn.Module:  # noqa: ARG001 - a Builder
    return build_small(spec, width)


def _resnet18(spec: ModalitySpec, width: int, source: Path | None) -> nn.Module:  # noqa: ARG001
    _require_kind(spec, "image")
    return ResNet18(spec.channels, width)


def _resnet50(spec: ModalitySpec, width: int, source: Path | None) -> nn.Module:  # noqa: ARG001
    _require_kind(spec, "image")
    return ResNet50(spec.channels, width)


def _i3d(spec: ModalitySpec, width: int, source: Path | None) -> nn.Module:  # noqa: ARG001
    _require_kind(spec, "image")
    if len(spec.shape) != 4 or spec.shape[0] < LEAST_FRAMES:
        raise ValueError(
            f"modality {spec.name!r} has samples of shape {spec.shape}, expected [T, C, H, W] with T ≥ {LEAST_FRAMES} "
            "for encoder 'i3d'. Use resnet18 or small, which take any number of frames"
        )
    return I3D(spec.channels, width)


def _bert(spec: ModalitySpec, width: int, source: Path | None) -> nn.Module:
    _require_kind(spec, "tokens")
    if source is None or not source.is_dir():
        given = "no directory is given" if source is None else f"{source} is no directory"
        raise ValueError(
            f"modality {spec.name!r} has encoder 'bert', and {given}; expected one with {CONTENT}. Give it "
            f"(--pretrained {spec.name}=DIR), or use the small encoder (--encoders {spec.name}=small)"
        )
    return Bert(source, width, spec.vocabulary or 1, spec.shape[0])


def _require_kind(spec: ModalitySpec, kind: str) -> None:
    if spec.kind != kind:
        raise ValueError(
            f"modality {spec.name!r} is of kind {spec.kind!r}, expected {kind!r} for encoder {spec.encoder!r}. Use the "
            "small encoder, which reads every kind"
        )


ENCODERS: dict[str, Builder] = {
    "small": _small,
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    "i3d": _i3d,
    "bert": _bert,
}


def check_input(x: Tensor, spec: ModalitySpec) -> None:
    """Raise a ValueError unless ``x`` is a batch of this modality; lengths, picture sizes and frames may differ.

    Raises:
        ValueError: wrong number of dimensions, channels or dtype.
    """
    expected: list[int | str] = ["B", *spec.shape]
    if spec.kind in ("sequence", "tokens"):
        expected[-1] = "T" if spec.kind == "sequence" else "L"
    elif spec.kind == "image":
        expected[-2:] = ["H", "W"]
        if len(spec.shape) == 4:
            expected[1] = "T"
    shape = tuple(x.shape)
    if len(shape) != len(expected) or any(n != e for n, e in zip(shape, expected, strict=True) if isinstance(e, int)):
        raise ValueError(
            f"input {spec.name!r} has shape {shape}, expected [{', '.join(map(str, expected))}]; give a batch of "
            f"{spec.kind} samples"
        )
    if spec.kind == "tokens":
        if x.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"input {spec.name!r} has dtype {x.dtype}, expected int64 token ids; convert with .long()")
    elif not x.is_floating_point():
        raise ValueError(f"input {spec.name!r} has dtype {x.dtype}, expected floating point; convert with .float()")

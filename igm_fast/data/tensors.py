"""Your own tensors as a data set: kinds are inferred, training statistics standardise every part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from igm_fast.data.dataset import Kind, ModalitySpec, MultimodalData, MultimodalDataset, Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

Part: TypeAlias = "tuple[Mapping[str, Samples], Tensor | NDArray[Any] | Sequence[int]]"
"""Inputs by modality and labels of one part."""


def take(
    inputs: Mapping[str, Tensor | NDArray[Any]], labels: Tensor | NDArray[Any], indices: NDArray[np.int64]
) -> Part:
    """Return the samples at ``indices`` as one part, for :func:`from_tensors`."""
    return {name: torch.as_tensor(samples)[indices] for name, samples in inputs.items()}, torch.as_tensor(labels)[
        indices
    ]


def from_tensors(
    train: Part,
    validation: Part,
    test: Part,
    *,
    name: str = "own",
    classes: Sequence[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    vocabularies: Mapping[str, int] | None = None,
    standardize: bool = True,
    description: str = "",
    seed: int = 0,
) -> MultimodalData:
    """Make a data set of your own tensors.

    Args:
        train: ``({modality: [N, ...]}, labels [N])``; see :class:`MultimodalDataset` for what is accepted.
        validation: for model selection; never the test part.
        test: looked at once, at the end.
        name: of the data set.
        classes: names; by default ``"0"``, ``"1"``, … up to the highest label.
        kinds: kind of a modality where the guess is wrong. Guess: integers are ``tokens``; floating point (and uint8)
            with 1, 2, 3 or 4 dimensions per sample is ``vector``, ``sequence``, ``image``, ``image`` (frames).
        vocabularies: number of token ids of a modality; by default the highest id of all parts plus one.
        standardize: shift and scale each channel to mean 0 and standard deviation 1 *in the training part* (a channel
            that is constant there is only shifted). Tokens are left alone.
        description: one or two sentences for reports.
        seed: the seed of the split, for reports.

    Raises:
        ValueError: anything that :class:`MultimodalDataset` or :class:`MultimodalData` refuses, or a modality that
            ``kinds`` or ``vocabularies`` name but the data does not have.

    >>> def part(n):
    ...     return {"sound": torch.randn(n, 2, 50), "words": torch.ones(n, 3).long()}, torch.arange(n) % 2
    >>> [spec.kind for spec in from_tensors(part(8), part(4), part(4)).modalities]
    ['sequence', 'tokens']
    """
    parts = {
        part: _dataset(part, inputs, labels)
        for part, (inputs, labels) in (("train", train), ("validation", validation), ("test", test))
    }
    names = parts["train"].modalities
    check_named(names, kinds=kinds, vocabularies=vocabularies)
    for part, dataset in parts.items():
        if dataset.modalities != names:
            raise ValueError(
                f"the {part} part has modalities {dataset.modalities}, the training part {names}; give every part "
                "the same modalities in the same order"
            )
    specs = tuple(
        _spec(modality, [dataset.inputs[modality] for dataset in parts.values()], kinds or {}, vocabularies or {})
        for modality in names
    )
    count = 1 + max(int(dataset.labels.max()) for dataset in parts.values())
    data = MultimodalData(
        name=name,
        modalities=specs,
        classes=tuple(classes) if classes is not None else tuple(map(str, range(count))),
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        fingerprint=_fingerprint(parts),
        description=description,
        seed=seed,
    )
    if not standardize:
        return data
    scaled = _standardized(parts, specs)
    return replace(data, train=scaled["train"], validation=scaled["validation"], test=scaled["test"])


def _dataset(
    part: str, inputs: Mapping[str, Samples], labels: Tensor | NDArray[Any] | Sequence[int]
) -> MultimodalDataset:
    try:
        return MultimodalDataset(inputs, labels)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{part} part: {error}") from error


def _spec(
    name: str, parts: Sequence[Tensor], kinds: Mapping[str, Kind], vocabularies: Mapping[str, int]
) -> ModalitySpec:
    shape = tuple(parts[0].shape[1:])
    kind = kinds.get(name) or guessed_kind(name, shape, parts[0].dtype)
    vocabulary = vocabularies.get(name)
    if kind == "tokens" and vocabulary is None:
        vocabulary = 1 + max(int(part.max()) for part in parts)
    return ModalitySpec(name, kind, shape, vocabulary)


def _standardized(
    parts: Mapping[str, MultimodalDataset], specs: Sequence[ModalitySpec]
) -> dict[str, MultimodalDataset]:
    inputs = {part: dict(dataset.inputs) for part, dataset in parts.items()}
    for spec in specs:
        if spec.kind != "tokens":
            mean, scale = _channel_statistics(parts["train"].inputs[spec.name], spec)
            for samples in inputs.values():
                samples[spec.name] = (samples[spec.name] - mean) / scale
    return {part: MultimodalDataset(inputs[part], dataset.labels) for part, dataset in parts.items()}


def _channel_statistics(samples: Tensor, spec: ModalitySpec) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float32, shaped to broadcast over ``samples``."""
    channel = samples.ndim - 3 if spec.kind == "image" else 1
    others = tuple(axis for axis in range(samples.ndim) if axis != channel)
    # numpy sums in one fixed order whatever the number of threads; torch's order of summation depends on it.
    values = samples.numpy()
    mean = values.mean(axis=others, dtype=np.float64, keepdims=True)
    deviation = values.std(axis=others, dtype=np.float64, keepdims=True)
    constant = deviation <= np.finfo(np.float32).eps * np.abs(mean)
    scale = np.where(constant, 1.0, deviation)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))


def _fingerprint(parts: Mapping[str, MultimodalDataset]) -> str:
    """Return the sha256 over values, labels and their division into parts, in little-endian bytes."""
    return sha256_of_parts((part, dataset.inputs, dataset.labels) for part, dataset in parts.items())


def check_named(modalities: Sequence[str], **arguments: Mapping[str, Any] | None) -> None:
    """Raise a ValueError unless each argument's keys are modalities."""
    for argument, given in arguments.items():
        if unknown := set(given or {}) - set(modalities):
            raise ValueError(
                f"{argument} names {sorted(unknown)}, but the modalities are {list(modalities)}; correct the names"
            )


def guessed_kind(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Kind:
    """Return what a modality with samples of this shape is, where nobody says otherwise.

    Raises:
        ValueError: samples of no or more than four dimensions.
    """
    guesses: dict[int, Kind] = {1: "vector", 2: "sequence", 3: "image", 4: "image"}
    kind = "tokens" if dtype == torch.int64 else guesses.get(len(shape))
    if kind is None:
        raise ValueError(
            f"modality {name!r} has samples of shape {shape}; expected 1 (vector), 2 (sequence), 3 (image) or 4 "
            "(frames) dimensions. Reshape it"
        )
    return kind


def sha256_of_parts(parts: Iterable[tuple[str, Mapping[str, Tensor], Tensor]]) -> str:
    """Return the sha256 over names, types, shapes and values of each part's inputs and labels, in little-endian bytes.

    Args:
        parts: name, inputs by modality, labels.
    """
    digest = hashlib.sha256()
    for part, inputs, labels in parts:
        for name, values in (*inputs.items(), ("labels", labels)):
            array = np.ascontiguousarray(values.numpy())
            digest.update(f"{part}/{name} {array.dtype.name} {array.shape}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()

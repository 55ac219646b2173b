"""What a multimodal data set is here: named modalities of tensors, integer labels, three parts that share no sample."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from igm_fast.data.problems import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igm_fast.data.lazy import LazyDataset

PartDataset: TypeAlias = "MultimodalDataset | LazyDataset"
"""One part of a data set: in memory, or read from files when asked."""

Kind = Literal["sequence", "image", "tokens", "vector"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Samples: TypeAlias = "Tensor | NDArray[Any] | Sequence[Tensor | None]"
"""One modality of N samples: a tensor or array ``[N, ...]``, or N tensors of equal shape."""

# Names of branches in tables and files that are no modality.
RESERVED_NAMES = frozenset({"fused", "joint"})


@dataclass(frozen=True)
class ModalitySpec:
    """Name, kind and shape of one modality, without the batch dimension.

    Args:
        name: letters, digits, ``_`` and ``-``, starting with a letter; becomes part of parameter and file names.
        kind: ``"sequence"`` ``[C, T]``, ``"image"`` ``[C, H, W]`` or ``[T, C, H, W]`` (frames), ``"tokens"`` ``[L]``
            (int64, 0 is padding) or ``"vector"`` ``[D]``.
        shape: shape of one sample.
        vocabulary: number of token ids, padding counted; for ``"tokens"`` only.
        encoder: the encoder that the data set proposes, by its name in ``igm_fast.models.ENCODERS``.

    Raises:
        ValueError: the parts do not fit together.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    vocabulary: int | None = None
    encoder: str = "small"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name):
            raise ValueError(
                f"modality name {self.name!r}: expected letters, digits, '_' and '-', starting with a letter; rename it"
            )
        if self.name in RESERVED_NAMES or hasattr(nn.ModuleDict, self.name):
            raise ValueError(
                f"modality name {self.name!r} is taken by the library or by torch.nn.ModuleDict; rename it"
            )
        if self.kind not in KINDS:
            raise ValueError(f"modality {self.name!r} has kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        dimensions = {"sequence": (2,), "image": (3, 4), "tokens": (1,), "vector": (1,)}[self.kind]
        if len(self.shape) not in dimensions or min(self.shape) < 1:
            raise ValueError(
                f"modality {self.name!r} of kind {self.kind!r} has sample shape {self.shape}, expected "
                f"{' or '.join(map(str, dimensions))} dimensions, each at least 1"
            )
        if (self.kind == "tokens") != (self.vocabulary is not None):
            raise ValueError(
                f"modality {self.name!r} of kind {self.kind!r} has vocabulary {self.vocabulary}; give the number of "
                "token ids for 'tokens' and leave it out for other kinds"
            )

    @property
    def channels(self) -> int:
        """Size of the channel dimension (features of a vector, length of a token row)."""
        return self.shape[-3] if self.kind == "image" else self.shape[0]


class MultimodalDataset(Dataset[tuple[dict[str, Tensor], int]]):
    """Samples of several modalities with one label each, all in memory.

    Floating-point input and uint8 (picture bytes) become float32, other integers (token ids) int64. ``dataset[i]`` is
    ``({modality: tensor}, label)``; :meth:`__getitems__` gives a whole batch by one indexing per modality. With a
    ``torch.utils.data.DataLoader`` pass ``collate_fn=MultimodalDataset.collate``.

    Args:
        inputs: per modality N samples.
        labels: N class numbers ≥ 0.

    Raises:
        ValueError: no modality, no sample, different lengths, a sample that lacks a modality, samples of different
            shapes, NaN or infinite values, negative labels.
        TypeError: labels are not integers.

    >>> data = MultimodalDataset({"sound": torch.zeros(4, 2, 50), "words": torch.ones(4, 3).long()}, [0, 1, 1, 0])
    >>> batch, labels = data.__getitems__([0, 2])
    >>> batch["sound"].shape, labels
    (torch.Size([2, 2, 50]), tensor([0, 1]))
    """

    def __init__(self, inputs: Mapping[str, Samples], labels: Tensor | NDArray[Any] | Sequence[int]) -> None:
        self.labels = checked_labels(labels)
        if not inputs:
            raise ValueError("MultimodalDataset: inputs name no modality; give at least one, as {name: tensor}")
        self.inputs = {name: _checked_samples(name, samples) for name, samples in inputs.items()}
        for name, samples in self.inputs.items():
            if len(samples) != len(self.labels):
                raise ValueError(
                    f"modality {name!r} has {len(samples)} samples, expected {len(self.labels)} as there are labels; "
                    "every sample needs every modality: drop those that lack one"
                )

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.inputs)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        return {name: samples[index] for name, samples in self.inputs.items()}, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the batch ``({modality: [B, ...]}, labels [B] int64)``."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return {name: samples[rows] for name, samples in self.inputs.items()}, self.labels[rows]

    def check_against_spec(self, spec: ModalitySpec, where: str) -> None:
        """Compare all samples of a modality with what is announced.

        Raises:
            ValueError: shape, dtype or token ids differ from the specification.
        """
        check_against_spec(self.inputs[spec.name], spec, where)

    @staticmethod
    def collate(batch: tuple[dict[str, Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the batch as it is: :meth:`__getitems__` has already stacked it. For ``DataLoader(collate_fn=…)``."""
        return batch


@dataclass(frozen=True)
class MultimodalData:
    """A data set ready for training: modalities, class names and three parts.

    ``fingerprint`` is a sha256 over all values before standardisation and their division into parts: equal
    fingerprints mean equal data and equal split. For data on disk it is taken over what the lists name (relative path,
    size, label, part) and the readers' parameters, without reading the files. ``seed`` is the seed the split was drawn
    with. ``skipped`` lists what was left out because it is broken, ``remarks`` what is in but should be known.

    Raises:
        ValueError: the parts disagree with the modalities or the classes, or the training part has one class only.
    """

    name: str
    modalities: tuple[ModalitySpec, ...]
    classes: tuple[str, ...]
    train: PartDataset
    validation: PartDataset
    test: PartDataset
    fingerprint: str
    description: str
    seed: int
    skipped: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.modalities]
        for part, dataset in self.parts.items():
            if dataset.modalities != names:
                raise ValueError(
                    f"{self.name}: the {part} part has modalities {dataset.modalities}, expected {names} in this "
                    "order; give every part the same modalities"
                )
            for spec in self.modalities:
                dataset.check_against_spec(spec, f"{self.name}, {part} part")
            highest = int(dataset.labels.max())
            if highest >= len(self.classes):
                raise ValueError(
                    f"{self.name}: the {part} part has label {highest}, expected 0 to {len(self.classes) - 1} for "
                    f"{len(self.classes)} classes; number the classes from 0 or name them all"
                )
        found = torch.unique(self.train.labels)
        if len(found) < 2:
            raise ValueError(
                f"{self.name}: all {len(self.train)} training samples have label {int(found[0])}, expected at least "
                "two classes; a classifier has nothing to learn from one. Check the labels or the split"
            )

    @property
    def parts(self) -> dict[str, PartDataset]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


def checked_labels(labels: Tensor | NDArray[Any] | Sequence[int]) -> Tensor:
    """Return N class numbers as int64 ``[N]``.

    Raises:
        ValueError: no sample, not one number each, or a negative one.
        TypeError: no integers.
    """
    tensor = torch.as_tensor(labels)
    if tensor.ndim != 1:
        raise ValueError(f"labels have shape {tuple(tensor.shape)}, expected [N], one class number per sample")
    if len(tensor) == 0:
        raise ValueError("labels are empty, expected at least one sample; check the split or the filter that made it")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"labels have dtype {tensor.dtype}, expected integers; convert with labels.long()")
    tensor = tensor.to(torch.int64)
    if int(tensor.min()) < 0:
        raise ValueError(
            f"labels hold {int(tensor.min())} (sample {int(tensor.argmin())}), expected class numbers ≥ 0; drop "
            "unlabelled samples or number the classes from 0"
        )
    return tensor


def _checked_samples(name: str, samples: Samples) -> Tensor:
    tensor = torch.as_tensor(samples) if isinstance(samples, (Tensor, np.ndarray)) else _stack(name, samples)
    if tensor.is_floating_point() or tensor.dtype == torch.uint8:
        tensor = tensor.to(torch.float32)
        finite = torch.isfinite(tensor)
        if not finite.all():
            first = tuple((~finite).nonzero()[0].tolist())
            raise ValueError(
                f"modality {name!r} has {int((~finite).sum())} NaN or infinite values (first at {list(first)}, sample "
                f"{first[0]}), expected finite float32; drop or repair these samples"
            )
        return tensor
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"modality {name!r} has dtype {tensor.dtype}, expected real numbers or integer token ids")
    return tensor.to(torch.int64)


def _stack(name: str, samples: Sequence[Tensor | None]) -> Tensor:
    present: list[Tensor] = []
    for index, sample in enumerate(samples):
        if sample is None:
            raise ValueError(
                f"sample {index} lacks modality {name!r}, expected every modality in every sample; drop the sample or "
                "fill it (zeros, say) before the data set is built"
            )
        present.append(torch.as_tensor(sample))
        if present[-1].shape != present[0].shape:
            raise ValueError(
                f"modality {name!r}: sample {index} has shape {tuple(present[-1].shape)}, expected "
                f"{tuple(present[0].shape)} as sample 0; cut or pad the samples to one shape"
            )
    return torch.stack(present) if present else torch.empty(0)


def check_against_spec(samples: Tensor, spec: ModalitySpec, where: str) -> None:
    """Compare samples ``[N, ...]`` of one modality with what is announced.

    Raises:
        ValueError: shape, dtype or token ids differ from the specification.
    """
    if tuple(samples.shape[1:]) != spec.shape:
        raise ValueError(
            f"{where}: modality {spec.name!r} has samples of shape {tuple(samples.shape[1:])}, expected {spec.shape}; "
            "give every part samples of one shape"
        )
    expected = torch.int64 if spec.kind == "tokens" else torch.float32
    if samples.dtype != expected:
        raise ValueError(
            f"{where}: modality {spec.name!r} of kind {spec.kind!r} has dtype {samples.dtype}, expected {expected}; "
            "token ids are integers, everything else is floating point"
        )
    if spec.vocabulary is not None:
        low, high = int(samples.min()), int(samples.max())
        if low < 0 or high >= spec.vocabulary:
            raise ValueError(
                f"{where}: modality {spec.name!r} has token ids {low} to {high}, expected 0 to {spec.vocabulary - 1}; "
                "raise the vocabulary or map unknown words to one id"
            )

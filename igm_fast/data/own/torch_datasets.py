"""Data sets of PyTorch as they are: anything with ``len`` and ``[i]`` that yields ``({modality: tensor}, label)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from igm_fast.data.dataset import Kind, ModalitySpec, MultimodalData
from igm_fast.data.lazy import LazyDataset
from igm_fast.data.seeds import derived_seed
from igm_fast.data.tensors import check_named, guessed_kind, sha256_of_parts

Sample: TypeAlias = "tuple[Mapping[str, Any], Any]"


class Samples(Protocol):
    """What :func:`from_datasets` takes, such as a ``torch.utils.data.Dataset``."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Return ``({modality: tensor or array}, label)``."""


class WrappedDataset(LazyDataset):
    """One part: samples are taken from a data set when asked, and checked on the way.

    Sample i is always drawn with torch's global generator seeded alike (anew for each key of :meth:`augmented`), so
    that augmentation by torch does not depend on workers or on the order.
    """

    def __init__(self, samples: Samples, part: str, specs: Sequence[ModalitySpec], labels: Tensor, seed: int) -> None:
        rows = [{spec.name: row for spec in specs} for row in range(len(labels))]
        readers = {spec.name: _ModalityReader(samples, part, spec.name, seed) for spec in specs}
        super().__init__(rows, labels, readers, root=Path(), cache=None, seed=seed)
        self.wrapped, self.part, self.specs = samples, part, tuple(specs)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        inputs, _ = _sample(self.wrapped, self.part, int(index), self.seed, self._key)
        if list(inputs) != self.modalities:
            raise ValueError(
                f"{self.part} part: sample {index} has modalities {list(inputs)}, expected {self.modalities}; every "
                "sample needs every modality, in one order"
            )
        for spec in self.specs:
            _check_sample(inputs[spec.name], spec, f"{self.part} part: sample {index}")
        return inputs, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the batch ``({modality: [B, ...]}, labels [B] int64)``."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        samples = [self[row][0] for row in rows.tolist()]
        return {name: torch.stack([sample[name] for sample in samples]) for name in self.modalities}, self.labels[rows]

    def augmented(self, *key: object) -> WrappedDataset:
        """Return a view whose sample i is drawn with a generator seeded by ``(seed, *key, i)``."""
        view = WrappedDataset(self.wrapped, self.part, self.specs, self.labels, self.seed)
        view._key = key
        return view

    def check_against_spec(self, spec: ModalitySpec, where: str) -> None:  # noqa: ARG002 - LazyDataset's signature
        """Look at the first sample."""
        self[0]


def from_datasets(
    train: Samples,
    validation: Samples,
    test: Samples,
    *,
    name: str = "own",
    classes: Sequence[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    vocabularies: Mapping[str, int] | None = None,
    encoders: Mapping[str, str] | None = None,
    description: str = "",
    seed: int = 0,
) -> MultimodalData:
    """Make a data set of PyTorch's data sets, whose samples are read when asked, by workers if there are some.

    Nothing is standardised: yield values of about unit size. A part with an attribute ``labels`` (N class numbers) is
    not touched before training but for its first sample; from any other each sample is read once for its label.

    Args:
        train: N samples ``({modality: tensor}, label)``, all of one shape. Floating point and uint8 become float32,
            other integers (token ids) int64.
        validation: for model selection; never the test part.
        test: looked at once, at the end.
        name: of the data set.
        classes: names; by default ``"0"``, ``"1"``, … up to the highest label.
        kinds: kind of a modality where the guess by the first sample is wrong: integers are ``tokens``, others by
            their number of dimensions ``vector``, ``sequence``, ``image``, ``image`` (frames).
        vocabularies: number of token ids of each modality of tokens.
        encoders: name of the encoder of a modality, ``"small"`` by default.
        description: one or two sentences for reports.
        seed: of what the training part draws.

    Raises:
        ValueError: no sample, an unknown modality, tokens without vocabulary, samples of other shape, NaN.
        TypeError: samples are no pairs of a mapping and a label.

    >>> class Noise(torch.utils.data.Dataset):
    ...     labels = [0, 1, 0, 1]
    ...     def __len__(self):
    ...         return 4
    ...     def __getitem__(self, index):
    ...         return {"sound": torch.randn(1, 50), "pose": torch.ones(3)}, self.labels[index]
    >>> [spec.kind for spec in from_datasets(Noise(), Noise(), Noise()).modalities]
    ['sequence', 'vector']
    """
    given = {"train": train, "validation": validation, "test": test}
    for part, samples in given.items():
        if len(samples) == 0:
            raise ValueError(f"the {part} part has no sample; expected at least one")
    first, _ = _sample(train, "train", 0, seed, None)
    check_named(list(first), kinds=kinds, vocabularies=vocabularies, encoders=encoders)
    specs = tuple(
        _spec(modality, x, kinds or {}, vocabularies or {}, (encoders or {}).get(modality, "small"))
        for modality, x in first.items()
    )
    labels = {part: _labels(samples, part, seed) for part, samples in given.items()}
    parts = {part: WrappedDataset(samples, part, specs, labels[part], seed) for part, samples in given.items()}
    count = 1 + max(int(part.labels.max()) for part in parts.values())
    return MultimodalData(
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


@dataclass(frozen=True)
class _ModalityReader:
    """One modality of a sample; source: its row. :class:`WrappedDataset` itself reads all modalities at once."""

    samples: Samples
    part: str
    name: str
    seed: int
    parameters = "row of a data set"

    def load(self, source: int) -> Tensor:
        """Return the modality of the sample in its row."""
        return _sample(self.samples, self.part, source, self.seed, None)[0][self.name]

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 - a Reader
        """Return it as it is."""
        return decoded


def _sample(
    samples: Samples, part: str, index: int, seed: int, key: tuple[object, ...] | None
) -> tuple[dict[str, Tensor], Any]:
    drawn = derived_seed("sample", seed, part, *(key or ()), index)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        sample = samples[index]
    if not isinstance(sample, (tuple, list)) or len(sample) != 2 or not isinstance(sample[0], Mapping):
        raise TypeError(
            f"{part} part: sample {index} is {type(sample).__name__}, expected ({{modality: tensor}}, label); wrap "
            "your data set in one that yields such pairs"
        )
    return {str(name): _as_input(x) for name, x in sample[0].items()}, sample[1]


def _as_input(x: Any) -> Tensor:
    tensor = torch.as_tensor(x)
    is_float = tensor.is_floating_point() or tensor.dtype == torch.uint8
    return tensor.to(torch.float32 if is_float else torch.int64)


def _check_sample(x: Tensor, spec: ModalitySpec, where: str) -> None:
    expected = torch.int64 if spec.kind == "tokens" else torch.float32
    if tuple(x.shape) != spec.shape or x.dtype != expected:
        raise ValueError(
            f"{where}: modality {spec.name!r} has shape {tuple(x.shape)} and dtype {x.dtype}, expected {spec.shape} "
            f"and {expected} as the first training sample; cut or pad the samples to one shape"
        )
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise ValueError(f"{where}: modality {spec.name!r} has NaN or infinite values; drop or repair the sample")
    if spec.vocabulary is not None and not 0 <= int(x.min()) <= int(x.max()) < spec.vocabulary:
        raise ValueError(
            f"{where}: modality {spec.name!r} has token ids {int(x.min())} to {int(x.max())}, expected 0 to "
            f"{spec.vocabulary - 1}; raise the vocabulary or map unknown words to one id"
        )


def _spec(
    name: str, x: Tensor, kinds: Mapping[str, Kind], vocabularies: Mapping[str, int], encoder: str
) -> ModalitySpec:
    kind = kinds.get(name) or guessed_kind(name, tuple(x.shape), x.dtype)
    if kind == "tokens" and name not in vocabularies:
        raise ValueError(
            f"modality {name!r} holds integers, so token ids; expected their number in vocabularies={{{name!r}: N}}, "
            "or floating point if they are none"
        )
    return ModalitySpec(name, kind, tuple(x.shape), vocabularies.get(name), encoder)


def _labels(samples: Samples, part: str, seed: int) -> Tensor:
    known = getattr(samples, "labels", None)
    if known is None:
        known = [int(_sample(samples, part, row, seed, None)[1]) for row in range(len(samples))]
    labels = torch.as_tensor(known)
    if len(labels) != len(samples):
        raise ValueError(f"{part} part: attribute labels has {len(labels)} entries for {len(samples)} samples")
    return labels


def _fingerprint(parts: Mapping[str, WrappedDataset]) -> str:
    """Return the sha256 over all labels and the first sample of each part; the others are read in their turn."""
    return sha256_of_parts((part, dataset[0][0], dataset.labels) for part, dataset in parts.items())

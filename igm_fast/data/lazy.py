"""A data set that reads its files when asked: the face of ``MultimodalDataset`` without its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from igm_fast.data.cache import FeatureCache
from igm_fast.data.dataset import ModalitySpec, check_against_spec, checked_labels
from igm_fast.data.seeds import derived_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Reader(Protocol):
    """Makes the model's input of one modality out of a source (a path relative to the root, text, a mapping).

    Both methods raise :class:`igm_fast.data.problems.BadFile` for whatever is wrong with a file, and nothing else.
    A reader is pickled into DataLoader workers: it holds settings, no open files. One with an attribute ``cached =
    False`` reads files that are as quick to read as the cache would be (arrays): copies of them are not kept.
    """

    @property
    def parameters(self) -> str:
        """Everything that decides what :meth:`load` returns, but the source: part of the cache's key."""

    def load(self, source: Any) -> Tensor:
        """Decode a source, without augmentation: this is what the cache keeps."""

    def present(self, decoded: Any, generator: torch.Generator | None) -> Tensor:
        """Return the model's input: random where a generator is given, the fixed evaluation form without.

        Args:
            decoded: what :meth:`load` returned (a list of these for a :class:`ChoosingReader`). It may be mapped from
                the cache: it is never written to.
            generator: each modality of a sample gets a fresh one with the same seed, so that modalities which draw the
                same numbers first share them.
        """


@runtime_checkable
class ChoosingReader(Reader, Protocol):
    """A reader whose sources are sequences (frames of a clip), of which it decodes only those it chooses."""

    def choose(self, count: int, generator: torch.Generator | None) -> list[int]:
        """Return the places of the items to load, out of ``count``; the generator goes on to :meth:`present`."""


class LazyDataset(Dataset[tuple[dict[str, Tensor], int]]):
    """Samples that are read from files (or the cache) when they are asked for.

    ``dataset[i]`` is ``({modality: tensor}, label)``; :meth:`__getitems__` gives a whole batch. What sample i looks
    like depends on its files, the seed and the key of :meth:`augmented` alone: never on workers or on the order.

    Args:
        samples: per sample and modality the reader's source.
        labels: N class numbers ≥ 0.
        readers: per modality; their order is the modalities' order.
        root: the folder that sources are relative to.
        cache: of decoded sources; None decodes at every access.
        seed: of the augmentation.

    Raises:
        ValueError: no modality, no sample, different lengths, negative labels.
        TypeError: labels are not integers.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[str, Any]],
        labels: Tensor | NDArray[Any] | Sequence[int],
        readers: Mapping[str, Reader],
        *,
        root: Path,
        cache: FeatureCache | None,
        seed: int,
    ) -> None:
        self.labels = checked_labels(labels)
        if not readers:
            raise ValueError("LazyDataset: readers name no modality; give at least one, as {name: reader}")
        if len(samples) != len(self.labels):
            raise ValueError(f"LazyDataset: {len(samples)} samples and {len(self.labels)} labels; expected one each")
        self.samples, self.readers = samples, dict(readers)
        self.root, self.cache, self.seed = root, cache, seed
        self._choosing = {name for name, reader in readers.items() if isinstance(reader, ChoosingReader)}
        self._key: tuple[object, ...] | None = None

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.readers)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        return {name: self._input(int(index), name) for name in self.readers}, int(self.labels[index])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the batch ``({modality: [B, ...]}, labels [B] int64)``."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        inputs = {name: torch.stack([self._input(row, name) for row in rows.tolist()]) for name in self.readers}
        return inputs, self.labels[rows]

    def augmented(self, *key: object) -> LazyDataset:
        """Return a view whose sample i is augmented by a generator seeded by ``(seed, *key, i)``."""
        view = LazyDataset(self.samples, self.labels, self.readers, root=self.root, cache=self.cache, seed=self.seed)
        view._key = key
        return view

    def decoded(self, index: int, modality: str) -> list[Tensor]:
        """Decode all that a sample's source holds: one tensor, or one per item for a reader that chooses.

        Raises:
            BadFile: a file cannot be used.
        """
        reader, source = self.readers[modality], self.samples[index][modality]
        items = source if isinstance(reader, ChoosingReader) else [source]
        return [self._decode(reader, item) for item in items]

    def check_against_spec(self, spec: ModalitySpec, where: str) -> None:
        """Compare the first sample with what is announced; the others are read when their turn comes.

        Raises:
            ValueError: shape, dtype or token ids differ from the specification.
            BadFile: a file of the first sample cannot be used.
        """
        check_against_spec(self._input(0, spec.name)[None], spec, where)

    def _input(self, index: int, modality: str) -> Tensor:
        reader, source = self.readers[modality], self.samples[index][modality]
        generator = None
        if self._key is not None:
            generator = torch.Generator().manual_seed(derived_seed("augmentation", self.seed, *self._key, index))
        if modality in self._choosing:
            assert isinstance(reader, ChoosingReader)
            chosen = reader.choose(len(source), generator)
            return reader.present([self._decode(reader, source[place]) for place in chosen], generator)
        return reader.present(self._decode(reader, source), generator)

    def _decode(self, reader: Reader, source: Any) -> Tensor:
        if self.cache is None or not getattr(reader, "cached", True):
            return reader.load(source)
        return self.cache.get(self.root, source, reader.parameters, lambda: reader.load(source))

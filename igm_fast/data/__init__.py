"""Multimodal data sets: three that come with the package, and your own tensors.

Each file in :mod:`igm_fast.data.sets` is one data set: the file's name is the set's name and its ``load(seed)`` returns
a :class:`MultimodalData`. A new file there is found without further registration.
"""

from __future__ import annotations

import importlib
import pkgutil

from igm_fast.data import sets
from igm_fast.data.archive import provenance
from igm_fast.data.dataset import ModalitySpec, MultimodalData, MultimodalDataset
from igm_fast.data.splits import Split, split_indices
from igm_fast.data.tensors import from_tensors, take
from igm_fast.names import nearest

__all__ = [
    "ModalitySpec",
    "MultimodalData",
    "MultimodalDataset",
    "Split",
    "dataset_names",
    "from_tensors",
    "load_dataset",
    "provenance",
    "split_indices",
    "take",
]


def dataset_names() -> list[str]:
    """Return the names that :func:`load_dataset` knows, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(sets.__path__) if not module.name.startswith("_"))


def load_dataset(name: str, seed: int = 0) -> MultimodalData:
    """Return a data set, split by ``seed`` and standardised by its training part. Nothing is downloaded.

    Raises:
        ValueError: unknown name, seed out of range, or a corrupt file.
        FileNotFoundError: an embedded file is missing.
    """
    if name not in (known := dataset_names()):
        raise ValueError(nearest(name, known, "data set"))
    data: MultimodalData = importlib.import_module(f"{sets.__name__}.{name}").load(seed)
    return data

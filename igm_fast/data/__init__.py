"""Multimodal data sets: three that come with the package, those of the papers on your disk, and your own tensors.

Each file in :mod:`igm_fast.data.sets` is one data set: the file's name, with hyphens for underscores, is the set's
name. Its ``load(seed)``, or ``load(seed, options)`` for a set on disk, returns a :class:`MultimodalData`. A new file
there is found without further registration.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from types import ModuleType

from igm_fast.data import sets
from igm_fast.data.archive import provenance
from igm_fast.data.dataset import ModalitySpec, MultimodalData, MultimodalDataset, PartDataset
from igm_fast.data.lazy import LazyDataset, Reader
from igm_fast.data.options import DataOptions
from igm_fast.data.own.torch_datasets import from_datasets
from igm_fast.data.problems import BadFile, BrokenData, Problem
from igm_fast.data.splits import Split, hash_split, split_indices
from igm_fast.data.tensors import from_tensors, take
from igm_fast.names import nearest

__all__ = [
    "BadFile",
    "BrokenData",
    "DataOptions",
    "LazyDataset",
    "ModalitySpec",
    "MultimodalData",
    "MultimodalDataset",
    "PartDataset",
    "Problem",
    "Reader",
    "Split",
    "dataset_names",
    "from_datasets",
    "from_tensors",
    "hash_split",
    "load_dataset",
    "provenance",
    "set_module",
    "split_indices",
    "take",
]


def dataset_names() -> list[str]:
    """Return the names that :func:`load_dataset` knows, in alphabetical order."""
    modules = (module.name for module in pkgutil.iter_modules(sets.__path__) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in modules)


def set_module(name: str) -> ModuleType:
    """Return the module of a data set; one that lies on disk has a function ``scan``.

    Raises:
        ValueError: unknown name.
    """
    if name not in (known := dataset_names()):
        raise ValueError(nearest(name, known, "data set"))
    return importlib.import_module(f"{sets.__name__}.{name.replace('-', '_')}")


def load_dataset(name: str, seed: int = 0, options: DataOptions | None = None) -> MultimodalData:
    """Return a data set. Nothing is downloaded.

    The sets that come with the package are split by ``seed`` and standardised by their training part; those on disk
    have the parts of their lists, and the seed draws the augmentation.

    Raises:
        ValueError: unknown name, seed out of range, a corrupt file, or an option that does not fit the set.
        BrokenData: a set on disk with problems, unless ``options.skip_bad``.
        FileNotFoundError: the folder, or an embedded file, is missing.
        ImportError: a decoder that the set needs is not installed.
    """
    options = options or DataOptions()
    module = set_module(name)
    if not hasattr(module, "scan"):
        if options.root is not None:
            raise ValueError(f"data set {name!r} comes with the package; expected no data_root, got {options.root}")
        return _with_encoders(module.load(seed), options)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected 0 to 2**32 - 1; choose another")
    return _with_encoders(module.load(seed, options), options)


def _with_encoders(data: MultimodalData, options: DataOptions) -> MultimodalData:
    if not (options.encoders or options.pretrained):
        return data
    options.check_modalities(data.name, [spec.name for spec in data.modalities])
    specs = (replace(spec, encoder=options.encoders.get(spec.name, spec.encoder)) for spec in data.modalities)
    return replace(data, modalities=tuple(specs))

"""From the scanned lists of a data set on disk to a :class:`MultimodalData`: refuse, or leave out what is broken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from igm_fast.data.cache import FeatureCache
from igm_fast.data.dataset import ModalitySpec, MultimodalData
from igm_fast.data.lazy import LazyDataset, Reader
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import BadFile, BrokenData, Problem
from igm_fast.data.scan import PARTS, Entry, Scan

ENTRIES_PER_WORKER = 100  # fewer are read before a worker has started


def from_scan(
    name: str,
    scan: Scan,
    readers: Mapping[str, Reader],
    specs: Sequence[ModalitySpec],
    *,
    seed: int,
    options: DataOptions,
    description: str,
) -> MultimodalData:
    """Return the data set of a scan, whose samples are read when asked.

    With ``options.skip_bad`` every file is decoded once (into the cache, where there is one): what cannot be decoded is
    left out and listed in ``skipped``, like the problems of the scan.

    Args:
        name: of the data set.
        scan: entries and problems.
        readers: per modality, in the order of ``specs``. One that has a method ``remark(decoded) -> str | None`` is
            asked what should be known of a source that it can read.
        specs: what the readers present.
        seed: of the augmentation.
        options: where the data lie, and what to do about problems.
        description: one or two sentences for reports.

    Raises:
        BrokenData: problems without ``skip_bad``, or a part is empty.
    """
    root = options.existing_root(name)
    cache = None if options.cache is None else FeatureCache(options.cache)
    parts, problems, remarks = dict(scan.parts), list(scan.problems), list(scan.remarks)
    if problems and not options.skip_bad:
        raise BrokenData(name, root, problems)
    if options.skip_bad:
        for part, entries in parts.items():
            whole = _dataset(entries, readers, root, cache, seed) if entries else None
            bad = {} if whole is None else _undecodable(whole, entries, remarks)
            parts[part] = [entry for row, entry in enumerate(entries) if row not in bad]
            problems += [problem for _, problem in sorted(bad.items())]
    for part in PARTS:
        if not parts[part]:
            what, fix = f"the {part} part has no usable sample", "Mend the problems above, or add samples to its list"
            raise BrokenData(name, root, [*problems, Problem(".", None, what, fix)])
    return MultimodalData(
        name=name,
        modalities=tuple(specs),
        classes=scan.classes,
        train=_dataset(parts["train"], readers, root, cache, seed),
        validation=_dataset(parts["validation"], readers, root, cache, seed),
        test=_dataset(parts["test"], readers, root, cache, seed),
        fingerprint=_fingerprint(root, parts, readers),
        description=description,
        seed=seed,
        skipped=tuple(problems),
        remarks=tuple(remarks),
    )


def _dataset(
    entries: Sequence[Entry], readers: Mapping[str, Reader], root: Path, cache: FeatureCache | None, seed: int
) -> LazyDataset:
    sources, labels = [entry.source for entry in entries], [entry.label for entry in entries]
    return LazyDataset(sources, labels, readers, root=root, cache=cache, seed=seed)


def _undecodable(dataset: LazyDataset, entries: Sequence[Entry], remarks: list[Problem]) -> dict[int, Problem]:
    """Decode everything; return the rows that fail with their problem, and add what the readers remark."""
    bad = {}
    workers = min(os.cpu_count() or 1, len(entries) // ENTRIES_PER_WORKER)
    attempts = _Attempts(dataset, entries)
    loader = DataLoader(attempts, batch_size=None, num_workers=workers, generator=torch.Generator())
    for row, (problem, found) in enumerate(loader):
        remarks += found
        if problem is not None:
            bad[row] = problem
    return bad


class _Attempts(Dataset[tuple[Problem | None, list[Problem]]]):
    """Per entry the problem of its first file that cannot be decoded, and the readers' remarks."""

    def __init__(self, dataset: LazyDataset, entries: Sequence[Entry]) -> None:
        self.dataset, self.entries = dataset, entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, row: int) -> tuple[Problem | None, list[Problem]]:
        entry, found = self.entries[row], []
        try:
            for modality, reader in self.dataset.readers.items():
                remark = getattr(reader, "remark", None)
                for decoded in self.dataset.decoded(row, modality):
                    if remark and (words := remark(decoded)):
                        what, fix = f"{modality}: {words}", "It is trained on as it is"
                        found.append(Problem(entry.file, entry.line, what, fix))
        except BadFile as error:
            return error.problem(self.dataset.root, entry.file, entry.line), []
        return None, found


def _fingerprint(root: Path, parts: Mapping[str, Sequence[Entry]], readers: Mapping[str, Reader]) -> str:
    """Return the sha256 over relative path and size of each file, label and part, and the readers' parameters."""
    digest = hashlib.sha256()
    for modality, reader in readers.items():
        digest.update(f"{modality}: {reader.parameters}\n".encode())
    for part in PARTS:
        for entry in parts[part]:
            named = [f"{modality}={'|'.join(_leaves(root, entry.source[modality]))}" for modality in readers]
            digest.update("\t".join([part, str(entry.label), *named, "\n"]).encode())
    return digest.hexdigest()


def _leaves(root: Path, source: Any) -> Iterable[str]:
    """Yield the values of a source; files with their size."""
    if isinstance(source, Mapping):
        for key in source:
            yield f"{key}:"
            yield from _leaves(root, source[key])
    elif isinstance(source, Sequence) and not isinstance(source, str):
        for value in source:
            yield from _leaves(root, value)
    elif isinstance(source, (str, PurePath)):
        try:
            yield f"{source} {os.stat(root / source).st_size}"  # noqa: PTH116 - text, too, comes by here
        except (OSError, ValueError):
            yield str(source)
    else:
        yield repr(source)

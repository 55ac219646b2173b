"""What the lists of a data set on disk name, and what is wrong with them.

A data set on disk is one module in :mod:`igm_fast.data.sets` with

- ``MODALITIES: tuple[str, ...]`` and ``CLASSES: tuple[str, ...] | None`` (None where the files decide),
- ``PUBLISHED: dict[part, int | dict[class, int]]``: the sizes that the papers or the public lists state,
- ``LAYOUT: str``: the tree that is expected, as ``python -m igm_fast.data list`` prints it,
- ``scan(root, options) -> Scan``: reads the lists and looks at the files, without decoding them,
- ``load(seed, options) -> MultimodalData``: usually ``from_scan(...)`` of :mod:`igm_fast.data.disk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from igm_fast.data.problems import Problem

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Entry:
    """One sample that a list names.

    Args:
        source: per modality what its reader's ``load`` takes: a path relative to the root, text, a mapping, or (for a
            reader that chooses) a sequence of these.
        label: class number.
        group: what must not be divided between parts (a speaker, a subject); the sample's id where there is none.
        line: in the list, from 1.
        file: the list, relative to the root.
    """

    source: Mapping[str, Any]
    label: int
    group: str
    line: int
    file: str


@dataclass(frozen=True)
class Scan:
    """What was found: usable entries by part, problems (each costs a sample or more), and remarks (which cost none).

    Args:
        parts: ``train``, ``validation`` and ``test``, each in the order of its list.
        problems: what training refuses, or leaves out with ``skip_bad``.
        classes: names, by class number.
        remarks: what trains anyway, but should be known.
    """

    parts: Mapping[str, Sequence[Entry]]
    problems: Sequence[Problem]
    classes: tuple[str, ...]
    remarks: Sequence[Problem] = field(default_factory=list)

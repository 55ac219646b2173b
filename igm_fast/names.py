"""Answers to an unknown name: say what was given, what is known, and which known name is nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str], kind: str) -> str:
    """Return a sentence for an error about an unknown name, with the nearest known ones.

    Args:
        given: the name as the user wrote it.
        known: every name that would have been accepted.
        kind: what the name stands for, such as ``"method"`` or ``"data set"``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    return f"unknown {kind} {given!r}.{hint} Known: {', '.join(names)}."

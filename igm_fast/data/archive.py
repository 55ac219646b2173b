"""The data files that come with the package, checked against the provenance record before they are opened."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMBEDDED = Path(__file__).parent / "embedded"

_WAY_OUT = "Install igm_fast again, or rebuild the file with tools/build_embedded_data.py from the source repository"


def provenance(folder: Path = EMBEDDED) -> dict[str, dict[str, Any]]:
    """Return the record of every embedded file: packages, sha256, licence, transformation, citation.

    Raises:
        FileNotFoundError: ``provenance.json`` is missing.
        ValueError: it is not valid JSON.
    """
    path = folder / "provenance.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it holds the sha256 of the embedded data. {_WAY_OUT}.")
    try:
        records: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {_WAY_OUT}.") from error
    return records


def read_embedded(name: str, folder: Path = EMBEDDED) -> dict[str, NDArray[Any]]:
    """Return the arrays of one embedded file. No pickle is ever opened.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: its sha256 is not the recorded one.
    """
    record = provenance(folder)[name]
    path, expected = folder / record["file"], record["sha256"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, expected a file with sha256 {expected}. {_WAY_OUT}.")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{path} is corrupt: it has sha256 {found}, expected {expected}. {_WAY_OUT}.")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}

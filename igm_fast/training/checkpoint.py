"""Checkpoints: one safetensors file each, loading runs no code, damage is noticed, a kill while writing loses nothing.

A file holds the tensors of a nested state (dicts, lists, tuples, numbers, strings, None) under running names; the
nesting itself stands as JSON in the file's metadata, beside a sha256 over both.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "igm_fast checkpoint 1"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another kind; the message names the path and the way out."""


def save(path: Path, state: Any) -> None:
    """Write a state: into a file beside ``path`` first, then to disk, then by one rename into place.

    Raises:
        TypeError: the state holds something other than tensors, numbers, strings, None, dicts, lists and tuples.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_flatten(state, tensors))
    metadata = {"format": FORMAT, "structure": structure, "sha256": _digest(tensors, structure)}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=metadata)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def keep_previous(path: Path, previous: Path) -> None:
    """Give the present file a second name, so that it outlives the next :func:`save`; ``path`` never goes missing."""
    if not path.exists():
        return
    temporary = previous.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    temporary.replace(previous)


def load(path: Path, way_out: str) -> Any:
    """Return the state in a file.

    Args:
        path: written by :func:`save`.
        way_out: a sentence for the error: what to do when this file cannot be used.

    Raises:
        CheckpointError: missing, cut off, changed, or no checkpoint of this package.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint. {way_out}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} says format {metadata.get('format')!r}, expected {FORMAT!r}. {way_out}")
        if _digest(tensors, metadata["structure"]) != metadata["sha256"]:
            raise CheckpointError(
                f"{path} is damaged: its content does not have the sha256 it was written with. {way_out}"
            )
        return _unflatten(json.loads(metadata["structure"]), tensors)
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}). {way_out}") from error


def random_state() -> dict[str, Any]:
    """Return the state of the random generators of torch (CPU and CUDA), numpy and Python."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator is what others may use
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where :func:`random_state` found them; CUDA only where the number of devices is the same."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the JSON form of a value; its tensors go into `tensors`."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        # A copy: two names of one memory (tied weights, views of a buffer) may not share it in the file.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {"dict": [[_flatten(key, tensors), _flatten(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, tensors) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    raise TypeError(
        f"a checkpoint cannot hold {type(value).__name__}; expected tensors, numbers, strings, None, dicts, lists and "
        "tuples. Turn it into these in state_dict()"
    )


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unflatten(item, tensors) for item in content)
    return {_unflatten(key, tensors): _unflatten(item, tensors) for key, item in content}


def _digest(tensors: dict[str, Tensor], structure: str) -> str:
    digest = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

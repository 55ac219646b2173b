"""Weights trained elsewhere: read from a local file without running code, and a report of what fitted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from igm_fast.names import nearest

# What other programs wrap their networks in, and what some of ours do.
WRAPPERS = re.compile(r"((module|model|backbone|encoder|bert)\.)+")
# Names of BERT's first checkpoints, which the published files still have.
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
COUNTER = "num_batches_tracked"
FILES_OF_A_DIRECTORY = ("model.safetensors", "pytorch_model.bin")
SHOWN = 10


@dataclass(frozen=True)
class Loaded:
    """What became of pretrained weights; ``print`` it.

    Attributes:
        source: where they came from.
        matched: tensors of the network that were loaded.
        missing: tensors of the network that the source lacks; they keep their first values.
        unexpected: tensors of the source that the network lacks.
        mismatched: tensor of the network → shape in the source and shape here; they keep their first values.
        share: numbers loaded ÷ numbers in the network, between 0 and 1.
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    share: float

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        shapes = [f"{name} ({_shape(theirs)}, here {_shape(ours)})" for name, (theirs, ours) in self.mismatched.items()]
        lines = [f"{self.source}: {len(self.matched)} of {total} tensors loaded, {self.share:.1%} of the parameters"]
        lines += _row("not in the source", self.missing)
        lines += _row("of another shape", shapes)
        lines += _row("not used", self.unexpected)
        return "\n".join(lines)


def load_pretrained(module: nn.Module, source: Path | Mapping[str, Tensor], name: str = "the given tensors") -> Loaded:
    """Copy pretrained weights into a network, by name; what does not fit keeps its first values and is reported.

    Prefixes in which programs wrap networks (``module.``, ``model.``, ``backbone.``, ``encoder.``, ``bert.``) do not
    count. A tensor of another shape is never adapted.

    Args:
        module: an encoder; changed in place.
        source: a file or directory for :func:`load_state`, or tensors by name, such as :func:`branch_state` gives.
        name: of given tensors, for the report.

    Raises:
        ValueError: the source cannot be read, names a tensor twice, or nothing in it fits.

    Warns:
        UserWarning: a directory that holds no weights; the network keeps its first values.
    """
    own = _by_plain_name(module.state_dict(), type(module).__name__)
    if isinstance(source, Path):
        name = str(source)
        if source.is_dir() and _weights_in(source) is None:
            warnings.warn(
                f"{source} holds none of {', '.join(FILES_OF_A_DIRECTORY)}: training starts from random weights. Put "
                "the trained weights there if you have them",
                stacklevel=2,
            )
            return Loaded(name, (), tuple(full for full, _ in own.values()), (), {}, 0.0)
        source = load_state(source)
    given = _by_plain_name(source, name)
    shared = [plain for plain in own if plain in given]
    fitting = [plain for plain in shared if own[plain][1].shape == given[plain][1].shape]
    mismatched = {
        own[plain][0]: (tuple(given[plain][1].shape), tuple(own[plain][1].shape))
        for plain in shared
        if plain not in fitting
    }
    if not fitting:
        raise ValueError(_nothing_fits(module, name, [full for full, _ in given.values()], mismatched))
    with torch.no_grad():
        for plain in fitting:
            own[plain][1].copy_(given[plain][1])
    return Loaded(
        source=name,
        matched=tuple(own[plain][0] for plain in fitting),
        missing=tuple(full for plain, (full, _) in own.items() if plain not in given),
        unexpected=tuple(full for plain, (full, _) in given.items() if plain not in own),
        mismatched=mismatched,
        share=sum(own[plain][1].numel() for plain in fitting) / sum(tensor.numel() for _, tensor in own.values()),
    )


def load_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU; no code of the file is run.

    Args:
        path: a ``.safetensors`` file; any other file is read by ``torch.load(weights_only=True)``, and may hold the
            tensors under ``"state_dict"`` or ``"model"``. Of a directory, model.safetensors or pytorch_model.bin.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds anything but tensors and plain containers.
    """
    file = _weights_in(path) if path.is_dir() else path
    if file is None or not file.is_file():
        expected = f"a directory with {' or '.join(FILES_OF_A_DIRECTORY)}" if path.is_dir() else "a file"
        raise ValueError(f"{path}: there are no weights here, expected {expected}; check the path")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut off ({error}); fetch it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns before it fails
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can make an unpickler raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{file} is no file of tensors ({reason}); expected .safetensors, or what torch.save wrote of a state "
            "dict. Files with other objects are refused, since reading them runs their code: save model.state_dict() "
            "instead"
        ) from error
    return _tensors_of(content, file)


def branch_state(state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """Return the encoder's tensors of one modality out of a :class:`MultimodalModel`'s state dict.

    Raises:
        ValueError: it has no such modality.
    """
    prefix = f"branches.{modality}.encoder."
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not found:
        modalities = {name.split(".")[1] for name in state if name.startswith("branches.")}
        raise ValueError(nearest(modality, modalities, "modality of the pretrained model"))
    return found


def _weights_in(directory: Path) -> Path | None:
    return next((directory / name for name in FILES_OF_A_DIRECTORY if (directory / name).is_file()), None)


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{file} holds {type(content).__name__} without a tensor by name, expected a state dict; save "
            "model.state_dict()"
        )
    return tensors


def _by_plain_name(state: Mapping[str, Tensor], where: str) -> dict[str, tuple[str, Tensor]]:
    """Name without wrappers → full name and tensor; batch norm's counts of batches are left out.

    Old files lack the counts, and nothing here reads them.
    """
    plain: dict[str, tuple[str, Tensor]] = {}
    for full, tensor in state.items():
        if full.endswith(COUNTER):
            continue
        wrapped = WRAPPERS.match(full)
        name = full[wrapped.end() :] if wrapped else full
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        if name in plain:
            raise ValueError(
                f"{where}: {plain[name][0]!r} and {full!r} would both be {name!r}, expected each tensor once; save the "
                "part that you mean by itself"
            )
        plain[name] = (full, tensor)
    return plain


def _nothing_fits(
    module: nn.Module, name: str, given: Sequence[str], mismatched: Mapping[str, tuple[tuple[int, ...], ...]]
) -> str:
    own = list(module.state_dict())
    shapes = [f"{full} is {_shape(theirs)}, here {_shape(ours)}" for full, (theirs, ours) in mismatched.items()]
    why = f"shapes differ ({_first(shapes, 3)})" if mismatched else f"it has {_first(given, 3)}"
    return (
        f"{name}: none of its {len(given)} tensors fits {type(module).__name__}: {why}; expected {_first(own, 3)}. "
        "Give weights of this network (of a run, its folder), or choose the encoder or the width that they belong to"
    )


def _row(title: str, names: Sequence[str]) -> list[str]:
    return [f"  {title + ':':<19}{len(names)}: {_first(names, SHOWN)}"] if names else []


def _first(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:count]) + (f", and {len(names) - count} more" if len(names) > count else "")


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a number"

"""What a column of one's own table holds, and how it becomes a modality: one class for each kind of column."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from igm_fast.data.dataset import Kind, ModalitySpec
from igm_fast.data.lazy import Reader
from igm_fast.data.lists import unsafe_name
from igm_fast.data.options import DataOptions
from igm_fast.data.own.column_readers import ArrayReader, ImageReader, NumbersReader, VideoReader, read_source
from igm_fast.data.own.standardize import streamed_statistics
from igm_fast.data.own.table import ColumnKind, ColumnSettings
from igm_fast.data.problems import BadFile
from igm_fast.data.readers.arrays import archive_keys
from igm_fast.data.readers.images import check_image
from igm_fast.data.readers.text import text_modality
from igm_fast.data.readers.video import stated_frames

SUFFIXES: dict[ColumnKind, tuple[str, ...]] = {
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
    "image": (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    "video": (".avi", ".mp4", ".mkv", ".mov", ".webm"),
    "array": (".npy", ".npz"),
}

RATE, WINDOW, HOP = 16_000, 512, 256  # of sound: 32 ms every 16 ms
FRAMES = 4
SMALL_SIZE, LARGE_SIZE = 64, 224  # pixels: for the small encoder, and for those that were made for photographs

_ARRAY = re.compile(r"(?P<path>.+\.np[yz])(?:#(?P<key>[^#\[\]]+))?(?:\[(?P<row>[0-9]{1,12})\])?", re.IGNORECASE)
_KINDS_BY_RANK: dict[int, Kind] = {1: "vector", 2: "sequence", 3: "image", 4: "image"}


class Column(Protocol):
    """One modality of one's own data.

    ``source`` turns the cells of a sample into what the reader loads, and raises BadFile for what is wrong with them;
    ``build`` makes specification and reader, from the training part's sources alone.
    """

    name: str

    def source(self, cells: Sequence[Any]) -> Any:
        """Return the reader's source for a sample's cells (one, but for numbers in several columns)."""

    def build(self, training: Sequence[Any], options: DataOptions) -> tuple[ModalitySpec, Reader]:
        """Return what the network is told, and who reads the files."""


def infer_kind(root: Path, values: Sequence[Any]) -> ColumnKind:
    """Return what a column holds, from its cells: numbers, files told by their suffix, or text.

    A column holds files where one of its cells names one that exists, or where all end as files of one kind do.
    """
    if all(isinstance(value, list) or is_number(value) for value in values):
        return "numbers"
    words = [value for value in values if isinstance(value, str)]
    kinds = Counter(kind for kind in map(_kind_of_name, words) if kind is not None)
    exists = any(_kind_of_name(word) is not None and is_file(root, word) for word in words)
    if kinds and (exists or sum(kinds.values()) == len(values)):
        return kinds.most_common(1)[0][0]
    return "text"


def make_column(root: Path, name: str, kind: ColumnKind, given: ColumnSettings, encoder: str) -> Column:
    """Return the column of a kind, with what ``data.yaml`` says and the defaults for the rest."""
    if kind == "text":
        return TextColumn(name, encoder)
    if kind == "audio":
        return AudioColumn(name, encoder, root, given.rate or RATE, given.seconds)
    size = given.size or (SMALL_SIZE if encoder == "small" else LARGE_SIZE)
    if kind == "image":
        return ImageColumn(name, encoder, root, size, bool(given.augment))
    if kind == "video":
        return VideoColumn(name, encoder, root, size, given.frames or FRAMES)
    standardize = given.standardize is not False
    return (
        ArrayColumn(name, encoder, root, standardize) if kind == "array" else NumbersColumn(name, encoder, standardize)
    )


def is_number(value: Any) -> bool:
    """Tell whether a cell is a number."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def is_file(root: Path, name: str) -> bool:
    """Tell whether a cell names an existing file below the root, or an array in one."""
    match = _ARRAY.fullmatch(name)
    path = match["path"] if match else name
    try:
        return unsafe_name(path) is None and (root / path).is_file()
    except OSError:  # longer than a file name may be
        return False


def _kind_of_name(name: str) -> ColumnKind | None:
    match = _ARRAY.fullmatch(name)
    suffix = Path(match["path"] if match else name).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _file(column: str, kind: ColumnKind, cell: Any) -> str:
    """Return the name of a file of a kind, or raise a BadFile."""
    name = str(cell)
    if not name:
        raise BadFile(column, "the cell is empty, expected a file's name", "Fill it, or delete the line")
    if unsafe := unsafe_name(name):
        raise BadFile(column, unsafe, "Write names relative to the folder of the table")
    if _kind_of_name(name) != kind:
        what = f"{name!r} does not end as {kind} files do ({', '.join(SUFFIXES[kind])})"
        raise BadFile(column, what, "Correct the name")
    return name


@dataclass
class TextColumn:
    """Text: words in lower case for the small encoder, BERT's pieces for ``bert``."""

    name: str
    encoder: str

    def source(self, cells: Sequence[Any]) -> str:
        """Return the text; an empty one is a text."""
        return str(cells[0]) if self.encoder == "bert" else " ".join(re.findall(r"\w+", str(cells[0]).lower()))

    def build(self, training: Sequence[str], options: DataOptions) -> tuple[ModalitySpec, Reader]:
        """Return token ids of fixed length."""
        return text_modality(self.name, training, options, self.encoder)


@dataclass
class NumbersColumn:
    """One or several columns of numbers, or lists of numbers in a Parquet file: one vector."""

    name: str
    encoder: str
    standardize: bool
    _length: int = field(default=0, init=False)

    def source(self, cells: Sequence[Any]) -> list[float]:
        """Return the numbers."""
        values = cells[0] if len(cells) == 1 and isinstance(cells[0], list) else cells
        if not all(is_number(value) and math.isfinite(float(value)) for value in values) or not values:
            raise BadFile(self.name, f"holds {values!r}, expected finite numbers", "Correct the cells")
        self._length = self._length or len(values)
        if len(values) != self._length:
            what = f"holds {len(values)} numbers, expected {self._length} as in the first line"
            raise BadFile(self.name, what, "Give every sample equally many")
        return [float(value) for value in values]

    def build(self, training: Sequence[list[float]], options: DataOptions) -> tuple[ModalitySpec, Reader]:  # noqa: ARG002
        """Return a vector."""
        plain = NumbersReader()
        statistics_of = streamed_statistics(map(plain.load, training), "vector") if self.standardize else None
        return ModalitySpec(self.name, "vector", (self._length,), encoder=self.encoder), NumbersReader(statistics_of)


@dataclass
class ArrayColumn:
    """Arrays: ``x.npy``, ``x.npy[3]`` (a row of it), ``x.npz#key``. By rank a vector, sequence, image or frames."""

    name: str
    encoder: str
    root: Path
    standardize: bool
    _shape: tuple[int, ...] = field(default=(), init=False)

    def source(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Return path, key and row."""
        name = _file(self.name, "array", cells[0])
        match = _ARRAY.fullmatch(name)
        source: dict[str, Any] = {key: value for key, value in match.groupdict().items() if value} if match else {}
        path = self.root / source["path"]
        if "row" in source:
            source["row"] = int(source["row"])
        if path.suffix.lower() == ".npz":
            source["key"] = _archive_key(path, source)
        elif "key" in source:
            raise BadFile(path, "holds one array and has no keys", "Write x.npy or x.npy[ROW]")
        array = read_source(self.root, source)
        if array.ndim not in _KINDS_BY_RANK or 0 in array.shape:
            raise BadFile(path, f"has shape {array.shape}, expected 1 to 4 dimensions without 0", "Reshape it")
        self._shape = self._shape or array.shape
        if array.shape != self._shape:
            what = f"has shape {array.shape}, expected {self._shape} as in the first line"
            raise BadFile(path, what, "Cut or pad the arrays to one shape")
        return source

    def build(self, training: Sequence[dict[str, Any]], options: DataOptions) -> tuple[ModalitySpec, Reader]:
        """Return the arrays as float32, standardised by one pass over the training part."""
        kind, plain = _KINDS_BY_RANK[len(self._shape)], ArrayReader(self.root)
        found = streamed_statistics(_readable(plain.load, training, options), kind) if self.standardize else None
        return ModalitySpec(self.name, kind, self._shape, encoder=self.encoder), ArrayReader(self.root, found)


@dataclass
class AudioColumn:
    """Sound: the log-spectrogram of its first seconds."""

    name: str
    encoder: str
    root: Path
    rate: int
    seconds: float | None

    def source(self, cells: Sequence[Any]) -> str:
        """Return the path."""
        from igm_fast.data.readers.audio import check_sound

        name = _file(self.name, "audio", cells[0])
        if check_sound(self.root / name) == 0:
            raise BadFile(self.root / name, "holds no samples", "Replace the file, or delete the line")
        return name

    def build(self, training: Sequence[str], options: DataOptions) -> tuple[ModalitySpec, Reader]:  # noqa: ARG002
        """Return spectrograms as images of one channel; without ``seconds`` the median duration, in whole seconds."""
        import soundfile

        from igm_fast.data.readers.audio import SoundReader

        seconds = self.seconds
        if seconds is None:
            durations = [soundfile.info(self.root / name).duration for name in training]
            seconds = max(1.0, float(round(statistics.median(durations))))
        reader = SoundReader(self.root, self.rate, seconds, WINDOW, HOP)
        return ModalitySpec(self.name, "image", reader.shape, encoder=self.encoder), reader


@dataclass
class ImageColumn:
    """Images, resized to squares."""

    name: str
    encoder: str
    root: Path
    size: int
    augment: bool

    def source(self, cells: Sequence[Any]) -> str:
        """Return the path."""
        name = _file(self.name, "image", cells[0])
        check_image(self.root / name)
        return name

    def build(self, training: Sequence[str], options: DataOptions) -> tuple[ModalitySpec, Reader]:  # noqa: ARG002
        """Return RGB images."""
        reader = ImageReader(self.root, self.size, self.augment)
        return ModalitySpec(self.name, "image", (3, self.size, self.size), encoder=self.encoder), reader


@dataclass
class VideoColumn:
    """Videos: a few frames spread over the whole, resized to squares."""

    name: str
    encoder: str
    root: Path
    size: int
    frames: int

    def source(self, cells: Sequence[Any]) -> str:
        """Return the path."""
        name = _file(self.name, "video", cells[0])
        stated_frames(self.root / name)
        return name

    def build(self, training: Sequence[str], options: DataOptions) -> tuple[ModalitySpec, Reader]:  # noqa: ARG002
        """Return RGB frames."""
        reader = VideoReader(self.root, self.size, self.frames)
        shape = (self.frames, 3, self.size, self.size)
        return ModalitySpec(self.name, "image", shape, encoder=self.encoder), reader


def _archive_key(path: Path, source: dict[str, Any]) -> str:
    keys = archive_keys(path)
    if "key" not in source and len(keys) != 1:
        what = f"holds {len(keys)} arrays ({', '.join(keys[:5])})"
        raise BadFile(path, what, f"Say which: {path.name}#KEY")
    return str(source.get("key", keys[0]))


def _readable(load: Callable[[Any], Tensor], sources: Iterable[Any], options: DataOptions) -> Iterable[Tensor]:
    for source in sources:
        try:
            yield load(source)
        except BadFile:  # noqa: PERF203
            if not options.skip_bad:  # otherwise it is found again, and left out, with its line
                raise

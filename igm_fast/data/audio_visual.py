"""What the data sets of sound and frames share: finding the files of a clip, cutting off validation, the readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from igm_fast.data.dataset import ModalitySpec, MultimodalData
from igm_fast.data.disk import from_scan
from igm_fast.data.lazy import Reader
from igm_fast.data.lists import unsafe_name
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import BadFile, Problem
from igm_fast.data.readers.audio import SoundReader, check_sound
from igm_fast.data.readers.frames import FramesReader, frame_names
from igm_fast.data.readers.images import check_image
from igm_fast.data.scan import Entry, Scan
from igm_fast.data.splits import hash_split


@dataclass(frozen=True)
class Listed:
    """A line of a list: which clip, of which class, and what it must not be divided from."""

    clip: str
    label: int
    group: str
    file: str
    line: int


@dataclass(frozen=True)
class Tree:
    """Where the files of a clip lie.

    Args:
        root: folder of the data set.
        sounds: folder with CLIP.wav, relative to the root.
        frames: folder with the folder CLIP of images, relative to the root.
        least_frames: images that a clip needs.
        empty_is_silence: accept a sound without samples.
    """

    root: Path
    sounds: str
    frames: str
    least_frames: int = 1
    empty_is_silence: bool = False

    def entry(self, listed: Listed) -> Entry | Problem:
        """Return the sample of a line, or the first thing that is wrong with its files."""
        try:
            source = self._source(listed.clip)
        except BadFile as error:
            return error.problem(self.root, listed.file, listed.line)
        return Entry(source, listed.label, listed.group, listed.line, listed.file)

    def _source(self, clip: str) -> dict[str, str | tuple[str, ...]]:
        sound, folder = f"{self.sounds}/{clip}.wav", f"{self.frames}/{clip}"
        if check_sound(self.root / sound) == 0 and not self.empty_is_silence:
            raise BadFile(self.root / sound, "holds no samples", "Replace the file, or delete the line")
        names = frame_names(self.root / folder)
        if len(names) < self.least_frames:
            found = f"holds {len(names)} images" if (self.root / folder).is_dir() else "no such folder"
            what = f"{found}, expected at least {self.least_frames} frames of the clip"
            raise BadFile(self.root / folder, what, "Cut the frames out of the video again, or delete the line")
        for name in names:
            check_image(self.root / folder / name)
        return {"audio": sound, "video": tuple(f"{folder}/{name}" for name in names)}


def once_only(listed: list[Listed], problems: list[Problem]) -> list[Listed]:
    """Return the lines whose clip has a usable name and was not listed before, in either list."""
    seen: dict[str, Listed] = {}
    kept = []
    for one in listed:
        if unsafe := unsafe_name(one.clip):
            problems.append(Problem(one.file, one.line, unsafe, "Write the clip's name without folders"))
        elif one.clip in seen:
            first = seen[one.clip]
            what = f"clip {one.clip} is listed again, first in {first.file}:{first.line}"
            problems.append(Problem(one.file, one.line, what, "Delete one of the lines"))
        else:
            seen[one.clip] = one
            kept.append(one)
    return kept


def parts_of(
    train: list[Listed], test: list[Listed], trees: dict[str, Tree], options: DataOptions, problems: list[Problem]
) -> dict[str, list[Entry]]:
    """Look at the files of every line; cut validation out of the training list.

    The cut is made among all lines, also those whose files are missing: what is validation never depends on what is on
    the disk. With the official protocol these samples are trained on, too.
    """
    groups = [one.group for one in train] if options.validation_by == "group" else None
    clips, labels = [one.clip for one in train], [one.label for one in train]
    kept, cut = (set(rows.tolist()) for rows in hash_split(clips, labels, groups=groups))
    parts: dict[str, list[Entry]] = {"train": [], "validation": [], "test": []}
    for row, one in enumerate(train):
        entry = trees["train"].entry(one)
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        if row in kept or options.protocol == "official":
            parts["train"].append(entry)
        if row in cut:
            parts["validation"].append(entry)
    for one in test:
        entry = trees["test"].entry(one)
        if isinstance(entry, Problem):
            problems.append(entry)
        else:
            parts["test"].append(entry)
    return parts


def official_remarks(options: DataOptions, file: str) -> list[Problem]:
    """Return what the official protocol means for validation; nothing with the paper's."""
    if options.protocol != "official":
        return []
    what = "protocol=official trains on the whole list; the validation part is a tenth of it"
    return [Problem(file, None, what, "Scores on validation are scores on training samples: do not select by them")]


def audio_visual_data(
    name: str,
    scan: Scan,
    sound: SoundReader,
    frames: FramesReader,
    *,
    seed: int,
    options: DataOptions,
    description: str,
) -> MultimodalData:
    """Return the data set of a scan whose sources are ``audio`` and ``video``, each proposed to a ResNet-18."""
    specs = (
        ModalitySpec("audio", "image", sound.shape, encoder="resnet18"),
        ModalitySpec("video", "image", frames.shape, encoder="resnet18"),
    )
    readers: dict[str, Reader] = {"audio": sound, "video": frames}
    return from_scan(name, scan, readers, specs, seed=seed, options=options, description=description)

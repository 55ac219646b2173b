"""crema-d: six emotions from voice and face, 7,442 clips of 91 actors (Cao et al., IEEE Trans. Affective Comp. 2014).

The lists and folders of the official code: WAV files and one image for each second of video.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from igm_fast.data.audio_visual import Listed, Tree, audio_visual_data, official_remarks, once_only, parts_of
from igm_fast.data.dataset import MultimodalData
from igm_fast.data.lists import first_difference, read_rows
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import Problem
from igm_fast.data.readers.audio import SoundReader
from igm_fast.data.readers.frames import FramesReader
from igm_fast.data.scan import Scan
from igm_fast.names import nearest

MODALITIES = ("audio", "video")
CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
PUBLISHED = {
    "train": dict(zip(CLASSES, (973, 1148, 1131, 1138, 1142, 1166), strict=True)),
    "test": dict(zip(CLASSES, (114, 123, 140, 133, 129, 105), strict=True)),
}
LAYOUT = """\
annotations/train.csv, test.csv      lines without header: 1088_IOM_NEU_XX,NEU
AudioWAV/<clip>.wav
Image-01-FPS/<clip>/<frame>.jpg      `python -m igm_fast.data prepare crema-d DOWNLOAD OUT` makes them"""

_LISTS = {"train": "annotations/train.csv", "test": "annotations/test.csv"}
_EXPECTED = (*_LISTS.values(), "AudioWAV/", "Image-01-FPS/")


def load(seed: int, options: DataOptions) -> MultimodalData:
    """Return log-spectrograms ``audio [1, 257, 188]`` (3 s at 22,050 Hz) and one frame ``video [3, 224, 224]``.

    Raises:
        FileNotFoundError: no root.
        BrokenData: problems, unless ``options.skip_bad``.
    """
    root = options.existing_root("crema-d")
    return audio_visual_data(
        "crema-d",
        scan(root, options),
        SoundReader(root, rate=22050, seconds=3.0),
        FramesReader(root, count=1, first=options.protocol == "official"),
        seed=seed,
        options=options,
        description="Six emotions from voice (log-spectrogram of 3 s) and face (one frame) of 91 actors who speak "
        "twelve sentences: CREMA-D, Cao et al. 2014.",
    )


def scan(root: Path, options: DataOptions) -> Scan:
    """Read both lists and look at the files of every clip."""
    if problem := first_difference(root, _EXPECTED):
        if (root / "VideoFlash").is_dir() and not (root / "Image-01-FPS").is_dir():
            fix = f"Cut the videos into frames: python -m igm_fast.data prepare crema-d {root} {root}"
            problem = replace(problem, fix=fix)
        return Scan({"train": [], "validation": [], "test": []}, [problem], CLASSES)
    problems: list[Problem] = []
    remarks = official_remarks(options, _LISTS["train"])
    listed = once_only([line for file in _LISTS.values() for line in _lines(root, file, problems, remarks)], problems)
    train, test = ([line for line in listed if line.file == file] for file in _LISTS.values())
    tree = Tree(root, "AudioWAV", "Image-01-FPS")
    parts = parts_of(train, test, {"train": tree, "test": tree}, options, problems)
    return Scan(parts, problems, CLASSES, remarks)


def _lines(root: Path, file: str, problems: list[Problem], remarks: list[Problem]) -> list[Listed]:
    listed = []
    for line, fields in read_rows(root, file, problems):
        if len(fields) != 2:
            what = f"{len(fields)} columns, expected two: clip,EMOTION"
            problems.append(Problem(file, line, what, "Write the line as in 1088_IOM_NEU_XX,NEU"))
            continue
        clip, emotion = fields
        if emotion not in CLASSES:
            fix = "The list has no header line: delete it" if line == 1 else "Correct the emotion, or delete the line"
            problems.append(Problem(file, line, nearest(emotion, CLASSES, "emotion").rstrip("."), fix))
            continue
        named = clip.split("_")  # actor, sentence, emotion, intensity
        if len(named) == 4 and named[2] in CLASSES and named[2] != emotion:
            what = f"clip {clip} has label {emotion}, but its name says {named[2]}"
            remarks.append(Problem(file, line, what, "Correct the label, unless it is meant (labels of listeners)"))
        listed.append(Listed(clip, CLASSES.index(emotion), named[0], file, line))
    return listed

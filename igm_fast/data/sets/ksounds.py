"""ksounds: Kinetics-Sounds, 31 actions that can be seen and heard, 10 s of video (Arandjelović & Zisserman, ICCV 2017).

The lists and folders of the official code: WAV files and one image for each second of video. Videos vanish from
YouTube, so that everyone's copy differs: ``skip_bad`` trains on what is there and lists the rest.
"""

from __future__ import annotations

from pathlib import Path

from igm_fast.data.audio_visual import Listed, Tree, audio_visual_data, official_remarks, once_only, parts_of
from igm_fast.data.dataset import MultimodalData
from igm_fast.data.lists import first_difference, read_rows
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import Problem
from igm_fast.data.readers.audio import SoundReader
from igm_fast.data.readers.frames import FramesReader
from igm_fast.data.scan import Scan

MODALITIES = ("audio", "video")
CLASSES = None
PUBLISHED = {"train": 14799, "test": 2597}  # the lists that come with OGM-GE (Peng et al., CVPR 2022)
LAYOUT = """\
annotations/train.csv, test.csv            with a header; columns youtube_id and label
train_wav/<youtube_id>.wav                 test_wav/<youtube_id>.wav
train_img/Image-01-FPS/<youtube_id>/*.jpg  test_img/Image-01-FPS/<youtube_id>/*.jpg"""

LEAST_FRAMES = 4

_COLUMNS = ("youtube_id", "label")
_LISTS = {"train": "annotations/train.csv", "test": "annotations/test.csv"}
_EXPECTED = (*_LISTS.values(), *(f"{part}_{folder}" for part in _LISTS for folder in ("wav/", "img/Image-01-FPS/")))


def load(seed: int, options: DataOptions) -> MultimodalData:
    """Return log-spectrograms ``audio [1, 257, 1003]`` (10 s at 35,400 Hz) and three frames ``video [3, 3, 224, 224]``.

    With the official protocol a sound without samples counts as silence.

    Raises:
        FileNotFoundError: no root.
        BrokenData: problems, unless ``options.skip_bad``.
    """
    root, official = options.existing_root("ksounds"), options.protocol == "official"
    return audio_visual_data(
        "ksounds",
        scan(root, options),
        SoundReader(root, rate=35400, seconds=10.0, empty_is_silence=official),
        FramesReader(root, count=3, first=official),
        seed=seed,
        options=options,
        description="Actions that can be seen and heard, from sound (log-spectrogram of 10 s) and three frames of "
        "YouTube videos: Kinetics-Sounds, Arandjelović & Zisserman 2017.",
    )


def scan(root: Path, options: DataOptions) -> Scan:
    """Read both lists and look at the files of every clip. Classes are the training list's labels, sorted."""
    if problem := first_difference(root, _EXPECTED):
        return Scan({"train": [], "validation": [], "test": []}, [problem], ())
    problems: list[Problem] = []
    rows = {part: _rows(root, file, problems) for part, file in _LISTS.items()}
    classes = _in_order({label for _, _, label in rows["train"]})
    listed = once_only(
        [line for part, file in _LISTS.items() for line in _listed(rows[part], file, classes, problems)], problems
    )
    train, test = ([line for line in listed if line.file == file] for file in _LISTS.values())
    official = options.protocol == "official"
    trees = {
        part: Tree(root, f"{part}_wav", f"{part}_img/Image-01-FPS", LEAST_FRAMES, empty_is_silence=official)
        for part in _LISTS
    }
    parts = parts_of(train, test, trees, options, problems)
    remarks = official_remarks(options, _LISTS["train"])
    for number in sorted(set(range(len(classes))) - {entry.label for entry in parts["test"]}):
        what = f"class {classes[number]!r} has no test sample: its average precision is undefined, MAP leaves it out"
        remarks.append(Problem(_LISTS["test"], None, what, "Add a sample, or delete the class's training lines"))
    return Scan(parts, problems, classes, remarks)


def _rows(root: Path, file: str, problems: list[Problem]) -> list[tuple[int, str, str]]:
    """Return line number, id and label of the lines that have both."""
    lines = read_rows(root, file, problems)
    if not lines:
        return []
    header = lines[0][1]
    if missing := [column for column in _COLUMNS if column not in header]:
        what = f"the header {','.join(header)!r} lacks {' and '.join(missing)}"
        problems.append(
            Problem(file, lines[0][0], what, f"Name the columns {' and '.join(_COLUMNS)} in the first line")
        )
        return []
    places = [header.index(column) for column in _COLUMNS]
    rows = []
    for line, fields in lines[1:]:
        values = [fields[place] for place in places if place < len(fields)]
        if len(values) == len(_COLUMNS) and all(values):
            rows.append((line, values[0], values[1]))
        else:
            what = f"{','.join(fields)!r} has no {' or no '.join(_COLUMNS)}"
            problems.append(Problem(file, line, what, "Complete the line, or delete it"))
    return rows


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Sort class names; where all are integers, as numbers."""
    numeric = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=int if numeric else str))


def _listed(
    rows: list[tuple[int, str, str]], file: str, classes: tuple[str, ...], problems: list[Problem]
) -> list[Listed]:
    numbers = {name: number for number, name in enumerate(classes)}
    listed = []
    for line, clip, label in rows:
        if label in numbers:
            listed.append(Listed(clip, numbers[label], clip[:11], file, line))  # a YouTube id has 11 characters
        else:
            what = f"label {label!r} does not occur in {_LISTS['train']}"
            problems.append(Problem(file, line, what, "Correct the label, or delete the line"))
    return listed

"""Kinetics-Sounds: lists with a header, classes of the training list, and every way in which a copy may be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from trees import ksounds_clips, replace, rewrite_line, said, write_list, write_wav

from igm_fast.data import BrokenData, DataOptions, load_dataset
from igm_fast.data.readers.audio import FLOOR, decode_sound, log_spectrogram
from igm_fast.data.readers.images import IMAGENET_MEAN, IMAGENET_STD, decode_image, normalize, resize
from igm_fast.data.sets.ksounds import PUBLISHED, scan

CLASSES = ("tapping guitar", "bowling", "singing")
FIRST, _ = ksounds_clips("train", 1, CLASSES)[0]


def load(root: Path, **options: object):
    return load_dataset("ksounds", 0, DataOptions(root=root, **options))


def problems(root: Path, **options: object) -> str:
    return said(scan(root, DataOptions(**options)).problems)


def test_published_sizes() -> None:
    assert PUBLISHED == {"train": 14799, "test": 2597}


def test_parts_and_classes(ksounds: Path) -> None:
    data = load(ksounds)
    assert data.classes == ("bowling", "singing", "tapping guitar")
    assert {part: len(dataset) for part, dataset in data.parts.items()} == {"train": 6, "validation": 3, "test": 6}
    named = {
        clip: name for part, each in (("train", 3), ("test", 2)) for clip, name in ksounds_clips(part, each, CLASSES)
    }
    for part, dataset in data.parts.items():
        for sample, label in zip(dataset.samples, dataset.labels.tolist(), strict=True):
            assert data.classes[label] == named[Path(sample["audio"]).stem]
            assert sample["audio"].startswith("test_wav/" if part == "test" else "train_wav/")
            assert len(sample["video"]) == 5


def test_classes_do_not_depend_on_the_files_that_are_there(ksounds: Path) -> None:
    for clip, name in ksounds_clips("train", 3, CLASSES):
        if name == "bowling":
            (ksounds / "train_wav" / f"{clip}.wav").unlink()
    assert load(ksounds, skip_bad=True).classes == ("bowling", "singing", "tapping guitar")


def test_integer_labels_are_in_the_order_of_numbers(ksounds: Path) -> None:
    numbers = {"tapping guitar": "10", "bowling": "9", "singing": "2"}
    for part, each in (("train", 3), ("test", 2)):
        lines = [f"{clip},{numbers[name]}" for clip, name in ksounds_clips(part, each, CLASSES)]
        write_list(ksounds / "annotations" / f"{part}.csv", ["youtube_id,label", *lines])
    data = load(ksounds)
    assert data.classes == ("2", "9", "10")
    assert data.test.labels.tolist() == [2, 1, 0] * 2


def test_columns_are_found_by_name(ksounds: Path) -> None:
    before = load(ksounds)
    lines = [f'"{name}",2,{clip},train' for clip, name in ksounds_clips("train", 3, CLASSES)]
    content = "\ufeff" + "\r\n".join(["label,time_start,youtube_id,split", *lines, "", ""])
    replace(ksounds / "annotations" / "train.csv", content.encode())
    assert load(ksounds).train.samples == before.train.samples


def test_what_the_network_gets(ksounds: Path) -> None:
    data = load(ksounds)
    sample, source = data.test[0][0], data.test.samples[0]
    wave = np.resize(decode_sound(ksounds / source["audio"], 35400), 354000)
    assert sample["audio"].shape == (1, 257, 1003)
    assert torch.equal(sample["audio"][0], log_spectrogram(torch.from_numpy(wave), 512, 353))
    assert sample["video"].shape == (3, 3, 224, 224)
    for frame, place in zip(sample["video"], (0, 2, 4), strict=True):  # the centres of thirds of five frames
        expected = resize(decode_image(ksounds / source["video"][place]), (224, 224))
        assert torch.equal(frame, normalize(expected, IMAGENET_MEAN, IMAGENET_STD))


def test_frames_are_augmented_one_by_one(ksounds: Path) -> None:
    source = ksounds / "train_img" / "Image-01-FPS"
    for folder in source.iterdir():  # all frames of a clip are the same picture
        content = (folder / "frame_00000.jpg").read_bytes()
        for frame in folder.iterdir():
            replace(frame, content)
    frames = load(ksounds).train.augmented(0)[0][0]["video"]
    assert not torch.equal(frames[0], frames[1])


def test_official_protocol_takes_the_first_frames_and_all_of_training(ksounds: Path) -> None:
    data = load(ksounds, protocol="official")
    assert len(data.train) == 9
    assert data.train.readers["video"].choose(5, None) == [0, 1, 2]
    assert data.train.readers["video"].choose(5, torch.Generator()) == [0, 1, 2]


# --- broken copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "line", "words"),
    [
        ("train", "absent,bowling", "train.csv:2: train_wav/absent.wav: no such sound file"),
        ("train", "onlyid", "train.csv:2: 'onlyid' has no youtube_id or no label. Complete the line"),
        ("train", f"{FIRST},", f"train.csv:2: '{FIRST},' has no"),
        ("train", ",bowling", "has no youtube_id or no label"),
        ("train", f"../{FIRST},bowling", "leads out of the data set's folder"),
        ("train", f"/{FIRST},bowling", "leads out of the data set's folder"),
        ("test", f"{FIRST},bowling", f"test.csv:2: clip {FIRST} is listed again, first in annotations/train.csv:2"),
        (
            "test",
            "test000000__000002_000012,juggling",
            "test.csv:2: label 'juggling' does not occur in annotations/train",
        ),
    ],
)
def test_broken_lines(ksounds: Path, part: str, line: str, words: str) -> None:
    rewrite_line(ksounds / "annotations" / f"{part}.csv", 2, line)
    assert words in problems(ksounds)
    with pytest.raises(BrokenData):
        load(ksounds)
    assert words in said(load(ksounds, skip_bad=True).skipped)


def test_a_clip_that_is_listed_twice(ksounds: Path) -> None:
    rewrite_line(ksounds / "annotations" / "train.csv", 3, f"{FIRST},bowling")
    assert f"train.csv:3: clip {FIRST} is listed again, first in annotations/train.csv:2" in problems(ksounds)


def test_missing_columns(ksounds: Path) -> None:
    rewrite_line(ksounds / "annotations" / "train.csv", 1, "id,label")
    assert "train.csv:1: the header 'id,label' lacks youtube_id. Name the columns youtube_id and label" in problems(
        ksounds
    )
    with pytest.raises(BrokenData):
        load(ksounds, skip_bad=True)


@pytest.mark.parametrize("missing", ["annotations/train.csv", "train_wav/", "test_wav/", "test_img/Image-01-FPS/"])
def test_the_first_difference_of_the_tree(ksounds: Path, missing: str) -> None:
    (ksounds / missing).rename(ksounds.parent / "away")
    assert f"{missing}: the " in problems(ksounds)


def test_fewer_than_four_frames(ksounds: Path) -> None:
    folder = ksounds / "train_img" / "Image-01-FPS" / FIRST
    (folder / "frame_00004.jpg").unlink()
    assert problems(ksounds) == ""
    (folder / "frame_00003.jpg").unlink()
    words = f"train.csv:2: train_img/Image-01-FPS/{FIRST}: holds 3 images, expected at least 4 frames"
    assert words in problems(ksounds)
    assert words in problems(ksounds, protocol="official")


def test_a_class_without_test_sample_is_remarked(ksounds: Path) -> None:
    lines = [f"{clip},{name}" for clip, name in ksounds_clips("test", 2, CLASSES) if name != "singing"]
    write_list(ksounds / "annotations" / "test.csv", ["youtube_id,label", *lines])
    data = load(ksounds)
    assert "class 'singing' has no test sample: its average precision is undefined" in said(data.remarks)


def test_no_samples(ksounds: Path) -> None:
    sound = ksounds / "train_wav" / f"{FIRST}.wav"
    sound.unlink()
    soundfile.write(sound, np.zeros(0), 16000)
    assert f"train.csv:2: train_wav/{FIRST}.wav: holds no samples" in problems(ksounds)
    data = load(ksounds, protocol="official")
    row = [sample["audio"] for sample in data.train.samples].index(f"train_wav/{FIRST}.wav")
    silent = data.train[row][0]["audio"]
    assert torch.equal(silent, torch.full_like(silent, FLOOR).log())


@pytest.mark.parametrize("seconds", [0.01, 3.0, 12.0])
def test_sounds_of_any_length(ksounds: Path, seconds: float) -> None:
    write_wav(ksounds / "train_wav" / f"{FIRST}.wav", seconds, rate=22050)
    data = load(ksounds)
    for dataset in (data.train, data.validation):
        assert dataset.__getitems__(range(len(dataset)))[0]["audio"].shape[1:] == (1, 257, 1003)

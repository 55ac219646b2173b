"""CREMA-D: lists, files, frames and spectrograms as described, and every way in which a copy may be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from trees import crema_d_clips, replace, rewrite_line, said, truncate, write_jpeg, write_list, write_wav

from igm_fast.data import BadFile, BrokenData, DataOptions, load_dataset
from igm_fast.data.readers.audio import decode_sound, log_spectrogram
from igm_fast.data.readers.frames import FramesReader, frame_names
from igm_fast.data.readers.images import IMAGENET_MEAN, IMAGENET_STD, decode_image, normalize, resize
from igm_fast.data.sets.crema_d import CLASSES, PUBLISHED, scan

FIRST = "1001_DFA_NEU_XX"  # line 1 of the training list


def load(root: Path, **options: object):
    return load_dataset("crema-d", 0, DataOptions(root=root, **options))


def problems(root: Path) -> str:
    return said(scan(root, DataOptions()).problems)


def test_published_counts() -> None:
    assert sum(PUBLISHED["train"].values()) == 6698
    assert sum(PUBLISHED["test"].values()) == 744
    assert CLASSES == ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")


def test_parts_and_labels(crema_d: Path) -> None:
    data = load(crema_d)
    assert {part: len(dataset) for part, dataset in data.parts.items()} == {"train": 12, "validation": 6, "test": 12}
    for dataset in data.parts.values():
        for sample, label in zip(dataset.samples, dataset.labels.tolist(), strict=True):
            assert CLASSES[label] in sample["audio"]
            assert all(CLASSES[label] in frame for frame in sample["video"])
    assert torch.bincount(data.validation.labels).tolist() == [1] * 6
    sources = [sample["audio"] for dataset in data.parts.values() for sample in dataset.samples]
    assert len(set(sources)) == 30
    assert [(spec.name, spec.encoder) for spec in data.modalities] == [("audio", "resnet18"), ("video", "resnet18")]


def test_validation_does_not_depend_on_the_seed_or_on_missing_files(crema_d: Path) -> None:
    def held(**options: object) -> list[str]:
        data = load_dataset("crema-d", 5, DataOptions(root=crema_d, **options))
        return [sample["audio"] for sample in data.validation.samples]

    before = held()
    assert before == [sample["audio"] for sample in load(crema_d).validation.samples]
    for audio in before[:2]:
        (crema_d / audio).unlink()
    assert held(skip_bad=True) == before[2:]


def test_validation_by_speaker(crema_d: Path) -> None:
    data = load(crema_d, validation_by="group")
    speakers = [{Path(sample["audio"]).name[:4] for sample in part.samples} for part in (data.train, data.validation)]
    assert not speakers[0] & speakers[1]
    assert len(data.validation) == 6


def test_what_the_network_gets(crema_d: Path) -> None:
    data = load(crema_d)
    sample, _ = data.test[0]
    source = data.test.samples[0]
    wave = np.resize(decode_sound(crema_d / source["audio"], 22050), 66150)
    assert torch.equal(sample["audio"][0], log_spectrogram(torch.from_numpy(wave), 512, 353))
    assert sample["audio"].shape == (1, 257, 188)
    middle = decode_image(crema_d / source["video"][1])  # the centre of three frames
    assert torch.equal(sample["video"], normalize(resize(middle, (224, 224)), IMAGENET_MEAN, IMAGENET_STD))


def test_training_augments_frames_and_leaves_sound_alone(crema_d: Path) -> None:
    data = load(crema_d)
    first, second, still = data.train.augmented(0)[0][0], data.train.augmented(1)[0][0], data.train[0][0]
    assert not torch.equal(first["video"], second["video"])
    assert torch.equal(first["audio"], still["audio"])
    assert torch.equal(first["video"], data.train.augmented(0)[0][0]["video"])


def test_frames_at_segment_centres_or_at_random_within_segments() -> None:
    reader = FramesReader(Path(), count=3)
    assert reader.choose(10, None) == [1, 5, 8]
    assert reader.choose(3, None) == [0, 1, 2]
    assert reader.choose(1, None) == [0, 0, 0]
    assert FramesReader(Path(), count=1).choose(3, None) == [1]
    drawn = np.array([reader.choose(10, torch.Generator().manual_seed(seed)) for seed in range(300)])
    # Segments of ten frames: [0, 10/3), [10/3, 20/3), [20/3, 10), which two frames share with their neighbours.
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_official_protocol(crema_d: Path) -> None:
    data = load(crema_d, protocol="official")
    assert {part: len(dataset) for part, dataset in data.parts.items()} == {"train": 18, "validation": 6, "test": 12}
    trained = {sample["audio"] for sample in data.train.samples}
    assert {sample["audio"] for sample in data.validation.samples} <= trained
    assert "do not select by them" in said(data.remarks)
    first = decode_image(crema_d / data.test.samples[0]["video"][0])
    expected = normalize(resize(first, (224, 224)), IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(data.test[0][0]["video"], expected)


def test_frames_are_sorted_and_other_files_ignored(crema_d: Path) -> None:
    folder = crema_d / "Image-01-FPS" / FIRST
    (folder / ".DS_Store").write_bytes(b"")
    write_jpeg(folder / "00015.JPG")
    assert frame_names(folder) == ["00000.jpg", "00015.JPG", "00030.jpg", "00060.jpg"]
    assert problems(crema_d) == ""


def test_fingerprint_follows_files_lists_and_protocol(crema_d: Path) -> None:
    seen = [load(crema_d).fingerprint]
    assert load(crema_d, cache=crema_d.parent / "cache").fingerprint == seen[0]
    write_wav(crema_d / "AudioWAV" / f"{FIRST}.wav", seconds=1.2)
    seen.append(load(crema_d).fingerprint)
    rewrite_line(crema_d / "annotations" / "train.csv", 1, f"{FIRST},ANG")
    seen.append(load(crema_d).fingerprint)
    seen.append(load(crema_d, protocol="official").fingerprint)
    assert len(set(seen)) == 4


def test_the_cache_changes_nothing(crema_d: Path, tmp_path: Path) -> None:
    plain, cached = load(crema_d), load(crema_d, cache=tmp_path / "cache")
    for _ in range(2):
        for key in ((0,), (1,)):
            one, other = (data.train.augmented(*key).__getitems__(range(4))[0] for data in (plain, cached))
            assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_with_any_line_end_mark_quotes_and_blank_lines(crema_d: Path, end: str) -> None:
    lines = [
        f'"{clip}" , {emotion}' if n % 2 else f"{clip},{emotion}"
        for n, (clip, emotion) in enumerate(crema_d_clips("train", 3))
    ]
    lines = [line.replace('" ,', '",') for line in lines]
    content = "\ufeff" + "".join(line + end for line in lines) + end + "  " + end
    before = load(crema_d)
    replace(crema_d / "annotations" / "train.csv", content.encode())
    assert problems(crema_d) == ""
    after = load(crema_d)
    assert after.train.samples == before.train.samples


# --- broken copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{FIRST},JOY", "train.csv:1: unknown emotion 'JOY'. Known: ANG, DIS, FEA, HAP, NEU, SAD. The list has"),
        (f"{FIRST}", "train.csv:1: 1 columns, expected two"),
        ("1001_DFA_NEU_XX.flv Neutral", "train.csv:1: 1 columns, expected two: clip,EMOTION. Write the line as in"),
        (f"{FIRST},NEU,3", "train.csv:1: 3 columns"),
        ("1001_DFA_HAP_XX,HAP", "train.csv:2: clip 1001_DFA_HAP_XX is listed again, first in annotations/train.csv:1"),
        ("1050_DFA_HAP_XX,HAP", "test.csv:2: clip 1050_DFA_HAP_XX is listed again, first in annotations/train.csv:1"),
        ("../1001_DFA_NEU_XX,NEU", "train.csv:1: the name '../1001_DFA_NEU_XX' leads out of the data set's folder"),
        ("/etc/passwd,NEU", "train.csv:1: the name '/etc/passwd' leads out of"),
        ("..\\x,NEU", "leads out of"),
        ("C:x,NEU", "leads out of"),
        (",NEU", "the name '' is empty"),
        ("9999_DFA_NEU_XX,NEU", "train.csv:1: AudioWAV/9999_DFA_NEU_XX.wav: no such sound file. Put the file there"),
        (f'"{FIRST},NEU', "not readable as CSV"),
    ],
)  # fmt: skip
def test_broken_lines(crema_d: Path, line: str, words: str) -> None:
    rewrite_line(crema_d / "annotations" / "train.csv", 1, line)
    assert words in problems(crema_d)
    with pytest.raises(BrokenData) as caught:
        load(crema_d)
    assert words in str(caught.value)
    assert "python -m igm_fast.data check crema-d --root" in str(caught.value)


def test_unknown_emotion_in_the_middle(crema_d: Path) -> None:
    rewrite_line(crema_d / "annotations" / "train.csv", 4, "1001_DFA_FEA_XX,FEAR")
    assert "train.csv:4: unknown emotion 'FEAR'." in problems(crema_d)
    assert "Correct the emotion, or delete the line" in problems(crema_d)


def test_a_label_that_the_clips_name_contradicts_is_remarked(crema_d: Path) -> None:
    rewrite_line(crema_d / "annotations" / "train.csv", 1, f"{FIRST},ANG")
    found = scan(crema_d, DataOptions())
    assert found.problems == []
    assert f"train.csv:1: clip {FIRST} has label ANG, but its name says NEU" in said(found.remarks)


def test_encoding(crema_d: Path) -> None:
    replace(crema_d / "annotations" / "train.csv", "1001_D\xe9,NEU\n".encode("latin-1"))
    assert "annotations/train.csv: byte 6 is not UTF-8" in problems(crema_d)
    replace(crema_d / "annotations" / "train.csv", b"a\0b,NEU\n")
    assert "annotations/train.csv" in problems(crema_d)


def test_an_empty_list(crema_d: Path) -> None:
    write_list(crema_d / "annotations" / "train.csv", [])
    with pytest.raises(BrokenData, match="the train part has no usable sample"):
        load(crema_d)


@pytest.mark.parametrize("missing", ["annotations/train.csv", "annotations/test.csv", "AudioWAV/", "Image-01-FPS/"])
def test_the_first_difference_of_the_tree(crema_d: Path, missing: str) -> None:
    (crema_d / missing).rename(crema_d.parent / "away")
    kind = "folder" if missing.endswith("/") else "file"
    assert f"{missing}: the {kind} is missing" in problems(crema_d)
    with pytest.raises(BrokenData):
        load(crema_d, skip_bad=True)


def test_videos_that_are_no_frames_yet(crema_d: Path) -> None:
    (crema_d / "Image-01-FPS").rename(crema_d / "VideoFlash")
    assert "python -m igm_fast.data prepare crema-d" in problems(crema_d)


def test_no_root() -> None:
    with pytest.raises(FileNotFoundError, match="expected --data_root DIR"):
        load_dataset("crema-d")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        load(Path("nowhere"))


def breakage(name: str, root: Path) -> str:
    """Break the first training clip; return what has to be said about it."""
    sound, folder = root / "AudioWAV" / f"{FIRST}.wav", root / "Image-01-FPS" / FIRST
    image = folder / "00030.jpg"
    if name == "no sound":
        sound.unlink()
        return f"AudioWAV/{FIRST}.wav: no such sound file"
    if name == "empty sound":
        replace(sound, b"")
        return "the file is empty, expected sound"
    if name == "text as sound":
        replace(sound, b"hello")
        return "not readable as sound"
    if name == "sound cut short":
        truncate(sound, 0.6)
        return "cut short: its header states 48000 bytes of sound"
    if name == "no samples":
        sound.unlink()
        soundfile.write(sound, np.zeros(0), 16000)
        return "holds no samples"
    if name == "no frames":
        folder.rename(root / "away")
        return f"Image-01-FPS/{FIRST}: no such folder, expected at least 1 frames"
    if name == "empty folder":
        folder.rename(root / "away")
        folder.mkdir()
        return "holds 0 images"
    if name == "empty image":
        replace(image, b"")
        return f"Image-01-FPS/{FIRST}/00030.jpg: "
    assert name == "text as image"
    replace(image, b"hello")
    return f"Image-01-FPS/{FIRST}/00030.jpg: "


BREAKAGES = (
    "no sound", "empty sound", "text as sound", "sound cut short", "no samples", "no frames", "empty folder",
    "empty image", "text as image",
)  # fmt: skip


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_files(crema_d: Path, name: str) -> None:
    words = breakage(name, crema_d)
    with pytest.raises(BrokenData) as caught:
        load(crema_d)
    assert "annotations/train.csv:1: " + ("" if words[0].islower() else words) in str(caught.value)
    assert words in str(caught.value)
    data = load(crema_d, skip_bad=True)
    assert len(data.train) + len(data.validation) == 17
    (skipped,) = data.skipped
    assert words in str(skipped)


def test_what_only_decoding_finds(crema_d: Path) -> None:
    sound = crema_d / "AudioWAV" / "1002_DFA_HAP_XX.wav"
    sound.unlink()
    soundfile.write(sound, np.array([0.0, np.nan] * 16000), 16000, subtype="FLOAT")
    data = load(crema_d)
    row = next(n for n, sample in enumerate(data.train.samples) if "1002_DFA_HAP" in sample["audio"])
    with pytest.raises(BadFile, match=r"1002_DFA_HAP_XX\.wav: holds NaN or infinite samples"):
        data.train[row]
    data = load(crema_d, skip_bad=True)
    assert [str(problem).split(":")[:2] for problem in data.skipped] == [["annotations/train.csv", "8"]]


@pytest.mark.parametrize(
    ("seconds", "rate", "channels", "subtype"),
    [(0.05, 16000, 1, "PCM_16"), (1.5, 16000, 2, "PCM_16"), (1.5, 8000, 1, "PCM_U8"), (7.0, 44100, 1, "PCM_24")],
)
def test_unusual_sounds_are_read(crema_d: Path, seconds: float, rate: int, channels: int, subtype: str) -> None:
    write_wav(crema_d / "AudioWAV" / f"{FIRST}.wav", seconds, rate, channels, subtype=subtype)
    data = load(crema_d, skip_bad=True)
    assert data.skipped == ()
    for dataset in (data.train, data.validation):
        inputs, _ = dataset.__getitems__(range(len(dataset)))
        assert torch.isfinite(inputs["audio"]).all()


def test_silence_is_trained_on_and_remarked(crema_d: Path) -> None:
    sound = crema_d / "AudioWAV" / f"{FIRST}.wav"
    sound.unlink()
    soundfile.write(sound, np.zeros(16000), 16000)
    data = load(crema_d, skip_bad=True)
    assert data.skipped == ()
    assert "annotations/train.csv:1: audio: all samples are 0 (silence)" in said(data.remarks)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P"])
def test_images_of_any_mode(crema_d: Path, mode: str) -> None:
    for name in ("00000.jpg", "00030.jpg", "00060.jpg"):
        image = crema_d / "Image-01-FPS" / FIRST / name
        image.unlink()
        suffix = ".png" if mode == "P" else ".jpg"
        Image.new("RGB", (20, 30), (200, 30, 30)).convert(mode).save(image.with_suffix(suffix))
    data = load(crema_d, skip_bad=True)
    assert data.skipped == ()

"""NVGesture: lists as they are, labels and subjects from the lists, one window for all modalities, flow."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from trees_video import LISTS, TEST, TRAIN, frame, line, numbers, nvgesture_tree, write_video

from igm_fast.data import DataOptions, load_dataset
from igm_fast.data.command import main
from igm_fast.data.commands.nvgesture_flow import farneback
from igm_fast.data.problems import BadFile, BrokenData
from igm_fast.data.sets import nvgesture
from igm_fast.data.sets.nvgesture import CLASSES, PUBLISHED, ClipReader, FlowReader, crop, scan
from igm_fast.data.splits import hash_split
from igm_fast.train import main as train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return nvgesture_tree(tmp_path_factory.mktemp("nvgesture"))


@pytest.fixture
def root(whole, tmp_path):
    """A copy of the tree that a test may break; files are linked, so that it costs nothing."""
    return shutil.copytree(whole, tmp_path / "nvgesture", copy_function=os.link)


def replace_list(root, part, lines) -> None:
    (root / LISTS[part]).unlink()
    (root / LISTS[part]).write_text("\n".join(lines) + "\n")


def problem(root, **options):
    """The only problem of a tree."""
    (found,) = scan(root, DataOptions(root, **options)).problems
    return found


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_published_sizes():
    assert [sum(PUBLISHED[part].values()) for part in ("train", "test")] == [1050, 482]
    assert len(CLASSES) == 25


def test_parts_have_the_lists_order_labels_and_subjects(root):
    found = scan(root, DataOptions(root))
    assert found.problems == []
    (held,) = {entry.group for entry in found.parts["validation"]}
    assert [(entry.group, entry.label) for entry in found.parts["train"]] == [
        (f"subject{subject}", label - 1) for _, subject, label in TRAIN if f"subject{subject}" != held
    ]
    assert [(entry.group, entry.label) for entry in found.parts["test"]] == [
        (f"subject{subject}", label - 1) for _, subject, label in TEST
    ]
    entry = found.parts["test"][0]
    assert entry.source["flow"] == "Video_data/class_01/subject5_r0/sk_color_flow.npy"


def test_of_the_real_list_one_subject_is_held_out():
    """Samples of each training subject in NVIDIA's list: a second one would take validation to a fifth."""
    samples = {1: 148, 2: 76, 3: 118, 4: 74, 6: 78, 7: 75, 11: 74, 12: 69, 15: 74, 16: 148, 17: 46, 18: 70}
    subjects = [f"subject{number}" for number, count in samples.items() for _ in range(count)]
    _, rows = hash_split(subjects, [0] * 1050, groups=subjects)
    assert {subjects[row] for row in rows} == {"subject11"}


def test_official_trains_on_all_subjects(root):
    found = scan(root, DataOptions(root, protocol="official"))
    assert len(found.parts["train"]) == len(TRAIN)


def test_labels_come_from_the_list_and_not_from_folders(root):
    replace_list(root, "test", [line(1, 5, 24), line(2, 5, 2)])
    assert [entry.label for entry in scan(root, DataOptions(root)).parts["test"]] == [23, 1]


@pytest.mark.parametrize("name", ["nvgesture_test_correct_v2.lst", "nvgesture_test_correct_cvpr2016_v2.lst"])
def test_both_names_of_the_lists(root, name):
    (root / LISTS["test"]).rename(root / name)
    assert len(scan(root, DataOptions(root)).parts["test"]) == len(TEST)


def test_fields_in_any_order_and_windows_line_ends(root):
    backwards = [" ".join(reversed(line(*sample).split())) for sample in TEST]
    (root / LISTS["test"]).unlink()
    (root / LISTS["test"]).write_bytes(("\r\n".join(backwards) + "\r\n\r\n").encode())
    found = scan(root, DataOptions(root))
    assert found.problems == []
    assert len(found.parts["test"]) == len(TEST)


def test_video_data_may_be_the_root_itself(root):
    for folder in (root / "Video_data").iterdir():
        folder.rename(root / folder.name)
    (root / "Video_data").rmdir()
    assert scan(root, DataOptions(root)).problems == []


def test_depth_and_color_have_their_own_ranges(root):
    text = line(1, 5, 1).replace("depth:sk_depth:4:84", "depth:sk_depth:7:87")
    replace_list(root, "test", [text, line(2, 5, 2)])
    entry = scan(root, DataOptions(root)).parts["test"][0]
    assert (
        numbers(ClipReader(root, depth=True, official=False).load(entry.source["depth"]).expand(-1, 3, -1, -1))[0] == 7
    )
    assert numbers(ClipReader(root, depth=False, official=False).load(entry.source["rgb"]))[0] == 4


def test_clips_are_rgb_and_depth_is_the_first_channel(root):
    source = {"path": "clip.avi", "start": 4, "end": 84}
    rgb = ClipReader(root, depth=False, official=False).load(source)
    depth = ClipReader(root, depth=True, official=False).load(source)
    assert rgb.shape == (80, 3, 256, 256)
    assert depth.shape == (80, 1, 256, 256)
    assert numbers(rgb) == list(range(4, 84))
    assert torch.equal(depth[:, 0], rgb[:, 0])
    official = ClipReader(root, depth=False, official=True).load(source)
    assert torch.equal(official, rgb.flip(1))
    assert torch.equal(ClipReader(root, depth=True, official=True).load(source)[:, 0], rgb[:, 2])


def test_evaluation_sees_all_frames_and_the_centre(root):
    source = {"path": "clip.avi", "start": 4, "end": 84}
    for depth, mean, std in ((True, [0.0], [1.0]), (False, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])):
        reader = ClipReader(root, depth=depth, official=False)
        clip = reader.load(source)
        shown = reader.present(clip, None).double().numpy()
        pixels = clip.numpy()[:, :, 16:240, 16:240].astype(np.float64)
        expected = (pixels / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
        # Three float32 operations on values below 4.
        np.testing.assert_allclose(shown, expected, rtol=0, atol=4 * 4 * 2**-24)


def test_training_cuts_one_window_out_of_all_modalities():
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    place = torch.stack([rows, columns]).expand(80, 2, 256, 256).clone()
    time = torch.arange(80)[:, None, None, None].expand(80, 1, 256, 256)
    windows = set()
    for seed in range(40):
        cut, when = (crop(frames, seeded(seed), kept=64) for frames in (place, time))
        top, left, first = int(cut[0, 0, 0, 0]), int(cut[0, 1, 0, 0]), int(when[0, 0, 0, 0])
        assert cut.shape == (64, 2, 224, 224)
        assert torch.equal(cut, place[:64, :, top : top + 224, left : left + 224])
        assert torch.equal(when[:, 0, 0, 0], torch.arange(first, first + 64))
        windows.add((top, left, first))
        whole_clip = crop(place, seeded(seed), kept=80)  # the official flow keeps its frames but shares the place
        assert torch.equal(whole_clip[0], cut[0])
        assert len(whole_clip) == 80
    assert len(windows) == 40
    for values, high in zip(zip(*windows, strict=True), (32, 32, 16), strict=True):
        assert 0 <= min(values) < max(values) <= high


def test_flow_is_read_cut_and_left_unscaled(tmp_path):
    field = np.random.default_rng(0).uniform(-1, 1, (256, 256, 2, 80)).astype(np.float16)
    np.save(tmp_path / "flow.npy", field)
    for official, kept in ((False, 64), (True, 80)):
        reader = FlowReader(tmp_path, official=official)
        flow = reader.load("flow.npy")
        assert flow.shape == (80, 2, 256, 256)
        shown = reader.present(flow, None)
        assert shown.dtype == torch.float32
        np.testing.assert_array_equal(
            shown.numpy(), field.transpose(3, 2, 0, 1)[..., 16:240, 16:240].astype(np.float32)
        )
        assert reader.present(flow, seeded()).shape == (kept, 2, 224, 224)


def test_numbered_flow_is_used_where_none_lies_beside_the_clip(root):
    for part, samples in (("train", TRAIN), ("test", TEST)):
        folder = root / "Video_data/flow_data" / part
        folder.mkdir(parents=True)
        for index, (gesture, subject, _) in enumerate(samples):
            beside = root / f"Video_data/class_{gesture:02}/subject{subject}_r0/sk_color_flow.npy"
            beside.rename(folder / f"{index}.npy")
    found = scan(root, DataOptions(root))
    assert found.problems == []
    assert found.parts["test"][1].source["flow"] == "Video_data/flow_data/test/1.npy"
    replace_list(root, "test", [line(*TEST[1])])
    assert "holds 2 flow files, expected 1: they are numbered as the lines" in problem(root).what


def test_missing_flow_says_how_to_compute_it(root):
    (root / "Video_data/class_01/subject5_r0/sk_color_flow.npy").unlink()
    found = problem(root)
    assert found.line == 1
    assert "sk_color_flow.npy: no such file" in found.what
    assert "nvgesture-flow --root" in str(found)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((256, 256, 2, 79), np.float16), "has 79 frames, expected 80 as the other modalities"),
        (np.zeros((240, 320, 2, 80), np.float16), r"has shape (240, 320, 2, 80) and dtype float16"),
        (np.zeros((256, 256, 2, 80), np.uint8), "dtype uint8, expected floating point"),
    ],
    ids=["length", "size", "dtype"],
)
def test_flow_of_another_shape(root, array, words):
    path = root / "Video_data/class_01/subject5_r0/sk_color_flow.npy"
    path.unlink()
    np.save(path, array)
    assert words in str(problem(root))


def test_official_flow_may_have_a_length_of_its_own_but_one_for_all(root):
    for path in (root / "Video_data").rglob("sk_color_flow.npy"):
        path.unlink()
        np.save(path, np.zeros((256, 256, 2, 60), np.float16))
    assert scan(root, DataOptions(root, protocol="official")).problems == []
    path = root / "Video_data/class_01/subject5_r0/sk_color_flow.npy"
    np.save(path, np.zeros((256, 256, 2, 61), np.float16))
    replace_list(root, "test", [line(*sample) for sample in (*TEST, (2, 1, 2))][:2])
    assert "frames, expected" in problem(root, protocol="official").what


def test_nan_in_flow(tmp_path):
    field = np.zeros((256, 256, 2, 80), np.float16)
    field[3, 4, 0, 5] = np.nan
    np.save(tmp_path / "flow.npy", field)
    with pytest.raises(BadFile, match="NaN"):
        FlowReader(tmp_path, official=False).load("flow.npy")


BROKEN = {
    "end before start": (line(1, 5, 1, 84, 84), "ends before it starts"),
    "another length": (line(1, 5, 1, 4, 83), "has 79 frames, expected 80"),
    "label 0": (line(1, 5, 0), "label: is '0', expected 1 to 25"),
    "label 26": (line(1, 5, 26), "label: is '26', expected 1 to 25"),
    "label word": (line(1, 5, 1).replace("label:1", "label:one"), "label: is 'one'"),
    "no label": (line(1, 5, 1).replace("label:1", ""), "label: is missing"),
    "no path": (line(1, 5, 1).split(" ", 1)[1], "path: is missing"),
    "no depth": (line(1, 5, 1).replace("depth:", "deep:"), "depth: is missing"),
    "no range": (line(1, 5, 1).replace("color:sk_color:4:84", "color:sk_color"), "is no clip"),
    "negative": (line(1, 5, 1).replace("sk_color:4", "sk_color:-4"), "is no clip"),
    "no subject": (line(1, 5, 1).replace("subject5_r0", "person5"), "expected subjectN_rM"),
    "upwards": (line(1, 5, 1).replace("./Video_data", "./Video_data/../.."), "leads out of the data set's folder"),
    "absolute": (line(1, 5, 1).replace("./Video_data", "/Video_data"), "leads out of the data set's folder"),
    "name with a slash": (line(1, 5, 1).replace("color:sk_color", "color:../x/sk_color"), "is no clip"),
    "missing clip": (line(1, 9, 1), "sk_depth.avi: no such file"),
    "twice": (line(2, 5, 2), "is listed in"),
    "in training": (line(*TRAIN[0]), "is listed in nvgesture_train_correct_cvpr2016_v2.lst:1"),
    "behind the end": (line(1, 5, 1, 20, 100), "has 90 frames, expected at least 100"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_lines_are_problems_with_their_line(root, case):
    text, words = BROKEN[case]
    replace_list(root, "test", [line(2, 5, 2), text])
    found = problem(root)
    assert (found.path, found.line) == (LISTS["test"], 2)
    assert words in str(found)
    assert found.fix


def test_a_missing_list(root):
    (root / LISTS["train"]).unlink()
    assert "the list is missing" in problem(root).what


def test_a_list_that_is_no_text(root):
    (root / LISTS["train"]).unlink()
    (root / LISTS["train"]).write_bytes(b"path:\xff\xfe\n")
    assert "is not UTF-8" in problem(root).what


def test_missing_frames_are_an_error_or_black_in_the_official_protocol(root):
    short = write_video(root / "short.avi", [frame(number) for number in range(50)])
    source = {"path": short.name, "start": 4, "end": 84}
    with pytest.raises(BadFile, match="has no frame 50"):
        ClipReader(root, depth=False, official=False).load(source)
    clip = ClipReader(root, depth=False, official=True).load(source)
    assert numbers(clip[:46].flip(1)) == list(range(4, 50))
    assert clip.shape == (80, 3, 256, 256)
    assert not clip[46:].any()


def test_a_short_range_is_filled_up_in_the_official_protocol(root):
    clip = ClipReader(root, depth=True, official=True).load({"path": "clip.avi", "start": 4, "end": 50})
    assert clip.shape == (80, 1, 256, 256)
    assert not clip[46:].any()


def test_loading_refuses_problems_and_a_missing_root(root):
    with pytest.raises(FileNotFoundError, match="--data_root"):
        load_dataset("nvgesture")
    replace_list(root, "test", [line(2, 5, 2), line(1, 5, 26)])
    with pytest.raises(BrokenData, match="1 problem"):
        load_dataset("nvgesture", 0, DataOptions(root))
    data = load_dataset("nvgesture", 0, DataOptions(root, skip_bad=True))
    assert len(data.test) == 1
    assert "label: is '26'" in str(data.skipped[0])


def test_loaded_data(root, tmp_path):
    cache = tmp_path / "cache"
    data = load_dataset("nvgesture", 0, DataOptions(root, cache=cache))
    assert [(spec.name, spec.shape, spec.encoder) for spec in data.modalities] == [
        ("depth", (80, 1, 224, 224), "i3d"),
        ("rgb", (80, 3, 224, 224), "i3d"),
        ("flow", (80, 2, 224, 224), "i3d"),
    ]
    inputs, labels = data.train.augmented(0, 1).__getitems__([0, 1])
    assert {name: tuple(x.shape) for name, x in inputs.items()} == {
        "depth": (2, 64, 1, 224, 224),
        "rgb": (2, 64, 3, 224, 224),
        "flow": (2, 64, 2, 224, 224),
    }
    assert labels.tolist() == [0, 1]
    # One colour and one depth entry, since all clips are one file here; flow is no work to read and isn't kept.
    sizes = [path.stat().st_size for path in cache.rglob("*.npy")]
    assert sorted(size // (80 * 256 * 256) for size in sizes) == [1, 3]
    again, _ = data.train.augmented(0, 1).__getitems__([0, 1])
    other, _ = data.train.augmented(0, 2).__getitems__([0, 1])
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert not torch.equal(inputs["rgb"], other["rgb"])
    # Depth is the red channel of the same file here: one window for both, up to two different normalisations.
    restored = inputs["rgb"][:, :, 0] * 0.229 + 0.485
    assert (restored - inputs["depth"][:, :, 0]).abs().max() < 1e-6


def test_flow_is_computed_beside_the_clips_once(tmp_path, capsys):
    pytest.importorskip("cv2")
    root = nvgesture_tree(tmp_path / "nvgesture", flow=False)
    command = ["nvgesture-flow", "--root", str(root)]
    replace_list(root, "train", [line(*sample) for sample in (TRAIN[0], TRAIN[5])])
    replace_list(root, "test", [line(*TEST[0]), line(2, 5, 2, 20, 100)])
    assert main(command) == 1
    assert "flow of 3 clips computed, of 0 clips already there, 1 lines with problems" in capsys.readouterr().out
    path = root / "Video_data/class_01/subject1_r0/sk_color_flow.npy"
    flow = np.load(path)
    assert flow.shape == (256, 256, 2, 80)
    assert flow.dtype == np.float16
    assert not list(path.parent.glob(".flow*"))
    replace_list(root, "test", [line(*TEST[0])])
    half_written = root / "Video_data/class_01/subject5_r0/sk_color_flow.npy"
    half_written.write_bytes(half_written.read_bytes()[:1000])
    assert main(command) == 0
    assert "flow of 1 clips computed, of 2 clips already there" in capsys.readouterr().out
    assert scan(root, DataOptions(root)).problems == []


def test_flow_is_in_units_of_20_pixels_and_the_last_field_repeats():
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    ground = gaussian_filter(rng.uniform(0, 255, (120, 160)), 3, mode="wrap")
    ground = (ground - ground.min()) / np.ptp(ground) * 255
    # Each frame is the ground moved by 3 pixels to the right and 1 up.
    clip = np.stack([np.roll(ground, (-n, 3 * n), axis=(0, 1)) for n in range(3)]).astype(np.uint8)
    flow = farneback(np.repeat(clip[..., None], 3, axis=3))
    middle = flow[30:-30, 30:-30].astype(np.float64)
    # An estimate: within a third of a pixel of the motion, in the median, on a smooth texture.
    np.testing.assert_allclose(np.median(middle, axis=(0, 1)) * 20, [[3, 3, 3], [-1, -1, -1]], atol=0.33)
    np.testing.assert_array_equal(flow[..., 2], flow[..., 1])
    assert np.abs(flow.astype(np.float64)).max() <= 1


def test_two_epochs_on_the_tree(root, tmp_path, monkeypatch):
    """Small encoders on a cut of 32 pixels instead of 224: the network's work is no part of this test."""
    monkeypatch.setattr(nvgesture, "CROP", 32)
    flags = ["--data", "nvgesture", "--data_root", str(root), "--encoders", "depth=small,rgb=small,flow=small"]
    flags += ["--method", "late", "--epochs", "2", "--stages", "1", "--stage_epochs", "", "--batch_size", "4"]
    assert train([*flags, "--width", "8", "--threads", "1", "--quiet", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["modalities"] == ["depth", "rgb", "flow"]
    assert result["num_test"] == len(TEST)

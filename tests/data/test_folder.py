"""One's own table: kinds are inferred, ``data.yaml`` overrides, and every slip has a sentence with its line."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from trees_folder import CLASSES, SPLITS, folder_rows, write_table

from igm_fast.data import BrokenData, DataOptions, load_dataset
from igm_fast.data.command import main as check
from igm_fast.data.own.columns import infer_kind
from igm_fast.data.own.standardize import streamed_statistics
from igm_fast.data.sets.folder import scan
from igm_fast.train import main as train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    return root, folder_rows(root)


@pytest.fixture
def root(whole, tmp_path):
    """A folder with its table that a test may break."""
    copy = shutil.copytree(whole[0], tmp_path / "own", copy_function=os.link)
    write_table(copy, whole[1])
    return copy


@pytest.fixture
def rows(whole):
    return [dict(row) for row in whole[1]]


def load(root, seed=0, **options):
    return load_dataset("folder", seed, DataOptions(root, **options))


def problems(root):
    return [str(problem) for problem in scan(root, DataOptions(root)).problems]


def small_table(root, text: str):
    root.mkdir(exist_ok=True)
    (root / "data.csv").write_text(text, encoding="utf-8")
    return root


def test_every_kind_is_inferred_and_said(root):
    data = load(root)
    assert [(spec.name, spec.kind, spec.shape, spec.encoder) for spec in data.modalities] == [
        ("voice", "image", (1, 257, 126), "small"),  # 2 s at 16 kHz, hop 256
        ("photo", "image", (3, 64, 64), "small"),
        ("clip", "image", (4, 3, 64, 64), "small"),
        ("pose", "sequence", (3, 20), "small"),
        ("size", "vector", (2,), "small"),
        ("remark", "tokens", (64,), "small"),
    ]
    assert data.classes == CLASSES
    assert [len(part) for part in data.parts.values()] == [SPLITS.count(part) for part in data.parts]
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    for line in (
        "voice: audio, image 1×257×126, encoder small",
        "size: numbers, vector 2",
        "pose: array, sequence 3×20",
    ):
        assert line in data.description


def test_samples_hold_what_the_files_hold(root, rows):
    data = load(root)
    inputs, label = data.test[1]
    row = rows[len(SPLITS) - 3]
    training = [np.load(root / own["pose"]) for own, split in zip(rows, SPLITS, strict=True) if split == "train"]
    stacked = np.stack(training).astype(np.float64)
    mean, std = stacked.mean(axis=(0, 2)), stacked.std(axis=(0, 2))
    expected = (np.load(root / row["pose"]) - mean[:, None]) / std[:, None]
    # Mean, scale and both operations are rounded to float32: values near 10 before the mean is taken off.
    np.testing.assert_allclose(inputs["pose"].numpy(), expected, rtol=0, atol=4 * 16 * 2**-24 / std.min())
    sizes = np.array([float(own["size.0"]) for own, split in zip(rows, SPLITS, strict=True) if split == "train"])
    assert inputs["size"][0] == pytest.approx((float(row["size.0"]) - sizes.mean()) / sizes.std(), abs=1e-6)
    assert inputs["size"][1] == 0  # constant in training
    assert label == CLASSES.index(row["label"])
    assert inputs["clip"].shape == (4, 3, 64, 64)
    assert (inputs["remark"] > 0).sum() == 4  # "a cat it seems"
    assert inputs["remark"].unique().numel() == 5


def test_settings_override_what_was_inferred(root):
    (root / "data.yaml").write_text(
        "voice: {rate: 8000, seconds: 0.5, encoder: resnet18}\nphoto: {size: 32, augment: true}\nclip: {frames: 2}\n"
        "pose: {standardize: false}\nsize: {kind: ignore}\nremark: {kind: ignore}\n"
    )
    data = load(root)
    assert [(spec.name, spec.shape, spec.encoder) for spec in data.modalities] == [
        ("voice", (1, 257, 16), "resnet18"),
        ("photo", (3, 32, 32), "small"),
        ("clip", (2, 3, 64, 64), "small"),
        ("pose", (3, 20), "small"),
    ]
    view, same = data.train.augmented(1), data.train.augmented(1)
    assert torch.equal(view[0][0]["photo"], same[0][0]["photo"])
    assert not torch.equal(view[0][0]["photo"], data.train[0][0]["photo"])
    assert torch.equal(view[0][0]["voice"], data.train[0][0]["voice"])
    np.testing.assert_array_equal(data.train[0][0]["pose"].numpy(), np.load(root / "pose/0.npy"))


def test_encoders_of_the_command_line_win_and_set_the_size(root):
    data = load(root, encoders={"photo": "resnet18"})
    assert {spec.name: (spec.encoder, spec.shape) for spec in data.modalities}["photo"] == ("resnet18", (3, 224, 224))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("voise: {kind: audio}", "Did you mean 'voice'"),
        ("voice: {second: 3}", "Did you mean 'seconds'"),
        ("voice: {kind: sound}", "unknown kind 'sound'"),
        ("voice: {kind: audio, size: 3}", "a setting of image and video, but is of kind audio"),
        ("voice: {seconds: long}", "seconds is 'long', expected a positive number"),
        ("voice: {rate: -1}", "rate is -1, expected a positive whole number"),
        ("photo: {augment: 1}", "augment is 1, expected true or false"),
        ("voice: audio", "expected a name and its settings"),
        ("voice: {kind: [", "is not readable YAML"),
    ],
)
def test_settings_are_checked(root, text, words):
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"data\.yaml") as caught:
        load(root)
    assert words in str(caught.value)


def test_parquet_with_lists_and_integers(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "label": [n % 3 + 8 for n in range(60)],
        "embedding": [[float(n), float(n % 5)] for n in range(60)],
        "age": [20 + n for n in range(60)],
        "text": ["some words"] * 60,
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")
    data = load(tmp_path)
    assert [(spec.name, spec.kind, spec.shape) for spec in data.modalities] == [
        ("embedding", "vector", (2,)),
        ("age", "vector", (1,)),
        ("text", "tokens", (64,)),
    ]
    assert data.classes == ("8", "9", "10")  # by size, not by letters


def test_without_split_the_seed_draws_and_groups_stay_together(tmp_path):
    lines = [f"{n % 2},{n // 6},{n}" for n in range(120)]
    small_table(tmp_path, "label,group,value\n" + "\n".join(lines) + "\n")
    data = load(tmp_path)
    assert [len(part) for part in data.parts.values()] == [72, 18, 30]
    found = scan(tmp_path, DataOptions(tmp_path))
    groups = {part: {entry.group for entry in entries} for part, entries in found.parts.items()}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert load(tmp_path, 1).fingerprint != data.fingerprint
    assert load(tmp_path, 0).fingerprint == data.fingerprint


def test_validation_is_cut_from_training_where_there_is_none(tmp_path):
    lines = [f"{'ab'[n % 2]},{'train' if n < 40 else 'test'},{n}" for n in range(60)]
    small_table(tmp_path, "label,split,value\n" + "\n".join(lines) + "\n")
    parts = [load(tmp_path, seed).parts for seed in (0, 1)]
    assert [len(part) for part in parts[0].values()] == [36, 4, 20]
    rows = scan(tmp_path, DataOptions(tmp_path)).parts["validation"]
    assert sorted(entry.label for entry in rows) == [0, 0, 1, 1]
    assert parts[0]["train"].samples == parts[1]["train"].samples


def test_rows_and_keys_of_arrays(tmp_path):
    values = np.arange(24, dtype=np.float64).reshape(4, 2, 3)
    np.save(tmp_path / "x.npy", values)
    np.savez(tmp_path / "y.npz", **{f"k{n}": values[n].astype(np.int16) for n in range(4)})
    np.savez_compressed(tmp_path / "z.npz", values[0])
    lines = [f"{n % 2},{s},x.npy[{n}],y.npz#k{n},z.npz" for n, s in enumerate(("train", "train", "validation", "test"))]
    small_table(tmp_path, "label,split,a,b,c\n" + "\n".join(lines) + "\n")
    (tmp_path / "data.yaml").write_text("a: {standardize: false}\nb: {standardize: false}\nc: {standardize: false}\n")
    data = load(tmp_path)
    inputs, _ = data.test[0]
    for name, number in (("a", 3), ("b", 3), ("c", 0)):
        np.testing.assert_array_equal(inputs[name].numpy(), values[number])


def test_kinds_by_cells(tmp_path):
    (tmp_path / "a.wav").touch()
    assert infer_kind(tmp_path, ["1", "-2.5e3"]) == "numbers"
    assert infer_kind(tmp_path, ["a.wav", "b.wav"]) == "audio"
    assert infer_kind(tmp_path, ["a.wav", "no name of a file"]) == "audio"  # the second is a problem, not a text
    assert infer_kind(tmp_path, ["b.wav", "no name of a file"]) == "text"
    assert infer_kind(tmp_path, ["b.JPG", "c.png"]) == "image"
    assert infer_kind(tmp_path, ["x.npy[3]", "y.npz#key"]) == "array"
    assert infer_kind(tmp_path, ["x" * 5000]) == "text"


@pytest.mark.parametrize(("kind", "shape"), [("vector", (4,)), ("sequence", (3, 7)), ("image", (2, 3, 4, 5))])
def test_streamed_statistics_are_those_of_the_stack(kind, shape):
    rng = np.random.default_rng(1)
    samples = (1000 + rng.normal(size=(20, *shape))).astype(np.float32)
    mean, scale = streamed_statistics(map(torch.from_numpy, samples), kind)
    axes = {"vector": (0,), "sequence": (0, 2), "image": (0, 1, 3, 4)}[kind]
    exact = samples.astype(np.float64)
    np.testing.assert_allclose(mean.squeeze().numpy(), exact.mean(axis=axes), rtol=2**-23)
    # Sums in float64 of squares of differences from a mean near 1000: far below float32's round-off.
    np.testing.assert_allclose(scale.squeeze().numpy(), exact.std(axis=axes), rtol=2**-23)


TABLES = {
    "no label": ("class,x\na,1\n", "no column 'label', only class, x"),
    "only the header": ("label,x\n", "no sample, only the header"),
    "empty": ("", "data.csv: empty"),
    "two columns of one name": ("label,x,x\na,1,2\n", "columns occur twice: 'x'"),
    "column without name": ("label,,x\na,1,2\n", "column 2 has no name"),
    "ragged line": ("label,split,x\na,train,1\nb,train\n", "data.csv:3: 2 cells, expected 3"),
    "unknown split": (
        "label,split,x\na,train,1\nb,tset,2\n",
        "data.csv:3: split: unknown part 'tset'. Did you mean 'test'",
    ),
    "empty label": ("label,split,x\na,train,1\n,train,2\n", "data.csv:3: label: the cell is empty"),
    "no modality": ("label,split\na,train\nb,test\n", "no column holds a modality"),
    "reserved name": ("label,split,joint\na,train,1\nb,test,2\n", "modality name 'joint' is taken"),
    "bad name": ("label,split,my age\na,train,1\nb,test,2\n", "modality name 'my age': expected letters"),
    "too few to divide": ("label,x\na,1\nb,2\n", "part is empty"),
    "nan": ("label,split,x\na,train,1\nb,train,nan\n", "data.csv:3: x: holds ['nan'], expected finite numbers"),
    "missing file": ("label,split,x\na,train,a.jpg\nb,train,b.jpg\n", "data.csv:2: a.jpg: no such"),
    "upwards": ("label,split,x\na,train,../a.jpg\nb,train,../b.jpg\n", "leads out of the data set's folder"),
    "absolute": ("label,split,x\na,train,/tmp/a.npy\nb,train,/tmp/b.npy\n", "leads out of the data set's folder"),
    "quotes": ('label,split,x\na,train,"1\n', "not readable as CSV"),
}


@pytest.mark.parametrize("case", TABLES)
def test_slips_in_the_table(tmp_path, case):
    text, words = TABLES[case]
    small_table(tmp_path, text)
    assert any(words in problem for problem in problems(tmp_path)), problems(tmp_path)
    with pytest.raises(BrokenData):
        load(tmp_path)
    with pytest.raises(BrokenData):  # nothing is left to train on
        load(tmp_path, skip_bad=True)


def test_no_table_and_two_tables(tmp_path):
    assert "no data.csv and no data.parquet" in problems(tmp_path)[0]
    small_table(tmp_path, "label,x\na,1\n")
    (tmp_path / "data.parquet").touch()
    assert "both tables are there" in problems(tmp_path)[0]
    (tmp_path / "data.csv").unlink()
    assert "not readable as Parquet" in problems(tmp_path)[0]


def test_encoding_and_line_ends(tmp_path):
    lines = [f"{'ab'[n % 2]},{('train', 'validation', 'test')[n // 2 % 3]},wört {n}" for n in range(12)]
    text = "\r\n".join(["label,split,x", *lines, "", ""])
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert problems(tmp_path) == []
    (tmp_path / "data.csv").write_bytes(text.encode("latin-1"))
    assert "is not UTF-8" in problems(tmp_path)[0]


def broken_array(kind: str, path) -> None:
    if kind == "object":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif kind == "text":
        np.save(path, np.array(["a"]))
    elif kind == "huge":
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 9999999), }"
        path.write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64))
    elif kind == "huge product":
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"
        path.write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64))
    elif kind == "truncated":
        np.save(path, np.zeros((3, 20), np.float32))
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "ragged":
        np.save(path, np.zeros((3, 21), np.float32))
    elif kind == "no axis":
        np.save(path, np.float32(1))
    elif kind == "empty axis":
        np.save(path, np.zeros((3, 0), np.float32))
    else:
        path.touch()


@pytest.mark.parametrize(
    "kind", ["object", "text", "huge", "huge product", "truncated", "ragged", "no axis", "empty axis", "no byte"]
)
def test_arrays_that_cannot_be_used(root, kind):
    (root / "pose/5.npy").unlink()
    broken_array(kind, root / "pose/5.npy")
    (problem,) = problems(root)
    assert problem.startswith("data.csv:7: pose/5.npy: ")
    data = load(root, skip_bad=True)
    assert len(data.train) == SPLITS.count("train") - 1
    assert len(data.skipped) == 1


def test_archives_that_cannot_be_used(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
    np.save(tmp_path / "y.npy", np.zeros((2, 3)))
    cells = {
        "x.npz#a": None,
        "x.npz": "holds 2 arrays (a, b)",
        "x.npz#c": "has no array 'c', only a, b",
        "broken.npz#a": "is no readable array file",
        "y.npy[2]": "has no row 2",
        "y.npy#a": "holds one array and has no keys",
    }
    text = "label,split,x\n" + "".join(f"a,train,{cell}\n" for cell in cells)
    found = problems(small_table(tmp_path, text))
    assert len(found) == 5
    for line, (problem, words) in enumerate(zip(found, list(cells.values())[1:], strict=True), start=3):
        assert problem.startswith(f"data.csv:{line}: ")
        assert words in problem


def test_a_member_that_claims_more_than_it_holds(tmp_path):
    import zipfile

    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        head = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little")
        archive.writestr("a.npy", head + header + b"\n" + bytes(64))
    found = problems(small_table(tmp_path, "label,split,x\na,train,x.npz#a\n"))
    assert "claims shape (99999999999,)" in found[0]


def test_numbers_of_unequal_length(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"label": ["a", "b"], "split": ["train", "train"], "x": [[1.0, 2.0], [3.0]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")
    assert "data.parquet:2: x: holds 1 numbers, expected 2 as in the first line" in problems(tmp_path)[0]


def test_repeated_samples_and_unlearnt_classes_are_remarks(tmp_path):
    text = "label,split,x\na,train,1\nb,train,2\na,train,3\na,validation,4\na,test,1\nc,test,5\n"
    data = load(small_table(tmp_path, text))
    assert [problem.what for problem in data.remarks] == [
        "the same sample as in line 2",
        "class 'c' has no training sample",
    ]


def test_two_epochs_on_every_kind(root, tmp_path):
    (root / "data.yaml").write_text(
        "clip: {frames: 2, size: 16}\nphoto: {size: 16, augment: true}\nvoice: {seconds: 1}\n"
    )
    flags = ["--data", "folder", "--data_root", str(root), "--epochs", "2", "--stages", "1", "--batch_size", "4"]
    runs = [tmp_path / "one", tmp_path / "two"]
    assert train([*flags, "--width", "8", "--threads", "1", "--quiet", "--out", str(runs[0])]) == 0
    assert train([*flags, "--width", "8", "--threads", "1", "--quiet", "--workers", "1", "--out", str(runs[1])]) == 0
    one, two = (json.loads((run / "result.json").read_text()) for run in runs)
    assert one["modalities"] == ["voice", "photo", "clip", "pose", "size", "remark"]
    assert one["test"] == two["test"]


def test_check_prints_what_was_inferred(root, capsys):
    assert check(["check", "folder", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "pose: array, sequence 3×20, encoder small" in printed
    assert "no problems" in printed

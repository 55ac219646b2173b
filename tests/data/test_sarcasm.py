"""Sarcasm in its layout: JSON lists, images, how they can be broken, and the converter of the public files."""

from __future__ import annotations

import json
import re

import pytest
from trees_text import sarcasm_items, sarcasm_tree, write_items, write_photo

from igm_fast.data import BadFile, BrokenData, DataOptions, load_dataset
from igm_fast.data.command import main
from igm_fast.data.commands.prepare_sarcasm import prepare_sarcasm
from igm_fast.data.sets import sarcasm

SMALL = {"text": "small", "image": "small"}
TRAIN = "annotations/train_data.json"


@pytest.fixture
def root(tmp_path):
    return sarcasm_tree(tmp_path)


def scan(root, **options):
    return sarcasm.scan(root, DataOptions(**options))


def only_problem(root) -> str:
    (problem,) = scan(root).problems
    return str(problem)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_lists_are_read(root):
    found = scan(root)
    assert found.problems == []
    assert {part: len(entries) for part, entries in found.parts.items()} == {"train": 12, "validation": 6, "test": 6}
    second = found.parts["train"][1]
    assert second.source == {"text": "so lovely monday emoji_92", "image": "images/train1.jpg"}
    assert (second.label, second.file, second.line) == (1, TRAIN, 2)
    assert scan(root, protocol="official").parts == found.parts


@pytest.mark.parametrize("change", [{"label": "1"}, {"image": "D:/data/images/train1.jpg"}, {"extra": None}])
def test_variants_of_an_entry_mean_the_same(root, change):
    items = sarcasm_items("train", 12)
    expected = scan(root).parts["train"]
    write_items(root / TRAIN, [items[0], items[1] | change, *items[2:]])
    found = scan(root)
    assert found.problems == []
    assert found.parts["train"] == expected


def test_text_that_is_empty_after_cleaning_is_valid(root):
    items = sarcasm_items("train", 12)
    items[0]["text"] = "?! ..."
    write_items(root / TRAIN, items)
    data = load_dataset("sarcasm", 0, DataOptions(root=root, encoders=SMALL))
    assert data.train[0][0]["text"].tolist() == [1] + [0] * 63


def test_data_set(root):
    data = load_dataset("sarcasm", 0, DataOptions(root=root, encoders={"text": "small"}))
    assert [(spec.name, spec.encoder) for spec in data.modalities] == [("text", "small"), ("image", "resnet50")]
    assert data.classes == ("sincere", "sarcastic")
    assert sum(sarcasm.PUBLISHED["train"].values()) == 19816


def test_there_are_no_targets(root):
    with pytest.raises(ValueError, match="has no target entities; leave use_target out"):
        load_dataset("sarcasm", 0, DataOptions(root=root, encoders=SMALL, use_target=True))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"train_data\.json:2: label 2, expected 0 \(sincere\) or 1.*Correct the label"),
        ({"label": True}, "label True"),
        ({"label": 1.0}, r"label 1\.0"),
        ({"label": None}, "label None"),
        ({"text": None}, "text is None, expected Unicode text"),
        ({"text": "half \ud83d"}, "expected Unicode text"),
        ({"image": 5}, "image is 5, expected Unicode text"),
        ({"image": "gone.jpg"}, r"train_data\.json:2: images/gone\.jpg: no such image file"),
        ({"image": "../../etc/passwd"}, r"images/passwd: no such image file"),
        ({"image": "images/.."}, "leads out of the data set's folder"),
        ({"image": "..\\secret.jpg"}, "leads out of the data set's folder"),
        ({"image": ""}, "is empty"),
        ({"image": "a\0b"}, "holds a NUL"),
        ({"image": "train0.jpg"}, r"json:2: image train0\.jpg is that of annotations/train_data\.json:1, too"),
    ],
)
def test_a_broken_entry_is_named(root, change, message):
    items = sarcasm_items("train", 12)
    items[1] |= change
    write_items(root / TRAIN, items)
    assert re.search(message, only_problem(root))


@pytest.mark.parametrize("item", [{"image": "train1.jpg", "text": "x"}, {}, [], "x", None, 3])
def test_an_entry_without_its_keys_is_named(root, item):
    write_items(root / TRAIN, [sarcasm_items("train", 1)[0], item])
    assert re.search(r'json:2: has no .*label, only .*Expected {"image"', only_problem(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train_data\.json:1: is no JSON .*prepare sarcasm"),
        (b'[{"image": "a.jpg"},\n{"image"', r"train_data\.json:2: is no JSON"),
        (b"['single quotes']", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[" + b"1" * 10_000 + b"]", "is no JSON"),
        (b'{"image": "a.jpg"}', "holds one dict, expected a list"),
        (b'[\n"\xff"]', r"train_data\.json:2: byte b'\\xff' is not UTF-8"),
    ],
)
def test_a_broken_list_is_named(root, content, message):
    (root / TRAIN).write_bytes(content)
    assert re.search(message, only_problem(root))


def test_missing_lists_and_folders_are_named_once(root):
    (root / TRAIN).unlink()
    assert f"{TRAIN}: the file is missing" in only_problem(root)
    assert len(scan(root / "images").problems) == 1


def test_an_image_in_two_parts_is_a_problem(root):
    write_items(root / "annotations/test_data.json", [*sarcasm_items("test", 6), sarcasm_items("train", 1)[0]])
    assert f"test_data.json:7: image train0.jpg is that of {TRAIN}:1, too" in only_problem(root)


def test_training_refuses_a_broken_set_or_skips_and_lists(root):
    photo = write_photo(root / "images/train3.jpg", (60, 60))
    photo.write_bytes(photo.read_bytes()[:1500])
    (root / "images/test0.jpg").unlink()
    with pytest.raises(BrokenData, match="has 1 problem"):
        load_dataset("sarcasm", 0, DataOptions(root=root, encoders=SMALL))
    data = load_dataset("sarcasm", 0, DataOptions(root=root, encoders=SMALL, skip_bad=True))
    assert [(problem.path, problem.line) for problem in data.skipped] == [("annotations/test_data.json", 1), (TRAIN, 4)]
    assert (len(data.train), len(data.test)) == (11, 5)


# ---- converter -------------------------------------------------------------------------------------------------------

PUBLIC = {
    "train.txt": [
        ["1", "so kind . ", 0],
        ["2", "it 's # sarcasm", 1],  # left out: a whole word
        ["3", "# ironically sarcasmo <user>", 1],  # stays: no whole word
        ["4", 'see <url> "', 0],
        ["5", 'it\'s a "mess"', 1],
    ],
    "valid2.txt": [["6", "# sarcasm", 1, 0], ["7", "well", 1, 1]],
    "test2.txt": [["8", "so so", 0, 0], ["9", "é 😂", 0, 1]],
}


@pytest.fixture
def download(tmp_path):
    folder = tmp_path / "download" / "text"
    folder.mkdir(parents=True)
    for name, tweets in PUBLIC.items():
        (folder / name).write_bytes("".join(f"{tweet!r}\r\n" for tweet in tweets).encode())
    return folder.parent


def test_public_files_become_the_lists(download, tmp_path, capsys):
    out = tmp_path / "out"
    write_photo(out / "images/1.jpg")
    assert main(["prepare", "sarcasm", str(download), str(out)]) == 0
    lists = {part: json.loads((out / file).read_text()) for part, file in sarcasm.LISTS.items()}
    assert lists["train"] == [
        {"image": "1.jpg", "text": "so kind . ", "label": 0},
        {"image": "3.jpg", "text": "# ironically sarcasmo <user>", "label": 1},
        {"image": "5.jpg", "text": 'it\'s a "mess"', "label": 1},
    ]
    assert [item["label"] for item in lists["validation"]] == [0, 1]
    assert lists["test"][1] == {"image": "9.jpg", "text": "é 😂", "label": 1}
    said = capsys.readouterr().out
    assert (
        "train_data.json: 3 tweets, 1 sincere and 2 sarcastic, by the hashtag's label; 2 with a word that gives it"
        in said
    )
    assert "test_data.json: 2 tweets, 1 sincere and 1 sarcastic, by the human label, which differs" in said
    assert "1 of the 7 images lie in" in said
    for item in [item for items in lists.values() for item in items]:
        write_photo(out / "images" / item["image"])
    assert scan(out).problems == []


def test_converter_overwrites_nothing(download, tmp_path):
    prepare_sarcasm(download / "text", tmp_path / "out")
    before = {file: (tmp_path / "out" / file).read_bytes() for file in sarcasm.LISTS.values()}
    with pytest.raises(FileExistsError, match=r"train_data\.json is already there; delete it"):
        prepare_sarcasm(download, tmp_path / "out")
    assert before == {file: (tmp_path / "out" / file).read_bytes() for file in sarcasm.LISTS.values()}
    assert len(list((tmp_path / "out/annotations").iterdir())) == 3


@pytest.mark.parametrize(
    "line",
    [
        "['1', 'a']",
        "['1', 'a', 2]",
        "['1', 'a', '1']",
        "['1', 'a', True]",
        "[1, 'a', 1]",
        "('1', 'a', 1)",
        "__import__('os')",
        "['1', 'a', 1",
        "nonsense",
        "(" * 10_000,
        "\0",
        "['1', 'a', 1, 1]",
    ],
)
def test_a_line_that_is_no_tweet_is_named(download, tmp_path, line):
    with (download / "text/train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadFile, match=r"train\.txt:6: .* is no \['<id>', '<text>', hashtag label\].*Download"):
        prepare_sarcasm(download, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file, expected train.txt"), (b"\xff", "is not UTF-8")]
)
def test_a_file_that_is_no_text_is_named(download, tmp_path, content, message):
    (download / "text/train.txt").unlink()
    if content is not None:
        (download / "text/train.txt").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        prepare_sarcasm(download, tmp_path / "out")

"""Twitter2015 in its layout: both headers, labels, text and target, images, and each way in which lists are broken."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image
from trees_text import TOMBERT, TOMBERT_TEST, tweets, twitter_tree, write_photo, write_tweets, write_vocabulary

from igm_fast.data import BrokenData, DataOptions, load_dataset
from igm_fast.data.readers.images import CLIP_MEAN, CLIP_STD, normalize, resize
from igm_fast.data.sets import twitter2015
from igm_fast.data.text_image import PhotoReader

SMALL = {"text": "small", "image": "small"}


@pytest.fixture
def root(tmp_path):
    return twitter_tree(tmp_path)


def scan(root, **options):
    return twitter2015.scan(root, DataOptions(**options))


def only_problem(root, **options) -> str:
    (problem,) = scan(root, **options).problems
    return str(problem)


def change(root, number: int, file: str = "train", **values) -> None:
    """Write a list again with one row changed."""
    rows = tweets({"dev": "validation"}.get(file, file), 6)
    rows[number] |= values
    write_tweets(root / "annotations" / f"{file}.tsv", rows, TOMBERT_TEST if file == "test" else TOMBERT)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_lists_are_read_as_tombert_publishes_them(root):
    found = scan(root)
    assert found.problems == []
    assert {part: len(entries) for part, entries in found.parts.items()} == {"train": 12, "validation": 6, "test": 6}
    assert [entry.label for entry in found.parts["test"]] == [0, 1, 2, 0, 1, 2]
    second = found.parts["test"][1]
    assert second.source == {
        "text": "rt somebody t and the dog are plain",
        "image": "twitter2015_images/test0.jpg",
    }
    assert (second.file, second.line) == ("annotations/test.tsv", 3)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["Label\tImageID\tString", "\ufeffString\tindex\tLABEL\t#2 ImageID"])
def test_the_rewritten_header_is_read_in_any_order(root, header, end):
    lines = [header]
    for row in tweets("train", 4):
        values = {"label": row["label"], "imageid": row["image"], "string": row["text"], "index": 7}
        lines.append("\t".join(str(values[name.strip("\ufeff#2 ").lower()]) for name in header.split("\t")))
    (root / "annotations/train.tsv").write_bytes("".join(line + end for line in [*lines, "", " "]).encode())
    assert scan(root).problems == []
    assert scan(root).parts["train"] == scan(twitter_tree(root / "other", train=4)).parts["train"]


def test_target_is_the_second_text(root):
    assert scan(root, use_target=True).parts["train"][0].source["text"] == [
        "rt somebody the vet and t are awful",
        "dog",
    ]


def test_use_target_needs_the_second_string(root):
    change(root, 0)
    lines = (root / "annotations/train.tsv").read_text().split("\n")
    short = "\n".join("\t".join(line.split("\t")[:4]) for line in lines)
    (root / "annotations/train.tsv").write_text(short)
    assert scan(root).problems == []
    assert "names no column for target" in only_problem(root, use_target=True)


def test_quotes_tabs_and_missing_value_words_are_text(root):
    change(root, 0, text='NA "')
    change(root, 1, "dev", text="null")
    found = scan(root)
    assert found.problems == []
    assert [found.parts["train"][row].source["text"] for row in (0, 1)] == ["na", "rt somebody t and the dog are plain"]
    assert found.parts["validation"][1].source["text"] == "null"


def test_a_tweet_of_emojis_is_valid(root, tmp_path):
    change(root, 0, text="😂😂")
    bert = write_vocabulary(tmp_path / "bert")
    data = load_dataset(
        "twitter2015", 0, DataOptions(root=root, pretrained={"text": bert}, encoders={"image": "small"})
    )
    assert data.train[0][0]["text"].tolist() == [2, 3] + [0] * 126


def test_both_protocols_keep_the_validation_list_out_of_training(root):
    parts = [scan(root, protocol=protocol).parts for protocol in ("paper", "official")]
    assert parts[0] == parts[1]


def test_encoders_and_kinds(root):
    data = load_dataset("twitter2015", 0, DataOptions(root=root, encoders={"text": "small"}))
    assert [(spec.name, spec.kind, spec.shape, spec.encoder) for spec in data.modalities] == [
        ("text", "tokens", (64,), "small"),
        ("image", "image", (3, 224, 224), "resnet50"),
    ]
    assert data.classes == ("negative", "neutral", "positive")
    assert sum(twitter2015.PUBLISHED["train"].values()) == 3179


def test_bert_without_directory_names_the_ways_out(root):
    with pytest.raises(ValueError, match=r"--pretrained text=DIR.*--encoders text=small"):
        load_dataset("twitter2015", 0, DataOptions(root=root))
    with pytest.raises(ValueError, match="txt"):
        load_dataset("twitter2015", 0, DataOptions(root=root, encoders={"txt": "small"}))


# ---- images ----------------------------------------------------------------------------------------------------------


def test_evaluation_shows_the_whole_image(root):
    reader = PhotoReader(root)
    decoded = reader.load("twitter2015_images/train0.jpg")
    expected = normalize(resize(decoded, (224, 224), filter="bicubic"), CLIP_MEAN, CLIP_STD)
    assert torch.equal(reader.present(decoded, None), expected)


def test_training_depends_on_seed_round_and_sample_alone(root, tmp_path):
    plain, cached = (
        load_dataset("twitter2015", 3, DataOptions(root=root, encoders=SMALL, cache=cache)).train
        for cache in (None, tmp_path / "cache")
    )
    first = plain.augmented("epoch", 0).__getitems__([4, 1])[0]["image"]
    for again in (plain, cached, cached):
        assert torch.equal(first, again.augmented("epoch", 0).__getitems__([1, 4])[0]["image"].flip(0))
    assert not torch.equal(first, plain.augmented("epoch", 1).__getitems__([4, 1])[0]["image"])


@pytest.mark.parametrize("mode", ["P", "CMYK", "L"])
def test_images_of_any_mode_are_rgb(root, mode):
    path = root / "twitter2015_images/train0.jpg"
    Image.new("RGB", (9, 9), "red").convert(mode).save(path, format="GIF" if mode == "P" else "JPEG")
    assert scan(root).problems == []
    assert PhotoReader(root).load("twitter2015_images/train0.jpg").shape == (3, 9, 9)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": 3}, r"train\.tsv:3: label '3', expected 0 \(negative\).*Correct the label"),
        ({"label": "positive"}, "label 'positive'"),
        ({"label": ""}, "label ''"),
        ({"label": "1.0"}, r"label '1\.0'"),
        ({"label": -1}, r"train\.tsv: labels count from -1, expected 0.*Add 1 to every label"),
        ({"image": "gone.jpg"}, r"train\.tsv:3: twitter2015_images/gone\.jpg: no such image file"),
        ({"image": "../../secret.jpg"}, "leads out of the data set's folder"),
        ({"image": "/etc/passwd"}, "leads out of the data set's folder"),
        ({"image": ""}, "the name '' is empty"),
        ({"text": "one\ttab"}, r"train\.tsv:3: 6 fields, expected 5: .*Take tabs out"),
        ({"image": "x" * 300}, "is longer than"),
    ],
)
def test_a_broken_line_is_named(root, values, message):
    change(root, 1, **values)
    assert re.search(message, only_problem(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line"),
        (b"\n\n", "no line"),
        (
            b"index\tTweet\n1\thello\n",
            r"train\.tsv:1: the header names no column for label, image, text: index \| Tweet",
        ),
        (b"Label,String,ImageID\n", "names no column for label, image, text"),
        ("index\t#1 Label\t#2 ImageID\t#3 String\t#3 String\n1\t1\té".encode("latin-1"), r"train\.tsv:2: byte .*UTF-8"),
        (b"Label\tImageID\tString\rno newline", "names no column for text|fields"),
    ],
)
def test_a_broken_list_is_named(root, content, message):
    (root / "annotations/train.tsv").write_bytes(content)
    assert re.search(message, only_problem(root))


def test_missing_lists_and_folders_are_named_once(root):
    (root / "annotations/dev.tsv").unlink()
    assert "annotations/dev.tsv: the file is missing" in only_problem(root)
    found = scan(root / "annotations")
    assert len(found.problems) == 1
    assert set(found.parts) == {"train", "validation", "test"}


def test_the_same_sample_twice_is_a_problem(root):
    change(root, 2, "test", **tweets("test", 1)[0])
    assert "test.tsv:4: image test0.jpg stands with the same text and target in annotations/test.tsv:2" in only_problem(
        root
    )


def test_training_refuses_a_broken_set_or_skips_and_lists(root):
    change(root, 1, label=9)
    photo = root / "twitter2015_images/train1.jpg"  # of rows 2 and 3
    write_photo(photo, (60, 60))
    photo.write_bytes(photo.read_bytes()[:1500])
    with pytest.raises(BrokenData, match="has 1 problem"):
        load_dataset("twitter2015", 0, DataOptions(root=root, encoders=SMALL))
    data = load_dataset("twitter2015", 0, DataOptions(root=root, encoders=SMALL, skip_bad=True))
    assert [problem.line for problem in data.skipped] == [3, 4, 5]
    assert "truncated" in data.skipped[1].what
    assert len(data.train) == 3

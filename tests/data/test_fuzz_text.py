"""Whatever lies in an image or a list, the answer is a value or a sentence: never another exception, never a hang."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from trees_text import TOMBERT, sarcasm_tree, twitter_tree, write_vocabulary

from igm_fast.data import BadFile, DataOptions
from igm_fast.data.readers.images import check_image, decode_image
from igm_fast.data.readers.text import WordPiece, Words
from igm_fast.data.sets import sarcasm, twitter2015

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")

fuzz = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    photos = {}
    for name in FORMATS:
        file = io.BytesIO()
        picture.save(file, format=name)
        photos[name] = file.getvalue()
    return photos


def check_reading(path, content: bytes) -> None:
    """Read as an RGB image, or refused by a BadFile that names the file; anything else goes through and fails."""
    path.write_bytes(content)
    try:
        check_image(path)
        image = decode_image(path)
    except BadFile as error:
        refused = error
    else:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        return
    assert refused.path == str(path)
    assert len(str(refused)) < 1000


@given(name=st.sampled_from(FORMATS), share=st.floats(0, 1))
@fuzz
def test_truncated_images(tmp_path, photos, name, share):
    check_reading(tmp_path / "photo", photos[name][: int(share * len(photos[name]))])


@given(name=st.sampled_from(FORMATS), changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6))
@fuzz
def test_damaged_headers(tmp_path, photos, name, changes):
    content = bytearray(photos[name])
    for place, value in changes:
        content[place] = value
    check_reading(tmp_path / "photo", bytes(content))


@given(
    content=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"]),
)
@fuzz
def test_noise_is_no_image(tmp_path, content, magic):
    check_reading(tmp_path / "photo", magic + content)


def listed_or_refused(module, root, samples: int, **options) -> None:
    """Every sample of the list is an entry or has a problem."""
    found = module.scan(root, DataOptions(**options))
    assert len(found.parts["train"]) + len(found.problems) >= min(samples, 1)
    for problem in found.problems:
        assert problem.what
        assert problem.fix
        assert len(str(problem)) < 1000
    for entry in found.parts["train"]:
        assert 0 <= entry.label < len(found.classes)
        assert (root / entry.source["image"]).resolve().is_relative_to(root.resolve())


@pytest.fixture
def twitter(tmp_path):
    return twitter_tree(tmp_path, train=2, validation=1, test=1)


@pytest.fixture
def sarcastic(tmp_path):
    return sarcasm_tree(tmp_path, train=2, validation=1, test=1)


FIELD = st.one_of(
    st.sampled_from(["0", "2", "-1", "train0.jpg", "../x", "", '"', "\r", "$T$", "\x00", "\u2028"]), st.text(max_size=8)
)


@given(rows=st.lists(st.lists(FIELD, min_size=3, max_size=6), min_size=1, max_size=4), target=st.booleans())
@fuzz
def test_tweet_lists_of_any_content(twitter, rows, target):
    lines = [TOMBERT, *("\t".join(row) for row in rows)]
    (twitter / "annotations/train.tsv").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    listed_or_refused(twitter2015, twitter, sum(bool(line.strip()) for line in lines[1:]), use_target=target)


@given(content=st.binary(max_size=120))
@fuzz
def test_tweet_lists_of_any_bytes(twitter, content):
    (twitter / "annotations/train.tsv").write_bytes(content)
    listed_or_refused(twitter2015, twitter, 1)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["train0.jpg", "..", "1", "a/b", ""])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "text", "label", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(items=st.lists(JSON, min_size=1, max_size=4))
@fuzz
def test_sarcasm_lists_of_any_json(sarcastic, items):
    (sarcastic / "annotations/train_data.json").write_text(json.dumps(items))
    listed_or_refused(sarcasm, sarcastic, len(items))


@given(content=st.binary(max_size=120))
@fuzz
def test_sarcasm_lists_of_any_bytes(sarcastic, content):
    (sarcastic / "annotations/train_data.json").write_bytes(content)
    sarcasm.scan(sarcastic, DataOptions())


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return WordPiece(write_vocabulary(tmp_path_factory.mktemp("bert")), 16), Words(["a", "b"], 16)


@given(source=st.one_of(st.text(max_size=60), st.tuples(st.text(max_size=40), st.text(max_size=40))))
@fuzz
def test_any_text_becomes_a_row(readers, source):
    for reader in readers:
        row = reader.load(source)
        assert row.shape == (16,)
        assert row[0] > 0
        assert 0 <= int(row.min()) <= int(row.max()) < reader.vocabulary
        assert not row[(row == 0).long().argmax() :].any() or bool((row > 0).all())  # padding at the end only

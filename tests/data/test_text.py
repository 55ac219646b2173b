"""Cleaning rules by example, BERT's pieces against transformers, word ids, and the choice between them."""

from __future__ import annotations

import doctest
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trees_text import VOCABULARY, write_vocabulary

from igm_fast.data import BadFile, DataOptions
from igm_fast.data.readers import text
from igm_fast.data.readers.text import WordPiece, Words, latin_words, text_modality, without_punctuation

LATIN = [
    ("RT @ ltsChuckBass : $T$ is everything # MCM", "rt ltschuckbass t is everything mcm"),
    ("7 / 10 … 24/7 b2b", ""),  # words that touch digits go whole
    ("café naïve El Niño", "el"),  # as do accented ones
    ("don't well-known w/o", "don t well known w o"),
    ("snake_case _x", ""),
    ("❤😂 🎉", ""),
    ("NA", "na"),
    ("null", "null"),
    ("tab\there\rand \xa0 there", "tab here and there"),
    ("", ""),
    (" ".join(["Word"] * 51), " ".join(["word"] * 50)),
]

PUNCTUATION = [
    ("<user> thanks for showing up . ", "<user> thanks for showing up"),
    ("# friday is <num> days away !", "friday is <num> days away"),
    ("emoji_92 SO good : ~ ;", "emoji_92 so good"),
    ('it \'s " fine " ( really ) *', "it s fine really"),
    ("don't", "dont"),
    ("well-known w/o & more", "well known w o & more"),
    ("<person> said", "person said"),
    ("a  b\n\tc", "a b c"),
    ("?!...", ""),
    (" ".join(["Word"] * 70), " ".join(["word"] * 50)),
]


@pytest.mark.parametrize(("given", "cleaned"), LATIN)
def test_twitters_rule(given, cleaned):
    assert latin_words(given) == cleaned


@pytest.mark.parametrize(("given", "cleaned"), PUNCTUATION)
def test_sarcasms_rule(given, cleaned):
    assert without_punctuation(given) == cleaned


@given(given=st.text())
def test_cleaned_text_stays_as_it_is(given):
    assert latin_words(latin_words(given)) == latin_words(given)
    cleaned = without_punctuation(given)
    assert len(cleaned.split()) <= 50
    assert not set(cleaned) & set(",.'!?\"()*#:;~-/")


def test_docstrings_hold():
    assert doctest.testmod(text).failed == 0


# ---- word pieces -----------------------------------------------------------------------------------------------------


def ids(*tokens: str, length: int) -> list[int]:
    return [VOCABULARY.index(token) for token in tokens] + [0] * (length - len(tokens))


@pytest.fixture
def bert(tmp_path):
    return write_vocabulary(tmp_path / "bert")


def test_pieces_stand_between_cls_and_sep(bert):
    reader = WordPiece(bert, length=8)
    row = reader.load("ab c")
    assert row.dtype == torch.int64
    assert row.tolist() == ids("[CLS]", "a", "##b", "c", "[SEP]", length=8)
    assert reader.load("").tolist() == ids("[CLS]", "[SEP]", length=8)
    assert reader.load("é 😂").tolist() == ids("[CLS]", "e", "[UNK]", "[SEP]", length=8)
    assert reader.vocabulary == len(VOCABULARY)
    assert reader.present(row, torch.Generator()) is row
    assert reader.spell(row) == "[CLS] a ##b c [SEP]"


def test_a_second_text_is_a_second_segment(bert):
    reader = WordPiece(bert, length=8)
    assert reader.load(("a b", "c")).tolist() == ids("[CLS]", "a", "b", "[SEP]", "c", "[SEP]", length=8)
    assert torch.equal(reader.load(["a b", ""]), reader.load("a b"))


def test_long_texts_are_truncated_and_keep_their_sep(bert):
    reader = WordPiece(bert, length=6)
    assert reader.load("a b c d e f g").tolist() == ids("[CLS]", "a", "b", "c", "d", "[SEP]", length=6)
    assert reader.load(("a b c d e f", "z")).tolist() == ids("[CLS]", "a", "b", "[SEP]", "z", "[SEP]", length=6)


def test_parameters_tell_vocabularies_and_lengths_apart(tmp_path, bert):
    other = write_vocabulary(tmp_path / "other", [*VOCABULARY[:-1], "zz"])
    known = {WordPiece(bert, 8).parameters, WordPiece(bert, 9).parameters, WordPiece(other, 8).parameters}
    assert len(known) == 3
    assert WordPiece(bert, 8).parameters in known


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", None, r"vocab\.txt: no such file.*Give the directory of a BERT"),
        ("config.json", None, r"config\.json: no such file.*Give the directory of a BERT"),
        ("vocab.txt", b"", r"vocab\.txt: is not BERT's vocabulary"),
        ("vocab.txt", b"a\nb\n", r"is not BERT's vocabulary: expected \[PAD\]"),
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n", r"is not BERT's vocabulary"),
        ("vocab.txt", b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n", r"the first in line 1"),
        ("vocab.txt", b"[PAD]\n\xff\n", r"is not UTF-8"),
        ("config.json", b"{", r"transformers cannot read it"),
    ],
)
def test_directories_without_berts_vocabulary_are_refused(bert, name, content, message):
    (bert / name).unlink()
    if content is not None:
        (bert / name).write_bytes(content)
    with pytest.raises(BadFile, match=message):
        WordPiece(bert)


def test_without_transformers_the_way_out_is_named(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'igm_fast\[text\]'"):
        WordPiece(bert)


# ---- words -----------------------------------------------------------------------------------------------------------


def test_words_of_the_training_part_have_ids():
    reader = Words.of_training(["so so kind", ["kind vet", "cat"], "cat"], length=6)
    assert reader.vocabulary == 3 + 3  # padding, unknown, separator; cat, kind, so
    assert reader.load("so kind dog").tolist() == [5, 4, 1, 0, 0, 0]
    assert reader.load(["so kind", "cat vet"]).tolist() == [5, 4, 2, 3, 1, 0]
    assert reader.load("so so so so so so kind").tolist() == [5] * 6
    assert reader.load("").tolist() == [1, 0, 0, 0, 0, 0]
    assert reader.spell(reader.load(["so dog", "cat"])) == "so [UNK] [SEP] cat"
    row = reader.load("so")
    assert row.dtype == torch.int64
    assert reader.present(row, None) is row


def test_words_do_not_depend_on_the_order_of_the_texts():
    texts = ["b a", "c b", "a c", "d"]
    assert Words.of_training(texts).parameters == Words.of_training(texts[::-1]).parameters
    assert Words.of_training(texts).parameters != Words.of_training([*texts, "d"]).parameters
    assert Words.of_training(texts, 5).parameters != Words.of_training(texts, 6).parameters


# ---- which one -------------------------------------------------------------------------------------------------------


def test_the_encoder_decides_the_reader(bert):
    spec, reader = text_modality("text", ["a a"], DataOptions(pretrained={"text": bert}), "bert")
    assert isinstance(reader, WordPiece)
    assert (spec.kind, spec.shape, spec.vocabulary, spec.encoder) == ("tokens", (128,), len(VOCABULARY), "bert")
    spec, reader = text_modality("text", ["a a"], DataOptions(encoders={"text": "small"}), "bert")
    assert isinstance(reader, Words)
    assert (spec.kind, spec.shape, spec.vocabulary, spec.encoder) == ("tokens", (64,), 4, "small")


def test_bert_without_a_directory_names_both_ways_out():
    with pytest.raises(ValueError, match=r"--pretrained text=DIR.*--encoders text=small"):
        text_modality("text", ["a"], DataOptions(), "bert")

"""Two epochs on the tiny trees of tweets through the command line, with small encoders and with BERT."""

from __future__ import annotations

import json

import pytest
from training_cases import assert_same_run, run
from trees_text import sarcasm_tree, twitter_tree, write_bert

TREES = {"twitter2015": twitter_tree, "sarcasm": sarcasm_tree}
SHORT = ("--epochs", "2", "--stages", "1", "--batch_size", "4", "--width", "16", "--threads", "1", "--quiet")


@pytest.mark.parametrize("name", TREES)
def test_small_encoders(tmp_path, name):
    root = TREES[name](tmp_path / "data", train=6, validation=3, test=3)
    flags = ("--data", name, "--data_root", str(root), "--encoders", "text=small,image=small")
    assert run(tmp_path / "run", *flags, short=SHORT) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert set(result["test"]) >= {"fused", "text", "image"}


def test_bert_and_resnet(tmp_path):
    root, bert = twitter_tree(tmp_path / "data", train=6, validation=3, test=3), write_bert(tmp_path / "bert")
    encoders = ("--encoders", "image=resnet18", "--pretrained", f"text={bert}", "--use_target", "true")
    flags = ("--data", "twitter2015", "--data_root", str(root), *encoders)
    assert run(tmp_path / "run", *flags, short=SHORT) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["test"]["text"]


@pytest.mark.slow
def test_workers_and_cache_change_nothing(tmp_path):
    root = sarcasm_tree(tmp_path / "data", train=6, validation=3, test=3)
    flags = ("--data", "sarcasm", "--data_root", str(root), "--encoders", "text=small,image=small")
    assert run(tmp_path / "plain", *flags, short=SHORT) == 0
    assert run(tmp_path / "workers", *flags, "--workers", "2", "--cache", str(tmp_path / "cache"), short=SHORT) == 0
    assert_same_run(tmp_path / "plain", tmp_path / "workers")

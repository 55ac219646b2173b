"""BERT against its equations in float64, padding and second texts, and what a directory must hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf
from tiny_bert import CLS, HIDDEN, SEP, TOKENS, save_tiny_bert
from torch import Tensor, nn

from igm_fast.models import load_pretrained
from igm_fast.models.bert import Bert

ROWS = torch.tensor(
    [
        [CLS, 5, 9, SEP, 7, 11, SEP, 0, 0],  # two texts
        [CLS, 8, 12, 13, SEP, 0, 0, 0, 0],
        [CLS, SEP, 0, 0, 0, 0, 0, 0, 0],  # an empty text
    ]
)
SECOND = np.array([[0, 0, 0, 0, 1, 1, 1, 0, 0], [0] * 9, [0] * 9])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def encoder(directory: Path) -> Bert:
    encoder = Bert(directory, HIDDEN, TOKENS, 9)
    load_pretrained(encoder, directory)
    return encoder.eval()


def oracle(state: dict[str, np.ndarray], ids: np.ndarray, segments: np.ndarray, heads: int = 2) -> np.ndarray:
    """Last hidden state at the first position, Devlin et al. 2019: post-norm layers, attention, erf-GELU."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
        return (x - x.mean(axis=-1, keepdims=True)) / spread * state[name + ".weight"] + state[name + ".bias"]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    x = state["embeddings.word_embeddings.weight"][ids]
    x = x + state["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + state["embeddings.token_type_embeddings.weight"][segments], "embeddings.LayerNorm")
    for layer in ("encoder.layer.0.", "encoder.layer.1."):
        query, key, value = (split(linear(x, f"{layer}attention.self.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1])
        scores[np.broadcast_to((ids == 0)[:, None, None], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ value
        mixed = mixed.swapaxes(1, 2).reshape(x.shape)
        x = norm(x + linear(mixed, layer + "attention.output.dense"), layer + "attention.output.LayerNorm")
        hidden = linear(x, layer + "intermediate.dense")
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = norm(x + linear(hidden, layer + "output.dense"), layer + "output.LayerNorm")
    return x[:, 0]


def test_features_are_the_last_hidden_state_of_cls(encoder: Bert) -> None:
    encoder.double()
    state = {name: value.numpy() for name, value in encoder.bert.state_dict().items()}
    expected = oracle(state, ROWS.numpy(), SECOND)
    # A few hundred operations in a row on numbers near 1, in another order: 1e3 · 2.2e-16, and room.
    np.testing.assert_allclose(encoder(ROWS).detach().numpy(), expected, rtol=1e-11, atol=1e-11)
    assert not np.allclose(oracle(state, ROWS.numpy(), 0 * SECOND)[0], expected[0], atol=1e-3)  # token types matter


def test_padding_changes_nothing(encoder: Bert) -> None:
    features = encoder(ROWS)
    assert torch.equal(encoder(nn.functional.pad(ROWS, (0, 8))), features)  # the same columns go through
    torch.testing.assert_close(torch.cat([encoder(row[None]) for row in ROWS]), features)


def test_rows_of_padding_only_still_give_numbers(encoder: Bert) -> None:
    assert torch.isfinite(encoder(torch.zeros(2, 9, dtype=torch.int64))).all()


def test_every_parameter_but_unused_embeddings_gets_a_gradient(directory: Path) -> None:
    encoder = Bert(directory, 7, TOKENS, 9)
    features = encoder(ROWS)
    assert features.shape == (3, 7)
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert encoder.projection.weight.shape == (7, HIDDEN)


def test_dropout_follows_the_seed(directory: Path) -> None:
    def features() -> Tensor:
        torch.manual_seed(3)
        return Bert(directory, HIDDEN, TOKENS, 9).train()(ROWS)

    assert torch.equal(features(), features())


def test_what_a_directory_must_hold(tmp_path: Path) -> None:
    directory = save_tiny_bert(tmp_path / "bert", weights=False)

    def refused(message: str, vocabulary: int = TOKENS, length: int = 9) -> None:
        with pytest.raises(ValueError, match=message):
            Bert(directory, HIDDEN, vocabulary, length)

    refused(r"knows 30 tokens and 20 positions, expected at least 31 and 9", vocabulary=31)
    refused(r"knows 30 tokens and 20 positions, expected at least 30 and 21", length=21)
    (directory / "vocab.txt").write_text("[PAD]\nword\n", "utf-8")
    refused(r"vocab.txt: none of 2 tokens is \[SEP\]")
    (directory / "vocab.txt").unlink()
    refused(r"vocab.txt: there is no such file; expected the directory of a BERT with config.json, vocab.txt")
    config = directory / "config.json"
    settings = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**settings, "model_type": "roberta"}), "utf-8")
    refused("model_type is 'roberta', expected 'bert'")
    for text in ("{", "[]"):
        config.write_text(text, "utf-8")
        refused("config.json holds no configuration")
    config.unlink()
    refused("config.json: there is no such file")


def test_without_transformers(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ImportError, match=r"needs transformers, which is not installed: pip install 'igm_fast\[text\]'"
    ):
        Bert(directory, HIDDEN, TOKENS, 9)

"""BERT (Devlin et al. 2019) through transformers, in the size that a local directory's ``config.json`` describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BertConfig

SEPARATOR = "[SEP]"
CONTENT = "config.json, vocab.txt and, for trained weights, model.safetensors"


class Bert(nn.Module):
    """Token ids ``[B, L]`` int64 of BERT's tokenizer, 0 is padding → ``[B, width]``: the last hidden state at [CLS].

    Padding is masked out, and columns in which no row has a token are cut off: they would change nothing. A second text
    is what stands behind the first [SEP] of a row; it gets the token type 1, as the tokenizer would give it. Attention
    is computed without a fused kernel, so that a seed decides every bit on every device.

    Args:
        directory: with ``config.json`` (sizes) and ``vocab.txt`` (where [SEP] stands); nothing is downloaded. First
            weights are random: :func:`igm_fast.models.load_pretrained` reads those of the directory.
        width: features; other than the configuration's ``hidden_size`` they come from a linear layer ``projection``.
        vocabulary: number of token ids that occur.
        length: most tokens of a row.

    Raises:
        ValueError: a file is missing, it is no BERT, or the tokens do not fit it.
        ImportError: transformers is not installed.
    """

    def __init__(self, directory: Path, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        config = _config(directory)
        if vocabulary > config.vocab_size or length > config.max_position_embeddings:
            raise ValueError(
                f"{directory / 'config.json'}: this BERT knows {config.vocab_size} tokens and "
                f"{config.max_position_embeddings} positions, expected at least {vocabulary} and {length}, as the data "
                "have. Read the text with the vocab.txt of the same directory, or cut it shorter"
            )
        from transformers import BertModel

        self.separator = _separator(directory)
        self.bert = BertModel(config, add_pooling_layer=False)
        hidden = config.hidden_size
        self.projection = nn.Identity() if width == hidden else nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        mask = x > 0
        columns = mask.any(dim=0).nonzero()
        longest = int(columns[-1]) + 1 if len(columns) else 1
        x, mask = x[:, :longest], mask[:, :longest]
        hidden = self.bert(input_ids=x, attention_mask=mask.long(), token_type_ids=self._segments(x, mask))
        features: Tensor = self.projection(hidden.last_hidden_state[:, 0])
        return features

    def _segments(self, x: Tensor, mask: Tensor) -> Tensor:
        ends = (x == self.separator).long()
        return ((ends.cumsum(dim=1) - ends > 0) & mask).long()


def _config(directory: Path) -> BertConfig:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected the directory of a BERT with {CONTENT}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind = settings.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no configuration ({error}); fetch the directory again") from error
    if kind != "bert":
        raise ValueError(f"{path}: model_type is {kind!r}, expected 'bert'; give the directory of a BERT")
    try:
        from transformers import BertConfig
    except ImportError as error:
        raise ImportError(
            "encoder 'bert' needs transformers, which is not installed: pip install 'igm_fast[text]'. Or use the small "
            "encoder for text"
        ) from error
    return BertConfig.from_dict(settings, attn_implementation="eager")


def _separator(directory: Path) -> int:
    path = directory / "vocab.txt"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected the directory of a BERT with {CONTENT}")
    # Not by splitlines, for which some tokens of larger vocabularies are line ends.
    tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if SEPARATOR not in tokens:
        raise ValueError(f"{path}: none of {len(tokens)} tokens is {SEPARATOR}; expected BERT's vocabulary")
    return tokens.index(SEPARATOR)

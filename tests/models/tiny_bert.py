"""A directory with a random BERT of two layers, as transformers saves it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForPreTraining
from transformers.utils import logging

TOKENS = 30
HIDDEN = 16
CLS, SEP = 2, 3


def save_tiny_bert(directory: Path, *, weights: bool = True) -> Path:
    logging.disable_progress_bar()
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
    )
    network = BertForPreTraining(config)
    with torch.no_grad():  # as first made, biases are 0 and layer norms 1: a test would not see them mixed up
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.save_pretrained(directory)
    if not weights:
        (directory / "model.safetensors").unlink()
    words = [f"word{index}" for index in range(TOKENS - 4)]
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]) + "\n", "utf-8")
    return directory

"""emoji: picture and four words of 1,906 emojis, nine Unicode categories (Noto Emoji, emoji-datasource, emojilib).

A part of the split is a set of families: emojis whose names differ only in gender or person words stay together.
"""

from __future__ import annotations

from igm_fast.data.archive import read_embedded
from igm_fast.data.dataset import MultimodalData
from igm_fast.data.splits import split_indices
from igm_fast.data.tensors import from_tensors, take


def load(seed: int) -> MultimodalData:
    """Return pictures ``[3, 32, 32]`` and token ids ``[4]`` (0 is padding), split by family."""
    arrays = read_embedded("emoji")
    inputs, labels = {"picture": arrays["picture"], "text": arrays["text"]}, arrays["labels"]
    train, validation, test = split_indices(labels, seed, arrays["family"])
    return from_tensors(
        take(inputs, labels, train),
        take(inputs, labels, validation),
        take(inputs, labels, test),
        name="emoji",
        classes=tuple(map(str, arrays["classes"])),
        vocabularies={"text": len(arrays["vocabulary"])},
        description="Nine Unicode categories of emojis from their picture (Noto Emoji, Apache-2.0) and the first four "
        "words of name and keywords (emoji-datasource 16.0.0, emojilib 4.0.3, MIT).",
        seed=seed,
    )

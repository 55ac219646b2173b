"""Text: the cleaning rules of the tweet data sets, and the readers that turn text into rows of token ids.

A source is a text, or a text and a second one (an opinion's target, say): ``"so kind"`` or ``("so kind", "the vet")``.
Rows are int64 of fixed length, padded with 0 at their end.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from igm_fast.data.dataset import ModalitySpec
from igm_fast.data.problems import BadFile

if TYPE_CHECKING:
    from igm_fast.data.options import DataOptions

Text: TypeAlias = "str | Sequence[str]"

MAX_WORDS = 50
"""Both tweet data sets are cut to this many words, before tokenisation."""

WORDS_LENGTH = 64
"""Ids in a row of :class:`Words`: a tweet of 50 words and a target."""

PIECES_LENGTH = 128
"""Ids in a row of :class:`WordPiece`. Fifty words seldom have more pieces, and encoders cut padding off."""

PADDING, UNKNOWN, SEPARATOR = 0, 1, 2


def latin_words(text: str) -> str:
    """Return the first 50 words of plain Latin letters in lower case: the rule for Twitter2015.

    A word that touches a digit, an accent or an underscore is left out with it.

    >>> latin_words("RT @ $T$ : Don't miss #Café 24/7 at St-Jean!")
    'rt t don t miss at st jean'
    """
    return _first_words(re.findall(r"\b[A-Za-z]+\b", text))


def without_punctuation(text: str) -> str:
    """Return the first 50 words in lower case, without ``,.'!?"()*#:;~``: the rule for the sarcasm tweets.

    Dashes and slashes part words; ``<user>`` and ``emoji_92`` stay as they are, ``<person>`` loses its brackets.

    >>> without_punctuation("<user> Don't be so happy-go-lucky ! # irony emoji_92")
    '<user> dont be so happy go lucky irony emoji_92'
    """
    kept = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    return _first_words(re.sub(r"[-/]", " ", kept).replace("<person>", "person").split())


class WordPiece:
    """Token ids of BERT's tokenizer (Devlin et al. 2019): ``[CLS] text [SEP]`` or ``[CLS] text [SEP] second [SEP]``.

    There are no separate segment ids: what stands behind the first [SEP] is the second segment. Longer texts are
    truncated, the longer of two first, and keep their [SEP].

    Args:
        directory: with ``vocab.txt``, and ``tokenizer_config.json`` where it is not lower case. Nothing is downloaded.
        length: ids in a row.

    Raises:
        BadFile: no vocabulary there, or none of BERT's.
        ImportError: transformers is not installed.
    """

    def __init__(self, directory: Path, length: int = PIECES_LENGTH) -> None:
        self.length = length
        self._tokenizer = _bert_tokenizer(directory)
        self.vocabulary = len(self._tokenizer)
        digest = hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        self.parameters = f"wordpiece length={length} tokenizer={digest}"

    def load(self, source: Text) -> Tensor:
        """Return the ids, int64 ``[length]``."""
        texts = (source,) if isinstance(source, str) else source
        ids = self._tokenizer(*texts, truncation=True, max_length=self.length, padding="max_length").input_ids
        return torch.tensor(ids, dtype=torch.int64)

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 - a Reader
        """Return the ids: text has no augmentation."""
        return decoded

    def spell(self, row: Tensor) -> str:
        """Return the tokens of a row, parted by blanks."""
        return " ".join(self._tokenizer.convert_ids_to_tokens(row[row != PADDING].tolist()))


class Words:
    """Ids of whole words, parted by blanks: 0 padding, 1 unknown, 2 between two texts, then the known words.

    An empty text is one unknown word. Longer texts are cut.

    Args:
        known: the words, without repetition; see :meth:`of_training`.
        length: ids in a row.
    """

    def __init__(self, known: Sequence[str], length: int = WORDS_LENGTH) -> None:
        self.length = length
        self.vocabulary = SEPARATOR + 1 + len(known)
        self._ids = {word: number for number, word in enumerate(known, start=SEPARATOR + 1)}
        digest = hashlib.sha256("\n".join(known).encode()).hexdigest()
        self.parameters = f"words length={length} known={digest}"

    @classmethod
    def of_training(cls, sources: Iterable[Text], length: int = WORDS_LENGTH) -> Words:
        """Know every word that occurs at least twice in the training part: the others train what "unknown" means."""
        counts: Counter[str] = Counter()
        for source in sources:
            for text in (source,) if isinstance(source, str) else source:
                counts.update(text.split())
        return cls(sorted(word for word, count in counts.items() if count > 1), length)

    def load(self, source: Text) -> Tensor:
        """Return the ids, int64 ``[length]``."""
        texts = (source,) if isinstance(source, str) else source
        ids: list[int] = []
        for number, text in enumerate(texts):
            ids += [SEPARATOR] * (number > 0)
            ids += [self._ids.get(word, UNKNOWN) for word in text.split()]
        row = torch.full((self.length,), PADDING, dtype=torch.int64)
        ids = (ids or [UNKNOWN])[: self.length]
        row[: len(ids)] = torch.tensor(ids)
        return row

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 - a Reader
        """Return the ids: text has no augmentation."""
        return decoded

    def spell(self, row: Tensor) -> str:
        """Return the words of a row; [UNK] is an unknown one, [SEP] parts two texts."""
        words = ["", "[UNK]", "[SEP]", *self._ids]
        return " ".join(words[number] for number in row.tolist() if number != PADDING)


def text_modality(
    name: str, training: Iterable[Text], options: DataOptions, proposed: str
) -> tuple[ModalitySpec, WordPiece | Words]:
    """Return a text modality and its reader, as the encoder needs them: BERT's pieces, or words for any other.

    Args:
        name: of the modality.
        training: the texts of the training part, already cleaned.
        options: ``encoders`` may name another encoder, ``pretrained`` the directory of BERT.
        proposed: the encoder that is taken where ``options`` names none.

    Raises:
        ValueError: BERT without a directory.
        BadFile: a directory without BERT's vocabulary.
        ImportError: BERT without transformers.
    """
    encoder = options.encoders.get(name, proposed)
    if encoder == "bert":
        if name not in options.pretrained:
            raise ValueError(
                f"modality {name!r} has encoder 'bert', and no directory with its vocab.txt, config.json and weights "
                f"is given. Give that of bert-base-uncased (--pretrained {name}=DIR), or use the small encoder "
                f"(--encoders {name}=small)"
            )
        pieces = WordPiece(Path(options.pretrained[name]))
        return ModalitySpec(name, "tokens", (pieces.length,), pieces.vocabulary, encoder), pieces
    words = Words.of_training(training)
    return ModalitySpec(name, "tokens", (words.length,), words.vocabulary, encoder), words


def _first_words(words: Sequence[str]) -> str:
    return " ".join(words[:MAX_WORDS]).lower()


def _bert_tokenizer(directory: Path) -> Any:
    path = directory / "vocab.txt"
    fix = "Give the directory of a BERT, with its vocab.txt and config.json"
    for needed in (path, directory / "config.json"):
        if not needed.is_file():
            raise BadFile(needed, "no such file, expected that of a BERT", fix)
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadFile(path, f"is not UTF-8 ({error.reason}), expected BERT's vocabulary", fix) from error
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    if tokens[0].strip() != special[0] or not set(special) <= {token.strip() for token in tokens}:
        raise BadFile(path, f"is not BERT's vocabulary: expected {', '.join(special)}, the first in line 1", fix)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "encoder 'bert' reads text through transformers, which is not installed: pip install 'igm_fast[text]'. Or "
            "use the small encoder for text"
        ) from error
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # whatever transformers runs into on a broken configuration
        raise BadFile(directory, f"transformers cannot read it ({error})", fix) from error

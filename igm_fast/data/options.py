"""Where a data set lies and how it is read: what is no property of the set itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from igm_fast.names import nearest


@dataclass(frozen=True)
class DataOptions:
    """What :func:`igm_fast.data.load_dataset` is told beside name and seed.

    Args:
        root: folder of a data set on disk; None for the sets that come with the package.
        protocol: ``"paper"`` keeps a validation part out of training; ``"official"`` reads files as the official code
            does, which has none.
        skip_bad: train without the samples whose files or list lines are broken. Every file is decoded once before
            training to find them.
        cache: folder for decoded features; None decodes at every access.
        pretrained: per modality, a file or folder of pretrained weights; text modalities read their vocabulary there.
        encoders: per modality, the name of an encoder in place of the data set's proposal.
        use_target: pair a tweet with its target entity, where the data set has one.
        validation_by: cut validation samples out of the training list one by one, or whole groups (speakers).
    """

    root: Path | None = None
    protocol: Literal["paper", "official"] = "paper"
    skip_bad: bool = False
    cache: Path | None = None
    pretrained: Mapping[str, Path] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    use_target: bool = False
    validation_by: Literal["sample", "group"] = "sample"

    def existing_root(self, name: str) -> Path:
        """Return the folder of a data set on disk.

        Raises:
            FileNotFoundError: none was given, or it is no folder.
        """
        if self.root is None:
            raise FileNotFoundError(
                f"data set {name!r} lies on disk and no folder was given; expected --data_root DIR. "
                "`python -m igm_fast.data list` shows what has to lie there"
            )
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"data_root {self.root} is no folder; expected the folder of data set {name!r}. "
                "`python -m igm_fast.data list` shows what has to lie there"
            )
        return self.root

    def check_modalities(self, name: str, modalities: Collection[str]) -> None:
        """Refuse encoders and weights for modalities that the data set does not have.

        Raises:
            ValueError: an unknown modality, with the nearest known one.
        """
        for option, given in (("encoders", self.encoders), ("pretrained", self.pretrained)):
            for modality in given:
                if modality not in modalities:
                    raise ValueError(f"{option}: {nearest(modality, modalities, f'modality of {name}')}")

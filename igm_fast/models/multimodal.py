"""One encoder per modality, and heads: one each, one for the joined features, both, or one shared by all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.data.dataset import ModalitySpec
from igm_fast.models.encoders import build_encoder, check_input
from igm_fast.names import nearest

Head = Literal["separate", "sum", "joint", "both", "shared", "boosted"]
HEADS: tuple[Head, ...] = get_args(Head)


class Branch(nn.Module):
    """Encoder and, with ``head="separate"``, ``"sum"`` or ``"both"``, head of one modality.

    ``forward`` gives logits ``[B, classes]``, or the features ``[B, width]`` where ``head`` is None.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, or features without a head."""
        return self.classify(self.encoder(x))

    def classify(self, features: Tensor) -> Tensor:
        """Return the head's logits for features ``[B, width]``, or the features without a head."""
        logits: Tensor = features if self.head is None else self.head(features)
        return logits


def build_head(width: int, num_classes: int, widths: Sequence[int] = ()) -> nn.Module:
    """Return the head of one modality, ``[B, width]`` → ``[B, num_classes]``.

    Args:
        width: of the features.
        num_classes: logits.
        widths: of linear layers before the last. A ReLU follows the first of them only: the head of the authors' code
            of IGM has the widths 256 and 64.
    """
    if not widths:
        return nn.Linear(width, num_classes)
    sizes = [width, *widths, num_classes]
    first, *rest = (nn.Linear(before, after) for before, after in pairwise(sizes))
    return nn.Sequential(first, nn.ReLU(), *rest)


class MultimodalModel(nn.Module):
    """Encoders and heads for any number of modalities.

    Heads: ``"separate"``: each branch ends in its own head (late fusion, IGM); ``"sum"``: so too, and the joint
    logits are the sum of their logits (additive fusion); ``"joint"``: one ``joint_head``
    reads all features side by side (concatenation); ``"both"``: own heads and a joint head (MMPareto); ``"shared"``:
    one ``shared_head`` reads the features of every modality (MLA); ``"boosted"``: a shared head, and the modalities'
    logits are added up and multiplied by ``boost_rate`` (ReconBoost).

    Args:
        specs: the modalities, in the order of the joined features.
        num_classes: at least 2.
        head: see above.
        width: features per modality.
        encoder: makes the encoder of a modality, ``encoder(spec, width)``.
        head_widths: layers of a modality's own head before the last, see :func:`build_head`; other heads are linear.

    Raises:
        ValueError: no or equal modalities, fewer than two classes, an unknown head.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        num_classes: int,
        head: Head = "separate",
        width: int = 64,
        *,
        encoder: Callable[[ModalitySpec, int], nn.Module] = build_encoder,
        head_widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(nearest(head, HEADS, "head"))
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}, expected at least 2; check the labels")
        self.specs = {spec.name: spec for spec in specs}
        if not specs or len(self.specs) != len(specs):
            raise ValueError(f"modalities are {[spec.name for spec in specs]}; expected at least one, each name once")
        self.head = head
        self.num_classes = num_classes
        self.width = width
        self.branches = nn.ModuleDict()
        for name, spec in self.specs.items():
            network = encoder(spec, width)
            own = build_head(width, num_classes, head_widths) if head in ("separate", "sum", "both") else None
            self.branches[name] = Branch(network, own)
        if head in ("joint", "both"):
            self.joint_head = nn.Linear(width * len(specs), num_classes)
        elif head in ("shared", "boosted"):
            self.shared_head = nn.Linear(width, num_classes)
        if head == "boosted":
            self.boost_rate = nn.Parameter(torch.ones(()))

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in order."""
        return list(self.specs)

    def forward(self, inputs: dict[str, Tensor], modalities: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return logits ``[B, classes]`` of each asked modality (default: all).

        With every head but ``"separate"`` and ``"shared"`` the result also has ``"joint"`` when all modalities are
        asked for. The entries of single modalities are, with ``"joint"``, shares Wᵐhᵐ + b/M, which add up to the joint
        logits and carry no gradient; with the others they are the logits of the own or shared head.

        Raises:
            ValueError: an asked modality is unknown or not in ``inputs``, or an input does not fit its modality.
        """
        return self.classify(self.features(inputs, modalities))

    def classify(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what :meth:`forward` returns, from features ``[B, width]`` of some or all modalities."""
        if self.head == "joint":
            return self._joint(features)
        if self.head in ("shared", "boosted"):
            logits = {name: self.shared_head(feature) for name, feature in features.items()}
        else:
            logits = {name: self.branch(name).classify(feature) for name, feature in features.items()}
        if len(features) == len(self.specs):
            if self.head == "both":
                logits["joint"] = self._joined(features)
            elif self.head in ("sum", "boosted"):
                total = torch.stack([logits[name] for name in self.modalities]).sum(dim=0)
                logits["joint"] = self.boost_rate * total if self.head == "boosted" else total
        return logits

    def features(self, inputs: dict[str, Tensor], modalities: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return features ``[B, width]`` of each asked modality (default: all).

        Raises:
            ValueError: as for :meth:`forward`.
        """
        features: dict[str, Tensor] = {}
        for name in self.modalities if modalities is None else modalities:
            branch = self.branch(name)
            if name not in inputs:
                raise ValueError(
                    f"inputs have no modality {name!r}, only {list(inputs)}; expected {self.modalities}. Add it, or "
                    f"ask for the others: model(inputs, modalities={[m for m in self.modalities if m in inputs]})"
                )
            check_input(inputs[name], self.specs[name])
            features[name] = branch.encoder(inputs[name])
        return features

    def branch(self, name: str) -> Branch:
        """Return the branch of a modality.

        Raises:
            ValueError: unknown name.
        """
        if name not in self.specs:
            raise ValueError(nearest(name, self.modalities, "modality"))
        return cast(Branch, self.branches[name])

    def _joined(self, features: dict[str, Tensor]) -> Tensor:
        joined: Tensor = self.joint_head(torch.cat([features[name] for name in self.modalities], dim=1))
        return joined

    def _joint(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = {}
        if len(features) == len(self.specs):
            logits["joint"] = self._joined(features)
        blocks = dict(
            zip(self.modalities, torch.split(self.joint_head.weight.detach(), self.width, dim=1), strict=True)
        )
        bias = self.joint_head.bias.detach() / len(self.specs)
        for name, feature in features.items():
            logits[name] = functional.linear(feature.detach(), blocks[name], bias)
        return logits

"""MSLR: added logits, and a learning rate for each modality that follows its own validation accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from igm_fast.methods.base import Context, Stage, check_choice, check_range
from igm_fast.methods.joint import Fusion, Joint
from igm_fast.names import nearest

Rule = Literal["dynamic", "keep"]


@dataclass
class Mslr(Joint):
    """MSLR: additive fusion in which every modality has its own learning rate.

    Y. Yao, R. Mihalcea, *Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion*, Findings of
    ACL 2022. z = Σ zᵐ of one head each, one cross-entropy of z, and for encoder and head of modality m

        ηᵐ = η rateᵐ (rule keep);   ηᵐ = η rateᵐ aᵐ / mean of the a of the last epochs (dynamic)

    with aᵐ the accuracy of zᵐ alone on the validation split after the epoch before. Until there are ``window`` earlier
    epochs the quotient is 1. η is --lr and its cosine.

    Deviations: only the abstract and the code of AGM's authors were at hand. That code multiplies gradients, which
    differs with weight decay and does next to nothing under Adam, and it looks at the test split; here these are
    learning rates and the validation split. Its rates are 0.9 (audio) and 1.1 (visual), here 1 unless given: the data
    are others. The paper's third rule, which moves between own and common rates, is left out: its form is not in
    the abstract.

    Args:
        rule: dynamic follows the accuracy, keep leaves the rates as given.
        rates: factors of lr, such as audio=0.9,visual=1.1; modalities that are not named have 1.
        window: how many earlier epochs the accuracy is compared with.
    """

    name: ClassVar[str] = "mslr"
    fusion: Fusion = field(default="sum", init=False)
    rule: Rule = "dynamic"
    rates: str = ""
    window: int = 5
    _accuracies: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.name, "rule", self.rule, get_args(Rule))
        check_range(self.name, "window", self.window, least=1)
        for name, rate in self._rates().items():
            check_range(self.name, f"the rate of {name}", rate, above=0.0)

    def modalities(self, available: Sequence[str]) -> list[str]:
        """Return all modalities; each named rate must be of one."""
        for name in self._rates():
            if name not in available:
                raise ValueError(f"{self.name}: {nearest(name, available, 'modality in rates')}")
        return list(available)

    def learning_rate_factors(self, stage: Stage) -> Mapping[str, float]:
        """Return ηᵐ/η."""
        rates = self._rates()
        return {name: rates.get(name, 1.0) * self._change(name) for name in stage.modalities}

    def end_epoch(
        self,
        stage: Stage,
        epoch: int,  # noqa: ARG002
        scores: Mapping[str, Mapping[str, float]],
        context: Context,  # noqa: ARG002
    ) -> None:
        """Note each modality's accuracy."""
        for name in stage.modalities:
            seen = [*self._accuracies.get(name, []), scores[name]["accuracy"]]
            self._accuracies[name] = seen[-self.window - 1 :]

    def state_dict(self) -> dict[str, Any]:
        """Return the accuracies of the last epochs."""
        return {"accuracies": {name: list(values) for name, values in self._accuracies.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the accuracies of the last epochs."""
        self._accuracies = {name: list(values) for name, values in state["accuracies"].items()}

    def _change(self, name: str) -> float:
        *earlier, last = self._accuracies.get(name, [0.0])
        if self.rule == "keep" or len(earlier) < self.window or sum(earlier) == 0.0:
            return 1.0
        return last * len(earlier) / sum(earlier)

    def _rates(self) -> dict[str, float]:
        rates: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in self.rates.split(","))):
            name, _, rate = part.partition("=")
            try:
                rates[name.strip()] = float(rate)
            except ValueError:
                raise ValueError(
                    f"{self.name}: rates is {self.rates!r}, expected NAME=FACTOR,NAME=FACTOR such as audio=0.9"
                ) from None
        return rates

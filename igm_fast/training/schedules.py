"""How long stages are, and how the learning rate runs within one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from igm_fast.methods.base import Stage

RateSchedule = Literal["cosine", "step", "warmup", "constant"]
STEP_EPOCHS = 40
STEP_FACTOR = 0.1
WARMUP_FACTOR = 2 / 3


def with_shares(stages: Sequence[Stage], shares: Mapping[str, float]) -> list[Stage]:
    """Return stages of which those with one modality last its share of their epochs, at least one.

    >>> turns = [Stage(0, 0, ("audio",), 50), Stage(1, 0, ("video",), 50), Stage(2, 0, ("audio", "video"), 9)]
    >>> [stage.epochs for stage in with_shares(turns, {"audio": 0.5, "video": 1.0})]
    [25, 50, 9]
    """
    return [
        replace(stage, epochs=max(1, round(stage.epochs * shares[stage.trained])))
        if len(stage.modalities) == 1
        else stage
        for stage in stages
    ]


def learning_rate(schedule: RateSchedule, lr: float, epoch: int, within: float, epochs: int) -> float:
    """Return the learning rate at a place in a stage.

    Args:
        schedule: ``"cosine"``: half a cosine from lr to 0 over the stage. ``"step"``: a tenth in the 40th epoch
            and after each further 40, since the authors' code of IGM steps before the epoch. ``"warmup"``: two thirds
            of lr in the first epoch, lr after. ``"constant"``: lr.
        lr: at the start of the stage (after the warm-up).
        epoch: of the stage, from 0.
        within: share of the epoch that is done, 0 ≤ within < 1.
        epochs: of the stage.

    >>> [learning_rate("step", 1.0, epoch, 0.0, 50) for epoch in (38, 39)]
    [1.0, 0.1]
    """
    if schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * ((epoch + within) / epochs)))
    if schedule == "step":
        return lr * math.pow(STEP_FACTOR, (epoch + 1) // STEP_EPOCHS)
    return lr * WARMUP_FACTOR if schedule == "warmup" and epoch == 0 else lr

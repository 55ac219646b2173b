"""Probabilities of a model on one split, and the three numbers made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import (
    binary_average_precision,
    multiclass_accuracy,
    multiclass_f1_score,
)

from igm_fast.batch_statistics import evaluation_flags
from igm_fast.data import PartDataset
from igm_fast.methods.base import Method
from igm_fast.models import MultimodalModel
from igm_fast.training.batches import Share, ordered_batches

EVALUATION_BATCH = 512  # fixed, so that `evaluate` repeats the sums of training exactly
METRICS = ("accuracy", "map", "macro_f1")


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and all its parts into evaluation mode without gradients; afterwards each part is as before."""
    with evaluation_flags(module), torch.no_grad():
        yield


def predict(
    model: MultimodalModel, method: Method, dataset: PartDataset, device: torch.device, workers: int = 0
) -> dict[str, Tensor]:
    """Return probabilities ``[N, classes]`` (float32, CPU) of each modality, and ``fused`` where there are several."""
    parts: dict[str, list[Tensor]] = {}
    with evaluation_mode(model):
        for batch in ordered_batches(dataset, EVALUATION_BATCH, Share(0, 1, device), workers=workers):
            logits = {name: value.float() for name, value in model(batch.inputs).items()}
            outputs = {name: logits[name].softmax(dim=1) for name in model.modalities}
            if len(model.modalities) > 1:
                outputs["fused"] = method.fuse(logits)
            for name, probabilities in outputs.items():
                parts.setdefault(name, []).append(probabilities.cpu())
    return {name: torch.cat(batches) for name, batches in parts.items()}


def scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, MAP and macro-F1.

    MAP is the mean over classes of the average precision of the class's column, one against the rest; macro-F1 the
    unweighted mean of the classes' F1. A class without a sample in ``labels`` has no average precision and is left out
    of MAP (and of macro-F1, unless it was predicted).

    Args:
        probabilities: ``[N, classes]``.
        labels: ``[N]`` int64.
    """
    classes = probabilities.shape[1]
    accuracy = multiclass_accuracy(probabilities, labels, num_classes=classes, average="micro")
    macro_f1 = multiclass_f1_score(probabilities, labels, num_classes=classes, average="macro")
    precisions = [
        binary_average_precision(probabilities[:, k], (labels == k).long()) for k in torch.unique(labels).tolist()
    ]
    return {
        "accuracy": float(accuracy),
        "map": float(torch.stack(precisions).mean()),
        "macro_f1": float(macro_f1),
    }


def all_scores(outputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, dict[str, float]]:
    """Return :func:`scores` of every branch."""
    return {name: scores(probabilities, labels) for name, probabilities in outputs.items()}


def loss(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy; probabilities are kept above the smallest normal float32."""
    logarithms = probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
    return float(functional.nll_loss(logarithms, labels))

"""One method in hand: model and context without a training loop, and its step against autograd in float64."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

from igm_fast.methods import Batch, Context
from igm_fast.training.batches import Share, ordered_batches, training_batches
from igm_fast.training.config import TrainConfig
from igm_fast.training.loop import build_model, build_optimizer, freeze_all_but

CPU = torch.device("cpu")
PLAIN = TrainConfig(data="digits3", momentum=0.0, weight_decay=0.0, lr=0.1)


def workshop(method, data, stage, config=PLAIN, model=None):
    """Model and context of one stage, on one device and without a training loop."""
    model = build_model(method, data, config) if model is None else model
    freeze_all_but(model, stage.modalities)
    context = Context(
        model=model,
        network=model,
        optimizer=build_optimizer(config, method, model, method.learning_rate_factors(stage)),
        backward=lambda loss, _branch, retain_graph=False: loss.backward(retain_graph=retain_graph),
        training_set=partial(ordered_batches, data.train, 512, Share(0, 1, CPU)),
        samples=len(data.train),
        mean_over_devices=lambda value: value,
        unsynchronized=nullcontext,
        measure=lambda _phase: nullcontext(),
        batches=lambda selection: training_batches(data.train, selection.rows, 32, Share(0, 1, CPU), selection.kept),
        twin=lambda copy: workshop(method, data, stage, config, copy)[1],
    )
    return model, context


def batch_of(data, size=32):
    inputs, labels = data.train.__getitems__(range(size))
    return Batch(inputs, labels)


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def autograd_gradients(model, loss):
    """Gradients in float64 at the model's weights, by name."""
    double = copy.deepcopy(model).double()
    loss(double).backward()
    return {name: p.grad for name, p in double.named_parameters() if p.grad is not None}


def assert_moved(model, before, expected_updates, *, rtol=2e-4):
    """Weights are before − update (float64) up to float32 rounding of weight and gradient; the rest is as it was."""
    for name, value in model.state_dict().items():
        expected = before[name].double() - expected_updates.get(name, torch.zeros(()).double())
        if name not in expected_updates:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
            continue
        size = float(expected_updates[name].abs().max())
        assert size > 1e-6, name  # the bound below bites only if the weight moved
        torch.testing.assert_close(
            value.double(), expected, rtol=2**-22, atol=rtol * size, msg=lambda m, name=name: f"{name}: {m}"
        )


def double_inputs(batch):
    return {name: x.double() for name, x in batch.inputs.items()}


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)

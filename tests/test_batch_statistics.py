"""frozen_batch_statistics: the second pass normalises as in training and leaves no trace."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from igm_fast.batch_statistics import frozen_batch_statistics
from igm_fast.sam import SAM


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class HandWritten(nn.Module):
    """Assigns new buffers in every forward, as home-made batch norms do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x):
        mean, var = x.mean(dim=0), x.var(dim=0)
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean.detach()
            self.running_var = 0.9 * self.running_var + 0.1 * var.detach()
        return (x - mean) / var.sqrt()


NORMS = {
    "batch1d": (lambda: nn.BatchNorm1d(4), (8, 4)),
    "batch2d": (lambda: nn.BatchNorm2d(4), (8, 4, 3, 3)),
    "cumulative": (lambda: nn.BatchNorm1d(4, momentum=None), (8, 4)),
    "momentum0": (lambda: nn.BatchNorm1d(4, momentum=0.0), (8, 4)),
    "instance": (lambda: nn.InstanceNorm1d(4, track_running_stats=True, affine=True), (8, 4, 5)),
    "synchronised": (lambda: nn.SyncBatchNorm(4), (8, 4)),
    "untracked": (lambda: nn.BatchNorm1d(4, track_running_stats=False), (8, 4)),
    "hand-written": (HandWritten, (8, 4)),
}


@pytest.mark.parametrize(("make", "shape"), NORMS.values(), ids=NORMS.keys())
def test_second_pass_leaves_statistics(make, shape):
    model = nn.Sequential(make())
    model(randn(*shape, seed=0))
    x = (3 + 2 * randn(*shape, seed=1)).requires_grad_()
    usual = copy.deepcopy(model)
    expected = usual(x)
    buffers = dict(model.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    with frozen_batch_statistics(model):
        output = model(x)
        model(x + 1)
    assert same_bits(output, expected)  # the batch's statistics, as in training
    (gradient,) = torch.autograd.grad(output.square().sum(), x)  # backward may come after the context
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), x)[0], rtol=0, atol=0)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(same_bits(buffer, before[name]) for name, buffer in buffers.items())
    model(x)  # and tracks again
    for (name, after), want in zip(model.named_buffers(), usual.buffers(), strict=True):
        assert same_bits(after, want), name
        assert name.endswith("tracked") or not isinstance(model[0], nn.BatchNorm1d) or want.isfinite().all()


def test_statistics_come_back_after_an_exception():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(5, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), frozen_batch_statistics(model):
        model(randn(8, 4, seed=0))
    for name, value in model.state_dict().items():
        assert same_bits(value, before[name]), name


def test_evaluation_mode_is_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[0].eval()
    waiting, training = model[0].running_mean, model[1].running_mean
    x = randn(8, 4, seed=0)
    with frozen_batch_statistics(model):
        assert model[0].running_mean is waiting
        assert model[1].running_mean is not training
        model(x)
    assert torch.equal(model[0].running_mean, torch.zeros(4))
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_closure_can_freeze_statistics():
    """The recipe of SAM.step's docstring: the running mean has seen one pass."""
    model, once = (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)) for _ in range(2))
    x = randn(8, 4, seed=0)
    once(x)
    optimizer = SAM(model.parameters(), rho=0.5)

    def closure():
        optimizer.zero_grad()
        with frozen_batch_statistics(model) if optimizer.perturbed else nullcontext():
            loss = model(x).square().mean()
            loss.backward()
        return loss

    optimizer.step(closure)
    for mine, want in zip(model.buffers(), once.buffers(), strict=True):
        assert same_bits(mine, want)

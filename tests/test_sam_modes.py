"""SAM's cheaper modes against float64 restatements: every n-th step with re-use (LookSAM), and along the momentum."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from torch import nn

from igm_fast.sam import SAM
from igm_fast.training import checkpoint

LR, RHO, SHAPES = 0.02, 0.05, ((4, 3), (5,))
BASES = [
    pytest.param({"base": "sgd", "momentum": 0.9, "weight_decay": 1e-2}, id="sgd"),
    pytest.param({"base": "adamw", "weight_decay": 1e-2}, id="adamw"),
]


def leaves(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def gradient(weight: np.ndarray, step: int) -> np.ndarray:
    """Of a function whose curvature turns from step to step: ∇(w − shift)⁴/4 elementwise."""
    return (weight - np.sin(step + np.arange(weight.size)).reshape(weight.shape)) ** 3


def set_grads(params: list[nn.Parameter], step: int) -> None:
    for param in params:
        param.grad = torch.from_numpy(gradient(param.detach().double().numpy(), step)).to(param.dtype)


class Base:
    """The base's step in float64."""

    def __init__(self, options: dict, weights: list[np.ndarray]) -> None:
        self.options, self.count = options, 0
        self.buffers = [None] * len(weights)
        self.moments = [[np.zeros_like(w), np.zeros_like(w)] for w in weights]

    def averages(self) -> list[np.ndarray | None]:
        return self.buffers if self.options["base"] == "sgd" else [m[0] if self.count else None for m in self.moments]

    def step(self, weights: list[np.ndarray], grads: list[np.ndarray]) -> list[np.ndarray]:
        self.count += 1
        rest = {k: v for k, v in self.options.items() if k != "base"}
        after = []
        for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            if self.options["base"] == "sgd":
                new, self.buffers[i] = oracles.sgd_step(weight, grad, self.buffers[i], lr=LR, **rest)
            else:
                rule = {"eps": 1e-8, **rest, "step": self.count, "lr": LR, "beta1": 0.9, "beta2": 0.999}
                new, *self.moments[i] = oracles.adamw_step(weight, grad, *self.moments[i], **rule)
            after.append(new)
        return after


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])


@pytest.mark.parametrize("options", BASES)
@pytest.mark.parametrize("reuse", [0.0, 0.7])
def test_every_third_step_follows_looksam(options, reuse):
    params = leaves()
    optimizer = SAM(params, lr=LR, rho=RHO, every=3, reuse=reuse, **options)
    weights = [param.detach().numpy().copy() for param in params]
    base, kept = Base(options, weights), None
    for step in range(10):
        set_grads(params, step)
        optimizer.perturb()
        assert optimizer.perturbed == (step % 3 == 0)
        if optimizer.perturbed:
            set_grads(params, step)
        optimizer.step()
        grads = [gradient(w, step) for w in weights]
        if step % 3 == 0:
            ascended, _ = oracles.sam_perturb(weights, grads, RHO, scope="global", adaptive=False)
            second = [gradient(w, step) for w in ascended]
            along = flat(grads) @ flat(second) / (flat(grads) @ flat(grads))
            kept = [s - along * g for s, g in zip(second, grads, strict=True)]
            grads = second
        else:
            factor = reuse * np.linalg.norm(flat(grads)) / np.linalg.norm(flat(kept))
            grads = [g + factor * v for g, v in zip(grads, kept, strict=True)]
        weights = base.step(weights, grads)
        for param, want in zip(params, weights, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", BASES)
def test_momentum_direction_needs_one_gradient(options):
    params = leaves()
    optimizer = SAM(params, lr=LR, rho=RHO, direction="momentum", **options)
    weights = [param.detach().numpy().copy() for param in params]
    base = Base(options, weights)
    for step in range(8):
        optimizer.perturb()
        assert optimizer.perturbed == (step > 0)
        set_grads(params, step)
        optimizer.step()
        ascended, averages = weights, base.averages()
        if step > 0:
            ascended, _ = oracles.sam_perturb(weights, averages, RHO, scope="global", adaptive=False)
        weights = base.step(weights, [gradient(w, step) for w in ascended])
        for param, want in zip(params, weights, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("done", [1, 2, 3])
@pytest.mark.parametrize("middle", [False, True])
def test_resume_within_a_cycle_is_bit_exact(dtype, done, middle, tmp_path):
    def steps(optimizer: SAM, numbers: range) -> None:
        mine = optimizer.param_groups[0]["params"]
        for step in numbers:
            set_grads(mine, step)
            optimizer.perturb()
            set_grads(mine, step)
            optimizer.step()

    params = leaves(dtype)
    optimizer = SAM(params, lr=LR, rho=RHO, every=3, momentum=0.9)
    steps(optimizer, range(done))
    if middle:
        set_grads(params, done)
        optimizer.perturb()
    checkpoint.save(tmp_path / "state.safetensors", {"optimizer": optimizer.state_dict()})
    resumed = [nn.Parameter(param.detach().clone()) for param in params]
    again = SAM(resumed, lr=LR, rho=RHO, every=3, momentum=0.9)
    again.load_state_dict(checkpoint.load(tmp_path / "state.safetensors", "")["optimizer"])
    for run in (optimizer, again):
        if middle:
            set_grads(run.param_groups[0]["params"], done)
            run.step()
        steps(run, range(done + 1, done + 6))
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))


def test_closure_runs_twice_only_where_it_has_to():
    params, calls = leaves(), []
    optimizer = SAM(params, lr=LR, rho=RHO, every=3)

    def closure() -> torch.Tensor:
        calls.append(1)
        set_grads(params, len(calls))
        return torch.tensor(0.0)

    counts = []
    for _ in range(6):
        before = len(calls)
        optimizer.step(closure)
        counts.append(len(calls) - before)
    assert counts == [2, 1, 1, 2, 1, 1]


def test_zero_gradients_leave_nothing_to_reuse():
    params = leaves()
    optimizer = SAM(params, lr=LR, rho=RHO, every=2)
    for step in range(4):
        for param in params:
            param.grad = torch.zeros_like(param) if step < 2 else torch.ones_like(param)
        optimizer.perturb()
        optimizer.step()
    assert all(param.isfinite().all() for param in params)


def test_gradients_are_not_written():
    params = leaves()
    optimizer = SAM(params, lr=LR, rho=RHO, every=2)
    for _ in range(2):
        set_grads(params, 1)
        optimizer.perturb()
        before = [param.grad.clone() for param in params]
        optimizer.step()
        assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"SAM: every=0, expected a whole number"),
        ({"every": 1.5}, r"every=1\.5"),
        ({"reuse": -1.0}, r"reuse=-1\.0, expected a finite number ≥ 0"),
        ({"direction": "momentun", "momentum": 0.9}, r"momentum"),
        ({"direction": "momentum"}, r"direction='momentum' with momentum=0, expected a momentum"),
        ({"direction": "momentum", "momentum": 0.9, "every": 2}, r"every=2, expected every=1"),
    ],
)
def test_modes_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        SAM(leaves(), **options)

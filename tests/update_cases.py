"""Parameters, states and projectors for the projected steps on a device, and the check of what a step has written."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from bounds import UNIT, assert_within

from igm_fast.ops import update
from igm_fast.ops.update_checks import state_dtype

ops = torch.ops.igm_fast
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
CHUNK = 4096
SGD = [
    {},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.3, "first_step": True},
]
ADAM = [{"decoupled": True}, {"decoupled": False, "maximize": True}]
RULES = [pytest.param(options, id="-".join(["sgd", *options])) for options in SGD]
RULES += [pytest.param(options, id="adamw" if options["decoupled"] else "adam") for options in ADAM]

# shape, groups, rank (0: no projector), complement. Tiles have 64 rows and 128 (float64: 64) columns, the rank goes
# through shared memory 32 (16) at a time, and packs hold 16 bytes: each of them has a tail here, and an exact fit.
CASES = [
    ((70, 264), 1, 17, 0.9),
    ((CHUNK + 5,), 1, 0, 1.0),
    ((6, 5, 3), 2, 1, 0.7),
    ((0, 4), 1, 0, 1.0),
    ((64, 128), 1, 40, 0.0),
    ((3, 7), 3, 7, 1.0),
    ((1,), 1, 0, 1.0),
    ((130, 33), 1, 5, 0.8),
    ((5, 1), 1, 1, 0.9),
]


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int, *, skip: int = 0, device: str = "cpu") -> torch.Tensor:
    """Normal numbers, `skip` elements behind a multiple of 16 bytes."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    room = torch.empty(values.numel() + skip, dtype=dtype, device=device)[skip:].view(shape)
    return room.copy_(values)


class Problem:
    """Parameters, backups, gradients, states and projectors of CASES, before and after a step on a device."""

    def __init__(
        self,
        dtype: torch.dtype,
        options: dict,
        *,
        cases: list = CASES,
        skip: int = 0,
        restored: bool = True,
        device: str = "cpu",
    ):
        self.dtype, self.options = dtype, {"lr": 0.3} | options
        self.adam = "decoupled" in options
        shapes, state = [case[0] for case in cases], state_dtype(dtype)

        def drawn(kind: torch.dtype, seed: int) -> list[torch.Tensor]:
            return [draw(shape, kind, seed + i, skip=skip, device=device) for i, shape in enumerate(shapes)]

        self.weights, self.params = drawn(dtype, 0), drawn(dtype, 0)
        for param in self.params if restored else []:
            param.fill_(float("nan"))  # to be read from the backups
        self.backups = self.weights if restored else []
        # Where G U is made, G stays aligned: the library that makes it may choose its order of summation by that.
        self.grads = [
            draw(case[0], dtype, 100 + i, skip=0 if case[2] else skip, device=device) for i, case in enumerate(cases)
        ]
        kept = 2 if self.adam else 1 if "momentum" in options else 0
        self.states = [[values.abs_() for values in drawn(state, 200 + 50 * j)] for j in range(kept)]
        self.before = [[s.clone() for s in states] for states in self.states]
        self.bases, self.sigmas, self.complements = [], [], [case[3] for case in cases]
        for i, (shape, groups, rank, _) in enumerate(cases):
            basis, sigma = torch.empty(0), torch.empty(0)
            if rank:
                basis = torch.linalg.qr(draw((groups, int(np.prod(shape[1:])), rank), torch.float64, 300 + i))[0]
                sigma = draw((groups, rank), torch.float64, 400 + i).abs_()
            if groups == 1 and rank:
                basis, sigma = basis[0], sigma[0]
            self.bases.append(basis.to(device, state))
            self.sigmas.append(sigma.to(device, state))
        if self.adam:
            self.options |= {"step": 3, "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}

    def _arguments(self) -> tuple:
        states = self.states if self.adam else [self.states[0] if self.states else []]
        return self.params, *states, self.backups, self.grads, self.bases, self.sigmas, self.complements

    def step(self) -> list[torch.Tensor]:
        """Call the operator; return what it wrote."""
        (ops.projected_adamw_step if self.adam else ops.projected_sgd_step)(*self._arguments(), **self.options)
        return self.written()

    def emulated_step(self) -> list[torch.Tensor]:
        """The same by the operator's CUDA function, on CPU tensors."""
        step = update._projected_adamw_step_cuda if self.adam else update._projected_sgd_step_cuda
        step(*self._arguments(), **self.options)
        return self.written()

    def written(self) -> list[torch.Tensor]:
        return [*self.params, *(state for states in self.states for state in states)]

    def gradient(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """G T of tensor i in float64, and the bound of its error on the device.

        Products of depth d and k in any order, the 3 products of a depth of 8 that stand for one of float32, each with
        an error of 3 · 2⁻²² = 12 u, and at most 20 single roundings around them and inside a matrix unit.
        """
        grad, basis = self.grads[i].double().cpu().numpy(), self.bases[i].double().cpu().numpy()
        if basis.size == 0:
            return grad, np.zeros_like(grad)
        U = basis.reshape(-1, *basis.shape[-2:])
        S = self.sigmas[i].double().cpu().numpy().reshape(len(U), -1)
        view, c = grad.reshape(len(U), -1, U.shape[1]), self.complements[i]
        n = (sum(U.shape[1:]) + 32) * UNIT[state_dtype(self.dtype)]
        size = c * np.abs(view) + np.abs(view) @ np.abs(U) * (c + S)[:, None] @ np.abs(U).transpose(0, 2, 1)
        return oracles.project_gradient(view, U, S, c).reshape(grad.shape), (n / (1 - n) * size).reshape(grad.shape)

    def assert_right(self) -> None:
        unit = UNIT[state_dtype(self.dtype)]
        for i, weight in enumerate(self.weights):
            gradient, error = self.gradient(i)
            old, options = weight.double().cpu().numpy(), dict(self.options)
            if self.adam:
                self._assert_adam(i, old, gradient, error, unit)
                continue
            first = options.pop("first_step", False)
            momentum = options.get("momentum", 0.0)
            buffer = None if first or not momentum else self.before[0][i].double().cpu().numpy()
            want, want_buffer = oracles.sgd_step(old, gradient, buffer, **options)
            decayed = np.abs(gradient) + options.get("weight_decay", 0.0) * np.abs(old)
            size = decayed + momentum * (0 if buffer is None else np.abs(buffer))
            if momentum:
                assert_within(self.states[0][i].double().cpu().numpy(), want_buffer, 1.01 * (error + 6 * unit * size))
            step = options["lr"] * (2 * error + 10 * unit * (size + decayed))
            bound = step + 2 * unit * np.abs(old) + UNIT[self.dtype] * np.abs(want)
            assert_within(self.params[i].double().cpu().numpy(), want, 1.01 * bound)

    def _assert_adam(self, i: int, old: np.ndarray, gradient: np.ndarray, error: np.ndarray, unit: float) -> None:
        o = self.options
        average, square = (states[i].double().cpu().numpy() for states in self.before)
        want, want_average, want_square = oracles.adamw_step(old, gradient, average, square, **o)
        size = np.abs(gradient) + (0 if o["decoupled"] else o["weight_decay"] * np.abs(old))
        average_error = (1 - o["beta1"]) * error + 6 * unit * (np.abs(average) + size)
        square_error = (1 - o["beta2"]) * (2 * size * error + error**2) + 6 * unit * (square + size**2)
        assert_within(self.states[0][i].double().cpu().numpy(), want_average, 1.01 * average_error)
        assert_within(self.states[1][i].double().cpu().numpy(), want_square, 1.01 * square_error)
        corrected = want_average / (1 - o["beta1"] ** o["step"])
        root = np.sqrt(want_square / (1 - o["beta2"] ** o["step"])) + o["eps"]
        # d(m / root): the average's error over root, and half the relative error of the square under it
        moment_error = average_error / (1 - o["beta1"] ** o["step"])
        relative = 0.5 * square_error / np.maximum(want_square - square_error, 1e-30) + 8 * unit
        step = o["lr"] * (moment_error + np.abs(corrected) * relative) / root
        bound = 1.1 * step + 3 * unit * np.abs(old) + UNIT[self.dtype] * np.abs(want)
        assert_within(self.params[i].double().cpu().numpy(), want, 1.01 * bound)


def same_bits(ours: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(
        torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
        for a, b in zip(ours, others, strict=True)
    )

"""projected_sgd_step and projected_adamw_step against float64 oracles and against torch.optim."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import update

ops = torch.ops.igm_fast
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
NO_BASIS = torch.empty(0)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def projector(groups: int, dim: int, rank: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    basis = torch.linalg.qr(randn(groups, dim, rank, seed=seed))[0].to(dtype)
    sigma = (0.67 + 0.33 * torch.rand(groups, rank, generator=torch.Generator().manual_seed(seed))).to(dtype)
    return (basis[0], sigma[0]) if groups == 1 else (basis, sigma)


def expected_gradient(grad, basis, sigma, complement):
    """G T in float64, and the bound of its error: two products of depth d and k and a handful of single roundings."""
    G = grad.double().numpy()
    if basis.numel() == 0:
        return G, np.zeros_like(G)
    U = basis.double().numpy().reshape(-1, *basis.shape[-2:])
    S = sigma.double().numpy().reshape(U.shape[0], -1)
    view = G.reshape(U.shape[0], -1, U.shape[1])
    product = np.abs(view) @ np.abs(U) * (abs(complement) + np.abs(S))[:, None, :] @ np.abs(U).transpose(0, 2, 1)
    n = (U.shape[1] + U.shape[2] + 8) * UNIT[state_dtype(grad.dtype)]
    bound = n / (1 - n) * (abs(complement) * np.abs(view) + product)
    projected = oracles.project_gradient(view, U, S, complement)
    return projected.reshape(G.shape), bound.reshape(G.shape)


shapes = st.sampled_from([(1, 1), (3, 40), (5, 3, 3, 3), (64, 31), (33, 257), (40, 600)])


@given(
    shape=shapes,
    rank=st.integers(0, 70),
    groups=st.sampled_from([1, 2, 5]),
    dtype=st.sampled_from(list(UNIT)),
    complement=st.sampled_from([0.0, 0.7, 1.0]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    maximize=st.booleans(),
    restored=st.booleans(),
    seed=st.integers(0, 5),
)
def test_sgd_within_rounding(shape, rank, groups, dtype, complement, weight_decay, maximize, restored, seed):
    groups = groups if shape[0] % groups == 0 else 1
    dim = int(np.prod(shape[1:]))
    rank = min(rank, dim)
    weight, grad = randn(*shape, seed=seed, dtype=dtype), randn(*shape, seed=seed + 50, dtype=dtype)
    basis, sigma = projector(groups, dim, rank, seed, state_dtype(dtype)) if rank else (NO_BASIS, NO_BASIS)
    param = torch.full_like(weight, float("nan")) if restored else weight.clone()
    ops.projected_sgd_step(
        [param], [], [weight] if restored else [], [grad], [basis], [sigma], [complement],
        lr=0.3, weight_decay=weight_decay, maximize=maximize,
    )  # fmt: skip
    projected, gradient_bound = expected_gradient(grad, basis, sigma, complement)
    old = weight.double().numpy()
    want, _ = oracles.sgd_step(old, projected, None, lr=0.3, weight_decay=weight_decay, maximize=maximize)
    unit = UNIT[state_dtype(dtype)]
    rounding = 6 * unit * (np.abs(old) + 0.3 * (np.abs(projected) + weight_decay * np.abs(old)))
    stored = UNIT[dtype] * np.abs(want)
    bound = 1.01 * (stored + rounding + 0.3 * gradient_bound)
    error = np.abs(param.double().numpy() - want)
    assert np.all(error <= bound), f"worst {np.nanmax(error / bound)} of the bound, {dtype}, {shape}, rank {rank}"


def test_bound_notices_one_missing_column():
    weight, grad = torch.zeros(4, 50), randn(4, 50, seed=1, dtype=torch.float32)
    basis, sigma = projector(1, 50, 6, 0, torch.float32)
    ops.projected_sgd_step([weight], [], [], [grad], [basis], [sigma], [1.0], lr=1.0)
    projected, bound = expected_gradient(grad, basis[:, :5], sigma[:5], 1.0)
    assert np.any(np.abs(-weight.double().numpy() - projected) > bound)


def case(dtype: torch.dtype, seed: int = 0):
    """Three parameters: projected, plain, grouped; their gradients come per step."""
    shapes = [(20, 45), (33,), (6, 2, 3)]
    params = [randn(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]
    first, second = projector(1, 45, 9, 1, torch.float32), projector(2, 6, 2, 2, torch.float32)
    return params, [first[0], NO_BASIS, second[0]], [first[1], NO_BASIS, second[1]], [0.9, 1.0, 0.8]


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    momentum=st.sampled_from([0.0, 0.9]),
    dampening=st.sampled_from([0.0, 0.3]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    nesterov=st.booleans(),
    maximize=st.booleans(),
)
def test_sgd_states_follow_the_equations(dtype, momentum, dampening, weight_decay, nesterov, maximize):
    nesterov = nesterov and momentum > 0 and dampening == 0
    params, bases, sigmas, complements = case(dtype)
    buffers = [torch.full_like(param, float("nan")) for param in params] if momentum else []
    weights: list[np.ndarray] = [param.double().numpy().copy() for param in params]
    expected: list[np.ndarray | None] = [None] * 3
    options = {"momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
    for step in range(4):
        grads = [randn(*param.shape, seed=100 * step + i, dtype=dtype) for i, param in enumerate(params)]
        ops.projected_sgd_step(
            params, buffers, [], grads, bases, sigmas, complements,
            lr=0.1, maximize=maximize, first_step=step == 0, **options,
        )  # fmt: skip
        for i, grad in enumerate(grads):
            projected, _ = expected_gradient(grad, bases[i], sigmas[i], complements[i])
            weights[i], expected[i] = oracles.sgd_step(
                weights[i], projected, expected[i], lr=0.1, maximize=maximize, **options
            )
    # Four steps of values of order 1; each step adds at most (d + k + 12) roundings: far below this factor of 1000.
    tolerance = 1000 * UNIT[dtype]
    for i, param in enumerate(params):
        np.testing.assert_allclose(param.double().numpy(), weights[i], rtol=tolerance, atol=tolerance)
        if momentum:
            np.testing.assert_allclose(buffers[i].double().numpy(), expected[i], rtol=tolerance, atol=tolerance)


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    decoupled=st.booleans(),
    maximize=st.booleans(),
)
def test_adamw_follows_the_equations(dtype, weight_decay, decoupled, maximize):
    params, bases, sigmas, complements = case(dtype)
    averages, squares = ([torch.zeros_like(param) for param in params] for _ in range(2))
    weights = [param.double().numpy().copy() for param in params]
    states = [(np.zeros(param.shape), np.zeros(param.shape)) for param in params]
    options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "weight_decay": weight_decay}
    options |= {"decoupled": decoupled, "maximize": maximize}
    for step in range(1, 5):
        grads = [randn(*param.shape, seed=100 * step + i, dtype=dtype) for i, param in enumerate(params)]
        ops.projected_adamw_step(params, averages, squares, [], grads, bases, sigmas, complements, step=step, **options)
        for i, grad in enumerate(grads):
            projected, _ = expected_gradient(grad, bases[i], sigmas[i], complements[i])
            weights[i], *moments = oracles.adamw_step(weights[i], projected, *states[i], step=step, **options)
            states[i] = (moments[0], moments[1])
    tolerance = 2000 * UNIT[dtype]  # as above; eps = 1e-3 keeps the quotient from amplifying rounding near 0
    for i, param in enumerate(params):
        np.testing.assert_allclose(param.double().numpy(), weights[i], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(averages[i].double().numpy(), states[i][0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(squares[i].double().numpy(), states[i][1], rtol=tolerance, atol=tolerance)


def fifty_steps(params: list[torch.Tensor], step: Callable[[int, list[torch.Tensor]], None]) -> list[torch.Tensor]:
    for number in range(50):
        grads = [randn(*param.shape, seed=10 * number + i, dtype=param.dtype) for i, param in enumerate(params)]
        step(number, grads)
    return params


def torch_steps(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], params: list[torch.Tensor]):
    leaves = [torch.nn.Parameter(param.clone()) for param in params]
    optimizer = make(leaves)

    def step(_: int, grads: list[torch.Tensor]) -> None:
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer.step()

    fifty_steps([leaf.data for leaf in leaves], step)
    return [leaf.detach() for leaf in leaves]


def unprojected(count: int):
    return [NO_BASIS] * count, [NO_BASIS] * count, [1.0] * count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"maximize": True},
        {"weight_decay": 0.01},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01, "maximize": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ],
)
def test_fifty_sgd_steps_equal_torch(options, dtype):
    params = [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(37, 11), (5,), ()])]
    want = torch_steps(lambda leaves: torch.optim.SGD(leaves, lr=0.05, foreach=False, **options), params)
    buffers = [torch.empty_like(param) for param in params] if "momentum" in options else []

    def step(number, grads):
        ops.projected_sgd_step(params, buffers, [], grads, *unprojected(3), lr=0.05, first_step=number == 0, **options)

    fifty_steps(params, step)
    if options.keys() <= {"maximize"}:
        assert all(torch.equal(a, b) for a, b in zip(params, want, strict=True))  # the same one operation
    for ours, theirs in zip(params, want, strict=True):  # at most 4 roundings a step, momentum keeps ten of them alive
        torch.testing.assert_close(ours, theirs, rtol=0, atol=50 * 4 * 10 * UNIT[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("decoupled", [True, False])
def test_fifty_adam_steps_equal_torch(decoupled, weight_decay, dtype):
    params = [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(37, 11), (5,), ()])]
    options = {"lr": 0.01, "eps": 1e-8, "weight_decay": weight_decay}
    peer = torch.optim.AdamW if decoupled else torch.optim.Adam
    want = torch_steps(lambda leaves: peer(leaves, betas=(0.9, 0.999), foreach=False, **options), params)
    averages, squares = ([torch.zeros_like(param) for param in params] for _ in range(2))

    def step(number, grads):
        ops.projected_adamw_step(
            params, averages, squares, [], grads, *unprojected(3),
            step=number + 1, beta1=0.9, beta2=0.999, decoupled=decoupled, **options,
        )  # fmt: skip

    fifty_steps(params, step)
    for ours, theirs in zip(params, want, strict=True):
        # a step of size lr carries about ten roundings; near a zero gradient the first quotient g/|g| doubles them
        torch.testing.assert_close(ours, theirs, rtol=0, atol=50 * 20 * UNIT[dtype])


@given(dtype=st.sampled_from(list(UNIT)), adam=st.booleans(), seed=st.integers(0, 3))
def test_threads_do_not_change_bits(dtype, adam, seed):
    shapes = [(70, 300), (40000,), (64, 8, 3, 3), (0,), (1, 1)]
    grads = [randn(*shape, seed=seed + 9 + i, dtype=dtype) for i, shape in enumerate(shapes)]
    pairs = [projector(1, 300, 40, 1, torch.float32), (NO_BASIS,) * 2, projector(2, 72, 5, 2, torch.float32)]
    pairs += [(NO_BASIS,) * 2] * 2
    bases, sigmas = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = [randn(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes)]
        states = [[torch.zeros_like(param, dtype=state_dtype(dtype)) for param in params] for _ in range(2)]
        if adam:
            ops.projected_adamw_step(
                params, *states, [], grads, bases, sigmas, [0.9] * 5,
                step=1, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1,
            )  # fmt: skip
        else:
            ops.projected_sgd_step(params, states[0], [], grads, bases, sigmas, [0.9] * 5, lr=0.1, momentum=0.9)
        results.append([*params, *states[0], *states[1]])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_projects_alike(isa, run_python):
    code = (
        "import torch, igm_fast.ops; torch.manual_seed(0)\n"
        "w, g, U = torch.zeros(37, 290), torch.randn(37, 290), torch.linalg.qr(torch.randn(290, 45))[0]\n"
        "s = torch.full((45,), 0.25)\n"
        "torch.ops.igm_fast.projected_sgd_step([w], [], [], [g], [U], [s], [1.0], lr=1.0)\n"
        "want = g.double() - 0.75 * (g.double() @ U.double()) @ U.double().T\n"
        "print((w.double() + want).abs().max().item())"
    )
    assert float(run_python(code, IGM_FAST_ISA=isa)) < 1e-5  # sums of 290 terms of order 1: typically 1e-6


def test_strides_and_canaries():
    """Strided gradients are read right, bases may be slices, nothing outside the parameters is written."""
    store = torch.full((2000,), 7.0)
    params = [store[13 : 13 + 300].view(10, 30), store[400:407]]
    grads = [randn(30, 10, seed=1, dtype=torch.float32).T, randn(7, 2, seed=2, dtype=torch.float32)[:, 1]]
    basis, sigma = projector(1, 30, 12, 0, torch.float64)
    before, copies = store.clone(), [grad.clone() for grad in grads]
    ops.projected_sgd_step(params, [], [], grads, [basis[:, ::2], NO_BASIS], [sigma[::2], NO_BASIS], [0.5, 1.0], lr=0.1)
    outside = torch.ones(2000, dtype=torch.bool)
    outside[13:313] = outside[400:407] = False
    assert torch.equal(store[outside], before[outside])
    assert all(torch.equal(a, b) for a, b in zip(grads, copies, strict=True))
    projected, _ = expected_gradient(copies[0].contiguous(), basis[:, ::2], sigma[::2], 0.5)
    np.testing.assert_allclose(params[0].numpy(), 7 - 0.1 * projected, rtol=1e-6)
    np.testing.assert_allclose(params[1].numpy(), 7 - 0.1 * copies[1].numpy(), rtol=1e-6)


def test_nan_gradient_reaches_its_row_only():
    weight, grad = torch.zeros(3, 20), torch.ones(3, 20)
    grad[1, 4] = float("nan")
    basis, sigma = projector(1, 20, 4, 0, torch.float32)
    ops.projected_sgd_step([weight], [], [], [grad], [basis], [sigma], [1.0], lr=0.1)
    assert weight[1].isnan().all()
    assert weight[[0, 2]].isfinite().all()


def test_opcheck_and_compile():
    def sgd(params, buffers, grads, bases, sigmas):
        ops.projected_sgd_step(params, buffers, [], grads, bases, sigmas, [0.5], lr=0.1, momentum=0.9)
        return params[0] + 1

    basis, sigma = projector(1, 6, 2, 0, torch.float32)
    lists = [[randn(4, 6, seed=i, dtype=torch.float32)] for i in range(4)]
    eager, compiled = (
        [[tensor.clone() for tensor in tensors] for tensors in (*lists[:3], [basis], [sigma])] for _ in range(2)
    )
    want = sgd(*eager)
    assert torch.equal(torch.compile(sgd, fullgraph=True, backend="aot_eager")(*compiled), want)
    assert torch.equal(eager[0][0], compiled[0][0])
    sgd_arguments = (lists[0], lists[1], [], lists[2], [basis], [sigma], [0.5])
    torch.library.opcheck(ops.projected_sgd_step.default, sgd_arguments, {"lr": 0.1, "momentum": 0.9})
    options = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0}
    adam_arguments = (lists[0], lists[1], [lists[3][0].abs()], [], lists[2], [basis], [sigma], [0.5])
    torch.library.opcheck(ops.projected_adamw_step.default, adam_arguments, options)


def _slip(**changes):
    arguments = {
        "params": [torch.zeros(4, 6)],
        "momentum_buffers": [],
        "backups": [],
        "grads": [torch.ones(4, 6)],
        "bases": [torch.zeros(6, 2)],
        "sigmas": [torch.zeros(2)],
        "complements": [1.0],
        "lr": 0.1,
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bases": [torch.zeros(5, 2)]}, r"bases\[0\] has shape \(5, 2\), expected .* d = 6 for params\[0\]"),
        ({"bases": [torch.zeros(3, 6, 2)]}, r"bases\[0\] has shape \(3, 6, 2\)"),
        ({"bases": [torch.zeros(6)]}, r"bases\[0\] has shape \(6,\)"),
        ({"bases": [torch.zeros(6, 2, dtype=torch.int64)]}, r"bases\[0\] is torch.int64"),
        ({"sigmas": [torch.zeros(3)]}, r"sigmas\[0\] has shape \(3,\), expected \(2,\)"),
        ({"complements": []}, r"complements has 0 entries, expected 1"),
        ({"bases": []}, r"bases has 0 entries, expected 1"),
        ({"grads": [torch.ones(4, 5)]}, r"grads\[0\] has shape \(4, 5\)"),
        ({"backups": [torch.ones(4, 6).double()]}, r"backups\[0\] is torch.float64"),
        ({"momentum": 0.9}, r"momentum_buffers has 0 tensors, expected 1"),
        ({"momentum_buffers": [torch.zeros(4, 6)]}, r"momentum=0 with 1 momentum_buffers"),
        (
            {"momentum": 0.9, "momentum_buffers": [torch.zeros(4, 6).double()]},
            r"momentum_buffers\[0\] is torch.float64",
        ),
        ({"nesterov": True}, r"nesterov=True with momentum=0"),
        ({"params": [torch.zeros(6, 4).T]}, r"params\[0\] of shape \(4, 6\) has strides"),
    ],
)
def test_slips_are_named_before_anything_is_written(changes, message):
    arguments = _slip(**changes)
    before = arguments["params"][0].clone()
    with pytest.raises(ValueError, match=message):
        ops.projected_sgd_step(**arguments)
    assert torch.equal(arguments["params"][0], before)


@pytest.mark.parametrize(("changes", "message"), [({"step": 0}, "step=0"), ({"beta1": 1.0}, r"betas \(1.0, 0.9\)")])
def test_adam_slips(changes, message):
    options = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0} | changes
    with pytest.raises(ValueError, match=message):
        ops.projected_adamw_step([], [], [], [], [], [], [], [], **options)


def test_scalar_parameter():
    param = torch.tensor(2.0)
    ops.projected_sgd_step(
        [param], [], [], [torch.tensor(1.0)], [torch.ones(1, 1)], [torch.tensor([0.5])], [0.9], lr=1.0
    )
    torch.testing.assert_close(param, torch.tensor(1.5))  # U spans everything: T = Σ


def test_empty_lists_and_tensors():
    ops.projected_sgd_step([], [], [], [], [], [], [], lr=0.1)
    ops.projected_sgd_step([torch.zeros(0, 6)], [], [], [torch.zeros(0, 6)], [NO_BASIS], [NO_BASIS], [1.0], lr=0.1)
    ops.projected_sgd_step(
        [torch.zeros(3, 0)], [], [], [torch.zeros(3, 0)], [torch.zeros(0, 0)], [NO_BASIS], [1.0], lr=0.1
    )


def test_a_basis_that_changes_is_laid_out_anew():
    """What is kept of U from call to call follows it: changed in place, moved to other memory, and gone with it."""
    grad, results = randn(8, 40, seed=1, dtype=torch.float32), []
    basis, sigma = projector(1, 40, 3, 0, torch.float32)
    other, _ = projector(1, 40, 3, 5, torch.float32)

    def stepped(U: torch.Tensor) -> torch.Tensor:
        weight = torch.zeros(8, 40)
        ops.projected_sgd_step([weight], [], [], [grad], [U], [sigma], [0.9], lr=1.0)
        return weight

    expected = stepped(other.clone())
    results.append(stepped(basis))
    basis.copy_(other)
    assert torch.equal(stepped(basis), expected)
    assert not torch.equal(results[0], expected)
    basis.data = projector(1, 40, 3, 0, torch.float32)[0]
    assert torch.equal(stepped(basis), results[0])
    with torch.inference_mode():
        inside = other.clone()
        assert torch.equal(stepped(inside), expected)
        inside.copy_(basis)
        assert torch.equal(stepped(inside), results[0])


def test_nothing_of_a_basis_outlives_it():
    grad, weight = randn(8, 40, seed=1, dtype=torch.float32), torch.zeros(8, 40)
    basis, sigma = projector(1, 40, 3, 0, torch.float32)
    ops.projected_sgd_step([weight], [], [], [grad], [basis], [sigma], [0.9], lr=1.0)
    before = len(update._LAID_OUT)
    del basis
    assert len(update._LAID_OUT) == before - 1

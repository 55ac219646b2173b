"""igm_fast.sam: the rule against float64 restatements and peers, its state, its slips."""

from __future__ import annotations

import copy
import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from torch import nn

from igm_fast.layers import match_layers
from igm_fast.sam import SAM
from igm_fast.training import checkpoint

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
SGD = {"momentum": 0.9, "weight_decay": 1e-2}
ADAMW = {"base": "adamw", "weight_decay": 1e-2}
BASES = [pytest.param(SGD, id="sgd"), pytest.param(ADAMW, id="adamw")]


@pytest.fixture(autouse=True)
def _one_thread():
    """Waking a second one takes longer than these tensors need; tests/ops sees to it that threads change no bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    return [nn.Parameter(randn(*shape, seed=seed + i, dtype=dtype)) for i, shape in enumerate(shapes)]


def set_grads(params: list[nn.Parameter], seed: int) -> None:
    for i, param in enumerate(params):
        param.grad = randn(*param.shape, seed=1000 * seed + i, dtype=param.dtype)


def two_passes(optimizer: SAM, params: list[nn.Parameter], seed: int) -> None:
    """A step whose two gradients are drawn, so that nothing hides behind a loss."""
    set_grads(params, 2 * seed)
    optimizer.perturb()
    set_grads(params, 2 * seed + 1)
    optimizer.step()


def copies(params: list[nn.Parameter]) -> list[torch.Tensor]:
    return [param.detach().clone(memory_format=torch.preserve_format) for param in params]


def numpy_of(tensors) -> list[np.ndarray]:
    return [tensor.detach().double().numpy().copy() for tensor in tensors]


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(
        left.detach().reshape(-1).view(torch.uint8), right.detach().reshape(-1).view(torch.uint8)
    )


def low_rank(dim: int, rank: int, *, groups: int = 1, seed: int = 0, complement: float = 0.9) -> SimpleNamespace:
    """What the optimizer reads of an igm_fast.projector.Projector."""
    basis = torch.linalg.qr(randn(groups, dim, rank, seed=seed))[0]
    sigma = 0.67 + 0.2 * torch.rand(groups, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if groups == 1:
        basis, sigma = basis[0], sigma[0]
    attributes = {"basis": basis, "sigma": sigma, "complement": complement, "dim": dim, "groups": groups}
    return SimpleNamespace(dense_matrix=None, weight_shape=None, **attributes)


def dense(projector: SimpleNamespace) -> SimpleNamespace:
    U, c = projector.basis, projector.complement
    T = c * torch.eye(projector.dim, dtype=U.dtype) + (U * (projector.sigma - c)[..., None, :]) @ U.mT
    empty = {"basis": None, "sigma": None, "complement": 1.0}
    return SimpleNamespace(dense_matrix=T, dim=projector.dim, groups=projector.groups, weight_shape=None, **empty)


# ---- the rule --------------------------------------------------------------------------------------------------------

X, Y = randn(20, 6, seed=1).numpy(), randn(20, 3, seed=2).numpy()


def network_loss(params: list[nn.Parameter]) -> torch.Tensor:
    W, b, V = params
    x, y = (torch.from_numpy(values).to(W.dtype) for values in (X, Y))
    return 0.5 * (torch.tanh(x @ W.T + b) @ V.T - y).square().sum(dim=1).mean()


def network_gradients(W: np.ndarray, b: np.ndarray, V: np.ndarray) -> list[np.ndarray]:
    h = np.tanh(X @ W.T + b)
    residual = (h @ V.T - Y) / len(X)
    inner = (residual @ V) * (1 - h * h)
    return [inner.T @ X, inner.sum(axis=0), residual.T @ h]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"base": "sgd"},
        {"base": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2, "scope": "tensor"},
        {"base": "sgd", "momentum": 0.5, "dampening": 0.3, "adaptive": True},
        {"base": "adamw", "weight_decay": 1e-1},
        {"base": "adamw", "weight_decay": 1e-2, "decoupled": False, "betas": (0.8, 0.95), "eps": 1e-4},
    ],
    ids=["sgd", "nesterov-tensor", "dampening-adaptive", "adamw", "adam"],
)
def test_fifty_steps_follow_the_equations(options, dtype):
    """Two-layer network, projectors on both weights, gradients by hand; the oracle sees float64 all along."""
    lr, rho = 0.02, 0.05
    params = leaves((5, 6), (5,), (3, 5), dtype=dtype)
    projectors = {params[0]: low_rank(6, 3, seed=1), params[2]: low_rank(5, 2, seed=2, complement=0.8)}
    optimizer = SAM(params, lr=lr, rho=rho, **options)
    optimizer.set_projectors(projectors)
    weights, states = numpy_of(params), [None] * 3
    moments = [[np.zeros_like(w), np.zeros_like(w)] for w in weights]
    rest = {k: v for k, v in options.items() if k not in ("base", "scope", "adaptive", "betas")}
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    scope, adaptive = options.get("scope", "global"), options.get("adaptive", False)
    for step in range(50):
        network_loss(params).backward()
        optimizer.perturb()
        optimizer.zero_grad()
        network_loss(params).backward()
        optimizer.step()
        optimizer.zero_grad()
        ascended, _ = oracles.sam_perturb(weights, network_gradients(*weights), rho, scope=scope, adaptive=adaptive)
        for i, grad in enumerate(network_gradients(*ascended)):
            if params[i] in projectors:
                T = projectors[params[i]]
                U, S = T.basis.numpy()[None], T.sigma.numpy()[None]
                grad = oracles.project_gradient(grad[None], U, S, T.complement)[0]
            if options["base"] == "sgd":
                weights[i], states[i] = oracles.sgd_step(weights[i], grad, states[i], lr=lr, **rest)
            else:
                rule = {"eps": 1e-8, **rest, "step": step + 1, "lr": lr, "beta1": beta1, "beta2": beta2}
                weights[i], *moments[i] = oracles.adamw_step(weights[i], grad, *moments[i], **rule)
    # Some 100 roundings of numbers of order 1 per step (products of depth 20, network twice), ten steps alive in the
    # momentum; AdamW divides by a root that may be ten times smaller.
    atol = 50 * 100 * 10 * UNIT[dtype] * lr * (10 if options["base"] == "adamw" else 1)
    for param, want in zip(params, weights, strict=True):
        torch.testing.assert_close(param.detach().double(), torch.from_numpy(want), rtol=0, atol=atol)


@pytest.mark.parametrize("left_out", ["rho", "projector", "weight_decay"])
def test_fifty_steps_notice_what_is_left_out(left_out):
    """The tolerance above is far below what each part of the rule changes."""
    results = []
    for whole in (True, False):
        params = leaves((5, 6), (5,), (3, 5), dtype=torch.float64)
        options = {"rho": 0.05, "weight_decay": 1e-2} | ({} if whole else {left_out: 0.0})
        options.pop("projector", None)
        optimizer = SAM(params, lr=0.02, momentum=0.9, **options)
        if whole or left_out != "projector":
            optimizer.set_projectors({params[0]: low_rank(6, 3)})
        for _ in range(50):
            optimizer.step(closure_of(optimizer, params))
        results.append(torch.cat([param.detach().flatten() for param in params]))
    assert (results[0] - results[1]).abs().max() > 50 * 100 * 10 * UNIT[torch.float32] * 0.02


def closure_of(optimizer: SAM, params: list[nn.Parameter], seen: list[float] | None = None):
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = network_loss(params)
        loss.backward()
        if seen is not None:
            seen.append(loss.item())
        return loss

    return closure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ours", "peer", "roundings"),
    [
        ({}, lambda p: torch.optim.SGD(p, lr=0.1), 0),
        ({"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}, None, 40),
        ({"momentum": 0.9, "weight_decay": 0.01, "dampening": 0.1, "maximize": True}, None, 40),
        ({"base": "adamw", "weight_decay": 0.01}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01), 20),
        (
            {"base": "adamw", "weight_decay": 0.01, "decoupled": False},
            lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
            20,
        ),
    ],
    ids=["sgd", "nesterov", "maximize", "adamw", "adam"],
)
def test_rho_zero_is_the_base_optimizer(ours, peer, roundings, dtype):
    peer = peer or (lambda p: torch.optim.SGD(p, lr=0.1, **ours))
    mine, theirs = (leaves((7, 5), (3,), (), dtype=dtype) for _ in range(2))
    optimizer, reference = SAM(mine, lr=0.1, rho=0.0, **ours), peer(theirs)
    for step in range(10):
        for params in (mine, theirs):
            set_grads(params, step)
        optimizer.perturb()  # nothing to do
        assert not optimizer.perturbed
        optimizer.step()
        reference.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=10 * roundings * UNIT[dtype])


def test_vanilla_rule_equals_pytorch_optimizer():
    peers = pytest.importorskip("pytorch_optimizer")
    mine, theirs = (leaves((5, 6), (5,), (3, 5)) for _ in range(2))
    optimizer = SAM(mine, lr=0.1, rho=0.05, **SGD)
    reference = peers.SAM(theirs, torch.optim.SGD, rho=0.05, lr=0.1, **SGD)
    for _ in range(20):
        optimizer.step(closure_of(optimizer, mine))
        closure = closure_of(reference, theirs)
        closure()  # there, step() makes the second pass only
        reference.step(closure)
    for a, b in zip(mine, theirs, strict=True):  # its norm has + 1e-12; 20 steps of 100 roundings, ten alive
        torch.testing.assert_close(a, b, rtol=0, atol=20 * 100 * 10 * UNIT[torch.float32] * 0.1)


def test_maximize_is_minimize_of_minus_the_loss():
    mine, theirs = (leaves((5, 6), (5,), (3, 5)) for _ in range(2))
    up, down = SAM(mine, maximize=True, momentum=0.9, rho=0.1), SAM(theirs, momentum=0.9, rho=0.1)
    for _ in range(5):
        for optimizer, params, sign in ((up, mine, -1.0), (down, theirs, 1.0)):
            (sign * network_loss(params)).backward()
            optimizer.perturb()
            optimizer.zero_grad()
            (sign * network_loss(params)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(mine, theirs, strict=True):
        assert same_bits(a, b)


# ---- perturb and restore ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_restore_is_bit_exact(dtype, scope):
    params = leaves((300, 7), (5,), (), dtype=dtype)
    with torch.no_grad():
        params[1][:3] = torch.tensor([-0.0, float("nan"), float("inf")])
    before, addresses = copies(params), [param.data_ptr() for param in params]
    optimizer = SAM(params, rho=0.3, scope=scope)
    set_grads(params, 1)
    optimizer.perturb()
    assert optimizer.perturbed
    assert not torch.equal(params[0], before[0])
    optimizer.restore()
    assert not optimizer.perturbed
    assert all(same_bits(param, old) for param, old in zip(params, before, strict=True))
    assert [param.data_ptr() for param in params] == addresses
    optimizer.restore()  # nothing to take back
    assert all(same_bits(param, old) for param, old in zip(params, before, strict=True))
    assert optimizer.state_dict()["state"] == {}


def test_backups_are_allocated_once_and_follow_the_parameter():
    params = leaves((8, 9))
    optimizer = SAM(params)
    addresses = set()
    for step in range(3):
        set_grads(params, step)
        optimizer.perturb()
        addresses.add(optimizer.state[params[0]]["backup"].data_ptr())
        optimizer.step()
    assert len(addresses) == 1
    params[0].data = params[0].data.double()
    before = copies(params)
    set_grads(params, 9)
    optimizer.perturb()
    optimizer.restore()
    assert same_bits(params[0], before[0])


@pytest.mark.parametrize("options", [{}, SGD, ADAMW], ids=["plain", "momentum", "adamw"])
def test_missing_gradients_in_every_combination(options):
    """(first gradient, second gradient) present or not, at once in one optimizer, over several steps."""
    first, second = ([True, True, False, False], [True, False, True, False])
    params = leaves((3, 4), (3, 4), (3, 4), (3, 4))
    optimizer = SAM(params, lr=0.1, rho=0.5, **options)
    alone = copy.deepcopy([params[0], params[2]])  # what has a second gradient, stepping without perturbation
    reference = SAM(alone, lr=0.1, rho=0.0, **options)
    before = copies(params)
    for step in range(3):
        set_grads(params, 2 * step)
        for param, present in zip(params, first, strict=True):
            param.grad = param.grad if present else None
        optimizer.perturb()
        moved = [not torch.equal(param, old) for param, old in zip(params, before, strict=True)]
        assert moved == (first if step == 0 else [True, True, True, False])
        set_grads(params, 2 * step + 1)
        for param, present in zip(params, second, strict=True):
            param.grad = param.grad if present else None
        for mine, theirs in zip((params[0], params[2]), alone, strict=True):
            theirs.grad = mine.grad
        optimizer.step()
        reference.step()
        assert same_bits(params[0], alone[0])
        assert same_bits(params[1], before[1])  # put back
        assert same_bits(params[2], alone[1])  # from its weight
        assert same_bits(params[3], before[3])
        assert not optimizer.perturbed


def test_late_parameter_starts_its_own_count():
    """A parameter that joins later gets a first step of its own: momentum as torch starts it, Adam's step 1."""
    for options, peer in (
        ({"momentum": 0.9, "dampening": 0.5}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5)),
        ({"base": "adamw"}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0)),
    ):
        mine, theirs = leaves((4,), (4,), dtype=torch.float64), leaves((4,), (4,), dtype=torch.float64)
        optimizer, reference = SAM(mine, lr=0.1, rho=0.0, **options), peer(theirs)
        for step in range(6):
            for params in (mine, theirs):
                set_grads(params, step)
                if step < 3:
                    params[1].grad = None
            optimizer.step()
            reference.step()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2], ids=["one-call", "several-calls"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gradient_without_a_direction_perturbs_nothing(value, groups):
    params = leaves((40,), (6, 2))
    settings = [{"params": [param], "rho": 0.05 * (i + 1 if groups == 2 else 1)} for i, param in enumerate(params)]
    optimizer, before = SAM(settings, lr=0.1), copies(params)
    if value == 0.0:
        for param in params:
            param.grad = torch.zeros_like(param)
    else:
        set_grads(params, 1)
        params[1].grad[3, 1] = value
    optimizer.perturb()
    assert all(same_bits(param, old) for param, old in zip(params, before, strict=True))
    set_grads(params, 2)
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        assert same_bits(param, torch.add(old, param.grad, alpha=-0.1))


def test_perturb_twice_names_the_way_out():
    params = leaves((4,))
    optimizer = SAM(params)
    set_grads(params, 0)
    optimizer.perturb()
    moved = copies(params)
    with pytest.raises(RuntimeError, match=r"perturbed already, expected step\(\) or restore\(\)"):
        optimizer.perturb()
    assert same_bits(params[0], moved[0])
    optimizer.step()
    optimizer.perturb()


# ---- groups, dtypes, layouts -----------------------------------------------------------------------------------------


def test_groups_have_their_own_options_and_one_norm():
    """rho, lr, weight decay and adaptive per group; ‖g‖ runs over all of them, also where rho = 0."""
    params = leaves((5, 4), (7,), (3, 3), (2,), dtype=torch.float64)
    own = [{"lr": 0.1, "rho": 0.5}, {"rho": 0.1, "weight_decay": 0.1}, {"rho": 0.2, "adaptive": True}, {"rho": 0.0}]
    optimizer = SAM([{"params": [p], **options} for p, options in zip(params, own, strict=True)], lr=0.01, rho=9.0)
    weights = numpy_of(params)
    set_grads(params, 1)
    grads = numpy_of([param.grad for param in params])
    optimizer.perturb()
    terms = [abs(w) * g if options.get("adaptive") else g for w, g, options in zip(weights, grads, own, strict=True)]
    norm = np.sqrt(sum(np.sum(term**2) for term in terms))
    for param, w, g, options in zip(params, weights, grads, own, strict=True):
        want = w + options["rho"] * (w * w * g if options.get("adaptive") else g) / norm
        # the norms of several calls meet as float32
        torch.testing.assert_close(param.detach(), torch.from_numpy(want), rtol=0, atol=8 * UNIT[torch.float32])
    set_grads(params, 2)
    optimizer.step()
    for param, w, options in zip(params, weights, own, strict=True):
        grad = param.grad.numpy() + options.get("weight_decay", 0.0) * w
        want = torch.from_numpy(w - options.get("lr", 0.01) * grad)
        torch.testing.assert_close(param.detach(), want, rtol=1e-14, atol=1e-14)


def test_groups_of_one_radius_are_one_call():
    """Own lr and weight decay do not change ε by a bit."""
    mine, theirs = leaves((50, 3), (20,)), leaves((50, 3), (20,))
    optimizers = SAM([{"params": [mine[0]], "lr": 1.0}, {"params": [mine[1]], "weight_decay": 0.1}]), SAM(theirs)
    for optimizer, params in zip(optimizers, (mine, theirs), strict=True):
        set_grads(params, 3)
        optimizer.perturb()
    for a, b in zip(mine, theirs, strict=True):
        assert same_bits(a, b)


def test_mixed_dtypes_share_one_norm():
    params = [
        *leaves((30, 4), dtype=torch.float32),
        *leaves((9,), dtype=torch.float64, seed=5),
        *leaves((11,), dtype=torch.bfloat16, seed=6),
    ]
    weights, optimizer = numpy_of(params), SAM(params, rho=0.5, lr=0.1, **SGD)
    before = copies(params)
    set_grads(params, 4)
    grads = numpy_of([param.grad for param in params])
    optimizer.perturb()
    want, _ = oracles.sam_perturb(weights, grads, 0.5, scope="global", adaptive=False)
    for param, expected in zip(params, want, strict=True):
        torch.testing.assert_close(
            param.detach().double(), torch.from_numpy(expected), rtol=UNIT[param.dtype], atol=8 * UNIT[torch.float32]
        )
    optimizer.restore()
    assert all(same_bits(param, old) for param, old in zip(params, before, strict=True))
    optimizer.step()
    for param, w, g in zip(params, weights, grads, strict=True):
        expected, _ = oracles.sgd_step(w, g, None, lr=0.1, **SGD)
        unit = UNIT[param.dtype]
        torch.testing.assert_close(
            param.detach().double(), torch.from_numpy(expected), rtol=2 * unit, atol=8 * unit / 8
        )
    assert [optimizer.state[param]["momentum_buffer"].dtype for param in params] == [
        torch.float32,
        torch.float64,
        torch.float32,
    ]


@pytest.mark.parametrize(
    "projected", [None, low_rank, lambda d, k: dense(low_rank(d, k))], ids=["plain", "low", "dense"]
)
@pytest.mark.parametrize("options", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_channels_last_equals_contiguous(options, projected):
    """Weights, gradients and states lie as the model lies; U's rows follow. A loaded state lies so as well."""
    strided, plain = (leaves((6, 4, 3, 2), (5,), dtype=torch.float64) for _ in range(2))
    strided[0].data = strided[0].data.contiguous(memory_format=torch.channels_last)
    optimizers = [SAM(params, lr=0.1, rho=0.1, **options) for params in (strided, plain)]
    for step in range(4):
        for i, params in enumerate((strided, plain)):
            if projected is not None:
                optimizers[i].set_projectors({params[0]: projected(24, 5)})
            two_passes(optimizers[i], params, step)
        if step == 1:
            state = copy.deepcopy(optimizers[1].state_dict())  # contiguous
            optimizers[0] = SAM(strided, lr=0.1, rho=0.1, **options)
            optimizers[0].load_state_dict(state)
    assert not strided[0].is_contiguous()
    assert all(value.stride() == strided[0].stride() for value in tensors_of(optimizers[0].state[strided[0]]))
    for a, b in zip(strided, plain, strict=True):  # sums over d = 24 run in another order
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-13, atol=1e-13)


def tensors_of(state: dict) -> list[torch.Tensor]:
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


def test_parameters_that_cannot_be_laid_out_are_named():
    gaps = nn.Parameter(torch.zeros(4, 6)[:, ::2])
    optimizer = SAM([("head.weight", gaps)])
    gaps.grad = torch.ones(4, 3)
    with pytest.raises(
        ValueError, match=r"'head.weight' of shape \(4, 3\) has strides \(6, 2\), expected memory without"
    ):
        optimizer.perturb()
    transposed = nn.Parameter(randn(3, 4, seed=0).T)
    optimizer = SAM([transposed])
    transposed.grad = randn(4, 3, seed=1)
    want = transposed.detach() - 1e-2 * transposed.grad
    optimizer.perturb()
    optimizer.step()
    torch.testing.assert_close(transposed.detach(), want)
    optimizer.set_projectors({transposed: low_rank(3, 1)})
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* expected its first dimension outermost"):
        optimizer.step()


def test_sparse_gradient_is_named():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = SAM(embedding.named_parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    for act in (optimizer.perturb, optimizer.step):
        with pytest.raises(
            ValueError, match=r"'weight' has a gradient of layout torch.sparse_coo, expected a dense one"
        ):
            act()


def test_half_precision_is_refused_with_a_way_out():
    params = leaves((3,), dtype=torch.float16)
    set_grads(params, 0)
    with pytest.raises(ValueError, match=r"float16, expected float32, float64 or bfloat16.*autocast"):
        SAM(params).perturb()


def test_default_dtype_does_not_matter():
    torch.set_default_dtype(torch.float64)
    try:
        params = leaves((4,))
        optimizer = SAM(params)
        two_passes(optimizer, params, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert params[0].isfinite().all()


# ---- closures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", BASES)
def test_closure_equals_two_calls(options):
    mine, theirs = (leaves((5, 6), (5,), (3, 5)) for _ in range(2))
    one, two = (SAM(params, lr=0.1, rho=0.2, **options) for params in (mine, theirs))
    for _ in range(5):
        seen: list[float] = []
        returned = one.step(closure_of(one, mine, seen))
        two.zero_grad()
        first = network_loss(theirs)
        first.backward()
        two.perturb()
        two.zero_grad()
        second = network_loss(theirs)
        second.backward()
        assert two.step() is None
        assert returned.item() == first.item() == seen[0]
        assert seen == [first.item(), second.item()]
    for a, b in zip(mine, theirs, strict=True):
        assert same_bits(a, b)


def test_closure_after_perturb_is_the_second_pass():
    params, seen = leaves((5, 6), (5,), (3, 5)), []
    optimizer = SAM(params, rho=0.2)
    closure = closure_of(optimizer, params, seen)
    closure()
    optimizer.perturb()
    assert optimizer.step(closure).item() == seen[1]
    assert len(seen) == 2
    assert not optimizer.perturbed


def test_closure_runs_once_without_rho_and_under_no_grad():
    params, seen = leaves((5, 6), (5,), (3, 5)), []
    optimizer = SAM(params, rho=0.0, lr=0.1)
    with torch.no_grad():  # as some frameworks call it
        optimizer.step(closure_of(optimizer, params, seen))
    assert len(seen) == 1


def test_exception_in_the_second_pass_leaves_the_weights():
    params = leaves((5, 6), (5,), (3, 5))
    optimizer, before = SAM(params, rho=0.2), copies(params)
    good, calls = closure_of(optimizer, params), itertools.count()

    def closure():
        if next(calls) == 1:
            raise KeyboardInterrupt
        return good()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(same_bits(param, old) for param, old in zip(params, before, strict=True))
    assert not optimizer.perturbed


# ---- state -----------------------------------------------------------------------------------------------------------


def saved_and_loaded(optimizer: SAM, path) -> dict:
    """The state through a checkpoint file, as a resumed run sees it."""
    checkpoint.save(path, {"optimizer": optimizer.state_dict()})
    return checkpoint.load(path, "")["optimizer"]


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("middle", [False, True], ids=["between-steps", "mid-step"])
@pytest.mark.parametrize("options", [{}, SGD, ADAMW], ids=["plain", "momentum", "adamw"])
def test_resume_is_bit_exact(options, middle, dtype, tmp_path):
    params = leaves((5, 6), (7,), dtype=dtype)
    optimizer = SAM(params, lr=0.1, rho=0.3, **options)
    for step in range(3):
        two_passes(optimizer, params, step)
    if middle:
        set_grads(params, 50)
        optimizer.perturb()
    resumed = [nn.Parameter(value) for value in copies(params)]
    again = SAM(resumed, lr=9.0, rho=9.0, **options)
    again.load_state_dict(saved_and_loaded(optimizer, tmp_path / "state.safetensors"))
    assert again.perturbed == middle
    for run in (optimizer, again):
        mine = run.param_groups[0]["params"]
        if middle:
            set_grads(mine, 51)
            run.step()
        for step in range(3, 6):
            two_passes(run, mine, step)
        set_grads(mine, 99)
        run.perturb()  # compared at ω + ε: rho has come along
    for a, b in zip(params, resumed, strict=True):
        assert same_bits(a, b)
    for a, b in zip(params, resumed, strict=True):
        assert optimizer.state[a].keys() == again.state[b].keys()
        for key, value in optimizer.state[a].items():
            other = again.state[b][key]
            assert same_bits(value, other) if isinstance(value, torch.Tensor) else (value == other == 6 + middle), key


def test_restore_after_loading_a_perturbed_state():
    params = leaves((5, 6))
    before = copies(params)
    optimizer = SAM(params, rho=0.3)
    set_grads(params, 0)
    optimizer.perturb()
    other = [nn.Parameter(params[0].detach().clone())]
    again = SAM(other)
    again.load_state_dict(optimizer.state_dict())
    optimizer.state[params[0]]["backup"].zero_()  # the loaded state is a copy
    again.restore()
    assert same_bits(other[0], before[0])
    optimizer.load_state_dict(SAM(leaves((5, 6))).state_dict())  # a state between steps: nothing to take back
    assert not optimizer.perturbed


def test_states_of_bfloat16_stay_float32_and_exact():
    params = leaves((9,), dtype=torch.bfloat16)
    optimizer = SAM(params, momentum=0.9)
    two_passes(optimizer, params, 0)
    two_passes(optimizer, params, 1)
    buffer = optimizer.state[params[0]]["momentum_buffer"]
    assert not torch.equal(buffer, buffer.bfloat16().float())  # it holds more than bfloat16 can
    again = SAM([nn.Parameter(params[0].detach().clone())], momentum=0.9)
    again.load_state_dict(optimizer.state_dict())
    (state,) = again.state.values()
    assert same_bits(state["momentum_buffer"], buffer)


def test_load_hooks_are_respected():
    params = leaves((3,))
    optimizer = SAM(params, momentum=0.9)
    two_passes(optimizer, params, 0)
    again = SAM([nn.Parameter(torch.zeros(3))], momentum=0.9)

    def doubled(_, state):
        buffer = state["state"][0]["momentum_buffer"]
        return {**state, "state": {0: {"momentum_buffer": 2 * buffer}}}

    again.register_load_state_dict_pre_hook(doubled)
    again.load_state_dict(optimizer.state_dict())
    (state,) = again.state.values()
    torch.testing.assert_close(state["momentum_buffer"], 2 * optimizer.state[params[0]]["momentum_buffer"])


def test_foreign_states_are_refused():
    params = leaves((3, 2))
    optimizer = SAM(params, **ADAMW)
    two_passes(optimizer, params, 0)
    with pytest.raises(ValueError, match=r"without dampening, momentum, nesterov, expected one of base 'sgd'"):
        SAM(leaves((3, 2))).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"exp_avg of shape \(3, 2\) for parameter 0 of group 0, expected \(1, 2\)"):
        SAM(leaves((1, 2)), **ADAMW).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_alike(duplicate):
    params = leaves((4, 6), (3,))
    optimizer = SAM(params, rho=0.3, scope="tensor", **ADAMW)
    optimizer.set_projectors({params[0]: low_rank(6, 2)})
    two_passes(optimizer, params, 0)
    set_grads(params, 7)
    optimizer.perturb()
    twins, twin = duplicate((params, optimizer))
    for run, mine in ((optimizer, params), (twin, twins)):
        set_grads(mine, 8)
        run.step()
        two_passes(run, mine, 9)
        set_grads(mine, 99)
        run.perturb()  # compared at ω + ε
    for a, b in zip(params, twins, strict=True):
        assert a is not b
        assert same_bits(a, b)


# ---- what torch's optimizers can do ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=20),  # cycles the momentum, too
    ],
    ids=["step", "one-cycle"],
)
def test_schedulers(schedule):
    mine, theirs = leaves((4, 3), dtype=torch.float64), leaves((4, 3), dtype=torch.float64)
    optimizers = SAM(mine, lr=0.1, rho=0.0, momentum=0.9), torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    schedulers = [schedule(optimizer) for optimizer in optimizers]
    for step in range(8):
        for params, optimizer, scheduler in zip((mine, theirs), optimizers, schedulers, strict=True):
            set_grads(params, step)
            optimizer.step()
            scheduler.step()
    assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"] != 0.1
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-13, atol=1e-13)


def test_add_param_group():
    params = leaves((4,), (5,))
    optimizer = SAM(params[:1], lr=0.1, rho=0.5, momentum=0.9)
    two_passes(optimizer, params[:1], 0)
    optimizer.add_param_group({"params": params[1], "rho": 0.25, "lr": torch.tensor(0.01)})
    assert optimizer.param_groups[1]["momentum"] == 0.9
    before = copies(params)
    set_grads(params, 1)
    norm = torch.cat([param.grad for param in params]).norm()
    optimizer.perturb()
    for param, old, rho in zip(params, before, (0.5, 0.25), strict=True):
        torch.testing.assert_close(param.detach(), old + rho * param.grad / norm, rtol=1e-6, atol=1e-6)
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), before[1] - 0.01 * params[1].grad)
    with pytest.raises(ValueError, match="rho=-1"):
        optimizer.add_param_group({"params": leaves((2,)), "rho": -1})
    with pytest.raises(ValueError, match=r"betas=.* with base 'sgd'"):
        optimizer.add_param_group({"params": leaves((2,)), "betas": (0.5, 0.5)})
    assert len(optimizer.param_groups) == 2


def test_hooks_repr_and_defaults():
    params, seen = leaves((4,)), []
    optimizer = SAM(params, base="adamw", scope="tensor", rho=0.07)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    two_passes(optimizer, params, 0)
    assert seen == ["before", "after"]
    assert repr(optimizer).startswith("SAM (base='adamw', scope='tensor', projectors=0\nParameter Group 0")
    assert "rho: 0.07" in repr(optimizer)
    assert set(optimizer.defaults) == {
        *("lr", "rho", "adaptive", "weight_decay", "maximize", "turn"),
        *("betas", "eps", "decoupled"),
    }
    optimizer.zero_grad()
    assert params[0].grad is None


def test_accumulated_gradients():
    """backward several times before perturb() and before step() is one batch."""
    mine, theirs = leaves((5, 6), (5,), (3, 5)), leaves((5, 6), (5,), (3, 5))
    optimizers = SAM(mine, rho=0.3), SAM(theirs, rho=0.3)
    for act in ("perturb", "step"):
        network_loss(mine).backward()
        for _ in range(4):
            (network_loss(theirs) / 4).backward()  # quarters are exact
        for optimizer in optimizers:
            getattr(optimizer, act)()
            optimizer.zero_grad()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_gradient_scaler():
    """A scale of 2ⁿ changes no bit; a step skipped for inf leaves the weights after restore()."""
    mine, theirs = leaves((5, 6), (5,), (3, 5)), leaves((5, 6), (5,), (3, 5))
    scaled, plain = SAM(mine, rho=0.3, **SGD), SAM(theirs, rho=0.3, **SGD)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for factor in (1.0, 1.0, float("inf")):
        before = copies(mine)
        scaler.scale(network_loss(mine) * factor).backward()
        scaled.perturb()
        scaled.zero_grad()
        scaler.scale(network_loss(mine) * factor).backward()
        scaler.step(scaled)
        scaled.restore()
        scaler.update()
        scaled.zero_grad()
        if factor == 1.0:
            plain.step(closure_of(plain, theirs))
            assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True))
            assert not same_bits(mine[0], before[0])
    assert all(same_bits(a, b) for a, b in zip(mine, before, strict=True))
    assert not scaled.perturbed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "adam"}, r"unknown base 'adam'. Did you mean 'adamw'"),
        ({"scope": "globl"}, r"unknown scope 'globl'. Did you mean 'global'"),
        ({"base": "adamw", "momentum": 0.9}, r"momentum=0.9 with base 'adamw', expected only betas.*base='sgd'"),
        ({"betas": (0.9, 0.99)}, r"betas=\(0.9, 0.99\) with base 'sgd', expected only momentum.*base='adamw'"),
        ({"decoupled": False}, r"decoupled=False with base 'sgd'"),
        ({"lr": -0.1}, r"lr=-0.1, expected a finite number ≥ 0"),
        ({"rho": float("nan")}, r"rho=nan"),
        ({"rho": float("inf")}, r"rho=inf"),
        ({"weight_decay": -1.0}, r"weight_decay=-1.0"),
        ({"base": "adamw", "eps": -1.0}, r"eps=-1.0"),
        ({"base": "adamw", "betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\), expected numbers in \[0, 1\)"),
        ({"nesterov": True}, r"nesterov=True with momentum=0.0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, r"dampening=0.1, expected momentum > 0 and damp"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        SAM(leaves((2,)), **options)
    if "base" not in options and "scope" not in options:  # in a group as well
        with pytest.raises(ValueError, match=message):
            SAM([{"params": leaves((2,)), **options}])


# ---- projectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", BASES)
def test_dense_and_low_rank_projectors_agree(options, groups, dtype):
    """G T by hand in float64, on a grouped convolution's weight; the bias and ε are not projected."""
    T = low_rank(6, 2, groups=groups, complement=0.7)
    matrix = dense(T).dense_matrix.reshape(-1, 6, 6).numpy()
    results = []
    for projector in (T, dense(T)):
        params = leaves((4, 3, 2), (4,), dtype=dtype)
        optimizer, plain = SAM(params, lr=0.1, **options), SAM(copy.deepcopy(params), lr=0.1, **options)
        optimizer.set_projectors([(params[0], projector)])
        set_grads(params, 0)
        set_grads(plain.param_groups[0]["params"], 0)
        optimizer.perturb()
        plain.perturb()
        assert all(same_bits(a, b) for a, b in zip(params, plain.param_groups[0]["params"], strict=True))
        set_grads(params, 1)
        set_grads(plain.param_groups[0]["params"], 1)
        weight, grad = plain.param_groups[0]["params"][0], params[0].grad.double().numpy()
        weight.grad = torch.from_numpy((grad.reshape(groups, -1, 6) @ matrix).reshape(4, 3, 2)).to(dtype)
        optimizer.step()
        plain.step()
        results.append(params)
        # Adam's first step is lr·g/|g|: an error of g by r·|g| changes nothing; SGD's is lr·r·|g|.
        torch.testing.assert_close(params[0].detach(), weight.detach(), rtol=4 * UNIT[dtype], atol=4 * UNIT[dtype])
        assert same_bits(params[1], plain.param_groups[0]["params"][1])
        state, other = optimizer.state[params[0]], plain.state[weight]
        for key in state.keys() - {"step"}:
            torch.testing.assert_close(state[key], other[key], rtol=40 * UNIT[dtype], atol=40 * UNIT[dtype])


def test_rank_zero_is_a_multiple_of_the_gradient():
    """T = cI: all eigenvalues within the tolerance, nothing worth a column."""
    params = leaves((4, 6), dtype=torch.float64)
    before, optimizer = copies(params), SAM(params, lr=0.1, rho=0.0)
    optimizer.set_projectors({params[0]: low_rank(6, 0, complement=0.75)})
    set_grads(params, 0)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), before[0] - 0.1 * 0.75 * params[0].grad, rtol=1e-14, atol=1e-14)


def test_matching_of_layers_and_clearing():
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    optimizer = SAM(network.parameters(), lr=1.0, rho=0.0)
    optimizer.set_projectors(match_layers(network, {"0": low_rank(6, 2), "2": low_rank(4, 1)}))
    assert "projectors=2" in repr(optimizer)
    assert optimizer.state_dict()["state"] == {}
    for projected in (True, False):
        before = copies(list(network.parameters()))
        for i, param in enumerate(network.parameters()):
            param.grad = randn(*param.shape, seed=i)
        optimizer.step()
        for i, (param, old) in enumerate(zip(network.parameters(), before, strict=True)):
            plain = torch.allclose(param, old - param.grad, rtol=1e-12, atol=1e-12)
            assert plain != (projected and i in (0, 2))  # weights, not biases
        optimizer.set_projectors(None)


def test_projectors_are_converted_once():
    params = leaves((4, 6), dtype=torch.bfloat16)
    optimizer, T = SAM(params, lr=0.1, rho=0.0), low_rank(6, 2)
    optimizer.set_projectors({params[0]: T})
    T.basis.fill_(float("nan"))  # float64: the optimizer has a float32 copy
    set_grads(params, 0)
    optimizer.step()
    assert params[0].isfinite().all()


@pytest.mark.parametrize(
    ("matching", "error", "message"),
    [
        (lambda _: {"0": low_rank(6, 2)}, TypeError, r"'0' given, expected a parameter. Use match_layers"),
        (lambda _: [(nn.Parameter(torch.zeros(4, 6)), low_rank(6, 2))], ValueError, r"entry 0 .*\(4, 6\) that is not"),
        (lambda p: [(p[0], low_rank(6, 2)), (p[0], low_rank(6, 1))], ValueError, r"two projectors for parameter 'a'"),
        (lambda p: {p[0]: low_rank(5, 2)}, ValueError, r"'a' with a projector of 1 group\(s\) of d=5, expected d=6"),
        (
            lambda p: {p[0]: low_rank(6, 2, groups=3)},
            ValueError,
            r"of 3 group\(s\) of d=6, expected d=6, groups of whole",
        ),
        (lambda p: {p[1]: low_rank(6, 2)}, ValueError, r"'b' with a projector .*, expected d=1"),
    ],
)
def test_projectors_that_do_not_fit(matching, error, message):
    params = leaves((4, 6), (3,))
    optimizer = SAM([("a", params[0]), ("b", params[1])])
    optimizer.set_projectors({params[0]: low_rank(6, 2)})
    with pytest.raises(error, match=message):
        optimizer.set_projectors(matching(params))
    assert "projectors=1" in repr(optimizer)  # those before stay

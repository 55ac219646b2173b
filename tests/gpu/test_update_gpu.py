"""The update operators and SAM on a CUDA device."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from update_cases import CASES, DTYPES, RULES, SGD, Problem, draw, same_bits

from igm_fast.ops.update import device_basis
from igm_fast.projector import FlatExponential, Projector
from igm_fast.sam import SAM

pytestmark = pytest.mark.gpu
ops = torch.ops.igm_fast
CHUNK = 16384  # of sam_perturb


# ---- sam_perturb -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_perturb_matches_the_oracle(dtype, scope, adaptive):
    sizes = [5, 0, CHUNK + 3, 1, 3 * CHUNK, *range(200)]
    params, grads = ([torch.randn(size, dtype=dtype, device="cuda") for size in sizes] for _ in range(2))
    params[2] = torch.randn(CHUNK + 4, dtype=dtype, device="cuda")[1:]  # off the 16-byte grid
    before, backups = [param.clone() for param in params], [torch.empty_like(param) for param in params]
    norm = torch.empty(1 if scope == "global" else len(sizes), device="cuda")
    ops.sam_perturb(params, backups, norm, grads, 0.05, scope=scope, adaptive=adaptive)
    weights, gradients = ([tensor.double().cpu().numpy() for tensor in tensors] for tensors in (before, grads))
    expected, norms = oracles.sam_perturb(weights, gradients, 0.05, scope=scope, adaptive=adaptive)
    np.testing.assert_allclose(norm.cpu().numpy(), norms.astype(np.float32), rtol=1e-6)
    unit = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-7}[dtype]
    for param, backup, old, want in zip(params, backups, before, expected, strict=True):
        assert torch.equal(backup, old)
        np.testing.assert_allclose(param.double().cpu().numpy(), want, rtol=2 * unit, atol=2 * unit * 0.05)
    ops.sam_restore(params, backups)
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_perturb_with_the_norm_of_several_calls():
    weight, grad = torch.zeros(100, device="cuda"), torch.ones(100, device="cuda")
    norm, total = torch.empty(1, device="cuda"), torch.tensor(20.0, device="cuda")
    ops.sam_perturb([weight], [torch.empty_like(weight)], norm, [grad], 0.5, total=total)
    assert float(norm) == 10.0
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5 / 20))


def test_perturb_in_a_graph():
    weight, backup, grad = (torch.randn(100_000, device="cuda") for _ in range(3))
    norm, start = torch.empty(1, device="cuda"), weight.clone()
    ops.sam_perturb([weight], [backup], norm, [grad], 0.05)
    want = weight.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.sam_perturb([weight], [backup], norm, [grad], 0.05)
    weight.copy_(start)
    graph.replay()
    assert torch.equal(weight, want)
    assert torch.equal(backup, start)


# ---- projected steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_match_the_oracle(dtype, options):
    problem = Problem(dtype, options, device="cuda")
    written = problem.step()
    problem.assert_right()
    assert same_bits(written, Problem(dtype, options, restored=False, device="cuda").step())
    plain = [i for i, case in enumerate(CASES) if case[2] == 0]  # the same operations as torch's, and as the CPU's
    shifted = Problem(dtype, options, skip=1, device="cuda")
    moved = shifted.step()
    shifted.assert_right()
    assert same_bits([written[i] for i in plain], [moved[i] for i in plain])


@pytest.mark.parametrize("rank", [64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_layer(dtype, rank):
    problem = Problem(dtype, SGD[1], cases=[((512, 2304), 1, rank, 0.8), ((1000, 512), 1, 0, 1.0)], device="cuda")
    problem.step()
    problem.assert_right()


def test_more_tensors_than_one_launch_takes():
    cases = [((2, 3), 1, 1 + i % 2, 0.9) if i % 3 == 0 else ((1 + i % 5,), 1, 0, 1.0) for i in range(250)]
    problem = Problem(torch.float32, SGD[1], cases=cases, device="cuda")
    problem.step()
    problem.assert_right()


def test_autocast_does_not_reach_the_step():
    problem = Problem(torch.float32, {}, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        problem.step()
    problem.assert_right()


def test_step_in_a_graph():
    """A step from the captured gradients, with the projector in both layouts; replayed from the same start."""
    for layout in (device_basis, torch.Tensor.contiguous):
        problem = Problem(torch.float32, SGD[2], device="cuda")
        problem.bases = [layout(basis) if basis.numel() else basis for basis in problem.bases]
        want = [tensor.clone() for tensor in problem.step()]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            problem.step()
        for state, start in zip(problem.states[0], problem.before[0], strict=True):
            state.copy_(start)
        graph.replay()
        assert same_bits(problem.written(), want)


def test_slips_are_named():
    param = torch.zeros(4, 6, device="cuda")
    basis, sigma = torch.zeros(6, 2), torch.zeros(2)
    with pytest.raises(ValueError, match=r"bases\[0\] is torch.float32 on cpu, expected floating point on cuda:0"):
        ops.projected_sgd_step([param], [], [], [param + 1], [basis], [sigma], [1.0], lr=0.1)
    assert torch.equal(param, torch.zeros_like(param))


# ---- SAM -------------------------------------------------------------------------------------------------------------


def network(dtype: torch.dtype, device: str) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(192, 5),
    )
    for i, param in enumerate(layers.parameters()):
        param.data = draw(tuple(param.shape), torch.float64, i).div_(param[0].numel() ** 0.5)
    return layers.to(device, dtype)


def low_rank(groups: int, dim: int, rank: int, *, dense: bool = False) -> Projector:
    basis = torch.linalg.qr(draw((groups, dim, rank), torch.float64, dim))[0]
    sigma = 0.1 + 0.8 * torch.arange(1, rank + 1, dtype=torch.float64).expand(groups, rank) / (rank + 1)
    if groups == 1:
        basis, sigma = basis[0], sigma[0]
    made = Projector(dim, groups, FlatExponential(4.0), "eigh", sigma, sigma, 0.9, 0.0, basis=basis)
    if not dense:
        return made
    return Projector(dim, groups, FlatExponential(4.0), "eigh", sigma, sigma, 0.9, 0.0, dense_matrix=made.dense())


def twenty_steps(dtype: torch.dtype, device: str, options: dict, *, channels_last: bool = False) -> list[np.ndarray]:
    model = network(dtype, device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = SAM(model.parameters(), lr=0.05, rho=0.1, weight_decay=1e-3, **options)
    first, second, linear = model[0], model[2], model[5]
    optimizer.set_projectors(
        {first.weight: low_rank(1, 27, 5), second.weight: low_rank(2, 36, 6), linear.weight: low_rank(1, 192, 17)}
    )
    for step in range(20):
        x = draw((6, 3, 6, 6), torch.float64, 100 + step).to(device, dtype)
        for again in (False, True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if not again:
                optimizer.perturb()
        optimizer.step()
    return [param.detach().double().cpu().numpy() for param in model.parameters()]


BASES = [{"momentum": 0.9}, {"base": "adamw", "eps": 1e-3}, {"adaptive": True, "scope": "tensor"}]


@pytest.mark.parametrize("options", BASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_twenty_sam_steps_follow_the_cpu(options, channels_last):
    want = twenty_steps(torch.float64, "cpu", options)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for dtype, tolerance in (
            (torch.float64, 1e-10),
            (torch.float32, 2e-3),
        ):  # float32: 40 passes through the network
            ours = twenty_steps(dtype, "cuda", options, channels_last=channels_last)
            for a, b in zip(ours, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"base": "adamw"}, {"momentum": 0.9, "every": 2}])
def test_sam_never_waits_for_the_device(options):
    """Groups of different rho, a bfloat16 parameter, projectors, channels_last: several calls that share one norm."""
    model = network(torch.float32, "cuda").to(memory_format=torch.channels_last)
    odd = nn.Parameter(torch.randn(40, device="cuda", dtype=torch.bfloat16))
    groups = [
        {"params": model[0].parameters(), "rho": 0.0},
        {"params": [*model[2].parameters(), *model[5].parameters()]},
    ]
    optimizer = SAM([*groups, {"params": [odd]}], lr=0.05, rho=0.1, **options)
    optimizer.set_projectors({model[0].weight: low_rank(1, 27, 5), model[5].weight: low_rank(1, 192, 17)})
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in range(4):  # the first ones make handles and states
        for i, param in enumerate(params):
            param.grad = torch.randn_like(param).mul_(i + 1)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            optimizer.perturb()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(param.isfinite().all() for param in params)


def test_sam_shares_one_norm_between_calls():
    params = [nn.Parameter(torch.zeros(9, device="cuda")), nn.Parameter(torch.zeros(16, device="cuda"))]
    optimizer = SAM([{"params": params[:1]}, {"params": params[1:], "rho": 2.0}], lr=0.1, rho=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.perturb()
    torch.testing.assert_close(params[0].data, torch.full_like(params[0], 1 / 5))
    torch.testing.assert_close(params[1].data, torch.full_like(params[1], 2 / 5))
    optimizer.restore()
    assert all((param == 0).all() for param in params)


def test_sam_with_a_gradient_scaler():
    """A step skipped for inf leaves the weights where they were after restore(); the next one is taken."""
    param = nn.Parameter(torch.ones(5, device="cuda"))
    optimizer, scaler = SAM([param], lr=0.1, rho=0.1), torch.amp.GradScaler("cuda", init_scale=4.0)
    for bad in (True, False):
        before = param.detach().clone()
        scaler.scale(param.sum()).backward()
        optimizer.perturb()
        optimizer.zero_grad()
        scaler.scale(param.sum() * (float("inf") if bad else 1.0)).backward()
        scaler.step(optimizer)
        optimizer.restore()
        optimizer.zero_grad()
        scaler.update()
        assert torch.equal(param, before) == bad


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU; run where there are two")
def test_sam_on_two_devices():
    params = [nn.Parameter(torch.zeros(9, device="cuda:0")), nn.Parameter(torch.zeros(16, device="cuda:1"))]
    optimizer = SAM(params, lr=0.1, rho=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.perturb()
    optimizer.step()
    for param in params:
        torch.testing.assert_close(param.data, torch.full_like(param, -0.1))


@pytest.mark.parametrize(("rank", "dense"), [(3, False), (0, False), (3, True)])
def test_every_form_of_projector(rank, dense):
    """T as a basis, T = cI (a column of zeros within the step), and T as a matrix (multiplied before it)."""
    param, projector = nn.Parameter(torch.zeros(4, 6, device="cuda")), low_rank(1, 6, rank, dense=dense)
    optimizer = SAM([param], lr=1.0)
    optimizer.set_projectors({param: projector})
    param.grad = draw((4, 6), torch.float32, 2, device="cuda")
    optimizer.step()
    torch.testing.assert_close(param.data.cpu(), -(param.grad.cpu().double() @ projector.dense()).float())

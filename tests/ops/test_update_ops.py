"""sam_perturb and sam_restore against float64 oracles, with bounds from a rounding analysis."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import native

ops = torch.ops.igm_fast
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
SHAPES = [(), (0,), (1,), (7,), (31, 3), (4, 3, 3, 3), (33000,), (2, 32768)]
dtypes = st.sampled_from(list(UNIT))
shape_lists = st.lists(st.sampled_from(SHAPES), min_size=0, max_size=5)


def draw(shapes: list[tuple[int, ...]], dtype: torch.dtype, seed: int = 0, spread: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(spread * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


def as_float64(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def run_perturb(params, grads, rho=0.05, *, scope="global", adaptive=False):
    backups = [torch.full_like(param, float("nan")) for param in params]
    norm = torch.full((1 if scope == "global" else len(params),), -1.0)
    ops.sam_perturb(params, backups, norm, grads, rho, scope=scope, adaptive=adaptive)
    return backups, norm


def assert_perturbed(params, before, grads, norm, rho, scope, adaptive):
    """Every entry: ε carries 6 roundings of the compute type, the sum one more, storing one of the element type."""
    expected, norms = oracles.sam_perturb(as_float64(before), as_float64(grads), rho, scope=scope, adaptive=adaptive)
    np.testing.assert_allclose(norm.numpy(), norms.astype(np.float32), rtol=1e-6)
    for param, old, want in zip(params, before, expected, strict=True):
        unit = min(UNIT[param.dtype], UNIT[torch.float32])
        step = np.abs(want - old.double().numpy())
        bound = 1.01 * (UNIT[param.dtype] + unit) * np.abs(want) + 8 * unit * step + 1e-44
        error = np.abs(param.double().numpy() - want)
        assert np.all(error <= bound), (
            f"worst {np.max(error / bound)} of the bound for {param.dtype} {tuple(param.shape)}"
        )


@given(
    shapes=shape_lists,
    dtype=dtypes,
    scope=st.sampled_from(["global", "tensor"]),
    adaptive=st.booleans(),
    rho=st.sampled_from([0.0, 1e-3, 0.05, 2.0]),
    seed=st.integers(0, 10),
)
def test_perturb_within_rounding(shapes, dtype, scope, adaptive, rho, seed):
    params, grads = draw(shapes, dtype, seed), draw(shapes, dtype, seed + 100, spread=3.0)
    before = [param.clone() for param in params]
    backups, norm = run_perturb(params, grads, rho, scope=scope, adaptive=adaptive)
    assert_perturbed(params, before, grads, norm, rho, scope, adaptive)
    for backup, old in zip(backups, before, strict=True):
        assert torch.equal(backup, old)


def test_bound_notices_one_missing_tensor():
    params, grads = draw([(100,), (100,)], torch.float32), draw([(100,), (100,)], torch.float32, 1)
    before = [param.clone() for param in params]
    _, norm = run_perturb(params, grads)
    grads[1] = torch.zeros(100)
    with pytest.raises(AssertionError):
        assert_perturbed(params, before, grads, norm, 0.05, "global", False)


@pytest.mark.parametrize("dtype", list(UNIT))
def test_restore_is_bit_exact(dtype):
    shapes = [(70001,), (0,), (5, 3), ()]
    params, grads = draw(shapes, dtype), draw(shapes, dtype, 1)
    params[2][0, 0], params[2][0, 1], params[2][0, 2] = -0.0, float("nan"), float("inf")
    before = [param.clone() for param in params]
    addresses = [param.data_ptr() for param in params]
    backups, _ = run_perturb(params, grads)
    ops.sam_restore(params, backups)
    for param, old, address in zip(params, before, addresses, strict=True):
        assert param.data_ptr() == address
        assert torch.equal(param.view(-1).view(torch.uint8), old.view(-1).view(torch.uint8))


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_gradient_leaves_parameters(bad, scope):
    params, grads = draw([(50,), (60,)], torch.float32), draw([(50,), (60,)], torch.float32, 1)
    grads[1][17] = bad
    before = [param.clone() for param in params]
    backups, norm = run_perturb(params, grads, scope=scope)
    assert not torch.isfinite(norm).all()
    assert torch.equal(params[1], before[1])
    assert torch.equal(backups[1], before[1])
    moved = not torch.equal(params[0], before[0])
    assert moved == (scope == "tensor")  # the other tensor has a norm of its own


@pytest.mark.parametrize("dtype", list(UNIT))
def test_zero_gradient_leaves_parameters(dtype):
    params = draw([(50,)], dtype)
    before = params[0].clone()
    _, norm = run_perturb(params, [torch.zeros_like(before)])
    assert norm.item() == 0.0
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("spread", [1e-44, 1e-30, 1e18])
def test_extreme_gradients_stay_finite(spread):
    params, grads = [torch.ones(1000)], draw([(1000,)], torch.float32, spread=spread)
    run_perturb(params, grads)
    assert torch.isfinite(params[0]).all()
    if spread > 1e-38:
        torch.testing.assert_close((params[0] - 1).norm(), torch.tensor(0.05), rtol=1e-4, atol=0)


@given(shapes=shape_lists, dtype=dtypes, adaptive=st.booleans())
def test_threads_do_not_change_bits(shapes, dtype, adaptive):
    params, grads = draw(shapes, dtype), draw(shapes, dtype, 1)
    results = []
    for threads in (1, 2, 3):
        copies = [param.clone() for param in params]
        torch.set_num_threads(threads)
        _, norm = run_perturb(copies, grads, adaptive=adaptive)
        results.append([*copies, norm])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_outside_is_written():
    """Parameters and backups between canaries; gradients unchanged, also strided ones."""
    store, keep = torch.full((3000,), 7.0), torch.full((3000,), 7.0)
    params, backups = (
        [store[10:1000], store[1003:1004], store[1010:2990]],
        [keep[10:1000], keep[1003:1004], keep[1010:2990]],
    )
    grads = [torch.randn(990, 2)[:, 1], torch.randn(1), torch.randn(1980).flip(0)]
    copies = [grad.clone() for grad in grads]
    ops.sam_perturb(params, backups, torch.empty(1), grads, 0.05)
    outside = torch.cat(
        [torch.arange(0, 10), torch.arange(1000, 1003), torch.arange(1004, 1010), torch.arange(2990, 3000)]
    )
    assert (store[outside] == 7).all()
    assert (keep[outside] == 7).all()
    assert all(torch.equal(a, b) for a, b in zip(grads, copies, strict=True))
    _, norms = oracles.sam_perturb(as_float64(backups), as_float64(grads), 0.05, scope="global", adaptive=False)
    torch.testing.assert_close((store - keep).norm().item(), 0.05, rtol=1e-4, atol=0)
    assert norms[0] > 0


def test_autograd_sees_the_write():
    """Nothing is recorded, but a backward pass that needs the old values is refused instead of wrong."""
    weight = torch.nn.Parameter(torch.ones(4))
    loss = (weight * weight).sum()
    run_perturb([weight], [torch.ones(4)])
    assert weight.is_leaf
    assert weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck():
    params, grads = draw([(6,), (2, 3)], torch.float32), draw([(6,), (2, 3)], torch.float32, 1)
    backups = [torch.empty_like(param) for param in params]
    torch.library.opcheck(ops.sam_perturb.default, (params, backups, torch.empty(1), grads, 0.05))
    torch.library.opcheck(ops.sam_perturb.default, (params, backups, torch.empty(2), grads, 0.05), {"scope": "tensor"})
    torch.library.opcheck(ops.sam_restore.default, (params, backups))


def test_compiles_without_graph_break():
    def ascend(weight, grad):
        backup, norm = torch.empty_like(weight), torch.empty(1)
        ops.sam_perturb([weight], [backup], norm, [grad], 0.05)
        moved = weight.clone()
        ops.sam_restore([weight], [backup])
        return moved, norm

    weight, grad = torch.randn(20), torch.randn(20)
    eager, compiled = ascend(weight, grad), torch.compile(ascend, fullgraph=True, backend="aot_eager")(weight, grad)
    assert torch.equal(eager[0], compiled[0])
    assert torch.equal(eager[1], compiled[1])


def _slip(**changes):
    arguments = {
        "params": [torch.zeros(4), torch.zeros(2, 3)],
        "backups": [torch.zeros(4), torch.zeros(2, 3)],
        "norm": torch.zeros(1),
        "grads": [torch.ones(4), torch.ones(2, 3)],
        "rho": 0.05,
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": [torch.zeros(4).half(), torch.zeros(2, 3)]}, r"params\[0\] is torch.float16, expected float32"),
        ({"params": [torch.zeros(4), torch.zeros(2, 3).double()]}, r"params\[1\] is torch.float64.*once per dtype"),
        ({"params": [torch.zeros(4), torch.zeros(3, 2).T]}, r"params\[1\] .* has strides .*contiguous"),
        ({"params": [torch.zeros(4)]}, r"backups has 2 tensors, expected 1 as params"),
        ({"params": []}, r"backups has 2 tensors, expected 0 as params"),
        ({"grads": [torch.ones(4)]}, r"grads has 1 tensors, expected 2"),
        ({"grads": [torch.ones(4), torch.ones(3, 2)]}, r"grads\[1\] has shape \(3, 2\), expected \(2, 3\)"),
        (
            {"grads": [torch.ones(4), torch.ones(2, 3).bfloat16()]},
            r"grads\[1\] is torch.bfloat16, expected torch.float32",
        ),
        ({"backups": [torch.zeros(4), torch.zeros(3, 2).T]}, r"backups\[1\] has strides"),
        ({"norm": torch.zeros(2)}, r"norm is torch.float32 of shape \(2,\), expected .* \(1,\)"),
        ({"norm": torch.zeros(1).double()}, r"norm is torch.float64"),
        ({"norm": torch.zeros(1), "scope": "tensor"}, r"expected .*\(2,\) for scope 'tensor'"),
        ({"scope": "globl"}, r"unknown scope 'globl'. Did you mean 'global'"),
        ({"rho": -1.0}, r"rho=-1.0, expected a finite number >= 0"),
        ({"rho": float("nan")}, r"rho=nan"),
    ],
)
def test_slips_are_named_before_anything_is_written(changes, message):
    arguments = _slip(**changes)
    written = [tensor.clone() for tensor in arguments["params"] + arguments["backups"]]
    with pytest.raises(ValueError, match=message):
        ops.sam_perturb(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments["params"] + arguments["backups"], written, strict=True))


def test_other_kinds_of_tensors_are_refused():
    with pytest.raises(NotImplementedError, match=r"sam_restore: .*torch.sparse_coo.* expected dense tensors on cpu"):
        ops.sam_restore([torch.zeros(3)], [torch.zeros(3).to_sparse()])


def test_restore_names_slips():
    with pytest.raises(ValueError, match=r"backups\[0\] has shape \(4,\), expected \(3,\)"):
        ops.sam_restore([torch.zeros(3)], [torch.zeros(4)])
    ops.sam_restore([], [])


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_norm_sums_are_alike_for_all_instruction_sets(isa, run_python):
    """The environment variable picks the route; float32 squares are exact in float64, so the sums agree bit for bit."""
    code = (
        "import torch, igm_fast.ops; g = torch.arange(-5000, 5000) / 7; w = torch.ones(10000); n = torch.empty(1)\n"
        "torch.ops.igm_fast.sam_perturb([w], [torch.empty(10000)], n, [g], 0.05)\n"
        "from igm_fast.ops import native; print(n.item().hex(), native.module().isa())"
    )
    value, used = run_python(code, IGM_FAST_ISA=isa).split()
    grad = torch.arange(-5000, 5000) / 7
    _, norm = run_perturb([torch.ones(10000)], [grad])
    assert value == norm.item().hex()
    assert used in {isa, native.module().isa()}

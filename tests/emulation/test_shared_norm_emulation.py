"""sam_perturb with a norm that several calls share, on the CPU and by the CUDA kernels executed there."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from bounds import assert_within
from update_cases import draw

from igm_fast.ops import update

ops = torch.ops.igm_fast


@pytest.fixture(params=["cpu", "cuda"])
def perturb(request):
    """The operator's function for either device."""
    if request.param == "cpu":
        return ops.sam_perturb
    request.getfixturevalue("emulated")
    return update._sam_perturb_cuda


@pytest.mark.parametrize("adaptive", [False, True])
def test_two_calls_move_as_one(perturb, adaptive):
    params = [draw(shape, torch.float32, i) for i, shape in enumerate([(300,), (5, 7)])]
    grads = [draw(tuple(param.shape), torch.float32, 10 + i) for i, param in enumerate(params)]
    before = [param.double().numpy() for param in params]
    backups, norms = [torch.empty_like(param) for param in params], [torch.empty(1), torch.empty(1)]
    calls = [([p], [b], n, [g]) for p, b, n, g in zip(params, backups, norms, grads, strict=True)]
    for call in calls:
        perturb(*call, 0.0, adaptive=adaptive)
    total = torch.tensor(math.hypot(*map(float, norms)))
    for call in calls:
        perturb(*call, 0.5, adaptive=adaptive, total=total)
    wide = [grad.double().numpy() for grad in grads]
    expected, (norm,) = oracles.sam_perturb(before, wide, 0.5, scope="global", adaptive=adaptive)
    assert float(total) == pytest.approx(norm, rel=1e-6)
    unit = 2.0**-24
    for param, want, old in zip(params, expected, before, strict=True):
        assert_within(param.double().numpy(), want, 2 * unit * abs(want) + 8 * unit * abs(want - old))


@pytest.mark.parametrize("total", [0.0, float("inf"), float("nan")])
def test_no_direction_leaves_the_weights(perturb, total):
    param, backup, norm = torch.ones(3), torch.zeros(3), torch.empty(1)
    perturb([param], [backup], norm, [torch.ones(3)], 0.5, total=torch.tensor(total))
    assert torch.equal(param, torch.ones(3))
    assert torch.equal(backup, torch.ones(3))
    assert float(norm) == pytest.approx(math.sqrt(3.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total": torch.ones(2)}, r"total is torch.float32 of shape \(2,\) on cpu, expected one float32 on cpu"),
        ({"total": torch.ones(1).double()}, r"total is torch.float64"),
        ({"total": torch.ones(1), "scope": "tensor"}, r"total with scope 'tensor', expected scope 'global'"),
    ],
)
def test_slips_are_named(perturb, changes, message):
    param = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        perturb([param], [torch.ones(3)], torch.empty(1), [torch.ones(3)], 0.5, **changes)
    assert torch.equal(param, torch.ones(3))

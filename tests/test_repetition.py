"""A cycle of SAM that is like the one before it takes a short way: with the same bits, and only if it is like it."""

import copy

import pytest
import torch
from torch import nn

import igm_fast as igm

SHAPES = ((4, 3), (5,), (2, 16, 3), (1,))
OPTIONS = [
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.8, "nesterov": True, "adaptive": True},
    {"momentum": 0.9, "scope": "tensor"},
    {"momentum": 0.9, "rho": 0.0},
    {"base": "adamw", "weight_decay": 0.1},
    {"base": "adamw", "decoupled": False},
]


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give_gradients(params, number):
    generator = torch.Generator().manual_seed(number)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def cycle(optimizer, params, number):
    give_gradients(params, 2 * number)
    optimizer.perturb()
    give_gradients(params, 2 * number + 1)
    optimizer.step()


def forget(optimizer):
    """Make the next cycle take the long way."""
    optimizer._repetition, optimizer._stepped = None, []


def assert_equal(one, other):
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def pair(options, dtype=torch.float32, route=None):
    """Two equal optimizers over equal parameters."""
    made = []
    for _ in range(2):
        params = parameters(dtype)
        optimizer = igm.SAM(params, lr=0.1, **options)
        if route is not None:
            matrix = torch.diag(torch.tensor([4.0, *[0.0] * 47], dtype=torch.float64))
            T = igm.flat_projectors({"layer": matrix}, tau=2.0, method=route)["layer"]
            assert (T.basis is None) == (route == "eigh")
            optimizer.set_projectors({params[2]: T})
        made.append((optimizer, params))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_short_way_gives_the_same_bits(options, dtype):
    (short, mine), (long, theirs) = pair(options, dtype)
    for number in range(6):
        cycle(short, mine, number)
        forget(long)
        cycle(long, theirs, number)
        assert_equal(mine, theirs)
    assert short._repetition is not None
    assert long._repetition is None
    for one, other in zip(short.state.values(), long.state.values(), strict=True):
        tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
        assert_equal([one[name] for name in tensors], [other[name] for name in tensors])
    assert str(short.state_dict()["param_groups"]) == str(long.state_dict()["param_groups"])
    assert [s.get("step") for s in short.state.values()] == [s.get("step") for s in long.state.values()]


def late_gradient(optimizer, params):
    params[1].grad = None
    return optimizer, params


def other_memory(optimizer, params):
    params[0].data = params[0].detach() * 2
    return optimizer, params


def loaded_state(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return optimizer, params


def another_group(optimizer, params):
    new = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [new]})
    return optimizer, [*params, new]


def other_radius_in_a_group(optimizer, params):
    optimizer.param_groups[0]["rho"] = 0.3
    return optimizer, params


def no_momentum(optimizer, params):
    optimizer.param_groups[0]["momentum"] = 0.0
    return optimizer, params


def replaced_momentum(optimizer, params):
    optimizer.state[params[2]]["momentum_buffer"] = torch.ones_like(params[2])
    return optimizer, params


def new_rate_and_decay(optimizer, params):
    optimizer.param_groups[0].update(lr=0.03, weight_decay=0.2, nesterov=True)
    return optimizer, params


def ascent(optimizer, params):
    optimizer.param_groups[0]["maximize"] = True
    return optimizer, params


def cleared_state(optimizer, params):
    optimizer.state.clear()
    return optimizer, params


CHANGES = [
    *(late_gradient, other_memory, loaded_state, another_group, other_radius_in_a_group, no_momentum),
    *(replaced_momentum, new_rate_and_decay, ascent, cleared_state),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_noticed(change):
    """In the middle of a cycle and between cycles, what follows is what the long way makes of it."""
    for middle in (False, True):
        (short, mine), (long, theirs) = pair({"momentum": 0.9, "rho": 0.1})
        for number in range(4):
            cycle(short, mine, number)
            forget(long)
            cycle(long, theirs, number)
        assert short._repetition is not None
        results = []
        for optimizer, params in ((short, mine), (long, theirs)):
            give_gradients(params, 50)
            if middle and change is not cleared_state:  # which would forget where ω was, on either way
                optimizer.perturb()
            if optimizer is long:
                forget(long)
            optimizer, changed = change(optimizer, params)
            if not middle:
                optimizer.perturb()
            optimizer.step()
            cycle(optimizer, changed, 60)
            if optimizer is long:
                forget(long)
            cycle(optimizer, changed, 61)
            results.append(changed)
        assert_equal(*results)


@pytest.mark.parametrize("lay_out", [lambda grad: grad.mT.contiguous().mT, lambda grad: torch.stack([grad, grad])[0]])
def test_gradients_of_another_layout(lay_out):
    (short, mine), (long, theirs) = pair({"momentum": 0.9})
    for number in range(6):
        for optimizer, params in ((short, mine), (long, theirs)):
            give_gradients(params, number)
            params[0].grad = lay_out(params[0].grad)
            optimizer.perturb()
            optimizer.step()
        forget(long)
        assert_equal(mine, theirs)


@pytest.mark.parametrize("route", ["truncated", "eigh"])
def test_projectors_are_applied_and_replaced(route):
    (short, mine), (long, theirs) = pair({"momentum": 0.9}, route=route)
    for number in range(8):
        if number == 4:
            assert short._repetition is not None
            short.set_projectors(None)
            long.set_projectors(None)
        cycle(short, mine, number)
        forget(long)
        cycle(long, theirs, number)
        assert_equal(mine, theirs)


def test_perturbed_weights_are_known_and_restored_on_the_short_way():
    optimizer, params = pair({"momentum": 0.9})[0]
    for number in range(3):
        cycle(optimizer, params, number)
    before = [param.detach().clone() for param in params]
    give_gradients(params, 9)
    assert optimizer._repetition is not None
    optimizer.perturb()
    assert optimizer.perturbed
    with pytest.raises(RuntimeError, match="perturbed already"):
        optimizer.perturb()
    saved = copy.deepcopy(optimizer.state_dict())
    assert all("backup" in state for state in saved["state"].values())
    optimizer.restore()
    assert_equal(params, before)


@pytest.mark.parametrize("place", [0, 3])
def test_parameter_without_a_gradient_in_the_first_pass_only(place):
    """It was not perturbed, so that it has no earlier value to start from."""
    (short, mine), (long, theirs) = pair({"momentum": 0.9})
    for number in range(6):
        for optimizer, params in ((short, mine), (long, theirs)):
            give_gradients(params, 2 * number)
            if number == 4:
                params[place].grad = None
            optimizer.perturb()
            give_gradients(params, 2 * number + 1)
            optimizer.step()
        forget(long)
        assert_equal(mine, theirs)


def test_patterns_that_alternate_are_not_prepared_in_vain():
    optimizer, params = pair({"momentum": 0.9})[0]
    for number in range(6):
        give_gradients(params, number)
        params[number % 2].grad = None
        optimizer.perturb()
        optimizer.step()
    assert optimizer._repetition is None

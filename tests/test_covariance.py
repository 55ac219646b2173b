"""ActivationCovariance on whole networks: against float64 sums over unfolded inputs, and its manners as an observer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from igm_fast.covariance import ActivationCovariance
from igm_fast.layers import observable_layers
from igm_fast.sketch import Sketch


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 2), padding=(1, 0), dilation=(2, 1), groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 1 * 4, 5),
    ).eval()


def expected_sums(network: nn.Module, batches: list[torch.Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Σuuᵀ [groups, d, d], Σu [groups, d] and n per layer, by numpy in float64, from the inputs that layers get."""
    rows: dict[str, list[np.ndarray]] = {}

    def keep(name, layer):
        def hook(_layer, inputs):
            x = inputs[0].detach().double()
            if isinstance(layer, nn.Linear):
                rows.setdefault(name, []).append(x.reshape(-1, 1, x.shape[-1]).numpy())
                return
            if layer.padding_mode != "zeros":
                x = functional.pad(x, (1, 1, 1, 1), mode=layer.padding_mode)
            padding = (0, 0) if layer.padding_mode != "zeros" else layer.padding
            patches = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
            split = patches.reshape(x.shape[0], layer.groups, -1, patches.shape[-1]).permute(0, 3, 1, 2)
            rows.setdefault(name, []).append(split.reshape(-1, layer.groups, split.shape[-1]).numpy())

        return hook

    handles = [layer.register_forward_pre_hook(keep(n, layer)) for n, layer in observable_layers(network).items()]
    for batch in batches:
        network(batch)
    for handle in handles:
        handle.remove()
    result = {}
    for name, parts in rows.items():
        u = np.concatenate(parts)
        result[name] = np.einsum("ngi,ngj->gij", u, u), u.sum(axis=0), len(u)
    return result


def close_to(tensor: torch.Tensor, expected: np.ndarray, scale: float) -> None:
    """Sums of fewer than 2000 products in float32, ‖u‖² at most `scale` on average."""
    np.testing.assert_allclose(tensor.double().numpy(), np.squeeze(expected), rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("estimator", ["full", "sketch"])
def test_second_moments_of_a_network(estimator, centered):
    network = small_network()
    batches = [torch.randn(n, 3, 6, 10) for n in (5, 2, 7)]
    expected = expected_sums(network, batches)
    with torch.no_grad(), ActivationCovariance(network, estimator, centered=centered) as covariance:
        for batch in batches:
            network(batch)
    assert list(covariance) == list(expected) == ["0", "2", "5"]
    for name, (moments, total, count) in expected.items():
        C, mean = moments / count, total / count
        if centered:
            C = C - mean[:, :, None] * mean[:, None, :]
        assert covariance.count(name) == count
        trace = np.trace(C, axis1=1, axis2=2)
        close_to(covariance.mean(name), mean, float(trace.max()))
        close_to(covariance.trace(name), trace, float(trace.max()))
        close_to(covariance[name], C, float(trace.max()))  # small d: exact for the sketch too
    assert covariance["2"].shape == (2, 24, 24)


def low_rank_inputs(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dim, dim, generator=generator) * torch.logspace(0, -4, dim)[:, None]
    return torch.randn(count, dim, generator=generator) @ directions


@pytest.mark.parametrize("centered", [False, True])
def test_sketch_is_the_image_of_the_matrix(centered):
    network, x = nn.Linear(300, 3), low_rank_inputs(500, 300) + 0.3
    with torch.no_grad(), ActivationCovariance(network, centered=centered) as covariance:
        for batch in x.split(90):
            network(batch)
    sketch = covariance.statistics()[""]
    assert isinstance(sketch, Sketch)
    double = x.double()
    C = double.T @ double / 500
    if centered:
        C = C - torch.outer(double.mean(0), double.mean(0))
    norm = float(torch.linalg.matrix_norm(C, 2))
    torch.testing.assert_close(sketch.image[0].double(), C @ sketch.omega[0].double(), rtol=0, atol=1e-5 * norm * 15)
    assert float(sketch.trace) == pytest.approx(float(C.trace()), rel=1e-5)
    # The Nyström approximation lies below C, and misses no more than its bounds say.
    left = torch.linalg.eigvalsh(C - covariance[""].double())
    assert float(left[0]) > -1e-5 * norm
    certain, likely = sketch.error(*sketch.eigh())
    assert 0 < float(left[-1]) <= min(float(certain), float(likely))


def test_sketches_never_allocate_a_square_matrix(monkeypatch):
    """Peak of what the hook allocates, for d = 4608: below 4 MB of tiles plus five d×74 panels, far from d² = 85 MB."""
    largest = 0
    originals = {name: getattr(torch, name) for name in ("empty", "zeros")}

    def counted(name):
        def make(*size, **keywords):
            nonlocal largest
            tensor = originals[name](*size, **keywords)
            largest = max(largest, tensor.numel() * tensor.element_size())
            return tensor

        return make

    for name in originals:
        monkeypatch.setattr(torch, name, counted(name))
    layer = nn.Conv2d(512, 8, 3, padding=1)
    with torch.no_grad(), ActivationCovariance(layer) as covariance:
        layer(torch.randn(2, 512, 7, 7))
        covariance.statistics()
    assert 4608 * 74 * 4 <= largest <= 8 << 20
    sums = covariance._sums[""]
    assert sums.matrix is None
    assert sums.image.shape == (1, 4608, 80)


def test_batch_mean_is_the_authors_estimator():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2))
    batches = [torch.randn(n, 2, 5, 5) for n in (4, 6)]
    with torch.no_grad(), ActivationCovariance(network, "batch_mean") as covariance:
        for batch in batches:
            network(batch)
    conv = sum(p @ p.mT for p in (functional.unfold(b.double().mean(0, keepdim=True), 3)[0] for b in batches))
    means = [network[1](network[0](b)).detach().double().mean(0) for b in batches]
    assert covariance.count("0") == 18
    torch.testing.assert_close(covariance["0"].double() * 18, conv, rtol=1e-5, atol=1e-5)
    expected = sum(torch.outer(mean, mean) for mean in means) / 2
    torch.testing.assert_close(covariance["2"].double(), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(shape=st.sampled_from([(7,), (5, 7), (2, 3, 7), (2, 2, 3, 7), (0, 7)]), by_keyword=st.booleans())
def test_linear_layers_take_any_leading_dimensions(shape, by_keyword):
    layer, x = nn.Linear(7, 2), torch.randn(*shape)
    with torch.no_grad(), ActivationCovariance(layer, "full") as covariance:
        layer(torch.ones(1, 7))
        if by_keyword:
            layer(input=x)
        else:
            layer(x)
    rows = torch.cat([torch.ones(1, 7), x.reshape(-1, 7)]).double()
    assert covariance.count("") == len(rows)
    torch.testing.assert_close(covariance[""].double(), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)


def test_one_dimensional_convolutions_and_samples_without_a_batch():
    layer = nn.Conv1d(3, 4, 5, stride=2, padding=2)
    x = torch.randn(3, 20)
    with torch.no_grad(), ActivationCovariance(layer, "full") as covariance:
        layer(x)
    u = functional.pad(x, (2, 2)).double().unfold(1, 5, 2).permute(0, 2, 1).reshape(15, 10)
    assert covariance.count("") == 10
    torch.testing.assert_close(covariance[""].double(), u @ u.T / 10, rtol=1e-5, atol=1e-5)


def test_shared_layers_count_every_call():
    layer = nn.Linear(4, 4)
    network = nn.Sequential(layer, layer)
    x = torch.randn(6, 4)
    with torch.no_grad(), ActivationCovariance(network, "full") as covariance:
        second = layer(x)
        handles_seen = covariance.count("0")
        network(x)
    assert handles_seen == 6
    rows = torch.cat([x, x, second]).double()
    assert covariance.count("0") == 18
    torch.testing.assert_close(covariance["0"].double(), rows.T @ rows / 18, rtol=1e-5, atol=1e-6)


def test_half_precision_inputs_and_float64_layers():
    x = torch.randn(50, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer = nn.Linear(6, 6)
        with ActivationCovariance(layer, "full") as covariance:
            layer(x.bfloat16())
    rounded = x.bfloat16().double()
    torch.testing.assert_close(covariance[""].double(), rounded.T @ rounded / 50, rtol=1e-5, atol=1e-6)
    assert covariance[""].dtype == torch.float32
    layer = nn.Linear(6, 6).double()
    with torch.no_grad(), ActivationCovariance(layer, "full") as covariance:
        layer(x.double())
    torch.testing.assert_close(covariance[""], x.double().T @ x.double() / 50, rtol=1e-13, atol=1e-14)


def test_observes_and_leaves_nothing_behind():
    network = small_network()
    x = torch.randn(2, 3, 6, 10, requires_grad=True)
    plain = network(x)
    state, random = {n: v.clone() for n, v in network.state_dict().items()}, torch.get_rng_state()
    with ActivationCovariance(network) as covariance:
        observed = network(x)
    assert torch.equal(plain, observed)
    assert torch.equal(torch.get_rng_state(), random)
    observed.sum().backward()  # the graph is the network's own
    assert not any(v.requires_grad for v in covariance.values())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())

    with pytest.raises(ZeroDivisionError), covariance:
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_second_block_goes_on_summing():
    layer, x = nn.Linear(3, 3), torch.randn(10, 3)
    covariance = ActivationCovariance(layer, "full")
    with torch.no_grad():
        with covariance:
            layer(x[:4])
        layer(x)  # outside: not counted
        with covariance:
            layer(x[4:])
    assert covariance.count("") == 10
    with covariance, pytest.raises(RuntimeError, match="observing already"):
        covariance.__enter__()
    assert "1 of 1 layers seen" in repr(covariance)


def test_only_asked_layers_are_observed():
    network = small_network()
    covariance = ActivationCovariance(network, layers=["5"])
    assert list(covariance) == ["5"]
    assert covariance.weight_shapes == {"5": (5, 24)}
    with pytest.raises(ValueError, match=r"unknown layer '55'\. Did you mean '5'"):
        ActivationCovariance(network, layers=["55"])
    with pytest.raises(TypeError, match="ReLU has no input covariance"):
        ActivationCovariance(network, layers=["1"])
    with pytest.raises(ValueError, match="ReLU has no Linear and no Conv1d to Conv3d"):
        ActivationCovariance(nn.ReLU())
    with pytest.raises(ValueError, match=r"unknown estimator 'sketsh'\. Did you mean 'sketch'"):
        ActivationCovariance(network, "sketsh")
    with pytest.raises(KeyError, match="unknown layer '7'"):
        covariance.count("7")


def test_a_layer_that_was_never_called_is_named():
    network = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})
    with torch.no_grad(), ActivationCovariance(network) as covariance:
        network["used"](torch.randn(4, 3))
        network["used"](torch.randn(0, 3))
    assert covariance["used"].shape == (3, 3)
    for read in (covariance.__getitem__, covariance.mean, covariance.trace, lambda _: covariance.statistics()):
        with pytest.raises(ValueError, match=r"layer 'idle' has seen no input.*layers=\[…\]"):
            read("idle")
    assert covariance.count("idle") == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_inputs_that_are_not_finite_are_named(bad):
    layer, x = nn.Linear(100, 3), torch.randn(4, 100)
    x[2, 5] = bad
    with torch.no_grad(), ActivationCovariance(layer) as covariance:
        layer(torch.randn(4, 100))
        layer(x)
    with pytest.raises(ValueError, match="layer '' has a second moment that is not finite after 2 batches"):
        covariance.statistics()

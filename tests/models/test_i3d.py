"""I3D: names and sizes of the public checkpoints, "SAME" padding, and which positions the features average."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from igm_fast.models.i3d import I3D, Mixed, Unit, pad_same


@pytest.fixture(scope="module")
def network() -> I3D:
    torch.manual_seed(0)
    return I3D().eval()


def test_the_published_parameters(network: I3D) -> None:
    """12,697,264 parameters with the 400 classes of Kinetics, 410,000 of which are the classifier's."""
    assert sum(p.numel() for p in network.parameters()) == 12_697_264 - 410_000
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(shapes) == 57 * 6
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Conv3d_2b_1x1.bn.running_mean"] == (64,)
    assert shapes["Conv3d_2c_3x3.conv3d.weight"] == (192, 64, 3, 3, 3)
    assert shapes["Mixed_3b.b1b.conv3d.weight"] == (128, 96, 3, 3, 3)
    assert shapes["Mixed_4f.b2a.conv3d.weight"] == (32, 528, 1, 1, 1)
    assert shapes["Mixed_5c.b3b.bn.weight"] == (128,)
    assert [I3D(channels).Conv3d_1a_7x7.conv3d.weight.shape[1] for channels in (1, 2)] == [1, 2]


@given(
    size=st.tuples(*[st.integers(1, 9)] * 3),
    kernel=st.tuples(*[st.integers(1, 7)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_same_padding_gives_one_output_per_stride_and_puts_the_odd_zero_behind(
    size: tuple[int, int, int], kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    x = torch.ones(1, 1, *size)
    padded = pad_same(x, kernel, stride)
    for axis, (n, k, s) in enumerate(zip(size, kernel, stride, strict=True), start=2):
        outputs = math.ceil(n / s)
        total = max((outputs - 1) * s + k - n, 0)
        line = padded.amax(dim=[d for d in range(5) if d != axis]).numpy()
        np.testing.assert_array_equal(line, np.pad(np.ones(n), (total // 2, total - total // 2)))
        assert (len(line) - k) // s + 1 == outputs


@pytest.mark.parametrize(("kernel", "stride", "size"), [(7, 2, (8, 5, 6)), (3, 1, (3, 4, 5)), (1, 1, (2, 3, 3))])
def test_unit_is_its_convolution(kernel: int, stride: int, size: tuple[int, int, int]) -> None:
    unit = Unit(2, 3, kernel, stride).double().eval()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    padded = pad_same(x, (kernel,) * 3, (stride,) * 3).numpy()
    patches = np.lib.stride_tricks.sliding_window_view(padded, (kernel,) * 3, axis=(2, 3, 4))
    raw = np.einsum(
        "bcthwijk,ocijk->bothw", patches[:, :, ::stride, ::stride, ::stride], unit.conv3d.weight.detach().numpy()
    )
    # Sums of at most 686 products of numbers near 1 and weights below 1/√686.
    np.testing.assert_allclose(unit(x).detach().numpy(), np.maximum(raw / np.sqrt(1 + 1e-3), 0), rtol=1e-12, atol=1e-13)


def test_branches_stand_in_the_published_order() -> None:
    mixed, x = Mixed(4, 2, (3, 5), (2, 4), 3).eval(), torch.rand(1, 4, 3, 4, 4)
    pooled = nn.functional.max_pool3d(nn.functional.pad(x, (1,) * 6), 3, stride=1)
    branches = [mixed.b0(x), mixed.b1b(mixed.b1a(x)), mixed.b2b(mixed.b2a(x)), mixed.b3b(pooled)]
    assert [branch.shape[1] for branch in branches] == [2, 5, 4, 3]
    torch.testing.assert_close(mixed(x), torch.cat(branches, dim=1))


@pytest.mark.parametrize(("frames", "positions", "used"), [(57, 8, 8), (64, 8, 8), (80, 10, 8), (128, 16, 16)])
def test_whole_windows_of_positions_are_averaged(
    network: I3D, monkeypatch: pytest.MonkeyPatch, frames: int, positions: int, used: int
) -> None:
    """The authors' AvgPool3d(8, 7, 7), whose windows do not overlap, and the mean over its windows."""
    mixed = torch.randn(2, 1024, positions, 7, 7, dtype=torch.float64)
    monkeypatch.setattr(network, "_positions", lambda _: mixed)
    pooled = nn.AvgPool3d((8, 7, 7))(mixed)
    assert pooled.shape[2] == used // 8
    features = network(torch.zeros(2, frames, 3, 8, 8))
    torch.testing.assert_close(features, pooled.mean(dim=(2, 3, 4)), rtol=1e-12, atol=1e-13)


def test_shortest_clip_has_one_window(network: I3D) -> None:
    seen = []
    handle = network.Mixed_5c.register_forward_hook(lambda *arguments: seen.append(arguments[2].shape))
    with torch.no_grad():
        features = network(torch.randn(1, 57, 3, 20, 33))
    handle.remove()
    assert seen == [(1, 1024, 8, 1, 2)]
    assert features.shape == (1, 1024)
    assert torch.isfinite(features).all()
    assert features.std() > 0


def test_refusals(network: I3D) -> None:
    with pytest.raises(ValueError, match="the clip has 56 frames, expected at least 57: I3D averages over 8 positions"):
        network(torch.zeros(1, 56, 3, 32, 32))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\), expected a clip \[B, T, C, H, W\]"):
        network(torch.zeros(1, 3, 32, 32))

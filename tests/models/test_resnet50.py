"""ResNet-50: torchvision's names and sizes, the block against its equation, the classifier as features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from igm_fast.models.resnet import Bottleneck, ResNet50


@pytest.fixture(scope="module")
def network() -> ResNet50:
    torch.manual_seed(0)
    return ResNet50().eval()


def convolution(x: np.ndarray, weight: Tensor, stride: int = 1) -> np.ndarray:
    """[B, C, H, W] with a zero border that keeps the size."""
    kernel = weight.shape[2]
    border = kernel // 2
    x = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", patches, weight.detach().numpy())


def test_the_published_parameters(network: ResNet50) -> None:
    """25,557,032 parameters and 320 entries, as torchvision's documentation and files have them."""
    assert sum(p.numel() for p in network.parameters()) == 25_557_032
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(shapes) == 320
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer3.5.conv3.weight"] == (1024, 256, 1, 1)
    assert shapes["layer4.2.bn3.running_var"] == (2048,)
    assert shapes["fc.weight"] == (1000, 2048)
    assert [len(layer) for layer in (network.layer1, network.layer2, network.layer3, network.layer4)] == [3, 4, 6, 3]


@pytest.mark.parametrize(("in_channels", "stride"), [(12, 1), (6, 2)])
def test_bottleneck_layer_by_layer(in_channels: int, stride: int) -> None:
    """In evaluation mode the first batch norms only divide by √(1 + 1e-5)."""
    block = Bottleneck(in_channels, 3, stride).double().eval()
    x = torch.randn(2, in_channels, 7, 6, dtype=torch.float64)
    scale, y = 1 / np.sqrt(1 + 1e-5), x.numpy()
    hidden = np.maximum(convolution(y, block.conv1.weight) * scale, 0)
    hidden = np.maximum(convolution(hidden, block.conv2.weight, stride) * scale, 0)
    hidden = convolution(hidden, block.conv3.weight) * scale
    shortcut = y if block.downsample is None else convolution(y, block.downsample[0].weight, stride) * scale
    assert (block.downsample is None) == (stride == 1)
    # Sums of at most 27 products of numbers near 1, three in a row.
    np.testing.assert_allclose(block(x).detach().numpy(), np.maximum(hidden + shortcut, 0), rtol=1e-12, atol=1e-13)


def test_features_are_the_logits_of_the_classifier(network: ResNet50) -> None:
    pooled = []
    handle = network.fc.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        features = network(torch.randn(2, 3, 40, 33))
    handle.remove()
    assert features.shape == (2, 1000)
    assert pooled[0].shape == (2, 2048)
    torch.testing.assert_close(features, pooled[0] @ network.fc.weight.T + network.fc.bias)


def test_frames_are_averaged(network: ResNet50) -> None:
    film = torch.randn(2, 3, 3, 33, 32)
    with torch.no_grad():
        frames = torch.stack([network(film[:, t]) for t in range(3)])
        torch.testing.assert_close(network(film), frames.mean(dim=0), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected \[B, C, H, W\] or frames"):
        network(torch.zeros(3, 8, 8))


def test_another_width_is_a_projection_of_the_logits() -> None:
    network = ResNet50(channels=1, width=24).eval()
    assert isinstance(network.projection, nn.Linear)
    assert network.projection.weight.shape == (24, 1000)
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 24)

"""I3D on Inception-v1 (Carreira and Zisserman 2017) for clips; layer names as in the public ``rgb_imagenet.pt``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 1024
FRAMES_PER_POSITION = 8
WINDOW = 8  # positions in time that are averaged: 64 frames
LEAST_FRAMES = FRAMES_PER_POSITION * (WINDOW - 1) + 1


class Unit(nn.Module):
    """Convolution, batch norm, ReLU, with TensorFlow's "SAME" padding: an odd row of zeros goes behind."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d = nn.Conv3d(in_channels, channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, channels, T/stride, H/stride, W/stride]``, rounded up."""
        if self.stride > 1:
            x = pad_same(x, (self.kernel,) * 3, (self.stride,) * 3)
        return functional.relu(self.bn(self.conv3d(x)))


class Mixed(nn.Module):
    """An Inception module: four branches side by side in the channels.

    Args:
        in_channels: of the input.
        single: channels of the 1×1×1 convolution.
        first: channels of a 1×1×1 convolution and of the 3×3×3 one behind it.
        second: the same once more.
        pooled: channels of the 1×1×1 convolution behind the maximum over 3×3×3.
    """

    def __init__(
        self, in_channels: int, single: int, first: tuple[int, int], second: tuple[int, int], pooled: int
    ) -> None:
        super().__init__()
        self.b0 = Unit(in_channels, single, 1)
        self.b1a, self.b1b = Unit(in_channels, first[0], 1), Unit(*first, 3)
        self.b2a, self.b2b = Unit(in_channels, second[0], 1), Unit(*second, 3)
        self.b3b = Unit(in_channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' channels at the input's positions."""
        largest = functional.max_pool3d(x, 3, stride=1, padding=1)
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(largest)], dim=1)


class I3D(nn.Module):
    """Inception I3D without dropout and classifier: frames ``[B, T, C, H, W]`` → ``[B, width]``.

    The network has one position per 8 frames and per 32×32 pixels, rounded up. Features are averaged over all places
    and over the whole windows of 8 positions (64 frames) in time; what is left behind the last whole window is not
    looked at. For pictures of 224×224 that is ``AvgPool3d(8, 7, 7)`` of the authors' code of IGM: one window for 64
    frames, and for 80 frames the first 8 of 10 positions.

    Args:
        channels: 3 (RGB), 2 (optical flow), 1 (depth) or any other number.
        width: features; other than 1024 they come from a linear layer ``projection``.

    Raises:
        ValueError: the input is no clip, or one of fewer than 57 frames, which has no window of 8 positions.
    """

    def __init__(self, channels: int = 3, width: int = FEATURES) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(channels, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.Mixed_3b = Mixed(192, 64, (96, 128), (16, 32), 32)
        self.Mixed_3c = Mixed(256, 128, (128, 192), (32, 96), 64)
        self.Mixed_4b = Mixed(480, 192, (96, 208), (16, 48), 64)
        self.Mixed_4c = Mixed(512, 160, (112, 224), (24, 64), 64)
        self.Mixed_4d = Mixed(512, 128, (128, 256), (24, 64), 64)
        self.Mixed_4e = Mixed(512, 112, (144, 288), (32, 64), 64)
        self.Mixed_4f = Mixed(528, 256, (160, 320), (32, 128), 128)
        self.Mixed_5b = Mixed(832, 256, (160, 320), (32, 128), 128)
        self.Mixed_5c = Mixed(832, 384, (192, 384), (48, 128), 128)
        self.projection = nn.Identity() if width == FEATURES else nn.Linear(FEATURES, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        if x.ndim != 5:
            raise ValueError(f"input has shape {tuple(x.shape)}, expected a clip [B, T, C, H, W]")
        if x.shape[1] < LEAST_FRAMES:
            raise ValueError(
                f"the clip has {x.shape[1]} frames, expected at least {LEAST_FRAMES}: I3D averages over {WINDOW} "
                f"positions of {FRAMES_PER_POSITION} frames. Read more frames, or use another encoder, resnet18 say"
            )
        x = self._positions(x.transpose(1, 2))
        whole = x.shape[2] - x.shape[2] % WINDOW
        features: Tensor = self.projection(x[:, :, :whole].mean(dim=(2, 3, 4)))
        return features

    def _positions(self, x: Tensor) -> Tensor:
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        mixed: Tensor = self.Mixed_5c(self.Mixed_5b(_pool(x, (2, 2, 2), (2, 2, 2))))
        return mixed


def pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Return ``[B, C, T, H, W]`` with the zeros that make ⌈size/stride⌉ outputs per axis; an odd one goes behind."""
    sides: list[int] = []
    for size, length, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max(length - (size % step or step), 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides)


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Maxima with "SAME" padding; its zeros never win, since everything pooled here is ≥ 0."""
    return functional.max_pool3d(pad_same(x, kernel, stride), kernel, stride)

"""ResNet-18 and ResNet-50 (He et al. 2016) for spectrograms, flow, depth and frames; layer names as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from igm_fast.data.dataset import ModalitySpec
from igm_fast.models.frames import mean_over_frames

CLASSES_OF_IMAGENET = 1000


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside an identity, or a 1×1 convolution where the shape changes."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, channels, H/stride, W/stride]``."""
        identity = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution to four times the channels; the 3×3 one has the stride, as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.downsample = _shortcut(in_channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 4·channels, H/stride, W/stride]``."""
        identity = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.relu(self.bn3(self.conv3(x)) + identity)


class ResNet(nn.Module):
    """The stem, four layers of residual blocks, and the mean over positions.

    Frames go through the network one by one; their features are averaged.

    Args:
        block: what the layers are made of.
        depths: blocks of each layer.
        channels: of the input.
        base: channels of the stem and of the first layer's blocks; each layer has twice those of the one before.
    """

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: Sequence[int], channels: int, base: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        wide = base * block.expansion
        self.layer1 = _layer(block, depths[0], base, base, 1)
        self.layer2 = _layer(block, depths[1], wide, 2 * base, 2)
        self.layer3 = _layer(block, depths[2], 2 * wide, 4 * base, 2)
        self.layer4 = _layer(block, depths[3], 4 * wide, 8 * base, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``."""
        return mean_over_frames(self._picture_features, x)

    def _picture_features(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


class ResNet18(ResNet):
    """ResNet-18 without its classifier: ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` → ``[B, width]``.

    With three channels and width 512 the parameters are those of ``torchvision.models.resnet18`` without ``fc``, under
    the same names.

    Args:
        channels: 1 (spectrogram, depth), 2 (optical flow), 3 (RGB) or any other number.
        width: features; the first block has an eighth of it.

    Raises:
        ValueError: width is no positive multiple of 8, or the input has another number of dimensions.
    """

    def __init__(self, channels: int = 3, width: int = 512) -> None:
        if width < 8 or width % 8:
            raise ValueError(
                f"width is {width}, expected a positive multiple of 8: the first block has width/8 channels"
            )
        super().__init__(BasicBlock, (2, 2, 2, 2), channels, width // 8)


class ResNet50(ResNet):
    """ResNet-50 with its classifier ``fc``: pictures or frames, as for :class:`ResNet18`, → ``[B, width]``.

    The features are the 1000 logits for ImageNet's classes, as in the authors' code of IGM. With three channels and
    width 1000 the parameters are those of ``torchvision.models.resnet50`` under the same names; another width is
    reached by a linear layer ``projection`` behind ``fc``.

    Args:
        channels: of the input.
        width: features.
    """

    def __init__(self, channels: int = 3, width: int = CLASSES_OF_IMAGENET) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3), channels, 64)
        self.fc = nn.Linear(2048, CLASSES_OF_IMAGENET)
        self.projection = nn.Identity() if width == CLASSES_OF_IMAGENET else nn.Linear(CLASSES_OF_IMAGENET, width)

    def _picture_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.projection(self.fc(super()._picture_features(x)))
        return features


def build_resnet18(spec: ModalitySpec, width: int = 512) -> ResNet18:
    """Return a ResNet-18 for an image modality: ``MultimodalModel(specs, 6, width=512, encoder=build_resnet18)``.

    Raises:
        ValueError: the modality is no image.
    """
    if spec.kind != "image":
        raise ValueError(
            f"modality {spec.name!r} is of kind {spec.kind!r}; ResNet-18 expects 'image'. Use build_encoder for it"
        )
    return ResNet18(spec.channels, width)


def _layer(
    block: type[BasicBlock | Bottleneck], depth: int, in_channels: int, channels: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1) for _ in range(depth - 1)))


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))

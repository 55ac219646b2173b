"""ResNet-18 (He et al. 2016) for spectrograms, optical flow, depth and frames; layer names as in torchvision."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from igm_fast.data.dataset import ModalitySpec


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside an identity, or a 1×1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, channels, H/stride, W/stride]``."""
        identity = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + identity)


class ResNet18(nn.Module):
    """ResNet-18 without its classifier: ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` → ``[B, width]``.

    Frames go through the network one by one; their features are averaged. With three channels and width 512 the
    parameters are those of ``torchvision.models.resnet18`` without ``fc``, under the same names.

    Args:
        channels: 1 (spectrogram, depth), 2 (optical flow), 3 (RGB) or any other number.
        width: features; the first block has an eighth of it.

    Raises:
        ValueError: width is no positive multiple of 8, or the input has another number of dimensions.
    """

    def __init__(self, channels: int = 3, width: int = 512) -> None:
        super().__init__()
        if width < 8 or width % 8:
            raise ValueError(
                f"width is {width}, expected a positive multiple of 8: the first block has width/8 channels"
            )
        base = width // 8
        self.conv1 = nn.Conv2d(channels, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.layer1 = nn.Sequential(BasicBlock(base, base, 1), BasicBlock(base, base, 1))
        self.layer2 = nn.Sequential(BasicBlock(base, 2 * base, 2), BasicBlock(2 * base, 2 * base, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * base, 4 * base, 2), BasicBlock(4 * base, 4 * base, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * base, width, 2), BasicBlock(width, width, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        if x.ndim == 5:
            features = self._frame_features(x.flatten(0, 1))
            return features.reshape(x.shape[0], x.shape[1], features.shape[1]).mean(dim=1)
        if x.ndim != 4:
            raise ValueError(f"input has shape {tuple(x.shape)}, expected [B, C, H, W] or frames [B, T, C, H, W]")
        return self._frame_features(x)

    def _frame_features(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


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

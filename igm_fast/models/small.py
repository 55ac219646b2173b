"""Small encoders, one per kind of modality: 64 features after three convolutions or two linear layers.

Layers of equal role have equal names in every encoder of a kind (``conv1``, ``bn1``, …, ``fc1``, ``fc2``), so that
projectors found on one modality fit another by name.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from igm_fast.data.dataset import ModalitySpec
from igm_fast.models.frames import mean_over_frames

CHANNELS = 32  # after the first convolution; later layers have `width`


class SequenceEncoder(nn.Module):
    """``[B, C, T]`` → ``[B, width]``: three Conv1d (kernels 7, 5, 3; stride 2) with batch norm, mean over time."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, CHANNELS, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm1d(CHANNELS)
        self.conv2 = nn.Conv1d(CHANNELS, width, 5, stride=2, padding=2)
        self.bn2 = nn.BatchNorm1d(width)
        self.conv3 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)))
        return x.mean(dim=2)


class ImageEncoder(nn.Module):
    """``[B, C, H, W]`` → ``[B, width]``: three Conv2d (3×3, stride 2) with batch norm, mean over positions.

    Frames ``[B, T, C, H, W]`` go through one by one; their features are averaged.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, CHANNELS, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, width, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return mean_over_frames(self._picture_features, x)

    def _picture_features(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)))
        return x.mean(dim=(2, 3))


class TokensEncoder(nn.Module):
    """Token ids ``[B, L]`` → ``[B, width]``: mean of the words' embeddings (padding left out), one linear layer."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.fc1 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features. A row of padding only counts as one zero vector."""
        words = (x > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return functional.relu(self.fc1(self.embedding(x).sum(dim=1) / words))


class VectorEncoder(nn.Module):
    """``[B, D]`` → ``[B, width]``: two linear layers with ReLU."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return functional.relu(self.fc2(functional.relu(self.fc1(x))))


def build_small(spec: ModalitySpec, width: int = 64) -> nn.Module:
    """Return the small encoder for a modality, with features ``[B, width]``; its weights follow ``torch.manual_seed``.

    Raises:
        ValueError: a width below 1.
    """
    if width < 1:
        raise ValueError(f"width is {width}, expected at least 1")
    if spec.kind == "sequence":
        return SequenceEncoder(spec.channels, width)
    if spec.kind == "image":
        return ImageEncoder(spec.channels, width)
    if spec.kind == "tokens":
        return TokensEncoder(spec.vocabulary or 1, width)
    return VectorEncoder(spec.channels, width)

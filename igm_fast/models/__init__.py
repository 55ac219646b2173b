"""Models: small encoders, ResNet-18, and the multimodal model that holds one encoder per modality."""

from __future__ import annotations

from igm_fast.models.multimodal import Branch, MultimodalModel
from igm_fast.models.resnet import ResNet18, build_resnet18
from igm_fast.models.small import build_encoder

__all__ = ["Branch", "MultimodalModel", "ResNet18", "build_encoder", "build_resnet18"]

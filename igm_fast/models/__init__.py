"""Models: the encoders, their pretrained weights, and the multimodal model that holds one encoder per modality."""

from __future__ import annotations

from igm_fast.models.encoders import ENCODERS, build_encoder
from igm_fast.models.multimodal import Branch, MultimodalModel
from igm_fast.models.pretrained import Loaded, branch_state, load_pretrained, load_state
from igm_fast.models.resnet import ResNet18, build_resnet18

__all__ = [
    "ENCODERS",
    "Branch",
    "Loaded",
    "MultimodalModel",
    "ResNet18",
    "branch_state",
    "build_encoder",
    "build_resnet18",
    "load_pretrained",
    "load_state",
]

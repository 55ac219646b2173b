"""Interactive multimodal learning via flat gradient modification (IGM), on fused C++/CUDA kernels."""

from __future__ import annotations

__version__ = "0.1.0"

"""Shared test set-up: hypothesis profile, one thread count, the repository's root on the path for `tests.oracles`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # `import oracles`, `import bounds` from any test folder

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device here; run on a machine with a GPU: pytest -m gpu")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)

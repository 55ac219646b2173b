"""Trees that tests of this folder share; a test that breaks one works on a copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from trees import crema_d_tree, ksounds_tree


@pytest.fixture(scope="session")
def _trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    crema_d_tree(folder / "crema-d")
    ksounds_tree(folder / "ksounds")
    return folder


def _copied(source: Path, target: Path) -> Path:
    """Files are linked: tests replace files, they never write into one."""
    return shutil.copytree(source, target, copy_function=os.link)


@pytest.fixture
def crema_d(_trees: Path, tmp_path: Path) -> Path:
    return _copied(_trees / "crema-d", tmp_path / "crema-d")


@pytest.fixture
def ksounds(_trees: Path, tmp_path: Path) -> Path:
    return _copied(_trees / "ksounds", tmp_path / "ksounds")


@pytest.fixture(autouse=True)
def _one_thread(_seeded: None) -> None:
    torch.set_num_threads(1)  # small tensors: a second thread would only be waited for

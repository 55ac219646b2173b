"""Which encoder a modality gets, in which width, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_bert import HIDDEN, TOKENS, save_tiny_bert
from torch import nn

from igm_fast.data import ModalitySpec
from igm_fast.models import ENCODERS, MultimodalModel, build_encoder
from igm_fast.models.i3d import I3D
from igm_fast.models.resnet import ResNet18, ResNet50
from igm_fast.models.small import ImageEncoder


def picture(encoder: str, *shape: int) -> ModalitySpec:
    return ModalitySpec("picture", "image", shape or (3, 32, 32), encoder=encoder)


def test_names() -> None:
    assert list(ENCODERS) == ["small", "resnet18", "resnet50", "i3d", "bert"]
    assert isinstance(build_encoder(picture("small")), ImageEncoder)
    assert isinstance(build_encoder(picture("resnet18")), ResNet18)
    assert isinstance(build_encoder(picture("resnet50"), 1000), ResNet50)
    assert isinstance(build_encoder(picture("i3d", 64, 2, 32, 32), 1024), I3D)


def test_a_width_of_its_own_needs_no_projection(tmp_path: Path) -> None:
    text = ModalitySpec("text", "tokens", (9,), TOKENS, "bert")
    directory = save_tiny_bert(tmp_path)
    for spec, own in ((picture("resnet50"), 1000), (picture("i3d", 64, 3, 32, 32), 1024), (text, HIDDEN)):
        source = directory if spec is text else None
        exact, other = build_encoder(spec, own, source), build_encoder(spec, 12, source)
        assert isinstance(exact.projection, nn.Identity)
        assert other.projection.weight.shape == (12, own)
        added = set(other.state_dict()) - set(exact.state_dict())
        assert added == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize("shape", [(4, 3, 16, 13), (2, 2, 9, 9)])
def test_small_averages_frames(shape: tuple[int, ...]) -> None:
    encoder = build_encoder(picture("small", *shape), 24).eval()
    film = torch.randn(2, *shape)
    frames = torch.stack([encoder(film[:, t]) for t in range(shape[0])])
    torch.testing.assert_close(encoder(film), frames.mean(dim=0))


def test_encoders_side_by_side_in_a_model(tmp_path: Path) -> None:
    directory = save_tiny_bert(tmp_path)
    specs = [picture("resnet18", 2, 1, 33, 33), ModalitySpec("text", "tokens", (9,), TOKENS, "bert")]
    model = MultimodalModel(specs, 3, width=8, encoder=lambda spec, width: build_encoder(spec, width, directory))
    logits = model({"picture": torch.randn(2, 2, 1, 33, 33), "text": torch.tensor([[2, 5, 3, 0], [2, 3, 0, 0]])})
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"picture": (2, 3), "text": (2, 3)}


@pytest.mark.parametrize(
    ("spec", "width", "message"),
    [
        (picture("resnet"), 8, r"modality 'picture': unknown encoder 'resnet'\. Did you mean 'resnet\d+' or 'resnet"),
        (picture("small"), 0, "width is 0, expected at least 1"),
        (picture("resnet50"), -1, "width is -1, expected at least 1"),
        (picture("resnet18"), 12, "width is 12, expected a positive multiple of 8"),
        (picture("bert"), 8, "of kind 'image', expected 'tokens' for encoder 'bert'. Use the small encoder"),
        (picture("i3d"), 8, r"shape \(3, 32, 32\), expected \[T, C, H, W\] with T ≥ 57 for encoder 'i3d'"),
        (picture("i3d", 56, 3, 32, 32), 8, r"with T ≥ 57"),
        (ModalitySpec("sound", "sequence", (1, 9), encoder="resnet18"), 8, "of kind 'sequence', expected 'image'"),
        (ModalitySpec("text", "tokens", (9,), 5, "bert"), 8, r"no directory is given; .*--pretrained text=DIR.*=small"),
    ],
)
def test_refusals(spec: ModalitySpec, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(spec, width)


def test_bert_wants_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights\.bin is no directory; expected one with config\.json, vocab\.txt"):
        build_encoder(ModalitySpec("text", "tokens", (9,), 5, "bert"), 8, tmp_path / "weights.bin")

"""Encoders, heads, and the multimodal model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast.data import ModalitySpec
from igm_fast.models import MultimodalModel, ResNet18, build_encoder, build_resnet18
from igm_fast.models.multimodal import HEADS

SOUND = ModalitySpec("sound", "sequence", (2, 40))
MOTION = ModalitySpec("motion", "sequence", (2, 33))
PICTURE = ModalitySpec("picture", "image", (3, 16, 13))
WORDS = ModalitySpec("words", "tokens", (5,), 20)
SHAPE = ModalitySpec("shape", "vector", (7,))
SPECS = (SOUND, MOTION, PICTURE, WORDS, SHAPE)


def batch(specs: tuple[ModalitySpec, ...] = SPECS, size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        spec.name: torch.randint(0, spec.vocabulary, (size, *spec.shape), generator=generator)
        if spec.vocabulary
        else torch.randn(size, *spec.shape, generator=generator)
        for spec in specs
    }


def double(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


# --- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("width", [1, 48])
def test_encoder_gives_features_and_every_parameter_a_gradient(spec: ModalitySpec, width: int) -> None:
    encoder = build_encoder(spec, width)
    features = encoder(batch((spec,))[spec.name])
    assert features.shape == (6, width)
    assert (features >= 0).all()
    if width > 1:  # a single ReLU may be dead
        features.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_layers_of_equal_role_have_equal_names_and_shapes() -> None:
    first, second = build_encoder(SOUND), build_encoder(MOTION)
    assert {n: p.shape for n, p in first.named_parameters()} == {n: p.shape for n, p in second.named_parameters()}
    convolutions = [name for name, module in first.named_modules() if isinstance(module, nn.Conv1d)]
    assert convolutions == ["conv1", "conv2", "conv3"]
    picture = [name for name, module in build_encoder(PICTURE).named_modules() if isinstance(module, nn.Conv2d)]
    assert picture == convolutions
    assert [n for n, m in build_encoder(SHAPE).named_modules() if isinstance(m, nn.Linear)] == ["fc1", "fc2"]


def test_vector_encoder_is_two_layers() -> None:
    encoder, x = build_encoder(SHAPE, 16).double(), batch()["shape"].double()
    hidden = relu(x.numpy() @ double(encoder.fc1.weight).T + double(encoder.fc1.bias))
    expected = relu(hidden @ double(encoder.fc2.weight).T + double(encoder.fc2.bias))
    torch.testing.assert_close(encoder(x), torch.from_numpy(expected), rtol=1e-12, atol=1e-13)


def test_tokens_encoder_averages_the_words_and_leaves_padding_out() -> None:
    encoder = build_encoder(WORDS, 16).double()
    tokens = torch.tensor([[3, 7, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    embedding = double(encoder.embedding.weight)
    rows = [row[row > 0] for row in tokens.numpy()]
    mean = np.stack([embedding[row].mean(axis=0) if len(row) else np.zeros(16) for row in rows])
    expected = relu(mean @ double(encoder.fc1.weight).T + double(encoder.fc1.bias))
    torch.testing.assert_close(encoder(tokens), torch.from_numpy(expected), rtol=1e-12, atol=1e-13)
    # Position carries nothing: the encoder sees a bag.
    torch.testing.assert_close(encoder(tokens.flip(1)), encoder(tokens), rtol=1e-12, atol=1e-13)


def test_sequence_encoder_layer_by_layer() -> None:
    """Each Conv1d against its defining double loop; batch norm in eval mode is the identity up to 1/√(1+eps)."""
    encoder, x = build_encoder(SOUND, 4).double().eval(), batch()["sound"][:2].double()
    for conv, kernel in ((encoder.conv1, 7), (encoder.conv2, 5), (encoder.conv3, 3)):
        assert conv.kernel_size == (kernel,)
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (kernel // 2, kernel // 2)))
        steps = range(0, padded.shape[2] - kernel + 1, 2)
        patches = np.stack([padded[:, :, t : t + kernel] for t in steps], axis=-1)
        raw = np.einsum("ock,bckt->bot", double(conv.weight), patches) + double(conv.bias)[:, None]
        x = torch.from_numpy(relu(raw / np.sqrt(1 + 1e-5)))
    torch.testing.assert_close(encoder(batch()["sound"][:2].double()), x.mean(dim=2), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("spec", [SOUND, PICTURE], ids=lambda spec: spec.kind)
def test_convolutional_encoders_take_other_lengths(spec: ModalitySpec) -> None:
    encoder = build_encoder(spec, 8)
    longer = torch.randn(3, spec.channels, *(size + 9 for size in spec.shape[1:]))
    assert encoder(longer).shape == (3, 8)


def test_encoder_refusals() -> None:
    with pytest.raises(ValueError, match="width is 0, expected at least 1"):
        build_encoder(SOUND, 0)


# --- model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_same_seed_same_weights(head: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(MultimodalModel(SPECS, 4, head).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_separate_heads() -> None:
    model = MultimodalModel(SPECS, 4, width=24)
    logits = model(batch())
    assert list(logits) == model.modalities == [spec.name for spec in SPECS]
    features = model.eval().features(batch())
    for name, value in model(batch()).items():
        head = model.branch(name).head
        assert features[name].shape == (6, 24)
        torch.testing.assert_close(value, functional.linear(features[name], head.weight, head.bias))
        torch.testing.assert_close(value, model.branch(name)(batch()[name]))
    names = [name for name, module in model.branch("sound").named_modules() if isinstance(module, nn.Linear)]
    assert names == ["head"]


def test_shared_head_is_one_layer() -> None:
    model = MultimodalModel(SPECS, 4, "shared").eval()
    features = model.features(batch())
    for name, value in model(batch()).items():
        assert model.branch(name).head is None
        torch.testing.assert_close(model.branch(name)(batch()[name]), features[name])
        torch.testing.assert_close(value, model.shared_head(features[name]))
    assert sum(isinstance(m, nn.Linear) and m.out_features == 4 for m in model.modules()) == 1


def test_joint_shares_add_up_and_carry_no_gradient() -> None:
    model = MultimodalModel(SPECS, 4, "joint", width=16).double().eval()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in batch().items()}
    logits = model(inputs)
    assert list(logits) == ["joint", *model.modalities]
    shares = [logits[name] for name in model.modalities]
    torch.testing.assert_close(torch.stack(shares).sum(dim=0), logits["joint"].detach(), rtol=1e-12, atol=1e-12)
    assert logits["joint"].requires_grad
    assert not any(share.requires_grad for share in shares)


def test_joint_share_is_the_block_of_its_modality_in_any_order() -> None:
    model = MultimodalModel(SPECS, 4, "joint", width=16).double().eval()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in batch().items()}
    everything, features = model(inputs), model.features(inputs)
    position = model.modalities.index("picture")
    block = double(model.joint_head.weight)[:, 16 * position : 16 * (position + 1)]
    expected = double(features["picture"]) @ block.T + double(model.joint_head.bias) / len(SPECS)
    torch.testing.assert_close(everything["picture"], torch.from_numpy(expected), rtol=1e-12, atol=1e-13)
    for name, value in model(inputs, list(reversed(model.modalities))).items():
        torch.testing.assert_close(value, everything[name], rtol=0, atol=0)
    # Without all features there is no joint answer, only shares.
    assert list(model(inputs, ["words", "sound"])) == ["words", "sound"]


def test_own_heads_beside_a_joint_head() -> None:
    model = MultimodalModel(SPECS, 4, "both", width=16).eval()
    features, logits = model.features(batch()), model(batch())
    assert list(logits) == [*model.modalities, "joint"]
    for name in model.modalities:
        torch.testing.assert_close(logits[name], model.branch(name).head(features[name]), rtol=0, atol=0)
    joined = torch.cat([features[name] for name in model.modalities], dim=1)
    torch.testing.assert_close(logits["joint"], model.joint_head(joined), rtol=0, atol=0)
    assert all(value.requires_grad for value in logits.values())
    assert list(model(batch(), ["words", "sound"])) == ["words", "sound"]


def test_boosted_head_adds_up_and_multiplies() -> None:
    model = MultimodalModel(SPECS, 4, "boosted", width=16).double().eval()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in batch().items()}
    with torch.no_grad():
        assert model.boost_rate.item() == 1.0
        model.boost_rate.fill_(0.3)
    logits, features = model(inputs), model.features(inputs)
    total = sum(double(model.shared_head(features[name])) for name in model.modalities)
    np.testing.assert_allclose(double(logits["joint"]), 0.3 * total, rtol=1e-12)
    logits["joint"].sum().backward()
    assert model.boost_rate.grad.item() == pytest.approx(total.sum(), rel=1e-12)
    assert list(model(inputs, ["words", "sound"])) == ["words", "sound"]


def test_only_the_asked_encoders_run() -> None:
    model = MultimodalModel(SPECS, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model({"sound": batch()["sound"]}, ["sound"])
    assert list(logits) == ["sound"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(name.startswith("branches.sound.encoder.bn") for name in changed)


def test_state_dict_round_trip() -> None:
    first, second = MultimodalModel(SPECS, 4).eval(), MultimodalModel(SPECS, 4).eval()
    second.load_state_dict(first.state_dict())
    for name, value in first(batch()).items():
        assert torch.equal(value, second(batch())[name])


@pytest.mark.parametrize("head", HEADS)
def test_model_traces_without_graph_break(head: str) -> None:
    model = MultimodalModel(SPECS, 4, head).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(batch())
    for name, value in compiled(batch()).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sound": None}, r"no modality 'sound', only \['motion', 'picture'.*modalities=\['motion', 'picture'"),
        ({"sound": torch.zeros(6, 3, 40)}, r"'sound' has shape \(6, 3, 40\), expected \[B, 2, T\]"),
        ({"sound": torch.zeros(2, 40)}, r"'sound' has shape \(2, 40\), expected \[B, 2, T\]"),
        ({"picture": torch.zeros(6, 1, 16, 13)}, r"expected \[B, 3, H, W\]; give a batch of image samples"),
        ({"picture": torch.zeros(6, 3, 16, 13).byte()}, r"dtype torch.uint8, expected floating point; convert with"),
        ({"shape": torch.zeros(6, 8)}, r"'shape' has shape \(6, 8\), expected \[B, 7\]"),
        ({"words": torch.zeros(6, 5)}, r"'words' has dtype torch.float32, expected int64 token ids"),
        ({"words": torch.zeros(6, 5, 1).long()}, r"'words' has shape \(6, 5, 1\), expected \[B, L\]"),
    ],
)
def test_input_refusals(change: dict[str, Tensor | None], message: str) -> None:
    model = MultimodalModel(SPECS, 4)
    inputs = {name: x for name, x in {**batch(), **change}.items() if x is not None}
    with pytest.raises(ValueError, match=message):
        model(inputs)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    model = MultimodalModel(SPECS, 4)
    with pytest.raises(ValueError, match=r"unknown modality 'sond'\. Did you mean 'sound'"):
        model(batch(), ["sond"])
    with pytest.raises(ValueError, match=r"unknown head 'seperate'\. Did you mean 'separate'"):
        MultimodalModel(SPECS, 4, "seperate")


def test_model_refusals() -> None:
    with pytest.raises(ValueError, match="num_classes is 1, expected at least 2"):
        MultimodalModel(SPECS, 1)
    with pytest.raises(ValueError, match=r"modalities are \[\]"):
        MultimodalModel((), 4)
    with pytest.raises(ValueError, match=r"modalities are \['sound', 'sound'\]; expected at least one, each name once"):
        MultimodalModel((SOUND, SOUND), 4)


# --- ResNet-18 --------------------------------------------------------------------------------------------------------


def test_resnet18_has_the_published_parameters() -> None:
    network = ResNet18()
    # torchvision's resnet18 has 11,689,512 parameters, 513,000 of them in fc; 122 entries, two of them fc's.
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 513_000
    names = list(network.state_dict())
    assert len(names) == 120
    assert "layer2.0.downsample.0.weight" in names
    assert network.layer4[1].conv2.weight.shape == (512, 512, 3, 3)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resnet18_averages_frames(channels: int) -> None:
    network = ResNet18(channels, width=32).eval()
    film = torch.randn(2, 3, channels, 33, 40)
    frames = torch.stack([network(film[:, t]) for t in range(3)])
    assert frames.shape == (3, 2, 32)
    torch.testing.assert_close(network(film), frames.mean(dim=0))


def test_resnet18_in_a_model() -> None:
    film = ModalitySpec("film", "image", (2, 3, 32, 32))
    spectrogram = ModalitySpec("spectrogram", "image", (1, 48, 20))
    model = MultimodalModel((spectrogram, film), 6, width=16, encoder=build_resnet18)
    logits = model(batch((spectrogram, film), 3))
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"spectrogram": (3, 6), "film": (3, 6)}
    sum(value.sum() for value in logits.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    other_length = {"spectrogram": torch.zeros(3, 1, 64, 64), "film": torch.zeros(3, 5, 3, 40, 40)}
    assert model(other_length)["film"].shape == (3, 6)
    with pytest.raises(ValueError, match=r"expected \[B, T, 3, H, W\]"):
        model({"spectrogram": torch.zeros(3, 1, 64, 64), "film": torch.zeros(3, 3, 40, 40)})


def test_resnet18_refusals() -> None:
    with pytest.raises(ValueError, match="width is 12, expected a positive multiple of 8"):
        ResNet18(3, 12)
    with pytest.raises(ValueError, match="ResNet-18 expects 'image'"):
        build_resnet18(SOUND)
    with pytest.raises(ValueError, match=r"expected \[B, C, H, W\] or frames"):
        ResNet18(3, 8)(torch.zeros(3, 8, 8))

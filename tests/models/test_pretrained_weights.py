"""Pretrained weights: every kind of file, what is reported, and what is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_bert import CLS, HIDDEN, SEP, TOKENS, save_tiny_bert
from torch import Tensor, nn
from transformers import BertModel

from igm_fast.data import ModalitySpec
from igm_fast.models import MultimodalModel, ResNet18, branch_state, load_pretrained, load_state
from igm_fast.models.bert import Bert


def network(seed: int, channels: int = 3) -> ResNet18:
    torch.manual_seed(seed)
    encoder = ResNet18(channels, 16)
    encoder.bn1.running_mean.normal_()
    return encoder


def weights(seed: int) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network(seed).state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy", "state_dict", "model"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path, state = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt"), weights(1)
    if kind == "safetensors":
        save_file(state, path)
    elif kind in ("state_dict", "model"):
        torch.save({kind: state, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
    assert same(load_state(path), state)
    encoder = network(2)
    parameters = list(encoder.parameters())
    loaded = load_pretrained(encoder, path)
    assert same(encoder.state_dict(), state)
    assert all(now is before for now, before in zip(encoder.parameters(), parameters, strict=True))  # an optimizer's
    assert (loaded.share, loaded.missing, loaded.unexpected, loaded.mismatched) == (1, (), (), {})
    assert str(loaded) == f"{path}: {len(loaded.matched)} of 100 tensors loaded, 100.0% of the parameters"


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "backbone.", "model.", "module.encoder."])
def test_prefixes_of_other_programs_do_not_count(prefix: str) -> None:
    encoder = network(2)
    loaded = load_pretrained(encoder, {prefix + name: value for name, value in weights(1).items()})
    assert same(encoder.state_dict(), weights(1))
    assert loaded.source == "the given tensors"


def test_what_does_not_fit_is_reported_and_keeps_its_first_values() -> None:
    """A stem for RGB into one for depth, a classifier too many, a layer too few, counts of batches left out."""
    given = {name: value for name, value in weights(1).items() if not name.startswith("layer4.1.conv2")}
    given = {name: value for name, value in given.items() if not name.endswith("num_batches_tracked")}
    given["fc.weight"] = torch.zeros(1000, 16)
    encoder, first = network(2, channels=1), network(2, channels=1).state_dict()
    loaded = load_pretrained(encoder, given, "file")
    assert loaded.mismatched == {"conv1.weight": ((2, 3, 7, 7), (2, 1, 7, 7))}
    assert loaded.missing == ("layer4.1.conv2.weight",)
    assert loaded.unexpected == ("fc.weight",)
    after = encoder.state_dict()
    kept = {"conv1.weight", "layer4.1.conv2.weight"}
    assert all(torch.equal(after[name], first[name]) for name in kept)
    assert set(loaded.matched) == {name for name in first if not name.endswith("tracked")} - kept
    assert all(torch.equal(after[name], given[name]) for name in loaded.matched)
    sizes = {name: value.numel() for name, value in first.items() if not name.endswith("tracked")}
    assert loaded.share == pytest.approx(sum(sizes[name] for name in loaded.matched) / sum(sizes.values()), rel=1e-12)
    assert str(loaded).splitlines() == [
        f"file: 98 of 100 tensors loaded, {loaded.share:.1%} of the parameters",
        "  not in the source: 1: layer4.1.conv2.weight",
        "  of another shape:  1: conv1.weight (2×3×7×7, here 2×1×7×7)",
        "  not used:          1: fc.weight",
    ]
    assert json.loads(json.dumps(asdict(loaded)))["missing"] == ["layer4.1.conv2.weight"]


def test_long_lists_are_cut() -> None:
    given = {**weights(1), **{f"head{index}": torch.zeros(1) for index in range(12)}}
    assert str(load_pretrained(network(2), given)).endswith("head9, and 2 more")


def test_half_precision_becomes_the_network_s() -> None:
    encoder = network(2)
    load_pretrained(encoder, {name: value.half() for name, value in weights(1).items()})
    assert torch.equal(encoder.conv1.weight, weights(1)["conv1.weight"].half().float())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"a": torch.zeros(1), "b": torch.zeros(1)},
            r"none of its 2 tensors fits ResNet18: it has a, b; expected conv1",
        ),
        (
            {"conv1.weight": torch.zeros(64, 3, 7, 7)},
            r"shapes differ \(conv1\.weight is 64×3×7×7, here 2×3×7×7\).*or choose the encoder or the width",
        ),
        ({"bn1.weight": torch.zeros(2), "module.bn1.weight": torch.zeros(2)}, "would both be 'bn1.weight'"),
    ],
)
def test_nothing_that_fits_is_an_error_and_changes_nothing(given: dict[str, Tensor], message: str) -> None:
    encoder = network(2)
    with pytest.raises(ValueError, match=message):
        load_pretrained(encoder, given)
    assert same(encoder.state_dict(), weights(2))


def test_files_that_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_state(path)
        assert str(path.name) in str(caught.value)

    refused(tmp_path / "none.pt", "there are no weights here, expected a file")
    refused(tmp_path, "expected a directory with model.safetensors or pytorch_model.bin")
    whole, pickled, numbers, text = (tmp_path / name for name in ("whole.pt", "x.pkl", "numbers.pt", "weights.npz"))
    torch.save(network(1), whole)
    refused(whole, "Files with other objects are refused, since reading them runs their code")
    pickled.write_bytes(pickle.dumps({"conv1.weight": np.zeros(3)}))
    refused(pickled, "is no file of tensors")
    torch.save({"epoch": 3}, numbers)
    refused(numbers, "holds dict without a tensor by name")
    np.savez(text, weight=np.zeros(3))
    refused(text, "is no file of tensors")
    for name in ("cut.safetensors", "cut.pt"):
        good = tmp_path / f"good{Path(name).suffix}"
        save_file(weights(1), good) if name.endswith("tensors") else torch.save(weights(1), good)
        for size in (0, 7, good.stat().st_size // 2):
            (tmp_path / name).write_bytes(good.read_bytes()[:size])
            refused(tmp_path / name, "damaged or cut off" if name.endswith("tensors") else "is no file of tensors")


def test_damaged_pickles_are_refused_whatever_they_say(tmp_path: Path) -> None:
    path, generator = tmp_path / "weights.pt", np.random.default_rng(0)
    torch.save(weights(1), path, _use_new_zipfile_serialization=False)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(40):  # in the instructions, which stand before the numbers
        damaged = content.copy()
        damaged[generator.integers(0, 2000, 8)] = generator.integers(0, 256, 8)
        path.write_bytes(damaged.tobytes())
        try:
            assert load_state(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - damage to a name is no error, so that raises() can't be used


# --- BERT's directory, and our own models -----------------------------------------------------------------------------


@pytest.mark.parametrize("old_names", [False, True])
def test_a_bert_as_transformers_reads_it(tmp_path: Path, old_names: bool) -> None:
    directory = save_tiny_bert(tmp_path)
    if old_names:  # as the published bert-base-uncased has them
        state = load_state(directory)
        for name in [name for name in state if "LayerNorm" in name]:
            state[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
                state.pop(name)
            )
        torch.save(state, directory / "pytorch_model.bin")
        (directory / "model.safetensors").rename(tmp_path / "original.safetensors")
    encoder = Bert(directory, HIDDEN, TOKENS, 9).eval()
    loaded = load_pretrained(encoder, directory)
    if old_names:
        (tmp_path / "original.safetensors").rename(directory / "model.safetensors")
    theirs = BertModel.from_pretrained(directory, attn_implementation="eager").eval()
    assert (loaded.share, loaded.missing, loaded.mismatched) == (1, (), {})
    assert all(name.startswith(("cls.", "bert.pooler.")) for name in loaded.unexpected)
    rows = torch.tensor([[CLS, 5, SEP, 9, SEP], [CLS, 7, 8, 9, SEP]])
    segments = torch.tensor([[0, 0, 0, 1, 1], [0] * 5])
    hidden = theirs(input_ids=rows, token_type_ids=segments).last_hidden_state
    assert torch.equal(encoder(rows), hidden[:, 0])


def test_a_directory_without_weights_is_said_aloud(tmp_path: Path) -> None:
    directory = save_tiny_bert(tmp_path, weights=False)
    encoder = Bert(directory, HIDDEN, TOKENS, 9)
    with pytest.warns(UserWarning, match=r"holds none of model\.safetensors, .*: training starts from random weights"):
        loaded = load_pretrained(encoder, directory)
    assert (loaded.share, loaded.matched) == (0, ())
    assert len(loaded.missing) == len(encoder.state_dict())


def test_the_encoder_of_one_modality_of_our_own_model() -> None:
    specs = [ModalitySpec("sound", "sequence", (2, 20)), ModalitySpec("motion", "sequence", (2, 30))]
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(MultimodalModel(specs, 3))
    given = branch_state(models[0].state_dict(), "motion")
    loaded = load_pretrained(models[1].branch("motion").encoder, given, "runs/x")
    assert loaded.share == 1
    assert same(models[1].branch("motion").encoder.state_dict(), models[0].branch("motion").encoder.state_dict())
    other = models[1].branch("sound").encoder.state_dict()
    assert not same(other, models[0].branch("sound").encoder.state_dict())
    with pytest.raises(ValueError, match=r"unknown modality of the pretrained model 'motoin'\. Did you mean 'motion'"):
        branch_state(models[0].state_dict(), "motoin")
    with pytest.raises(ValueError, match=r"fits Linear"):
        load_pretrained(nn.Linear(2, 2), given)

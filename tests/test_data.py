"""Data sets: files and their provenance, splits, standardisation, what is refused, and own tensors."""

from __future__ import annotations

import doctest
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from igm_fast.data import (
    ModalitySpec,
    MultimodalData,
    MultimodalDataset,
    dataset_names,
    from_tensors,
    load_dataset,
    provenance,
    set_module,
    sets,
    split_indices,
    take,
)
from igm_fast.data.archive import EMBEDDED, read_embedded

BUILDER = Path(__file__).resolve().parents[1] / "tools" / "build_embedded_data.py"


# --- embedded files ---------------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_embedded_files_match_their_provenance() -> None:
    records = provenance()
    embedded = [name for name in dataset_names() if not hasattr(set_module(name), "scan")]
    assert sorted(records) == sorted(path.stem for path in EMBEDDED.glob("*.npz")) == embedded
    assert sum(record["bytes"] for record in records.values()) <= 6e6
    text = (EMBEDDED / "PROVENANCE.md").read_text(encoding="utf-8")
    for name, record in records.items():
        arrays = read_embedded(name)
        assert {key: sha256(np.ascontiguousarray(array).tobytes()) for key, array in arrays.items()} == {
            key: facts["sha256"] for key, facts in record["arrays"].items()
        }
        assert record["licence"]
        assert record["citation"]
        assert record["sha256"] in text
        for licence in record["licence_files"]:
            assert len((EMBEDDED / "licences" / licence).read_text(encoding="utf-8")) > 500
        for package in record["packages"].values():
            assert package["sha256"] in text


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("digits3.npz", "provenance.json"):
        shutil.copy(EMBEDDED / name, tmp_path)
    return tmp_path


def test_missing_file_names_path_hash_and_way_out(copied: Path) -> None:
    (copied / "digits3.npz").unlink()
    expected = provenance()["digits3"]["sha256"]
    with pytest.raises(
        FileNotFoundError, match=rf"digits3\.npz is missing, expected .*{expected}.*build_embedded_data"
    ):
        read_embedded("digits3", copied)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:5000] + b"x" + b[5001:], lambda _: b""])
def test_corrupt_file_is_refused_before_it_is_opened(copied: Path, damage: Callable[[bytes], bytes]) -> None:
    path = copied / "digits3.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"digits3\.npz is corrupt: it has sha256 \w{64}, expected \w{64}\. Install"):
        read_embedded("digits3", copied)


def test_missing_or_broken_provenance(copied: Path) -> None:
    (copied / "provenance.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"provenance\.json is not valid JSON"):
        read_embedded("digits3", copied)
    (copied / "provenance.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"provenance\.json is missing"):
        read_embedded("digits3", copied)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, x=np.array([{"any": "object"}], dtype=object))
    record = {"bad": {"file": "bad.npz", "sha256": sha256(path.read_bytes())}}
    (tmp_path / "provenance.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_embedded("bad", tmp_path)


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    pytest.importorskip("PIL", reason="Pillow is needed to build the data: pip install igm_fast[data-build]")
    if not BUILDER.is_file():
        pytest.skip("tools/ is not here; the builder is tested in the source repository only")
    specification = importlib.util.spec_from_file_location("build_embedded_data", BUILDER)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    assert specification.loader is not None
    specification.loader.exec_module(module)
    return module


def test_builder_refuses_other_packages(
    builder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert builder.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "pip download --no-deps seglearn==1.2.5" in capsys.readouterr().err
    (tmp_path / builder.PACKAGES["seglearn"]["file"]).write_bytes(b"something else")
    assert builder.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"has sha256 {sha256(b'something else')}, expected ec6b952c" in capsys.readouterr().err


def test_builder_makes_the_shipped_arrays(builder: ModuleType, tmp_path: Path) -> None:
    folder = os.environ.get("IGM_FAST_PACKAGES")
    if folder is None:
        pytest.skip("set IGM_FAST_PACKAGES to the folder with the four packages named in tools/build_embedded_data.py")
    assert builder.main([folder, "--out", str(tmp_path)]) == 0
    built, shipped = provenance(tmp_path), provenance()
    for name in shipped:  # the files' own hashes also depend on the zlib version
        assert built[name]["arrays"] == shipped[name]["arrays"]


# --- the three sets ---------------------------------------------------------------------------------------------------

GROUPS = {"watch": "person", "emoji": "family", "digits3": None}


def labels_and_groups(name: str) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = read_embedded(name)
    if name != "watch":
        return arrays["labels"], arrays[GROUPS[name]] if GROUPS[name] else None
    lengths = np.diff(arrays["offsets"])
    recording = [r for r, length in enumerate(lengths) for _ in range(0, length - 128 + 1, 64)]
    return arrays["labels"][recording], arrays["person"][recording]


@pytest.mark.parametrize(
    ("name", "sizes", "hashes"),
    [
        ("watch", (2207, 598, 800), ("ce2fffc008f8f1d5", "e7e23474aa97b8cc", "b420d3224b9491dd")),
        ("emoji", (1137, 289, 480), ("e50b9f5f34871f58", "c8419d1f21b915be", "6506d74a743a1315")),
        ("digits3", (1200, 300, 500), ("9433f2d1d1977715", "b22e7c96f8010078", "0a7919951a2ab084")),
    ],
)
def test_split_of_seed_0_is_the_published_one(name: str, sizes: tuple[int, ...], hashes: tuple[str, ...]) -> None:
    labels, groups = labels_and_groups(name)
    split = split_indices(labels, 0, groups)
    assert tuple(map(len, split)) == sizes
    assert tuple(sha256(part.astype("<i8").tobytes())[:16] for part in split) == hashes
    data = load_dataset(name, 0)
    for part, indices in zip(data.parts.values(), split, strict=True):
        np.testing.assert_array_equal(part.labels.numpy(), labels[indices])


@pytest.mark.parametrize("name", ["watch", "emoji", "digits3"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_no_group_lies_in_two_parts(name: str, seed: int) -> None:
    labels, groups = labels_and_groups(name)
    split = split_indices(labels, seed, groups)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(len(labels)))
    if groups is not None:
        train, validation, test = (set(groups[part]) for part in split)
        assert not train & validation
        assert not train & test
        assert not validation & test


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("watch", "3b405dfc886b30d8bfdd6770a7c6a8aa8c52ebf8293e7cb5ceff4581d190e975"),
        ("emoji", "89f963ee3db924e8497bc8c770660b5966838f76e4f68e420048f2fd899f6c13"),
        ("digits3", "0a84801d36252d756d319e3fe492b1f1dbe0d78a375f9dce7aa66e7ee3149484"),
    ],
)
def test_fingerprint_is_fixed_and_follows_the_split(name: str, fingerprint: str) -> None:
    assert load_dataset(name, 0).fingerprint == fingerprint
    assert load_dataset(name, 1).fingerprint != fingerprint


def raw_inputs(name: str) -> dict[str, np.ndarray]:
    """The values before standardisation, in float64; windows cut by a loop."""
    arrays = read_embedded(name)
    if name == "emoji":
        return {"picture": arrays["picture"].astype(np.float64)}
    if name == "digits3":
        return {view: arrays[view].astype(np.float64) for view in ("fourier", "zernike", "morphological")}
    windows = [
        arrays["signal"][start : start + 128].T
        for begin, end in zip(arrays["offsets"], arrays["offsets"][1:], strict=False)
        for start in range(begin, end - 127, 64)
    ]
    signal = np.stack(windows).astype(np.float64)
    return {"accelerometer": signal[:, :3], "gyroscope": signal[:, 3:]}


@pytest.mark.parametrize("name", ["watch", "emoji", "digits3"])
def test_every_part_is_standardised_by_training_statistics_only(name: str) -> None:
    labels, groups = labels_and_groups(name)
    split, data = split_indices(labels, 3, groups), load_dataset(name, 3)
    unit = 2.0**-24
    for modality, values in raw_inputs(name).items():
        others = tuple(axis for axis in range(values.ndim) if axis != 1)
        mean = values[split.train].mean(axis=others, keepdims=True)
        deviation = values[split.train].std(axis=others, keepdims=True)
        for part, indices in zip(data.parts.values(), split, strict=True):
            expected = (values[indices] - mean) / deviation
            # Rounding to float32: mean (1), difference (1), deviation (1), quotient (1), and one to spare.
            bound = 5 * unit * (np.abs(expected) + np.abs(mean / deviation))
            error = np.abs(part.inputs[modality].numpy() - expected)
            assert np.all(error <= bound), (modality, error.max())


def test_sets_are_what_their_description_says() -> None:
    watch, emoji, digits = load_dataset("watch"), load_dataset("emoji"), load_dataset("digits3")
    assert watch.modalities == tuple(ModalitySpec(m, "sequence", (3, 128)) for m in ("accelerometer", "gyroscope"))
    assert emoji.modalities == (
        ModalitySpec("picture", "image", (3, 32, 32)),
        ModalitySpec("text", "tokens", (4,), 1489),
    )
    assert [spec.shape for spec in digits.modalities] == [(76,), (47,), (6,)]
    assert (watch.num_classes, emoji.num_classes, digits.num_classes) == (7, 9, 10)
    assert digits.train.labels.bincount().tolist() == [120] * 10
    for data in (watch, emoji, digits):
        assert data.description
        for part in data.parts.values():
            assert set(part.labels.tolist()) == set(range(data.num_classes))


def test_loading_twice_gives_the_same_bits_whatever_the_threads() -> None:
    first, threads = load_dataset("watch", 2), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        second = load_dataset("watch", 2)
    finally:
        torch.set_num_threads(threads)
    for part in first.parts:
        for name, samples in first.parts[part].inputs.items():
            assert torch.equal(samples, second.parts[part].inputs[name])


# --- registry ---------------------------------------------------------------------------------------------------------


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'wacth'\. Did you mean 'watch'\? Known: crema-d, "):
        load_dataset("wacth")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed is {seed}, expected 0 to"):
        load_dataset("digits3", seed)


def test_a_new_file_is_a_new_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def load(seed):\n    return ('mine', seed)\n", encoding="utf-8")
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert "mine" in dataset_names()
    assert load_dataset("mine", 5) == ("mine", 5)


# --- splits -----------------------------------------------------------------------------------------------------------


@given(
    groups=st.lists(st.integers(0, 200), min_size=40, max_size=300),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_a_partition_that_keeps_groups(groups: list[int], classes: int, seed: int) -> None:
    member = np.array(groups)
    labels = (member * 7 + np.arange(len(groups)) % 3) % classes
    try:
        split = split_indices(labels, seed, member)
    except ValueError as error:
        assert "part is empty" in str(error)  # noqa: PT017 - either outcome is right, the other one is checked below
        return
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(len(groups)))
    assert len({(group, part) for part, indices in enumerate(split) for group in member[indices]}) == len(set(groups))
    for again, part in zip(split_indices(labels, seed, member), split, strict=True):
        np.testing.assert_array_equal(again, part)


def test_split_without_groups_is_stratified() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 20])
    counts = [np.bincount(labels[part]).tolist() for part in split_indices(labels, 0)]
    assert counts == [[60, 24, 12], [15, 6, 3], [25, 10, 5]]


def test_split_refuses_what_it_cannot_divide() -> None:
    with pytest.raises(ValueError, match="the train part is empty: 0 samples in 0 groups"):
        split_indices(np.array([], int), 0)
    with pytest.raises(ValueError, match="the test part is empty: 9 samples in 2 groups"):
        split_indices(np.zeros(9, int), 0, np.arange(9) % 2)
    with pytest.raises(ValueError, match="3 groups were given for 9 labels"):
        split_indices(np.zeros(9, int), 0, np.arange(3))


# --- what a data set refuses ------------------------------------------------------------------------------------------

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("inputs", "labels", "error", "message"),
    [
        ({}, Y, ValueError, "name no modality"),
        ({"a": X[:0]}, Y[:0], ValueError, "labels are empty"),
        ({"a": X[:3]}, Y, ValueError, "'a' has 3 samples, expected 4 as there are labels"),
        ({"a": X, "b": [X[0], None, X[2], X[3]]}, Y, ValueError, "sample 1 lacks modality 'b'"),
        ({"a": [X[0], X[1], X[2, :2], X[3]]}, Y, ValueError, r"sample 2 has shape \(2,\), expected \(3,\)"),
        ({"a": []}, Y, ValueError, "'a' has 0 samples, expected 4"),
        (
            {"a": X / torch.tensor([1, 1, 0.0])},
            Y,
            ValueError,
            r"4 NaN or infinite values \(first at \[0, 2\], sample 0",
        ),
        ({"a": X > 1}, Y, TypeError, "dtype torch.bool, expected real numbers or integer token ids"),
        ({"a": X}, torch.tensor([0, 1, -1, 0]), ValueError, r"labels hold -1 \(sample 2\)"),
        ({"a": X}, Y.float(), TypeError, r"labels have dtype torch.float32, expected integers"),
        ({"a": X}, Y[:, None], ValueError, r"labels have shape \(4, 1\), expected \[N\]"),
    ],
)
def test_dataset_refuses(inputs: dict, labels: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultimodalDataset(inputs, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.b", "vector", (3,)), "expected letters, digits"),
        (("fused", "vector", (3,)), "is taken by the library"),
        (("values", "vector", (3,)), "is taken by the library"),
        (("a", "picture", (3, 4, 4)), "has kind 'picture', expected one of sequence, image, tokens, vector"),
        (("a", "sequence", (3,)), "expected 2 dimensions, each at least 1"),
        (("a", "image", (3, 0, 4)), "expected 3 or 4 dimensions, each at least 1"),
        (("a", "tokens", (3,)), "has vocabulary None"),
        (("a", "vector", (3,), 10), "has vocabulary 10"),
    ],
)
def test_spec_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModalitySpec(*arguments)


def parts(**changes: tuple) -> dict[str, tuple]:
    return {"train": ({"a": X}, Y), "validation": ({"a": X}, Y), "test": ({"a": X}, Y), **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (parts(train=({"a": X}, torch.ones(4).long())), "all 4 training samples have label 1, expected at least two"),
        (parts(test=({"b": X}, Y)), r"test part has modalities \['b'\], the training part \['a'\]"),
        (parts(test=({"a": X[:, :2]}, Y)), r"test part: modality 'a' has samples of shape \(2,\), expected \(3,\)"),
        (parts(test=({"a": X.long()}, Y)), r"test part: modality 'a' of kind 'vector' has dtype torch.int64"),
        (parts(validation=({"a": X * torch.nan}, Y)), "validation part: modality 'a' has 12 NaN"),
        (parts(validation=({"a": X[:0]}, Y[:0])), "validation part: labels are empty"),
        (parts(test=({"a": X}, Y + 1), classes=["x", "y"]), "test part has label 2, expected 0 to 1 for 2 classes"),
        (parts(kinds={"c": "vector"}), r"kinds names \['c'\], but the modalities are \['a'\]"),
        (parts(vocabularies={"c": 4}), r"vocabularies names \['c'\]"),
    ],
)
def test_from_tensors_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_tensors(**arguments)


def test_from_tensors_refuses_token_ids_outside_the_vocabulary() -> None:
    words = ({"w": torch.tensor([[1, 2], [3, 0], [1, 1], [2, 2]])}, Y)
    with pytest.raises(ValueError, match="train part: modality 'w' has token ids 0 to 3, expected 0 to 2"):
        from_tensors(words, words, words, vocabularies={"w": 3})


def test_from_tensors_refuses_too_many_dimensions() -> None:
    part = ({"a": torch.zeros(4, 1, 1, 1, 1, 1)}, Y)
    with pytest.raises(ValueError, match=r"samples of shape \(1, 1, 1, 1, 1\); expected 1 \(vector\)"):
        from_tensors(part, part, part)


# --- own tensors ------------------------------------------------------------------------------------------------------


def own(seed: int = 0, n: int = 6) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "vector": torch.randn(n, 5, generator=generator, dtype=torch.float64),
        "sound": torch.randn(n, 2, 9, generator=generator),
        "picture": torch.randint(0, 256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8),
        "film": torch.randn(n, 2, 3, 4, 4, generator=generator) * torch.tensor([1.0, 5.0, 0.0])[:, None, None],
        "words": torch.randint(0, 11, (n, 4), generator=generator),
    }, torch.arange(n) % 2


def test_kinds_are_inferred_and_channels_standardised() -> None:
    train, test = own(0, 40), own(1)
    data = from_tensors(train, own(2), test, classes=["no", "yes"])
    assert [spec.kind for spec in data.modalities] == ["vector", "sequence", "image", "image", "tokens"]
    assert [spec.channels for spec in data.modalities] == [5, 2, 3, 3, 4]
    assert data.classes == ("no", "yes")
    film = data.train.inputs["film"].double()
    torch.testing.assert_close(film.mean(dim=(0, 1, 3, 4)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    # The third channel is constant: shifted only, no division by zero.
    spread = film.std(dim=(0, 1, 3, 4), correction=0)
    torch.testing.assert_close(spread, torch.tensor([1.0, 1.0, 0.0]).double(), atol=1e-6, rtol=0)
    assert torch.equal(data.test.inputs["words"], test[0]["words"])
    untouched = from_tensors(train, own(2), test, standardize=False)
    torch.testing.assert_close(untouched.test.inputs["picture"], test[0]["picture"].float(), rtol=0, atol=0)
    assert untouched.classes == ("0", "1")


def test_kind_and_vocabulary_can_be_given() -> None:
    part = ({"a": torch.rand(4, 2, 3), "w": torch.ones(4, 2).long()}, Y)
    data = from_tensors(part, part, part, vocabularies={"w": 50}, kinds={"a": "sequence"})
    assert data.modalities == (ModalitySpec("a", "sequence", (2, 3)), ModalitySpec("w", "tokens", (2,), 50))


def test_fingerprint_sees_one_value_one_label_and_one_move() -> None:
    base = from_tensors(own(0), own(1), own(2)).fingerprint
    assert from_tensors(own(0), own(1), own(2)).fingerprint == base
    inputs, labels = own(2)
    inputs["words"][3, 1] = (inputs["words"][3, 1] + 1) % 5
    assert from_tensors(own(0), own(1), (inputs, labels)).fingerprint != base
    assert from_tensors(own(0), own(1), (own(2)[0], labels.flip(0))).fingerprint != base
    assert from_tensors(own(0), own(2), own(1)).fingerprint != base


def test_split_and_take_serve_undivided_tensors() -> None:
    inputs, labels = own(0, 40)
    data = from_tensors(*(take(inputs, labels, part) for part in split_indices(labels.numpy(), 0)))
    assert isinstance(data, MultimodalData)
    assert [len(part) for part in data.parts.values()] == [24, 6, 10]


def test_samples_and_batches_agree() -> None:
    dataset = MultimodalDataset(*own())
    batch, labels = dataset.__getitems__([4, 1, 1])
    for row, index in enumerate([4, 1, 1]):
        sample, label = dataset[index]
        assert label == labels[row]
        for name in dataset.modalities:
            assert torch.equal(sample[name], batch[name][row])
    assert batch["vector"].dtype == torch.float32
    assert batch["words"].dtype == torch.int64
    empty, none = dataset.__getitems__([])
    assert empty["sound"].shape == (0, 2, 9)
    assert none.shape == (0,)


def test_dataloader_reads_batches_whole() -> None:
    dataset = MultimodalDataset(*own())
    loader = DataLoader(dataset, batch_size=4, collate_fn=MultimodalDataset.collate)
    shapes = [(tuple(inputs["sound"].shape), tuple(labels.shape)) for inputs, labels in loader]
    assert shapes == [((4, 2, 9), (4,)), ((2, 2, 9), (2,))]


def test_the_callers_tensors_stay_as_they_are() -> None:
    (inputs, labels), (kept, _) = own(), own()
    from_tensors((inputs, labels), own(1), own(2))
    for name in inputs:
        assert torch.equal(inputs[name], kept[name])


@pytest.mark.parametrize("module", ["dataset", "tensors"])
def test_docstring_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"igm_fast.data.{module}"), extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0

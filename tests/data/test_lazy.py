"""Data read when asked: augmentation that depends on nothing but its key, batches, workers, memory."""

from __future__ import annotations

import hashlib
import pickle
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from igm_fast.data import BadFile, LazyDataset, ModalitySpec, MultimodalData, MultimodalDataset, hash_split
from igm_fast.data.cache import FeatureCache
from igm_fast.data.seeds import derived_seed
from igm_fast.training import batches
from igm_fast.training.batches import Share, ordered_batches, training_batches

CPU = Share(0, 1, torch.device("cpu"))


@dataclass
class Noisy:
    """Presents number n as [n, noise]."""

    parameters: str = "noisy"

    def load(self, source: Any) -> Tensor:
        if source == 13:
            raise BadFile("thirteen.wav", "is unlucky", "Take another number")
        return torch.tensor([float(source)])

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.zeros(1) if generator is None else torch.rand(1, generator=generator)
        return torch.cat([decoded, noise])


@dataclass
class Choosing:
    """Chooses two of a source's items."""

    parameters: str = "choosing"

    def choose(self, count: int, generator: torch.Generator | None) -> list[int]:
        return [0, count - 1] if generator is None else torch.randint(count, (2,), generator=generator).tolist()

    def load(self, source: Any) -> Tensor:
        return torch.tensor(float(source))

    def present(self, decoded: list[Tensor], generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        return torch.stack(decoded)


def dataset(count: int = 12, seed: int = 0, start: int = 100) -> LazyDataset:
    samples = [{"a": n, "b": n, "c": [n, -n, 2 * n]} for n in range(start, start + count)]
    readers = {"a": Noisy(), "b": Noisy(), "c": Choosing()}
    return LazyDataset(samples, [n % 3 for n in range(count)], readers, root=Path(), cache=None, seed=seed)


def stream(data: LazyDataset, order: list[int], workers: int, *key: object) -> list[batches.Batch]:
    return list(training_batches(data, torch.tensor(order), 4, CPU, key=key, workers=workers))


def test_it_has_the_face_of_a_data_set_in_memory() -> None:
    data = dataset()
    assert len(data) == 12
    assert data.modalities == ["a", "b", "c"]
    assert data.labels.dtype == torch.int64
    sample, label = data[5]
    assert {name: value.tolist() for name, value in sample.items()} == {
        "a": [105, 0], "b": [105, 0], "c": [105, 210],
    }  # fmt: skip
    assert label == 2
    for rows in ([1, 1, 4], torch.tensor([1, 1, 4])):
        inputs, labels = data.__getitems__(rows)
        assert inputs["a"][:, 0].tolist() == [101, 101, 104]
        assert labels.tolist() == [1, 1, 1]


def test_augmentation_is_a_function_of_seed_key_and_sample() -> None:
    data = dataset()
    view = data.augmented(1, "x")
    inputs, _ = view.__getitems__([3, 7])
    generator = torch.Generator().manual_seed(derived_seed("augmentation", 0, 1, "x", 7))
    assert float(inputs["a"][1, 1]) == float(torch.rand(1, generator=generator))
    assert torch.equal(view[7][0]["a"], inputs["a"][1])  # alone or in a batch
    assert torch.equal(view.__getitems__([7, 3, 7])[0]["a"][0], inputs["a"][1])  # in any order
    assert not torch.equal(data.augmented(2, "x")[7][0]["a"], inputs["a"][1])
    assert not torch.equal(dataset(seed=1).augmented(1, "x")[7][0]["a"], inputs["a"][1])
    assert float(data[7][0]["a"][1]) == 0  # the data set itself stays as it is


def test_modalities_that_draw_alike_share_their_numbers() -> None:
    sample, _ = dataset().augmented()[4]
    assert torch.equal(sample["a"], sample["b"])
    assert float(sample["a"][1]) != 0


def test_a_choosing_reader_loads_what_it_chose() -> None:
    data = dataset(200)
    chosen = {tuple(data.augmented(0)[row][0]["c"].abs().div(100 + row).tolist()) for row in range(200)}
    assert chosen == {(a, b) for a in (1, 2) for b in (1, 2)}
    assert [float(item) for item in data.decoded(3, "c")] == [103, -103, 206]
    assert [item.tolist() for item in data.decoded(3, "a")] == [[103]]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    data, order = dataset(), [5, 3, 9, 9, 0, 1, 11, 2, 4, 5]
    for alone, beside in zip(stream(data, order, 0, 7), stream(data, order, workers, 7), strict=True):
        assert torch.equal(alone.rows, beside.rows)
        assert torch.equal(alone.labels, beside.labels)
        for name in data.modalities:
            assert torch.equal(alone.inputs[name], beside.inputs[name])
    for alone, beside in zip(
        ordered_batches(data, 5, CPU), ordered_batches(data, 5, CPU, workers=workers), strict=True
    ):
        assert torch.equal(alone.inputs["a"], beside.inputs["a"])
        assert (alone.inputs["a"][:, 1] == 0).all()


def test_the_same_batches_as_in_memory() -> None:
    data, order = dataset(11), torch.randperm(11)
    inputs, labels = data.__getitems__(range(11))
    memory = MultimodalDataset(inputs, labels)
    for world in (1, 2):
        for rank in range(world):
            share, kept = Share(rank, world, CPU.device), torch.arange(22).view(11, 2) % 3 == 0
            lazy, whole = (list(training_batches(part, order, 4, share, kept)) for part in (data, memory))
            assert len(lazy) == len(whole) == batches.batches_per_epoch(11, 4, world)
            for one, other in zip(lazy, whole, strict=True):
                assert torch.equal(one.rows, other.rows)
                assert torch.equal(one.kept, other.kept)
                assert torch.equal(one.labels, other.labels)
                assert one.weight == other.weight
                assert torch.equal(one.inputs["a"][:, 0], other.inputs["a"][:, 0])
            lazy, whole = (list(ordered_batches(part, 3, share)) for part in (data, memory))
            for one, other in zip(lazy, whole, strict=True):
                assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in data.modalities)


def test_nothing_is_drawn_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    stream(dataset(), [1, 2, 3, 4], 0)
    stream(dataset(), [1, 2, 3, 4], 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_arrives_as_it_was_raised(workers: int) -> None:
    data = dataset(start=5)  # holds 13
    with pytest.raises(BadFile) as caught:
        stream(data, list(range(12)), workers)
    assert str(caught.value) == "thirteen.wav: is unlucky. Take another number."
    assert caught.value.path == "thirteen.wav"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_arrives_as_it_was_raised(workers: int) -> None:
    class Full(Noisy):
        def load(self, source: Any) -> Tensor:
            raise OSError(28, "No space left on device", f"/cache/{source}")

    data = LazyDataset([{"a": 1}] * 4, [0] * 4, {"a": Full()}, root=Path(), cache=None, seed=0)
    with pytest.raises(OSError, match="No space left on device: '/cache/1'"):
        stream(data, [0, 1, 2, 3], workers)


def test_a_bad_file_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(BadFile("a", "b", "c")))
    assert (error.path, error.what, error.fix) == ("a", "b", "c")


def test_a_pass_holds_a_few_batches_only() -> None:
    alive: set[int] = set()
    most = []

    class Counted(Noisy):
        def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:
            made = super().present(decoded, generator)
            alive.add(int(decoded))
            weakref.finalize(made, alive.discard, int(decoded))
            return made

    samples = [{"a": n} for n in range(100, 140)]
    data = LazyDataset(samples, [0] * 40, {"a": Counted()}, root=Path(), cache=None, seed=0)
    stacked = []
    for batch in training_batches(data, torch.arange(40), 4, CPU):
        stacked.append(weakref.ref(batch.inputs["a"]))
        most.append((len(alive), sum(reference() is not None for reference in stacked)))
    assert len(most) == 10
    # Samples are gone once they are stacked; the batch before lives until this one has been handed over.
    assert all(samples <= 4 and batches <= 2 for samples, batches in most)


def test_ordered_batches_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset()
    monkeypatch.setattr(batches, "ORDERED_BATCH_BYTES", 3 * 6 * 4)  # three samples of six float32
    assert [len(batch.labels) for batch in ordered_batches(data, 512, CPU)] == [3, 3, 3, 3]
    monkeypatch.setattr(batches, "ORDERED_BATCH_BYTES", 1)
    assert [len(batch.labels) for batch in ordered_batches(data, 512, CPU)] == [1] * 12


def test_the_cache_is_asked(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(str(n))

    class Files(Noisy):
        calls = 0

        def load(self, source: Any) -> Tensor:
            Files.calls += 1
            return torch.tensor([float((tmp_path / source).read_text())])

    samples = [{"a": f"{n}.txt"} for n in range(4)]
    cache = FeatureCache(tmp_path / "cache")
    data = LazyDataset(samples, [0] * 4, {"a": Files()}, root=tmp_path, cache=cache, seed=0)
    first = data.augmented(1).__getitems__([0, 1, 2, 3])[0]["a"]
    second = data.augmented(1).__getitems__([0, 1, 2, 3])[0]["a"]
    assert Files.calls == 4
    assert torch.equal(first, second)
    assert first[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("readers", "labels", "words"),
    [({}, [0], "name no modality"), ({"a": Noisy()}, [0, 1], "1 samples and 2 labels"), ({"a": Noisy()}, [], "empty")],
)
def test_what_is_no_data_set(readers: dict, labels: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LazyDataset([{"a": 1}], labels, readers, root=Path(), cache=None, seed=0)


def test_data_of_lazy_parts_are_checked_by_their_first_sample() -> None:
    loads: list[int] = []

    class Watched(Noisy):
        def load(self, source: Any) -> Tensor:
            loads.append(source)
            return super().load(source)

    def part(start: int) -> LazyDataset:
        samples = [{"a": n} for n in range(start, start + 4)]
        return LazyDataset(samples, [0, 1, 0, 1], {"a": Watched()}, root=Path(), cache=None, seed=0)

    def made(shape: tuple[int, ...], kind: str = "vector") -> MultimodalData:
        spec = ModalitySpec("a", kind, shape, 50 if kind == "tokens" else None)
        return MultimodalData("own", (spec,), ("x", "y"), part(20), part(30), part(40), "0", "", 0)

    made((2,))
    assert loads == [20, 30, 40]
    with pytest.raises(ValueError, match=r"own, train part: modality 'a' has samples of shape \(2,\), expected \(3,\)"):
        made((3,))
    with pytest.raises(ValueError, match=r"has dtype torch\.float32, expected torch.int64"):
        made((2,), "tokens")


# --- the cut by hash --------------------------------------------------------------------------------------------------


def test_hash_split_is_stratified_fixed_and_blind_to_order() -> None:
    ids, labels = [f"clip{n}" for n in range(230)], [0] * 100 + [1] * 60 + [2] * 68 + [3] * 2
    train, validation = hash_split(ids, labels)
    assert sorted([*train, *validation]) == list(range(230))
    assert np.bincount(np.asarray(labels)[validation]).tolist() == [10, 6, 7, 1]
    order = np.random.default_rng(0).permutation(230)
    again = hash_split([ids[row] for row in order], [labels[row] for row in order])
    assert {ids[order[row]] for row in again[1]} == {ids[row] for row in validation}
    for label in range(4):
        own = sorted(
            (n for n in range(230) if labels[n] == label), key=lambda n: hashlib.sha256(ids[n].encode()).digest()
        )
        held = [row for row in validation if labels[row] == label]
        assert held == sorted(own[: len(held)])


def test_hash_split_leaves_single_samples_in_training() -> None:
    train, validation = hash_split(["a", "b", "c"], [0, 1, 2])
    assert train.tolist() == [0, 1, 2]
    assert len(validation) == 0


def test_hash_split_moves_whole_groups() -> None:
    groups = [f"speaker{n % 20}" for n in range(200)]
    train, validation = hash_split([str(n) for n in range(200)], [0] * 200, groups=groups)
    assert len(validation) == 20
    assert not {groups[row] for row in train} & {groups[row] for row in validation}
    train, validation = hash_split(["a", "b"], [0, 1], share=0.9, groups=["one", "other"])
    assert (len(train), len(validation)) == (1, 1)
    train, validation = hash_split(["a", "b"], [0, 1], groups=["one", "one"])
    assert (len(train), len(validation)) == (2, 0)

"""PyTorch's own data sets: read when asked, drawn alike whoever asks, and every slip named with its sample."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from igm_fast.data import from_datasets
from igm_fast.training.batches import Share, ordered_batches, training_batches

SHARE = Share(0, 1, torch.device("cpu"))


class Pairs(Dataset):
    """Sound with noise that torch draws, a uint8 picture, token ids; counts what is read."""

    def __init__(self, samples: int = 6) -> None:
        self.samples, self.read = samples, []

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int):
        self.read.append(index)
        label = index % 2
        picture = torch.full((3, 8, 8), index, dtype=torch.uint8)
        return {"sound": label + torch.randn(1, 20), "photo": picture, "words": torch.tensor([1, label, 0])}, label


class Labelled(Pairs):
    @property
    def labels(self):
        return [index % 2 for index in range(self.samples)]


class Changed(Labelled):
    """The last sample goes through a function first."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def __getitem__(self, index: int):
        sample = super().__getitem__(index)
        return self.change(*sample) if index == self.samples - 1 else sample


def make(train, validation=None, test=None, **options):
    options = {"vocabularies": {"words": 5}} | options
    return from_datasets(train, validation or Labelled(4), test or Labelled(4), **options)


def test_kinds_shapes_and_classes():
    data = make(Pairs(), encoders={"photo": "resnet18"})
    assert [(spec.name, spec.kind, spec.shape, spec.vocabulary, spec.encoder) for spec in data.modalities] == [
        ("sound", "sequence", (1, 20), None, "small"),
        ("photo", "image", (3, 8, 8), None, "resnet18"),
        ("words", "tokens", (3,), 5, "small"),
    ]
    assert data.classes == ("0", "1")
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    inputs, labels = data.train.__getitems__([1, 4])
    assert labels.tolist() == [1, 0]
    assert inputs["photo"].dtype == torch.float32
    assert inputs["photo"][:, 0, 0, 0].tolist() == [1, 4]
    assert inputs["words"].dtype == torch.int64


def test_with_labels_only_the_first_sample_is_read():
    train = Labelled()
    make(train)
    assert set(train.read) == {0}


def test_draws_depend_on_key_and_sample_alone():
    data = make(Labelled())
    view, state = data.train.augmented(0, 1), torch.get_rng_state()
    one = view[3][0]["sound"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(view[3][0]["sound"], one)
    assert torch.equal(data.train.augmented(0, 1).__getitems__([5, 3])[0]["sound"][1], one)
    assert not torch.equal(data.train.augmented(0, 2)[3][0]["sound"], one)
    assert not torch.equal(view[5][0]["sound"] - 1, one - 1)
    assert torch.equal(data.test[0][0]["sound"], data.test[0][0]["sound"])


def test_workers_read_what_one_process_reads():
    data = make(Labelled())
    order = torch.tensor([5, 0, 3, 2, 1, 4])
    here, there = (
        list(training_batches(data.train, order, 3, SHARE, key=(1, 2), workers=workers)) for workers in (0, 1)
    )
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
    assert torch.cat([batch.labels for batch in ordered_batches(data.test, 3, SHARE)]).tolist() == [0, 1, 0, 1]


def test_fingerprint_tells_other_data():
    assert make(Labelled()).fingerprint == make(Pairs()).fingerprint
    assert make(Labelled()).fingerprint != make(Labelled(8)).fingerprint
    assert make(Labelled()).fingerprint != make(Labelled(), seed=1).fingerprint  # other noise


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x | {"sound": torch.zeros(1, 21)}, y), r"sample 5: modality 'sound' has shape \(1, 21\)"),
        (lambda x, y: (x | {"photo": torch.zeros(3, 8, 8).long()}, y), "dtype torch.int64, expected"),
        (lambda x, y: (x | {"sound": x["sound"] * torch.nan}, y), "has NaN or infinite values"),
        (lambda x, y: (x | {"words": torch.tensor([1, 5, 0])}, y), "token ids 0 to 5, expected 0 to 4"),
        (lambda x, y: ({"sound": x["sound"]}, y), r"sample 5 has modalities \['sound'\]"),
    ],
    ids=["shape", "dtype", "nan", "token", "modality"],
)
def test_bad_samples_are_named(change, words):
    data = make(Changed(change))
    with pytest.raises(ValueError, match=words):
        data.train.__getitems__([0, 5])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="the validation part has no sample"):
        from_datasets(Labelled(), Labelled(0), Labelled(), vocabularies={"words": 5})
    with pytest.raises(ValueError, match=r"expected their number in vocabularies=\{'words': N\}"):
        from_datasets(Labelled(), Labelled(), Labelled())
    with pytest.raises(ValueError, match=r"kinds names \['sond'\]"):
        make(Labelled(), kinds={"sond": "vector"})
    with pytest.raises(TypeError, match="sample 0 is Tensor, expected"):
        from_datasets(torch.zeros(4, 3), Labelled(), Labelled())
    short = Labelled()
    short.__class__ = type("Short", (Labelled,), {"labels": [0, 1]})
    with pytest.raises(ValueError, match="has 2 entries for 6 samples"):
        make(short)

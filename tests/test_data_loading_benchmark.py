"""The benchmark of data loading: ours and the plain loader see the same samples; records say what a reader needs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # last: an installed igm_fast is found before the checkout's

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import data_loading, data_trees  # noqa: E402
from benchmarks.agreement import DisagreementError  # noqa: E402
from benchmarks.timing import OURS, Effort, Record  # noqa: E402
from igm_fast.data.readers.audio import SoundReader  # noqa: E402

QUICK = Effort("quick", rounds=1, budget_s=0.01)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "nvgesture" else []) for name in data_trees.TREES]
)
def test_a_quick_run_of_each_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it times anything it checks that samples without augmentation agree."""
    monkeypatch.setattr(data_loading, "SAMPLES", {name: 1})
    threads = torch.get_num_threads()
    records = list(data_loading.run(QUICK))
    assert torch.get_num_threads() == threads
    assert [record["name"] for record in records] == list(data_loading.WAYS)
    for record in records:
        assert set(record) == set(Record.__annotations__)
        assert record["case"] == f"{name}, 1 samples"
        times = {OURS: record["ours_ms"], data_loading.PLAIN: record["peers"][data_loading.PLAIN]}
        for who, ms in times.items():
            assert record["facts"][who]["samples_per_s"] == pytest.approx(1e3 / ms)


def test_the_cold_cache_is_empty_at_every_call_and_the_warm_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_trees.crema_d(tmp_path / "tree", data_trees.SMALL)
    ways = {way: data_loading.ours("crema-d", tmp_path, way, [0, 1]) for way in data_loading.WAYS.values()}
    calls: list[str] = []
    load = SoundReader.load
    monkeypatch.setattr(SoundReader, "load", lambda self, source: calls.append(source) or load(self, source))
    decoded: dict[str, list[int]] = {}
    for way, ours in ways.items():
        data_loading._timer(ours, 1)  # fills the warm cache, if loading the data set has not
        decoded[way] = []
        for _ in range(2):
            calls.clear()
            data_loading._timer(ours, 1)
            decoded[way].append(len(calls))
    assert decoded == {"no cache": [2, 2], "cold": [2, 2], "warm": [0, 0]}


def test_other_samples_are_noticed() -> None:
    plain = {"audio": torch.rand(2, 1, 5, 4).log(), "video": torch.rand(2, 3, 8, 8)}
    data_loading._check("a set", plain, plain)
    with pytest.raises(DisagreementError, match="a set, video: relative error of samples without augmentation is"):
        data_loading._check("a set", {**plain, "video": 1.02 * plain["video"]}, plain)
    with pytest.raises(DisagreementError, match=r"shapes .* expected \{'video': \(2, 3, 8, 8\)\}"):
        data_loading._same_shapes(
            {"ours": {"video": torch.zeros(2, 3, 8, 9)}, "plain loader": {"video": plain["video"]}}
        )


def test_a_missing_decoder_costs_this_benchmark_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("cv2", "av") else find(name))
    monkeypatch.setattr(command.machine, "peaks", lambda effort: {})  # noqa: ARG005
    assert command.main(["data-loading", "--quick"]) == 1
    error = capsys.readouterr().err
    assert "benchmarks: data-loading: av, cv2 not installed: pip install 'igm_fast[flow,media]'" in error

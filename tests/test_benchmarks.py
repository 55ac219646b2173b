"""The benchmark harness with a clock and functions of the tests' own; real times are taken once and never looked at."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # last: an installed igm_fast is found before the checkout's

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import (  # noqa: E402  # noqa: E402
    agreement,
    covariance,
    covariance_peers,
    figure,
    machine,
    networks,
    official,
    optimizer,
    projector,
    readme,
    stage,
    stage_figure,
    table,
    timing,
    trained,
)
from benchmarks.agreement import DisagreementError  # noqa: E402
from benchmarks.memory import Peak  # noqa: E402
from benchmarks.timing import LEAST_ROUNDS, Effort, Record, compare  # noqa: E402
from igm_fast import ActivationCovariance  # noqa: E402
from igm_fast.layers import observable_layers  # noqa: E402
from igm_fast.sam import SAM  # noqa: E402
from igm_fast.sketch import PROBES, RANK  # noqa: E402

MACHINE = {"cpu": "Abacus", "cores": 2, "isa": "beads", "threads": 2, "load": 0.0, "torch": "2", "igm_fast": "1"}
MACHINE |= {"commit": "abc", "date": "2026-01-01", "peak_bytes_per_s": 1e10, "peak_flops_per_s": 1e11}


class Laboratory:
    """Time passes only while its functions run."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def clock(self) -> int:
        return self.now

    def function(self, name: str, *ms: float, result: object = 1.0) -> Callable[[], object]:
        """Takes the given times in turn, over and over."""

        def run() -> object:
            self.now += round(1e6 * ms[self.calls.count(name) % len(ms)])
            self.calls.append(name)
            return result

        return run


@pytest.fixture
def laboratory() -> Laboratory:
    return Laboratory()


def anything(results):
    return {name: {"error": 0.0} for name in results}


def one(laboratory: Laboratory, ours, peers, effort: Effort = Effort(), **options) -> Record:  # noqa: B008 - frozen
    options = {"agree": anything, **options}
    (record,) = compare("a case", ours={"thing": ours}, peers=peers, effort=effort, clock=laboratory.clock, **options)
    return record


# ---- order -----------------------------------------------------------------------------------------------------------


@given(rounds=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), seed=st.integers(0, 9))
def test_everyone_makes_their_rounds_and_every_second_round_is_the_mirror_image(rounds, seed):
    order = list(timing.schedule(rounds, np.random.default_rng(seed)))
    assert len(order) == max(rounds.values())
    assert Counter(name for names in order for name in names) == rounds
    always = {name for name, count in rounds.items() if count == len(order)}
    for first, second in zip(order[::2], order[1::2], strict=False):
        assert [n for n in first if n in always] == [n for n in reversed(second) if n in always]


@given(count=st.integers(1, 20), total=st.integers(20, 40))
def test_fewer_rounds_are_spread_over_all(count, total):
    order = list(timing.schedule({"slow": count, "fast": total}, np.random.default_rng(0)))
    places = [index for index, names in enumerate(order) if "slow" in names]
    gaps = np.diff([-1 - places[0], *places])  # as many rounds before the first as after the last, to rounding
    assert abs(places[0] - (total - 1 - places[-1])) <= 1
    assert max(gaps[1:], default=0) - min(gaps[1:], default=0) <= 1


def test_the_order_is_shuffled_between_pairs_of_rounds():
    order = list(timing.schedule(dict.fromkeys("abcd", 20), np.random.default_rng(0)))
    assert len({tuple(names) for names in order}) > 5


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_medians_and_ratio(laboratory):
    outliers = (10.0, 10.0, 10.0, 10.0, 900.0)  # a mean would be 188
    record = one(laboratory, laboratory.function("ours", *outliers), {"peer": laboratory.function("peer", 40.0)})
    assert record["ours_ms"] == pytest.approx(10.0)
    assert record["peers"] == {"peer": pytest.approx(40.0)}
    assert record["ratios"]["peer"] == {
        "ratio": pytest.approx(4.0),
        "low": pytest.approx(4.0),
        "high": pytest.approx(4.0),
    }
    assert record["quartiles_ms"]["peer"] == (pytest.approx(40.0), pytest.approx(40.0))
    assert record["rounds"] == {"ours": 30, "peer": 30}
    assert record["calls_per_sample"] == {"ours": 1, "peer": 1}


def test_short_work_is_repeated_within_a_sample(laboratory):
    record = one(laboratory, laboratory.function("ours", 0.01), {"peer": laboratory.function("peer", 0.25)})
    assert record["calls_per_sample"] == {"ours": 100, "peer": 4}
    assert record["ours_ms"] == pytest.approx(0.01)


def test_slow_work_makes_fewer_rounds_but_takes_part(laboratory):
    peers = {"slow": laboratory.function("slow", 9000.0), "fair": laboratory.function("fair", 200.0)}
    record = one(laboratory, laboratory.function("ours", 1.0), peers, Effort(rounds=30, budget_s=2.0))
    assert record["rounds"] == {"ours": 30, "slow": LEAST_ROUNDS, "fair": 10}
    assert laboratory.calls.count("slow") == LEAST_ROUNDS + 1  # no warm-up beyond the call that is checked
    first, last = laboratory.calls.index("slow", 3), len(laboratory.calls) - 1 - laboratory.calls[::-1].index("slow")
    assert {"ours", "fair"} <= set(laboratory.calls[first:last])


def test_one_round_has_no_interval(laboratory):
    record = one(
        laboratory, laboratory.function("ours", 2.0), {"peer": laboratory.function("p", 3.0)}, Effort(rounds=1)
    )
    assert record["rounds"] == {"ours": 1, "peer": 1}
    assert record["ratios"]["peer"] == {"ratio": pytest.approx(1.5), "low": None, "high": None}
    assert table.interval(record["ratios"]["peer"]) == "1.50×"


def test_the_interval_of_a_ratio():
    generator = np.random.default_rng(1)
    slow, fast = generator.normal(30.0, 1.0, 40), generator.normal(10.0, 1.0, 40)
    low, high = timing.ratio_interval(slow, fast)
    assert low < np.median(slow) / np.median(fast) < high
    assert 2.5 < low < high < 3.5
    assert timing.ratio_interval(slow, fast) == (low, high)
    assert timing.ratio_interval(slow[:4], fast) is None


def test_several_of_ours_share_the_peers(laboratory):
    ours = {"route a": laboratory.function("a", 10.0), "route b": laboratory.function("b", 20.0)}
    peers = {"peer": laboratory.function("peer", 40.0)}
    effort = Effort(rounds=6)
    records = compare("case", ours=ours, peers=peers, agree=anything, effort=effort, clock=laboratory.clock)
    assert [record["name"] for record in records] == ["route a", "route b"]
    assert [record["ratios"]["peer"]["ratio"] for record in records] == [pytest.approx(4.0), pytest.approx(2.0)]
    assert laboratory.calls.count("peer") == 6 + 2


def test_a_name_that_stands_twice(laboratory):
    function = laboratory.function("f", 1.0)
    with pytest.raises(ValueError, match="a name stands twice"):
        one(laboratory, function, {"peer": function}, references={"peer": function})


def test_records_share_what_they_are_shown_beside(laboratory):
    ours = {"a": laboratory.function("a", 10.0), "b": laboratory.function("b", 20.0)}
    peers = {name: laboratory.function(name, 40.0) for name in ("both", "of b")}
    beside = {"a": ["both"], "b": ["of b", "both"]}
    effort = Effort(rounds=3)
    records = compare(
        "case", ours=ours, peers=peers, agree=anything, effort=effort, beside=beside, clock=laboratory.clock
    )
    assert [list(record["peers"]) for record in records] == [["both"], ["of b", "both"]]
    assert set(records[0]["facts"]) == set(records[0]["rounds"]) == {"ours", "both"}
    assert laboratory.calls.count("both") == 3 + 2


def test_a_very_slow_function_makes_the_few_rounds_it_is_given(laboratory):
    peers = {"slow": laboratory.function("slow", 9000.0, 11000.0), "once": laboratory.function("once", 5000.0)}
    few = {"slow": 2, "once": 1}
    record = one(laboratory, laboratory.function("ours", 1.0), peers, few=few)
    assert record["rounds"] == {"ours": 30, "slow": 2, "once": 1}
    assert laboratory.calls.count("slow") == 2  # the checked call is a sample
    assert record["peers"] == {"slow": pytest.approx(10000.0), "once": pytest.approx(5000.0)}
    assert record["ratios"]["slow"]["low"] is None


def test_after_a_rest_brief_functions_are_warmed_up(laboratory, monkeypatch):
    rests = []
    monkeypatch.setattr(timing.time, "sleep", rests.append)
    record = one(laboratory, laboratory.function("ours", 5.0, 3.0), {}, Effort(rounds=4), rest_s=0.25)
    # Checked, estimated, then pairs of which the second is timed: 5 3 | 5 3 | 5 3 …
    assert record["ours_ms"] == pytest.approx(3.0)
    assert set(rests) == {0.25}


# ---- agreement -------------------------------------------------------------------------------------------------------


def test_results_are_compared_before_anything_is_timed(laboratory):
    ours = laboratory.function("ours", 1.0, result=torch.tensor([1.0, 2.0]))
    peers = {"off": laboratory.function("off", 1.0, result=torch.tensor([1.0, 2.1]))}
    agree = agreement.close_to(torch.tensor([1.0, 2.0]), 1e-3)
    with pytest.raises(DisagreementError, match=r"off: relative error is 4\.47e-02, expected at most 1e-03"):
        one(laboratory, ours, peers, agree=agree)
    assert laboratory.calls == ["ours", "off"]


def test_nan_does_not_agree():
    with pytest.raises(DisagreementError, match="relative error is nan"):
        agreement.close_to(torch.ones(2), 1e-3)({"ours": torch.tensor([1.0, torch.nan])})


def test_references_are_timed_but_not_compared(laboratory):
    seen = []
    record = one(
        laboratory,
        laboratory.function("ours", 2.0),
        {"peer": laboratory.function("peer", 4.0)},
        references={"bound": laboratory.function("bound", 1.0)},
        unavailable={"other": "not installed"},
        agree=lambda results: seen.extend(results) or anything(results),
    )
    assert seen == ["thing", "peer"]
    assert record["references"] == {"bound": pytest.approx(1.0)}
    assert record["ratios"]["bound"]["ratio"] == pytest.approx(0.5)
    assert {name: facts["error"] for name, facts in record["facts"].items()} == {"ours": 0.0, "peer": 0.0}
    assert record["unavailable"] == {"other": "not installed"}


def test_the_garbage_collector_is_switched_on_again(laboratory):
    def fails_when_timed() -> None:
        laboratory.now += 10**9
        laboratory.calls.append("fails")
        if laboratory.calls.count("fails") > 1:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        one(laboratory, fails_when_timed, {})
    assert gc.isenabled()


def test_the_optimizers_check_notices_another_rho():
    start = [torch.randn(6, 5, generator=torch.Generator().manual_seed(0))]
    options = optimizer.OPTIONS["sgd"]

    def contestant(rho: float) -> optimizer.Contestant:
        return optimizer.contestant(start, lambda params: SAM(params, "sgd", rho=rho, **options))()

    agree = optimizer.same_updates(start, "textbook SAM")
    assert agree({"textbook SAM": contestant(0.05), "thing": contestant(0.05)})["thing"]["step_error"] == 0.0
    with pytest.raises(DisagreementError, match="error of the perturbation"):
        agree({"textbook SAM": contestant(0.05), "thing": contestant(0.06)})


@pytest.fixture
def spectrum() -> projector.Spectrum:
    return projector.Spectrum(torch.arange(40, 0, -1, dtype=torch.float64).pow(3))


def test_the_matrix_has_the_spectrum_and_the_oracle_is_its_projector(spectrum):
    C = spectrum.matrix().double()
    assert torch.equal(C, C.T)
    eigenvalues, vectors = torch.linalg.eigh(C)
    torch.testing.assert_close(eigenvalues.flip(0), spectrum.eigenvalues, rtol=0, atol=1e-6 * 40**3)
    assert vectors.abs().amax(dim=0).max() < 0.9  # no eigenvector is a coordinate
    T = (vectors * torch.exp(-4.0 * (eigenvalues - 1) / (40**3 - 1))) @ vectors.T
    x = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.from_numpy(spectrum.projector_times(4.0, x.numpy()))
    torch.testing.assert_close(found, T @ x, rtol=0, atol=1e-5)  # of float32 entries in C


def test_the_projectors_check_notices_another_tau(spectrum):
    C = {"layer": spectrum.matrix()}
    check = projector._Check(spectrum, 0.4, 5e-3)
    facts = check("ours", projector._ours(C, 0.4, "eigh", 5e-3)())
    assert facts["error"] <= facts["error_bound"]
    with pytest.raises(DisagreementError, match="ours: error in operator norm"):
        check("ours", projector._ours(C, 0.5, "eigh", 5e-3)())
    with pytest.raises(
        DisagreementError, match=r"svd: error in operator norm is [45]\.\d+e-02"
    ):  # e^-0.4 - e^-0.5 is 0.064
        check("svd", projector._dense_by_svd(C["layer"], 0.47))


def test_low_rank_peers_that_cannot_reach_tol_say_why(spectrum):
    peers, missing = projector._low_rank_peers(spectrum.matrix(), spectrum, 4.0, 1e-3)
    assert not peers
    assert missing["lobpcg"] == f"would need {spectrum.rank(4.0, 8e-4)} of 40 directions"


def test_the_stored_spectra_are_those_of_a_resnet():
    spectra = trained.spectra()
    assert {name: len(eigenvalues) for name, eigenvalues in spectra.items()} == {
        name: layer.weight[0].numel() for name, layer in observable_layers(networks.encoder(networks.VIDEO)).items()
    }
    for eigenvalues in spectra.values():
        assert (eigenvalues.diff() <= 0).all()
        assert eigenvalues[0] > 0
        assert eigenvalues[-1] > -1e-6 * eigenvalues[0]  # rounding of a matrix that is positive semi-definite
    assert trained.about()["test_accuracy"] > 0.4  # of nine classes: it has learnt something
    assert trained.FILE.stat().st_size < 200_000


# ---- networks, covariances, the authors' algorithm -------------------------------------------------------------------

SMALL_SOURCE = networks.Source("audio", 1, 40, 30)


@pytest.fixture(scope="module")
def branch() -> stage.Branch:
    return stage._branch(SMALL_SOURCE, 16, 2, 3)


def test_a_replay_shows_hooks_what_the_network_shows_them(branch):
    for estimator in ("full", "sketch", "batch_mean"):
        with torch.no_grad(), ActivationCovariance(branch.network, estimator) as direct:
            for x in branch.batches:
                branch.network(x)
        with ActivationCovariance(branch.replay.module, estimator) as replayed:
            for inputs in branch.inputs:
                branch.replay(inputs)
        assert list(direct) == list(replayed)
        for name in direct:
            assert direct.count(name) == replayed.count(name)
            torch.testing.assert_close(replayed.trace(name), direct.trace(name))


def test_the_replay_leaves_the_network_alone(branch):
    with torch.no_grad():
        assert branch.network(branch.batches[0]).shape == (3, stage.CLASSES)


def test_twenty_convolutions_have_eleven_geometries():
    x = networks.batch(networks.Source("video", 3, 64, 64), 1)
    network = networks.settled(networks.encoder(networks.VIDEO, 16), x)
    groups = networks.distinct(network, networks.layer_inputs(network, x))
    assert len(groups) == 11
    assert sum(map(len, groups.values())) == 20
    assert groups["layer1.0.conv1"] == [f"layer1.{block}.conv{i}" for block in (0, 1) for i in (1, 2)]


def test_the_authors_statistics_and_projectors(branch):
    """Against the description, in float64 and with loops: Σ over batches of the patches of the batch's mean."""
    name = "0.layer2.0.conv1"  # 3×3, stride 2
    with official.BatchMeanHooks(branch.replay.module) as hooks:
        for inputs in branch.inputs:
            branch.replay(inputs)
    layer = observable_layers(branch.network)[name]
    C = torch.zeros(layer.weight[0].numel(), layer.weight[0].numel(), dtype=torch.float64)
    for inputs in branch.inputs:
        mean = torch.nn.functional.pad(inputs[name].double().mean(0), (1, 1, 1, 1))
        for i in range(0, mean.shape[1] - 2, 2):
            for j in range(0, mean.shape[2] - 2, 2):
                u = mean[:, i : i + 3, j : j + 3].flatten()
                C += u[:, None] * u
    torch.testing.assert_close(hooks.sums[name].double(), C, rtol=1e-5, atol=1e-5 * C.max().item())
    eigenvalues, vectors = torch.linalg.eigh(C)
    T = (vectors * torch.exp(-0.4 * (eigenvalues - eigenvalues[0]) / (eigenvalues[-1] - eigenvalues[0]))) @ vectors.T
    torch.testing.assert_close(official.projectors({name: hooks.sums[name]}, 0.4)[name].double(), T, rtol=0, atol=1e-4)
    handles = [layer._forward_hooks for layer in observable_layers(branch.replay.module).values()]
    assert not any(handles)


def test_phases_add_up_to_a_stage():
    def record(ours: float, peer: float, rounds: int) -> Record:
        ends = {"ours": (ours, ours + 1), stage.AUTHORS: (peer, peer + 1)}
        counts = {"ours": 30, stage.AUTHORS: rounds}
        facts = {"ours": {"largest_error_bound": 1e-3}, stage.AUTHORS: {}}
        ours_and_peer = {"ours_ms": ours, "peers": {stage.AUTHORS: peer}, "quartiles_ms": ends}
        return sample(case="8 batches") | ours_and_peer | {"rounds": counts, "facts": facts}

    both = stage.whole(record(2.0, 10.0, 7), record(3.0, 90.0, 1), "stage sketch", headline=True)
    assert (both["ours_ms"], both["peers"][stage.AUTHORS]) == (5.0, 100.0)
    assert both["ratios"] == {stage.AUTHORS: {"ratio": 20.0, "low": None, "high": None}}
    assert both["rounds"] == {"ours": 30, stage.AUTHORS: 1}
    assert both["quartiles_ms"][stage.AUTHORS] == (100.0, 102.0)
    assert both["facts"]["ours"]["decomposition_ms"] == 3.0
    assert "2.00 ms + 3.00 ms" in readme.markdown([both | {"machine": MACHINE}])


def test_a_library_that_is_not_there_is_reported_with_the_way_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    ways, missing = covariance_peers.libraries(torch.nn.Conv2d(2, 2, 3), torch.ones(1, 2, 5, 5))
    assert not ways
    assert set(missing) == {"curvlinops", "einconv", "nngeometry"}
    assert "pip install igm_fast[bench]" in missing["einconv"]


def test_arithmetic_and_traffic_of_a_convolution():
    case = covariance.Case(torch.nn.Conv2d(32, 8, 3, padding=1), torch.ones(2, 32, 5, 6))
    d, width, x_bytes = 288, RANK + PROBES, 4 * 2 * 32 * 30
    exact = {"bytes_moved": x_bytes + 8 * d * d, "flops": d * (d + 1) * 60}
    assert case.amounts(covariance.FULL) == exact
    assert case.amounts(covariance.BATCH_MEAN) == exact | {"flops": d * (d + 1) * 30}
    assert case.amounts(covariance.SKETCH) == {"bytes_moved": x_bytes + 12 * d * width, "flops": 4 * d * width * 60}


@pytest.mark.skipif(sys.platform != "linux", reason="the mark of peak memory is Linux's")
def test_the_peak_of_memory_is_seen_even_when_it_is_gone():
    with Peak() as peak:
        torch.ones(1 << 24).add_(1.0)  # 64 MiB, freed at once
    slack = 2**21  # the kernel counts pages in batches
    assert 2**26 - slack < peak.bytes < 2**26 + slack
    with Peak() as again:
        torch.ones(1 << 20).add_(1.0)  # 4 MiB: a later call does not see the peak of an earlier one
    assert 2**22 - slack < again.bytes < 2**22 + slack


# ---- records, README, figure -----------------------------------------------------------------------------------------


def sample(name: str = "thing full", case: str = "small", peer_ms: float = 4.0, low: float = 1.9) -> Record:
    """A record as it stands in a JSON file."""
    return {
        "name": name,
        "case": case,
        "headline": True,
        "ours_ms": 2.0,
        "peers": {"peer": peer_ms},
        "references": {"bound": 1.0},
        "quartiles_ms": {"ours": (1.9, 2.1), "peer": (peer_ms, peer_ms), "bound": (1.0, 1.0)},
        "ratios": {
            "peer": {"ratio": peer_ms / 2, "low": low, "high": peer_ms / 2 + 0.1},
            "bound": {"ratio": 0.5, "low": 0.4, "high": 0.6},
        },
        "rounds": {"ours": 30, "peer": 30, "bound": 30},
        "calls_per_sample": {"ours": 1, "peer": 1, "bound": 1},
        "facts": {"ours": {"error": 1e-7}, "peer": {"error": 1e-7}},
        "unavailable": {"absent": "not installed"},
        "bytes_moved": 10**7,
        "flops": None,
        "percent_of_peak": {"bytes_moved": 50.0},
        "machine": MACHINE,
    }


def test_the_share_of_the_peak():
    record = machine.annotate(sample() | {"flops": 10**8}, MACHINE)
    assert record["percent_of_peak"] == {"bytes_moved": pytest.approx(50.0), "flops": pytest.approx(50.0)}
    assert machine.annotate(sample() | {"bytes_moved": None}, MACHINE)["percent_of_peak"] == {}
    assert machine.higher({"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 3.0}) == {"a": 2.0, "b": 4.0}


def test_the_readme_table_says_where_ours_is_slower():
    records = [sample(), sample(case="large", peer_ms=1.0, low=0.45), sample("thing sketch", "equal", 2.0, 0.9)]
    text = readme.markdown([*records, sample("thing inner") | {"headline": False}])
    assert "| case | ours | peer | *bound* |\n" in text
    assert "| small | 2.00 ms | 2.00× [1.90, 2.10] | 0.500× [0.400, 0.600] |" in text
    assert "**thing sketch**" in text
    assert "thing inner" not in text
    assert "Of all 4 comparisons in benchmarks/results, ours is slower in 1, and 1 show no difference" in text
    assert "- slower: thing full than peer: 1 of 2, at worst 0.500× [0.450, 0.600] at large" in text
    assert "Machine (thing): Abacus, 2 cores, beads kernels" in text


def test_the_readme_shows_facts_of_covariances_and_projectors():
    facts = {"ours": {"peak_bytes": 1_500_000}, "peer": {"peak_bytes": 58_000_000}}
    text = readme.markdown([sample("covariance full") | {"facts": facts}])
    assert "| extra memory: ours, first peer |" in text
    assert "| 1.5 MB, 58.0 MB |" in text
    facts = {"ours": {"rank": 23, "error_bound": 4e-3, "error": 2e-3, "route": "truncated"}, "peer": {}}
    text = readme.markdown([sample("projector auto") | {"facts": facts}])
    assert "| rank | certified | true error |" in text
    assert "| 23 | 4.0e-03 | 2.0e-03 |" in text


def test_rewriting_the_readme_twice_changes_nothing(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.rewrite(path, readme.markdown([sample()]))
    once = path.read_text()
    assert once.startswith(f"before\n{readme.BEGIN}\nEach cell")
    assert once.endswith(f"{readme.END}\nafter\n")
    assert "old" not in once
    readme.rewrite(path, readme.markdown([sample()]))
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["", readme.BEGIN, readme.END + readme.BEGIN, 2 * (readme.BEGIN + readme.END)])
def test_a_readme_without_its_two_markers(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="each once"):
        readme.rewrite(path, "content")
    assert path.read_text() == text


def test_results_of_two_machines_share_no_table():
    with pytest.raises(ValueError, match="different machines"):
        readme.markdown([sample(), sample() | {"machine": MACHINE | {"threads": 1}}])


def test_the_repositorys_readme_has_the_block():
    text = (ROOT / "README.md").read_text()
    for marker in (readme.BEGIN, readme.END, readme.GPU_BEGIN, readme.GPU_END):
        assert text.count(marker) == 1


def test_figure_of_records_without_intervals_and_with_several_panels(tmp_path):
    plain = sample("other", peer_ms=500.0)
    plain["ratios"]["peer"] |= {"low": None, "high": None}
    figure.save(figure.ratios([sample(), sample(case="large", peer_ms=0.2), plain]), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_a_stage(tmp_path):
    def record(way: str, case: str) -> Record:
        facts = {name: {"statistics_ms": 1.0, "decomposition_ms": 3.0} for name in ("ours", "peer")}
        return sample(f"stage {way}", case) | {"facts": facts}

    cases = ("1 batch", "8 batches", "8 batches and forward passes")
    drawn = stage_figure.draw([sample("stage statistics"), *(record(way, case) for case in cases for way in "ab")])
    whole, ours, growth = drawn.axes
    assert [text.get_text() for text in whole.get_yticklabels()] == ["peer", "a", "b"]
    assert [text.get_text() for text in ours.get_yticklabels()] == ["a", "b"]
    assert {tuple(line.get_xdata()) for line in growth.lines} == {(1, 8)}
    figure.save(drawn, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# ---- command line ----------------------------------------------------------------------------------------------------


class Fake:
    """A benchmark module of one record, or of a disagreement after it."""

    QUESTION = "how fast is nothing?"

    def __init__(self, name: str, *, agrees: bool = True) -> None:
        self.name, self.agrees = name, agrees

    def run(self, effort: Effort) -> Iterator[Record]:
        yield sample(self.name, effort.scale)
        if not self.agrees:
            raise DisagreementError("peer: relative error is 1e+00")


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(command, "BENCHMARKS", {"good": Fake("good"), "bad": Fake("bad", agrees=False)})
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "README", tmp_path / "README.md")
    monkeypatch.setattr(machine, "facts", lambda: dict(MACHINE))
    monkeypatch.setattr(machine, "peaks", lambda effort: {})  # noqa: ARG005
    markers = (readme.BEGIN, readme.END, readme.GPU_BEGIN, readme.GPU_END)
    (tmp_path / "README.md").write_text("\n".join(markers) + "\n")
    return tmp_path / "results"


def test_results_are_written_and_go_into_the_readme(results, capsys):
    assert command.main(["good"]) == 0
    assert {path.name for path in results.iterdir()} == {"good.json", "good.png"}
    assert json.loads((results / "good.json").read_text()) == json.loads(json.dumps([sample("good", "full")]))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("good", "peer", "2.00× [1.90, 2.10]", "not installed", "Abacus"))
    assert command.main(["--readme"]) == 0
    assert "| full | 2.00 ms |" in command.README.read_text()


def test_a_disagreement_stops_one_benchmark_only(results, capsys):
    assert command.main(["bad", "good"]) == 1
    assert "bad: results disagree, so none are written: peer: relative error" in capsys.readouterr().err
    assert {path.name for path in results.iterdir()} == {"good.json", "good.png"}


def test_quick_results_are_written_only_where_one_says(results, tmp_path, capsys):
    assert command.main(["good", "--quick"]) == 0
    assert not results.exists()
    assert command.main(["good", "--quick", "--json", str(tmp_path / "x" / "y.json")]) == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"y.json", "y.png"}
    assert "how fast is nothing?" in capsys.readouterr().out


def test_no_results_for_the_readme(results, capsys):
    assert command.main(["--readme"]) == 1
    assert f"no results in {results}. Run `python -m benchmarks`" in capsys.readouterr().err


def test_a_readme_without_a_place_for_the_table(results, capsys):
    command.main(["good"])
    command.README.write_text("nothing here\n")
    assert command.main(["--readme"]) == 1
    assert results.exists()
    assert "put them where the table belongs" in capsys.readouterr().err


def test_a_busy_machine_is_mentioned(results, monkeypatch, capsys):  # noqa: ARG001
    monkeypatch.setattr(machine, "facts", lambda: MACHINE | {"load": 3.0})
    command.main(["good", "--quick"])
    assert "load 3.0 on 2 processors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["covarance"], "unknown benchmark 'covarance'. Did you mean 'covariance'?"),
        (["--rounds", "0"], "--rounds must be at least 1; given 0"),
        (["--threads", "-1"], "--threads must be at least 1; given -1"),
        (["--json", "results"], "ends in .json"),
        (["--readme", "covariance"], "give it without names"),
        (["--quick", "--long"], "not allowed with"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_code:
        command.main(arguments)
    assert exit_code.value.code == 2
    assert message in capsys.readouterr().err


def test_help_and_list(capsys):
    with pytest.raises(SystemExit) as exit_code:
        command.main(["--help"])
    assert exit_code.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--quick", "benchmarks/results", "Exit code", "2.0×"))
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(command.BENCHMARKS)


def test_a_real_quick_run(tmp_path):
    """Everything from the command to the files, with the real operators."""
    file = tmp_path / "covariance.json"
    arguments = ["covariance", "--quick", "--rounds", "1", "--threads", "1", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(file.read_text())
    assert {record["name"] for record in records} == {
        covariance.FULL,
        covariance.SKETCH,
        covariance.BATCH_MEAN,
        covariance.CHOICE,
    }
    for record in records:
        assert set(record) == set(Record.__annotations__)
        assert set(record["rounds"]) == {"ours", *record["peers"], *record["references"]} == set(record["quartiles_ms"])
        assert set(record["ratios"]) == {*record["peers"], *record["references"]}
        assert set(record["facts"]) == {"ours", *record["peers"]}
        assert record["machine"]["threads"] == 1
        assert set(record["percent_of_peak"]) == {"bytes_moved", "flops"}
    assert file.with_suffix(".png").exists()

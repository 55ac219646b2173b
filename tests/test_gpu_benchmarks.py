"""The benchmarks of the CUDA kernels: one failing case stops nothing, and everything runs, here on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # last: an installed igm_fast is found before the checkout's

from benchmarks import __main__ as cpu_command  # noqa: E402
from benchmarks import readme, table  # noqa: E402
from benchmarks.agreement import DisagreementError  # noqa: E402
from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import device, projector  # noqa: E402
from benchmarks.gpu.device import Bench  # noqa: E402
from benchmarks.timing import Effort, Record  # noqa: E402
from igm_fast.ops.precision import full_float32, tf32_allowed  # noqa: E402

CPU = torch.device("cpu")
FACTS = {"device": "Abacus GPU", "capability": "9.0", "driver": "for CUDA 13.0", "cpu": "Abacus", "threads": 2}
FACTS |= {"peak_bytes_per_s": 3e12, "peak_flops_per_s": 5e13, "route": "built", "torch": "2", "igm_fast": "1"}
FACTS |= {"products_flops_per_s": {"float32": 5e13, "tf32": 4e14}, "commit": "abc", "date": "2026-01-01", "load": 0.0}


@pytest.fixture
def bench(monkeypatch) -> Bench:
    monkeypatch.setattr(device, "facts", lambda _: dict(FACTS))
    return Bench(CPU, Effort("quick", rounds=2, budget_s=0.001))


def records(bench: Bench, name: str = "thing", **more: object) -> list[Record]:
    ours = {name: lambda: torch.ones(10)}
    return bench.compare("case", ours=ours, peers={"peer": lambda: torch.ones(10)}, agree=lambda _: {}, **more)


def test_the_share_of_the_peak_is_that_of_the_arithmetic(bench):
    (plain,) = records(bench, flops=10**12)
    (tf32,) = records(bench, flops=10**12, precision="tf32")
    ratio = plain["percent_of_peak"]["flops"] / tf32["percent_of_peak"]["flops"]
    assert ratio == pytest.approx(8 * tf32["ours_ms"] / plain["ours_ms"])
    assert plain["machine"]["device"] == "Abacus GPU"


def test_peers_that_fail_are_left_out_with_a_reason(bench):
    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    (record,) = bench.compare(
        "case",
        ours={"thing": lambda: None},
        peers={"good": lambda: None, "bad": fails, "absent": fails},
        references={"bound": lambda: None, "bad bound": fails},
        unavailable={"absent": "not installed"},
        beside={"thing": ["good", "bad", "bound", "bad bound"]},
        agree=lambda _: {},
    )
    assert set(record["peers"]) == {"good"}
    assert set(record["references"]) == {"bound"}
    why = "CUDA out of memory"
    assert record["unavailable"] == {"absent": "not installed", "bad": why, "bad bound": why}


def test_ours_must_not_fail(bench):
    with pytest.raises(ZeroDivisionError):
        bench.compare("case", ours={"thing": lambda: 1 / 0}, peers={}, agree=lambda _: {})


def test_precision_is_put_back():
    before = tf32_allowed()
    for name, expected in {"tf32": True, "float32": False, "bfloat16": True}.items():
        with device.precision(name) as dtype:
            assert tf32_allowed() == torch.backends.cudnn.allow_tf32 == expected
            with full_float32():  # sets it by another of torch's names
                assert not tf32_allowed()
            assert dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
    assert tf32_allowed() == before


def test_the_operator_norm_is_found():
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    A = A + A.T
    assert projector._operator_norm(A) == pytest.approx(float(torch.linalg.matrix_norm(A, 2)), rel=0.05)
    assert projector._operator_norm(torch.zeros(3, 3, dtype=torch.float64)) == 0.0


# ---- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch) -> None:
    """A part of three cases, the second of which fails, one that cannot begin, and a good one."""
    monkeypatch.setattr(device, "facts", lambda _: dict(FACTS))

    def disagrees() -> list[Record]:
        raise DisagreementError("peer: relative error is 1e+00")

    def run(bench: Bench) -> Iterator[list[object]]:
        yield [lambda: records(bench, "thing first"), disagrees, lambda: records(bench, "thing last")]

    def broken(_: Bench) -> Iterator[list[object]]:
        raise ImportError("no module named thing" + "!" * 5000)
        yield []

    def good(bench: Bench) -> Iterator[list[object]]:
        yield [lambda: records(bench, "good")]

    found = {"half": run, "broken": broken, "good": good}
    monkeypatch.setattr(command, "PARTS", {name: SimpleNamespace(run=part) for name, part in found.items()})


@pytest.mark.usefixtures("parts")
def test_a_failing_case_stops_neither_its_part_nor_the_others(tmp_path, capsys):
    assert command.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [record["name"] for record in written] == ["thing first", "thing last", "good"]
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu-half.png", "gpu-good.png"}
    captured = capsys.readouterr()
    assert "failed: half: DisagreementError: peer: relative error is 1e+00" in captured.err
    assert "failed: broken: ImportError: no module named thing" in captured.err
    assert len(captured.err) < 6000
    assert "Abacus GPU, compute capability 9.0" in captured.out


@pytest.mark.usefixtures("parts")
def test_no_case_begins_after_the_time_is_up(tmp_path, capsys):
    assert command.main(["good", "--quick", "--device", "cpu", "--out", str(tmp_path), "--seconds", "0"]) == 1
    assert "good: no time was left for 1 cases" in capsys.readouterr().err
    assert command.main(["good", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["covarance"], "unknown part 'covarance', expected some of"), (["--quick"], "say with --out where that may go")],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_code:
        command.main(arguments)
    assert exit_code.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 1
    assert "no CUDA device is visible" in capsys.readouterr().err


# ---- README ----------------------------------------------------------------------------------------------------------


def test_the_readme_has_the_gpus_table_once_there_are_results(bench, tmp_path, monkeypatch):
    (record,) = records(bench)
    text = tmp_path / "README.md"
    text.write_text("\n".join([readme.BEGIN, readme.END, readme.GPU_BEGIN, readme.GPU_END]))
    monkeypatch.setattr(cpu_command, "README", text)
    monkeypatch.setattr(cpu_command, "RESULTS", tmp_path)
    of_cpu = {key: value for key, value in FACTS.items() if key != "device"} | {"cores": 2, "isa": "beads"}
    (tmp_path / "cpu.json").write_text(json.dumps([record | {"machine": of_cpu}]))
    assert cpu_command.main(["--readme"]) == 0
    assert f"{readme.GPU_BEGIN}\n{readme.NO_GPU}\n{readme.GPU_END}" in text.read_text()
    (tmp_path / "gpu.json").write_text(json.dumps([record]))
    assert cpu_command.main(["--readme"]) == 0
    block = text.read_text().split(readme.GPU_BEGIN)[1]
    assert readme.NO_GPU not in block
    assert f"Machine (thing): {table.machine_line(FACTS)}." in block


# ---- the real parts --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path):
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert {record["name"].split()[0] for record in written} == {
        "optimizer",
        "training",
        "covariance",
        "statistics",
        "projector",
    }
    for record in written:
        assert set(record) == set(Record.__annotations__)
        assert record["machine"]["device"].startswith("no GPU")
    assert {f"gpu-{part}.png" for part in command.PARTS} <= {path.name for path in tmp_path.iterdir()}

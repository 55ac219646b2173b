"""Command line: run the benchmarks of the CUDA kernels on this machine's GPU."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import figure, table
from benchmarks.gpu import covariance, optimizer, projector, training
from benchmarks.gpu.device import Bench
from benchmarks.timing import Effort, Record

DESCRIPTION = """\
Time the CUDA kernels beside the code that one would use without them.

  python -m benchmarks.gpu                       all parts, about two minutes on an H100
  python -m benchmarks.gpu optimizer projector   some of them
  python -m benchmarks.gpu --quick --device cpu --out DIR   tiny cases without a GPU: does everything run?

Results go to gpu.json and gpu-PART.png in benchmarks/results (or --out), after every case. A case that fails is
reported and left out; the others go on.

Exit code: 0 done, 1 a case failed or no GPU, 2 wrong usage.
"""
PARTS = {"optimizer": optimizer, "training": training, "covariance": covariance, "projector": projector}
RESULTS = Path(__file__).parents[1] / "results"
# Rounds per case, and seconds per function: a case has three to six functions, and there are ninety cases.
EFFORT = Effort("full", rounds=15, budget_s=0.05)
_LONGEST = 300  # characters of a line in a report of failures
QUICK = Effort("quick", rounds=2, budget_s=0.01)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parse(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device is visible; see nvidia-smi, or try --quick --device cpu", file=sys.stderr)
        return 1
    torch.backends.cudnn.benchmark = True  # peers get the fastest convolution that there is
    bench = Bench(torch.device(arguments.device), QUICK if arguments.quick else EFFORT)
    records: dict[str, list[Record]] = {}
    began = time.perf_counter()
    for name in arguments.parts or list(PARTS):
        _run(name, bench, records, arguments.out, began + arguments.seconds)
        print(f"{name}: {time.perf_counter() - began:.0f} s since the start\n", flush=True)
    everything = [record for part in records.values() for record in part]
    if everything:
        print(table.machine_line(everything[0]["machine"]))
    for failure in bench.failures:
        print(f"benchmarks.gpu: failed: {failure}", file=sys.stderr)
    return 1 if bench.failures or not everything else 0


def _run(name: str, bench: Bench, records: dict[str, list[Record]], out: Path, deadline: float) -> None:
    """Run a part's jobs one by one; what one of them raises is printed and does not stop the others."""
    found = records.setdefault(name, [])
    try:
        for jobs in PARTS[name].run(bench):
            for index, job in enumerate(jobs):
                if time.perf_counter() > deadline:
                    bench.failures.append(f"{name}: no time was left for {len(jobs) - index} cases")
                    break
                found += _job(name, job, bench)
                _write(records, out)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts can still be measured
        _report(name, error, bench)
    if found:
        figure.save(figure.ratios(found), out / f"gpu-{name}.png")


def _job(name: str, job: Callable[[], list[Record]], bench: Bench) -> list[Record]:
    try:
        made = job()
    except Exception as error:  # noqa: BLE001 - as above
        _report(name, error, bench)
        made = []
    for record in made:
        others = {**record["peers"], **record["references"]}
        said = ", ".join(f"{other} {ms / record['ours_ms']:.2f}×" for other, ms in others.items())
        percent = ", ".join(f"{value:.0f} % of peak {key}" for key, value in record["percent_of_peak"].items())
        print(f"{record['name']}: {record['case']}: {record['ours_ms']:.4g} ms ({percent}); {said}", flush=True)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return made


def _report(name: str, error: Exception, bench: Bench) -> None:
    lines = [line if len(line) < _LONGEST else f"{line[:_LONGEST]} …" for line in traceback.format_exc().splitlines()]
    print("\n".join([f"{name}:", *lines]), file=sys.stderr, flush=True)
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    bench.failures.append(f"{name}: {said[:_LONGEST]}")


def _write(records: dict[str, list[Record]], out: Path) -> None:
    everything = [record for part in records.values() for record in part]
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny cases, few rounds")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only with --quick and --out")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where results go")
    parser.add_argument("--seconds", type=float, default=1e9, metavar="S", help="start no case after this time")
    arguments = parser.parse_args(argv)
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    if (arguments.device == "cpu" or arguments.quick) and arguments.out == RESULTS:
        parser.error("--quick and --device cpu show that everything runs; say with --out where that may go")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

"""Predicted against measured peaks: ``python bench/estimate.py [--json] [--only NAME ...]``.

Every family's step is predicted on fake tensors, then really run on the CPU, where the log of its allocations and, as a
second truth, torch's own CPU allocator tell its peak. A step of 7 billion parameters is predicted in a process of its
own, which says how long that took and how much memory the process had. Writes bench/results/estimate.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from estimate_models import LARGE, Family, families, refused
from frostline.errors import StepError
from frostline.memory import Workload, estimate, estimate_by_batches, measure
from frostline.records import MemoryReport
from processes import in_a_process_of_its_own, process_peak

RESULTS = Path(__file__).parent / "results" / "estimate.json"
_LARGE_BATCH = 64
_MARK = "the step that counts"


def main() -> int:
    """Read the command line and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these families; nothing is written")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.large:
        print(json.dumps(predict_large()))
        return 0
    began = time.perf_counter()
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "rows": [row(name, each) for name, each in families() if not arguments.only or name in arguments.only],
    }
    if not arguments.only:
        results["refused"] = list(refusals())
        results["large"] = in_a_process_of_its_own(__file__)
        results["wall_seconds"] = round(time.perf_counter() - began, 1)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        show(results)
    return 0


def row(name: str, of: Family) -> dict[str, Any]:
    """Predict and measure one family."""
    began = time.perf_counter()
    predicted = estimate(of.build_model, of.build_step, bound=of.bound)
    seconds = time.perf_counter() - began
    measured = measured_report(real(of))
    allocator = allocator_peak(real(of), measured)
    return {
        "model": name,
        "estimated_peak_bytes": predicted.peak_bytes,
        "measured_peak_bytes": measured.peak_bytes,
        "relative_error": predicted.peak_bytes / measured.peak_bytes - 1,
        "allocator_peak_bytes": allocator,
        "relative_error_to_allocator": predicted.peak_bytes / allocator - 1,
        "resident_bytes": measured.resident_bytes,
        "peak_at": predicted.peak_at,
        "estimate_seconds": round(seconds, 2),
    }


def real(of: Family) -> Workload:
    """A family's step on real tensors."""
    torch.manual_seed(0)
    return of.build_step(of.build_model())


def measured_report(workload: Workload) -> MemoryReport:
    return measure(workload.step, workload.model, optimizers=workload.optimizers, inputs=workload.inputs)


def allocator_peak(workload: Workload, measured: MemoryReport) -> int:
    """The peak by the events of torch's CPU allocator, scratch memory inside operators included.

    The events begin with the first step, so that what it makes and the second one releases is known. What was there
    before, the weights and the inputs, is the measurement's; no step here leaves gradients behind.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        workload.step()
        gc.collect()
        with record_function(_MARK):
            workload.step()
    events = profiler.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == _MARK)
    live = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        live += event.nbytes()
        if event.start_ns() >= begin:
            peak = max(peak, live)
    made_by_first = measured.by_category["optimizer state"]  # it is alive at the peak, too
    return peak + measured.resident_bytes - made_by_first


def refusals() -> Iterator[dict[str, Any]]:
    """What is refused and why, what two small real batches predict instead, and what a bound on sizes does."""
    for name, family_for in refused():
        target = family_for(_LARGE_BATCH)
        try:
            estimate(target.build_model, target.build_step)
        except StepError as error:
            refusal: dict[str, Any] = {"model": name, "reason": error.what}
        else:
            raise AssertionError(f"{name} is no longer refused: list it with the others")
        refusal["measured_peak_bytes"] = measured = measured_report(real(target)).peak_bytes
        if target.bound is not None:
            bounded = estimate(target.build_model, target.build_step, bound=target.bound)
            refusal["bounded_peak_bytes"] = bounded.peak_bytes
        refusal |= by_batches(family_for, measured)
        yield refusal


def by_batches(family_for: Callable[[int], Family], measured: int) -> dict[str, Any]:
    """The prediction from small real steps, or why there is none."""
    try:
        report = estimate_by_batches(lambda size: real(family_for(size)), target=_LARGE_BATCH)
    except StepError as error:
        return {"by_batches": error.what}
    return {
        "by_batches": report.assumes[0],
        "estimated_peak_bytes": report.peak_bytes,
        "relative_error": report.peak_bytes / measured - 1,
    }


def predict_large() -> dict[str, Any]:
    """The step of 7 billion parameters, for the CPU and for CUDA."""
    began = time.perf_counter()
    report = estimate(LARGE.build_model, LARGE.build_step)
    seconds, process = time.perf_counter() - began, process_peak()
    cuda = estimate(LARGE.build_model, LARGE.build_step, device="cuda")
    assert cuda.allocator is not None
    return {
        "model": "Llama 7B with LoRA, one sequence of 2048 tokens, float32",
        "estimated_peak_bytes": report.peak_bytes,
        "estimate_seconds": round(seconds, 2),
        "process_peak_bytes": process,
        "estimated_peak_bytes_cuda": cuda.peak_bytes,
        "simulated_reserved_bytes_cuda": cuda.allocator.peak_reserved_bytes,
    }


def show(results: dict[str, Any]) -> None:
    """The same for the eye."""
    table = Table("model", "estimated MiB", "measured MiB", "error", "allocator's error", "seconds", box=None)
    for each in results["rows"]:
        sizes = (f"{each[key] / 2**20:.1f}" for key in ("estimated_peak_bytes", "measured_peak_bytes"))
        errors = (f"{each[key]:+.2%}" for key in ("relative_error", "relative_error_to_allocator"))
        table.add_row(each["model"], *sizes, *errors, f"{each['estimate_seconds']:.1f}")
    console = Console()
    console.print(table)
    for each in results.get("refused", ()):
        error = f", {each['relative_error']:+.2%}" if "relative_error" in each else ""
        console.print(f"refused: {each['model']}: {each['reason']}; by batches: {each['by_batches']}{error}")
    if large := results.get("large"):
        console.print(
            f"{large['model']}: {large['estimated_peak_bytes'] / 2**30:.2f} GiB predicted in"
            f" {large['estimate_seconds']:.1f} s by a process of {large['process_peak_bytes'] / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    sys.exit(main())

"""Plans against real peaks and against every choice there is: ``python bench/plan.py [--json] [--only NAME ...]``.

Each model is planned for six budgets from its smallest peak to the plain one; the planned step is really run, its peak
measured and its gradients compared with the plain step's. On small models every choice is tried on fake tensors: the
cheapest that fits is what a plan could have been. A step of 7 billion parameters is planned for three budgets in a
process of its own. Writes bench/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from estimate_models import LARGE
from frostline.errors import BudgetError
from frostline.memory import Workload, measure
from frostline.planner import Planner, apply_, find_units, largest_batch, plan_blueprint, plan_workload, prove
from frostline.planner.exploration import Exploration
from frostline.planner.purity import impure_units
from frostline.planner.running import Runner
from frostline.records import Plan
from frostline.tracing import build_fake, fake_tensors
from plan_models import MODELS, SMALL, transformer
from processes import in_a_process_of_its_own, process_peak

RESULTS = Path(__file__).parent / "results" / "plan.json"
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.95)
_ALMOST_PLAIN = 0.001
_PAIRS = 5


def main() -> int:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models; nothing is written")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.large:
        print(json.dumps(plan_large()))
        return 0
    began = time.perf_counter()

    def asked(models: dict[str, Callable[[], Workload]]) -> dict[str, Callable[[], Workload]]:
        return {name: make for name, make in models.items() if not arguments.only or name in arguments.only}

    results: dict[str, Any] = {"torch": torch.__version__, "rows": [], "exhaustive": []}
    for name, make in asked(MODELS).items():
        tell(began, f"{name}: {len(SHARES)} budgets")
        results["rows"] += budgets(name, make())
    for name, make in asked(SMALL).items():
        tell(began, f"{name}: every choice")
        results["exhaustive"] += exhaustive(name, make())
    if not arguments.only:
        tell(began, "the largest batch")
        results["batch"] = batch()
        tell(began, "7 billion parameters")
        results["large"] = in_a_process_of_its_own(__file__)
        results["wall_seconds"] = round(time.perf_counter() - began, 1)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        show(results)
    return 0


def tell(began: float, what: str) -> None:
    """Say what comes next, and when."""
    print(f"{time.perf_counter() - began:6.0f} s  {what}", file=sys.stderr, flush=True)


def budgets(name: str, workload: Workload) -> list[dict[str, Any]]:
    """Plan a model for each share of the way from its smallest peak to the plain one, and really run the plans."""
    smallest = plan_workload(workload, budget="smallest")
    low, high = smallest.predicted_peak_bytes, smallest.baseline_peak_bytes
    rows = []
    for share in SHARES:
        began = time.perf_counter()
        made = plan_workload(workload, budget=low + round(share * (high - low)))
        seconds = time.perf_counter() - began
        proof = prove(workload.step, workload.model, made, optimizers=workload.optimizers)
        rows.append(
            {
                "model": name,
                "budget_bytes": made.budget_bytes,
                "predicted_peak_bytes": made.predicted_peak_bytes,
                "measured_peak_bytes": measured_peak(workload, made),
                "plain_peak_bytes": high,
                "resident_bytes": made.resident_bytes,
                "extra_work": made.predicted_cost,
                "step_seconds_ratio": round(seconds_ratio(workload, made), 3),
                "gradients": proof.proof_class,
                "plan_seconds": round(seconds, 1),
                "treatments": [text for text, _ in made.grouped()],
            }
        )
    return rows


def measured_peak(workload: Workload, made: Plan) -> int:
    """The peak of the real step under a plan."""
    with apply_(workload.model, made):
        report = measure(workload.step, workload.model, optimizers=workload.optimizers, inputs=workload.inputs)
    return report.peak_bytes


def seconds_ratio(workload: Workload, made: Plan) -> float:
    """The planned step's time over the plain step's: the median over pairs that take turns."""
    ratios = []
    for _ in range(_PAIRS):
        plain = _seconds(workload)
        with apply_(workload.model, made):
            ratios.append(_seconds(workload) / plain)
    return sorted(ratios)[_PAIRS // 2]


def _seconds(workload: Workload) -> float:
    workload.step()
    began = time.perf_counter()
    workload.step()
    return time.perf_counter() - began


def exhaustive(name: str, workload: Workload) -> list[dict[str, Any]]:
    """The plan for each share beside the cheapest of all choices, each of which is run on fake tensors."""
    units = find_units(workload.model)
    modules = {unit: workload.model.get_submodule(unit) for unit in units}
    impure = impure_units(workload, modules)
    with Runner(workload, modules).opened() as runner:
        exploration = Exploration(runner, modules, impure, {}, frozenset(), ("EXACT",))
        exploration.look(0)
        tried = [exploration.run(kinds) for kinds in product(*exploration.kinds)]
        plain = exploration.plain
    low, high = min(found.peak_bytes for found in tried), plain.peak_bytes
    rows = []
    for share in SHARES:
        budget = low + round(share * (high - low))
        best = min(found.work for found in tried if found.peak_bytes <= budget)
        row: dict[str, Any] = {"model": name, "num_choices": len(tried), "budget_bytes": budget}
        row["best_extra_work"] = best / plain.work - 1
        try:
            made = plan_workload(workload, budget=budget, units=units)
        except BudgetError as error:
            row |= {"extra_work": None, "smallest_bytes": error.smallest_bytes}
        else:
            row |= {"extra_work": made.predicted_cost, "predicted_peak_bytes": made.predicted_peak_bytes}
            row["recompute_ratio"] = recompute_ratio(made.predicted_cost, row["best_extra_work"])
        rows.append(row)
    return rows


def recompute_ratio(extra: float, best: float) -> float:
    """How many times the best choice's recompute a plan has; a thousandth of the step more or less is not counted."""
    return max(1.0, (extra + _ALMOST_PLAIN) / (best + _ALMOST_PLAIN))


def batch() -> dict[str, Any]:
    """The largest batch of a transformer with 4 layers that fits into 16 MiB, with a plan and without one."""
    budget = 16 * 2**20

    def make(size: int) -> Workload:
        return transformer(4, batch_size=size)

    began = time.perf_counter()
    found = largest_batch(make, budget)
    seconds = time.perf_counter() - began
    next_ = plan_workload(make(found.batch_size + 1), budget="smallest")
    plain = 1
    while plan_workload(make(plain + 1), budget=2**40).baseline_peak_bytes <= budget:
        plain += 1
    return {
        "model": "transformer, 4 layers",
        "budget_bytes": budget,
        "largest_batch": found.batch_size,
        "largest_batch_without_a_plan": plain,
        "measured_peak_bytes": measured_peak(make(found.batch_size), found.plan),
        "smallest_peak_bytes_of_the_next": next_.predicted_peak_bytes,
        "seconds": round(seconds, 1),
    }


def plan_large() -> dict[str, Any]:
    """Three budgets of the step of 7 billion parameters, and the memory of the process that planned them."""
    smallest = plan_blueprint(LARGE.build_model, LARGE.build_step, budget="smallest")
    low, high = smallest.predicted_peak_bytes, smallest.baseline_peak_bytes
    began = time.perf_counter()
    mode = fake_tensors()
    model = build_fake(LARGE.build_model, mode)
    with mode:
        planner = Planner(LARGE.build_step(model))
        plans = planner.plans(low + round(share * (high - low)) for share in (0.1, 0.5, 0.9))
    return {
        "model": "Llama 7B with LoRA, one sequence of 2048 tokens, float32",
        "plain_peak_bytes": high,
        "smallest_peak_bytes": low,
        "resident_bytes": smallest.resident_bytes,
        "plans": [
            {
                "budget_bytes": made.budget_bytes,
                "predicted_peak_bytes": made.predicted_peak_bytes,
                "extra_work": made.predicted_cost,
                "treatments": [text for text, _ in made.grouped()],
            }
            for made in plans
        ],
        "plan_seconds": round(time.perf_counter() - began, 1),
        "process_peak_bytes": process_peak(),
    }


def show(results: dict[str, Any]) -> None:
    """The same for the eye."""
    console = Console()
    table = Table("model", "budget MiB", "measured MiB", "plain MiB", "extra work", "step time", "gradients", box=None)
    for each in results["rows"]:
        sizes = (f"{each[key] / 2**20:.1f}" for key in ("budget_bytes", "measured_peak_bytes", "plain_peak_bytes"))
        ratio = f"{each['step_seconds_ratio']:.2f}x"
        table.add_row(each["model"], *sizes, f"{each['extra_work']:.1%}", ratio, each["gradients"])
    console.print(table)
    table = Table("model", "choices", "budget MiB", "extra work", "best", "ratio", box=None)
    for each in results["exhaustive"]:
        extra = "no plan found" if each["extra_work"] is None else f"{each['extra_work']:.1%}"
        ratio = f"{each['recompute_ratio']:.2f}" if "recompute_ratio" in each else ""
        size = f"{each['budget_bytes'] / 2**20:.2f}"
        table.add_row(each["model"], str(each["num_choices"]), size, extra, f"{each['best_extra_work']:.1%}", ratio)
    console.print(table)
    if large := results.get("large"):
        console.print(
            f"{large['model']}: {len(large['plans'])} plans in {large['plan_seconds']:.1f} s by a process of"
            f" {large['process_peak_bytes'] / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    sys.exit(main())

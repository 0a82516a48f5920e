"""frostline beside other ways to need less memory: ``python bench/peers.py [--json] [--models ...] [--methods ...]``.

Every cell is one model under one method, on a fresh model with the same weights, batch and type. Its gradients are
compared with those of plain PyTorch and judged by the model's own rounding, its peak is counted by the log of
allocations, and its step takes turns with the plain step for the ratio of their times. Finished cells are kept in
bench/results/peers.json, so that a run that was broken off goes on where it was; `--fresh` measures them again. A
cell that does not apply is null, with the reason. Packages beside torch and transformers are used where they are
installed; none is needed.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import frostline
from frostline.memory import Workload, measure
from frostline.proof import Gradients, compare_gradients, gradients_of, noise_floor
from peer_methods import METHODS, Method
from peer_models import MODELS, Case, build

RESULTS = Path(__file__).parent / "results" / "peers.json"
DOCUMENTS = tuple(Path(__file__).parents[1] / name for name in ("README.md", "docs/peers.md"))
_SOURCES = Path(__file__).parents[1] / "src" / "frostline"
_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS_A_CELL = 2, 7, 8.0
_MARK = "the step that counts"
Row = dict[str, Any]


def main() -> int:
    """Read the command line, fill in the cells that are missing, and print all that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where finished cells are kept")
    parser.add_argument("--fresh", action="store_true", help="measure the asked cells again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--documents", action="store_true", help="also put the whole table into README and docs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(arguments.models, arguments.methods, arguments.out, fresh=arguments.fresh)
    asked = [row for row in rows if row["model"] in arguments.models and row["method"] in arguments.methods]
    print(json.dumps({"rows": asked}, indent=1) if arguments.json else table(asked))
    if arguments.documents:
        for page in DOCUMENTS:
            put_table(page, "peers", table(rows))
    for line in shortfalls(asked):
        print(line, file=sys.stderr)
    return 0


def run(models: Sequence[str], methods: Sequence[str], out: Path, *, fresh: bool = False) -> list[Row]:
    """All cells known afterwards, in the order of the tables of models and methods; each is saved once it is there."""
    cells: dict[tuple[str, str], Row] = {}
    if out.exists():
        saved = json.loads(out.read_text(encoding="utf-8"))["rows"]
        cells = {(row["model"], row["method"]): row for row in saved}
    for model in models:
        missing = [
            name
            for name in methods
            if fresh or (model, name) not in cells or cells[model, name]["version"] != version(METHODS[name])
        ]
        reference: Reference | None = None
        for name in missing:
            began = time.perf_counter()
            row = refused(model, name)
            if row is None:
                reference = reference or Reference.of(model)
                row = cell(model, name, reference)
            row |= {"wall_seconds": round(time.perf_counter() - began, 1), "version": version(METHODS[name])}
            cells[model, name] = row
            save(out, cells)
            print(progress(row), file=sys.stderr, flush=True)
            gc.collect()
    return ordered(cells)


@dataclass(frozen=True)
class Reference:
    """The plain step that everything else is compared with.

    Attributes:
        workload: Takes steps, for times.
        gradients: Of its first step.
        floor: Their rounding, against float64.
        rounds: How often a step of this length is timed.
    """

    workload: Workload
    gradients: Gradients
    floor: float
    rounds: int

    @staticmethod
    def of(model: str) -> Reference:
        """Run it in both precisions."""
        exact = first_gradients(build(MODELS[model], torch.float64))
        case = build(MODELS[model])
        gradients = first_gradients(case)
        workload = case.workload()
        seconds = timed(workload)
        rounds = min(_MAX_ROUNDS, max(_MIN_ROUNDS, int(_SECONDS_A_CELL / 2 / seconds)))
        return Reference(workload, gradients, noise_floor(gradients, exact), rounds)


def refused(model: str, name: str) -> Row | None:
    """The row of a cell that does not apply; None if it does."""
    method = METHODS[name]
    reason = method.lacks() or method.refuses(model, build(MODELS[model]))
    return {**empty(model, name), "reason": reason} if reason else None


def empty(model: str, name: str) -> Row:
    """A row without numbers."""
    numbers = ("peak_bytes", "resident_bytes", "allocator_peak_bytes", "step_seconds_ratio", "max_rel_grad_diff")
    return {"model": model, "method": name, **dict.fromkeys(numbers), "proof_class": None, "reason": ""}


def cell(model: str, name: str, reference: Reference) -> Row:
    """Measure one cell. A peer that fails says how; frostline must not."""
    method = METHODS[name]
    row = empty(model, name) | {"package": package_version(method)}
    case = build(MODELS[model])
    with method.around():
        try:
            plan = method.apply(case)
            gradients = first_gradients(case)
        except Exception as error:
            if method.ours or name == "plain":
                raise
            return row | {"reason": f"fails: {type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"}
        proof = compare_gradients(reference.gradients, gradients, floor=reference.floor)
        row |= {
            "proof_class": proof.proof_class,
            "max_rel_grad_diff": proof.worst.max_relative if proof.worst else None,
            "noise_floor": reference.floor,
        }
        workload = case.workload()
        row |= bytes_of(workload, method)
        row["step_seconds_ratio"] = round(times_ratio(workload, reference), 3)
    if name == "frostline-plan":
        row["plan"] = [text for text, _ in plan.grouped()]  # type: ignore[attr-defined]
    return row


def first_gradients(case: Case) -> Gradients:
    """The gradients of the first step, from the same random numbers in every case."""
    torch.manual_seed(1)
    case.loss().backward()
    gradients = gradients_of(case.model)
    case.model.zero_grad()
    return gradients


def bytes_of(workload: Workload, method: Method) -> Row:
    """The peak by the log and by the allocator; no log sees what compiled code allocates."""
    workload.step()  # the optimizer's state is there from here on
    if method.compiled:
        resident = sum(tensor.nbytes for tensor in resident_tensors(workload))
        allocator = resident + allocator_above(workload)
        return {
            "peak_bytes": allocator,
            "resident_bytes": resident,
            "allocator_peak_bytes": allocator,
            "reason": "counted by the allocator: no log sees what compiled code allocates",
        }
    report = measure(
        workload.step, workload.model, optimizers=workload.optimizers, inputs=workload.inputs, warmup_steps=0
    )
    return {
        "peak_bytes": report.peak_bytes,
        "resident_bytes": report.resident_bytes,
        "allocator_peak_bytes": report.resident_bytes + allocator_above(workload),
        "peak_at": report.peak_at,
    }


def resident_tensors(workload: Workload) -> list[torch.Tensor]:
    """Weights, buffers, optimizer state and inputs, each once."""
    model = workload.model
    state = [value for optimizer in workload.optimizers for each in optimizer.state.values() for value in each.values()]
    tensors = [*model.parameters(), *model.buffers(), *state, *workload.inputs]  # type: ignore[misc]
    return list({tensor.data_ptr(): tensor for tensor in tensors if isinstance(tensor, torch.Tensor)}.values())


def allocator_above(workload: Workload) -> int:
    """What a step needs above what is there before it, by torch's CPU allocator: kernels' own scratch memory too."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, record_function(_MARK):
        workload.step()
    events = profiler.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == _MARK)
    memory = [event for event in events if event.name() == "[memory]" and event.start_ns() >= begin]
    live = peak = 0
    for event in sorted(memory, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def times_ratio(workload: Workload, reference: Reference) -> float:
    """The step's time over the plain step's, taking turns: the median."""
    pairs = [(timed(workload), timed(reference.workload)) for _ in range(reference.rounds)]
    return float(median(truediv(*pair) for pair in pairs))


def timed(workload: Workload) -> float:
    """CPU seconds of one step: it has one thread, and what else runs on the machine does not count as its time."""
    start = time.process_time()
    workload.step()
    return time.process_time() - start


def _bytes_of(files: Sequence[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in files)


# Read when the code is imported: files that change during a run are not what its cells were measured with.
_MODELS_SOURCE = _bytes_of([Path(__file__).with_name("peer_models.py")])
_OUR_SOURCES = _bytes_of(sorted(path for room in ("ops", "planner") for path in (_SOURCES / room).rglob("*.py")))


def version(method: Method) -> str:
    """Changes with what may change a cell: models, method, torch and transformers, and for our rows our sources."""
    packages = (torch.__version__, importlib.metadata.version("transformers"), method.source)
    sources = _MODELS_SOURCE + (_OUR_SOURCES if method.ours else b"")
    return hashlib.sha256("".join(packages).encode() + sources).hexdigest()[:12]


def package_version(method: Method) -> str:
    """Whose method it is, in which version."""
    found = frostline.__version__ if method.ours else importlib.metadata.version(method.package)
    return f"{method.package} {found}"


def save(out: Path, cells: Mapping[tuple[str, str], Row]) -> None:
    """Write all cells, whole or not at all."""
    rows = ordered(cells)
    seconds = round(sum(row["wall_seconds"] for row in rows), 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    results = {"torch": torch.__version__, "wall_seconds": seconds, "rows": rows}
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(out)


def ordered(cells: Mapping[tuple[str, str], Row]) -> list[Row]:
    """In the order of the two tables; cells of models and methods that are no more are dropped."""
    return [cells[model, name] for model in MODELS for name in METHODS if (model, name) in cells]


def progress(row: Row) -> str:
    """One line about a finished cell."""
    head = f"{row['model']:12} {row['method']:22}"
    if row["peak_bytes"] is None:
        return f"{head} null: {row['reason']}"
    above = (row["peak_bytes"] - row["resident_bytes"]) / 2**20
    return (
        f"{head} +{above:8.1f} MiB time x{row['step_seconds_ratio']:.2f} {row['proof_class']}"
        f" {row['max_rel_grad_diff']:.1e}  {row['wall_seconds']} s"
    )


def shortfalls(rows: Sequence[Row]) -> list[str]:
    """Where a peer needs less than the best of frostline's rows with the same gradients."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [row for row in rows if row["model"] == model and row["peak_bytes"] is not None]
        ours = [row for row in cells if METHODS[row["method"]].ours and row["proof_class"] in ("EXACT", "ROUNDING")]
        for peer in cells:
            if METHODS[peer["method"]].ours or not ours:
                continue
            counted = "allocator_peak_bytes" if METHODS[peer["method"]].compiled else "peak_bytes"
            best = min(ours, key=lambda row: row[counted])
            if peer[counted] < best[counted]:
                less = (best[counted] - peer[counted]) / 2**20
                found.append(f"{model}: {peer['method']} needs {less:.2f} MiB less than {best['method']}")
    return found


def put_table(page: Path, mark: str, text: str) -> None:
    """Put a table between two marks of a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown: one line a method, one column a model, MiB above what is there before the step."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(row["model"], row["method"]): row for row in rows}
    resident = [
        row["resident_bytes"] for row in (cells.get((model, "plain"), {"resident_bytes": 0}) for model in models)
    ]
    lines = [
        "| MiB above resident, x step time | " + " | ".join(models) + " |",
        "|---|" + "---|" * len(models),
        "| *resident: weights, optimizer, inputs* | " + " | ".join(f"*{each / 2**20:.0f}*" for each in resident) + " |",
    ]
    for name in METHODS:
        entries = [entry(cells.get((model, name))) for model in models]
        if any(each != "-" for each in entries):
            title = f"**{name}**" if METHODS[name].ours else name
            lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def entry(row: Row | None) -> str:
    """One cell of the table; its gradients are named where they are not the plain step's."""
    if row is None or row["peak_bytes"] is None:
        return "-"
    above = (row["peak_bytes"] - row["resident_bytes"]) / 2**20
    same = "" if row["proof_class"] in ("EXACT", "ROUNDING") else f", {row['proof_class']}"
    return f"{above:.1f}, x{row['step_seconds_ratio']:.1f}{same}"


if __name__ == "__main__":
    sys.exit(main())

"""Published advice, put to the test: ``python bench/advice.py [SYSTEM] [--json]``.

Runs every claim of one system, or of all, and writes bench/results/advice-SYSTEM.json and, from all of these,
docs/advice.md. With --json it prints the verdicts as a JSON list and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from advice_verdict import MEANING, Advice

SYSTEMS = {"semcom": "advice_semcom", "linet": "advice_linet", "graf": "advice_graf"}
"""Each system's module, with its `ABOUT`, its `CLAIMS` and the `SETTING` they are run at."""

PAGE = Path(__file__).parents[1] / "docs" / "advice.md"
RESULTS = Path(__file__).parent / "results"

_PAGE_HEAD = """\
# Published advice, put to the test

Advice on saving memory is copied from project to project. Here each piece is run instead of argued about, and
a rule turns the numbers of the run into a verdict. To see it on your machine:

```
python bench/advice.py
```

It takes one CPU core, 4 GiB of memory and some minutes; no GPU, no download. The command writes this page.
Bytes are those of live tensors at the peak of a training step, weights included unless said otherwise; a MiB is 2^20 of
them.

| verdict | meaning |
|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class Results:
    """One run of a system's claims.

    Attributes:
        system: Its name.
        about: What was run, and whose advice it is.
        torch: The version of torch.
        num_threads: Threads torch used.
        wall_seconds: Of the whole run.
        advice: One entry a claim.
    """

    system: str
    about: str
    torch: str
    num_threads: int
    wall_seconds: float
    advice: tuple[Advice, ...]


def run(system: str) -> Results:
    """Run all claims of a system."""
    module = importlib.import_module(SYSTEMS[system])
    start = time.perf_counter()
    advice = []
    for claim in module.CLAIMS:
        print(f"{system}: {claim.claim}", end=" ... ", file=sys.stderr, flush=True)
        advice.append(claim.advice(module.SETTING))
        print(advice[-1].verdict, file=sys.stderr)
    return Results(
        system=system,
        about=module.ABOUT,
        torch=torch.__version__,
        num_threads=torch.get_num_threads(),
        wall_seconds=round(time.perf_counter() - start, 1),
        advice=tuple(advice),
    )


def read_results() -> list[Results]:
    """The latest results of every system that has been run."""
    paths = [RESULTS / f"advice-{system}.json" for system in SYSTEMS]
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    return [Results(**{**one, "advice": tuple(Advice(**item) for item in one["advice"])}) for one in documents]


def render(all_results: Sequence[Results]) -> str:
    """The page: every system's claims in a table, and each with its numbers below."""
    meaning = "".join(f"| **{verdict}** | {text} |\n" for verdict, text in MEANING.items())
    return _PAGE_HEAD + meaning + "".join(_system(results) for results in all_results)


def _system(results: Results) -> str:
    rows = "".join(f"| {one.claim} | {one.verdict} |\n" for one in results.advice)
    return (
        f"\n## {results.system}\n\n{results.about}\n\n"
        f"Run with torch {results.torch}, CPU threads: {results.num_threads}, in {results.wall_seconds:.0f} s.\n\n"
        f"| claim | verdict |\n|---|---|\n{rows}" + "".join(_section(one) for one in results.advice)
    )


def _section(advice: Advice) -> str:
    return (
        f"\n### {advice.claim}\n\n**{advice.verdict.capitalize()}.** {advice.measured.rstrip()}\n\n"
        f"*Do:* {advice.instead}\n\n*Source:* {advice.source}\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", nargs="?", choices=SYSTEMS, help="all of them where left out")
    parser.add_argument("--json", action="store_true", help="print a JSON list and write nothing")
    asked = parser.parse_args(arguments)
    all_results = [run(system) for system in ([asked.system] if asked.system else SYSTEMS)]
    if asked.json:
        print(json.dumps([asdict(one) for results in all_results for one in results.advice], indent=1))
        return 0
    for results in all_results:
        path = RESULTS / f"advice-{results.system}.json"
        path.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(read_results()), encoding="utf-8")
    print(f"wrote {PAGE.name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

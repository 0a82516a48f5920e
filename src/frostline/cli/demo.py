"""``frostline demo``."""

from __future__ import annotations

import itertools
import json as json_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import Json, Words, read_request
from frostline.cli.screen import INTERRUPTED, output, progress
from frostline.errors import ConfigError, import_extra
from frostline.records import Record, to_json
from frostline.reports.files import write_csv, write_curves, write_peaks
from frostline.reports.terminal import evaluation_view, peak_table_view, run_view
from frostline.systems.registry import SYSTEMS, demo_file


def demo(
    system: Annotated[str, Parameter(help=f"One of {', '.join(SYSTEMS)}.")] = SYSTEMS[0],
    *words: Words,
    out: Annotated[Path | None, Parameter(help="A new directory; runs/demo-SYSTEM by default.")] = None,
    json: Json = False,
) -> int:
    """Show a system in a few minutes on a CPU: train it, count its bytes, score it, draw it.

    Keys of the configuration can be given as words: --training.num-steps 300.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"no system {system!r} to show", do=f"choose one of {', '.join(SYSTEMS)}")
    import_extra("matplotlib", extra="plots")  # now, not after minutes of training
    request = read_request(str(demo_file(system)), words)
    from frostline import workflow

    directory = out or _unused(Path("runs") / f"demo-{request.SYSTEM}")
    with progress() as observer:
        found = workflow.demo(request, out=directory, observer=observer)
    records: dict[str, Record] = {"run": found.run}
    if found.table is not None and found.evaluation is not None:
        records |= {"table": found.table, "evaluation": found.evaluation}
    for name, record in records.items():
        (directory / f"{name}.json").write_text(to_json(record, indent=1), encoding="utf-8")
    if found.table is not None and found.evaluation is not None:
        write_csv(found.evaluation, directory / "evaluation.csv")
        write_curves(found.evaluation, directory / "evaluation.png")
        write_peaks(found.table, directory / "peaks.png")
    if json:
        plain = {name: json_module.loads(to_json(record)) for name, record in records.items()}
        output(json_module.dumps(plain, indent=1))
    else:
        for view in (
            run_view(found.run),
            peak_table_view(found.table) if found.table else None,
            evaluation_view(found.evaluation) if found.evaluation else None,
        ):
            if view is not None:
                output(view)
        output(f"evaluation.csv, evaluation.png, peaks.png and config.yaml lie in {directory}")
    return INTERRUPTED if found.run.interrupted else 0


def _unused(directory: Path) -> Path:
    """The directory, or the first numbered one beside it that is free."""
    numbered = (directory.with_name(f"{directory.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([directory], numbered) if not path.exists())

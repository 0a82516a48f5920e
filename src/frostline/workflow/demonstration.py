"""Show a system: train it, count its bytes, score it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from frostline.config import RunConfig
from frostline.records import EvaluationReport, PeakTable, RunReport
from frostline.workflow.evaluation import evaluate
from frostline.workflow.run import train
from frostline.workflow.session import SILENT, RunObserver, verbs_of


@dataclass(frozen=True, kw_only=True)
class Demo:
    """All that a demonstration found."""

    run: RunReport
    table: PeakTable | None
    evaluation: EvaluationReport | None


def demo(config: RunConfig, *, out: Path, observer: RunObserver = SILENT) -> Demo:
    """Train a system in `out`, count the bytes of its step beside the plain one's, and score it.

    An interrupted training is saved, and ends the demonstration.

    Args:
        config: Of any system.
        out: A new directory.
        observer: Told how it goes.

    Raises:
        ConfigError: `out` holds a run already.
    """
    run = train(config, out=out, observer=observer, device="cpu")
    if run.interrupted:
        return Demo(run=run, table=None, evaluation=None)
    observer.note("counting bytes, comparing gradients")
    table = verbs_of(config).peak_table(config)
    evaluation = evaluate(config, checkpoint=out, observer=observer, baselines=True, device="cpu")
    return Demo(run=run, table=table, evaluation=evaluation)

"""graf's evaluation: scores of the averaged generator, and how they came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from frostline.records import Curve, EvaluationReport
from frostline.systems.graf.metrics import Scorer, Scores
from frostline.systems.graf.review import BEST, read_scores
from frostline.systems.graf.system import GrafSystem


def evaluation_report(system: GrafSystem, directory: Path | None) -> EvaluationReport:
    """Score the averaged generator, beside the scores that its run wrote.

    Args:
        system: With a run's values.
        directory: The run's, or its best generator's.
    """
    scorer, source = system.scorer, system.source
    scores = scorer.score(system.model.average)
    history = []
    if directory is not None:
        history = read_scores(directory.parent if directory.name == BEST else directory)
    if scores.squared_error is not None:
        test = scorer.test
        which = "that training saw" if test.seen else "that training did not see"
        title = f"{len(test.classes)} images of {', '.join(source.names)} {which}"
        facts = {"PSNR in dB": scores.psnr_db or 0.0, "squared error": scores.squared_error}
        curves = _curve(history, "squared error", "share of the start's", lambda s: s.squared_error, relative=True)
    else:
        title = f"{system.config.system.metrics.num_images} generated images against {len(source.classes):,} real ones"
        facts = _facts(scores, history, scorer)
        curves = [
            *_curve(history, "KID", "distance, share of the start's", lambda s: s.kid, relative=True),
            *_curve(history, "FID", "distance, share of the start's", lambda s: s.fid, relative=True),
            *_curve(history, "class found", "share of images", lambda s: s.class_accuracy),
        ]
    return EvaluationReport(system="graf", title=title, x_name="step", curves=tuple(curves), facts=facts)


def _facts(scores: Scores, history: Sequence[tuple[int, Scores]], scorer: Scorer) -> dict[str, float]:
    accuracy, error = scorer.judge_real()
    facts = {
        "KID": scores.kid or 0.0,
        "FID": scores.fid or 0.0,
        "class accuracy, by an independent classifier": scores.class_accuracy or 0.0,
        "median azimuth error in degrees, by the same": scores.azimuth_error_degrees or 0.0,
        "class accuracy of real images": accuracy,
        "median azimuth error of real images in degrees": error,
    }
    if history and history[0][0] == 0 and history[0][1].kid is not None:
        facts["KID before the first step"] = history[0][1].kid
    return facts


def _curve(
    history: Sequence[tuple[int, Scores]],
    name: str,
    y_name: str,
    value: Callable[[Scores], float | None],
    *,
    relative: bool = False,
) -> list[Curve]:
    points = [(step, found) for step, scores in history if (found := value(scores)) is not None]
    if len(points) < 2:
        return []
    first = points[0][1] if relative else 1.0
    return [
        Curve(
            name=name,
            y_name=y_name,
            x=tuple(float(step) for step, _ in points),
            y=tuple(found / first for _, found in points),
        )
    ]

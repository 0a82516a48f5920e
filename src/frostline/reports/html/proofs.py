"""A proof: which gradients are the same, and by how much the others differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frostline.records import GradientDifference, ProofReport
from frostline.reports.html.limits import Limits
from frostline.reports.html.section import Figure, Section, Tone, counted

_LOWEST, _HIGHEST = -17.0, 0.0
_TONES: dict[str, Tone] = {"EXACT": "good", "ROUNDING": "good", "BOUNDED": "warn", "none": "warn"}


@dataclass(frozen=True, kw_only=True)
class ProofRow:
    """A parameter, and where its difference lies on a logarithmic scale, in percent; None where it is 0."""

    difference: GradientDifference
    text: str
    at: float | None


@dataclass(frozen=True, kw_only=True)
class ProofView:
    """What the template of a proof reads."""

    report: ProofReport
    facts: dict[str, str]
    rows: tuple[ProofRow, ...]
    num_more: int
    noise: float | None


def proof_section(report: ProofReport, limits: Limits) -> Section:
    """How the gradients of two steps compare."""
    num = len(report.per_parameter)
    num_equal = sum(difference.equal for difference in report.per_parameter)
    unequal = sorted((d for d in report.per_parameter if not d.equal), key=_difference, reverse=True)
    facts = {
        "equal bit by bit": f"{num_equal:,} of {counted(num, 'gradient')}",
        "loss difference": f"{report.loss_difference:.3g}",
        "noise floor": "" if report.noise_floor is None else f"{report.noise_floor:.3g}, fp32 against fp64",
        "worst": "" if report.worst is None or report.worst.equal else _worst(report.worst),
        **{check.name: f"{check.verdict}: {check.text}" for check in report.checks},
    }
    view = ProofView(
        report=report,
        facts={name: text for name, text in facts.items() if text},
        rows=tuple(
            ProofRow(difference=d, text=f"{d.max_relative:.1e}", at=_at(d.max_relative))
            for d in unequal[: limits.num_rows]
        ),
        num_more=max(0, len(unequal) - limits.num_rows),
        noise=None if report.noise_floor is None else _at(report.noise_floor),
    )
    figure = Figure(
        label="proof",
        value=report.proof_class,
        note=f"{num_equal:,} of {counted(num, 'gradient')} equal bit by bit",
        tone=_TONES.get(report.proof_class, "warn"),
    )
    return Section(title="Proof", template="proof.html.j2", view=view, figure=figure)


def _difference(difference: GradientDifference) -> float:
    return math.inf if math.isnan(difference.max_relative) else difference.max_relative


def _worst(difference: GradientDifference) -> str:
    return f"{difference.name}: {difference.max_relative:.1e}"


def _at(value: float) -> float | None:
    if value == 0:
        return None
    exponent = math.log10(value) if 0 < value < math.inf else _HIGHEST
    return round(100 * (min(_HIGHEST, max(_LOWEST, exponent)) - _LOWEST) / (_HIGHEST - _LOWEST), 2)

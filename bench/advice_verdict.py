"""What a piece of advice turned out to be worth, and the rules that turn numbers into one word."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["true", "no effect", "false", "harmful"]

MEANING: dict[Verdict, str] = {
    "true": "it does what it says",
    "no effect": "it changes the number it speaks of by less than 1 %, or by less than the noise",
    "false": "the experiment contradicts it, or shows less than it promises",
    "harmful": "whoever follows it loses a gradient or needs more memory than before",
}
NOTABLE = 0.01


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One published claim and what this run found.

    Attributes:
        claim: What is advised, in one sentence.
        source: Where it was published.
        verdict: One word, by a rule of this module.
        measured: The numbers, in a few sentences or a small table, as Markdown.
        instead: What to do.
        numbers: The same numbers for machines; the name carries the unit.
    """

    claim: str
    source: str
    verdict: Verdict
    measured: str
    instead: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Finding:
    """The part of an `Advice` that only an experiment can tell."""

    verdict: Verdict
    measured: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Claim:
    """A claim and the experiment that tests it.

    Attributes:
        claim: See `Advice`.
        source: See `Advice`.
        instead: See `Advice`.
        test: Runs the claim at the size its system gives it.
    """

    claim: str
    source: str
    instead: str
    test: Callable[[Any], Finding]

    def advice(self, setting: object) -> Advice:
        """Run the experiment."""
        found = self.test(setting)
        return Advice(
            claim=self.claim,
            source=self.source,
            verdict=found.verdict,
            measured=found.measured,
            instead=self.instead,
            numbers=found.numbers,
        )


def saving_verdict(before: float, after: float, *, promised: float = NOTABLE) -> Verdict:
    """Judge a promise to save a share of something.

    Args:
        before: Without the advice.
        after: With it.
        promised: The least share that was promised.
    """
    saved = 1 - after / before
    if saved <= -NOTABLE:
        return "harmful"
    if saved < NOTABLE:
        return "no effect"
    return "true" if saved >= promised else "false"


def time_ratios(plain: Callable[[], object], advised: Callable[[], object], num_pairs: int) -> list[float]:
    """Seconds of `advised` over seconds of `plain`, pair by pair; which of the two goes first alternates."""
    ratios = []
    for pair in range(num_pairs + 1):
        if pair % 2:
            after, before = _seconds(advised), _seconds(plain)
        else:
            before, after = _seconds(plain), _seconds(advised)
        ratios.append(after / before)
    return ratios[1:]  # the first pair warms up


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """A median and its 95 % confidence interval, from order statistics; assumes no distribution."""
    ordered = sorted(values)
    reach = 0.98 * math.sqrt(len(ordered))  # half of 1.96 sqrt(n), the binomial count's spread
    low = max(0, math.floor(len(ordered) / 2 - reach) - 1)
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + reach))
    return statistics.median(ordered), ordered[low], ordered[high]


def speed_verdict(low: float, high: float) -> Verdict:
    """Judge a promise to be faster by the interval of its time ratio; what may be under 1 % is no effect."""
    if high <= 1 - NOTABLE:
        return "true"
    return "false" if low >= 1 + NOTABLE else "no effect"


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

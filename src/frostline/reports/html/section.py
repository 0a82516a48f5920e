"""What every part of a page has: a heading, a figure for the top of the page, and a template with its data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "warn", "plain"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The one thing to know of a section.

    Attributes:
        label: The verb.
        value: The number, or the verdict.
        note: What the value is of.
        tone: How good it is.
    """

    label: str
    value: str
    note: str
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        template: The file in ``templates`` that draws it.
        view: What the template reads.
        figure: For the top of the page.
        source: Where the record came from.
        anchor: Its id in the page.
    """

    title: str
    template: str
    view: object
    figure: Figure
    source: str = ""
    anchor: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row with a bar.

    Attributes:
        name: Of the row.
        text: The value.
        share: The bar's length, in percent.
        dark: The part of the bar that was there before, in percent.
        note: What else to know.
        style: CSS classes.
    """

    name: str
    text: str
    share: float
    dark: float = 0.0
    note: str = ""
    style: str = ""


def counted(number: int, name: str) -> str:
    """``no faults``, ``1 fault``, ``2 faults``."""
    return f"{f'{number:,}' if number else 'no'} {name}{'' if number == 1 else 's'}"


def percent(part: float, whole: float) -> float:
    """A part in percent of a whole."""
    return round(100 * part / whole, 2) if whole else 0.0


def pattern_of(name: str) -> str:
    """A dotted name with a star for each number: what the layers of a stack have in common."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def joined(parts: Iterable[str]) -> str:
    """What there is of some texts, with dots between."""
    return " · ".join(part for part in parts if part)

"""What every family of findings has in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from frostline.gradflow.codes import CODES
from frostline.gradflow.step import Step
from frostline.records import Finding, Level, Place
from frostline.tracing import Backward, Event, Update
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session


class Rule:
    """One family of findings: it looks at every step, and concludes once at the end.

    Args:
        session: The audit it belongs to.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.names, self.leaves, self.intent = session.names, session.leaves, session.intent

    def began(self) -> None:
        """A step is about to go forward for the first time."""

    def going_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Autograd is about to go backward from a loss."""

    def updated(self, update: Update) -> None:
        """An optimizer has stepped."""

    def observe(self, step: Step) -> None:
        """A step has ended."""

    def findings(self) -> Iterator[Finding]:
        """What the steps amount to."""
        return iter(())

    def leaf_names(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """The names of leaves, sorted."""
        return tuple(sorted({self.names.leaf(self.leaves.all[number]) for number in numbers}))


def write(
    code: str,
    what: str,
    places: Iterable[Place | None] = (),
    *,
    evidence: str = "",
    parameters: Iterable[str] = (),
    level: Level | None = None,
    num_bytes: int = 0,
    so: str = "",
    do: str = "",
) -> Finding:
    """A finding of a code; a place that is not known is left out, and so is one that was named before."""
    table = CODES[code]
    known = [place for place in places if place is not None]
    return Finding(
        code=code,
        slug=table.slug,
        level=level or table.level,
        what=what,
        places=tuple(dict.fromkeys(known)),
        evidence=evidence,
        so=so or table.so,
        do=do or table.do,
        parameters=tuple(parameters),
        num_bytes=num_bytes,
    )


def place(role: str, line: Line | None, text: str = "") -> Place | None:
    """A line's part in a finding, or nothing where the line is not known."""
    return None if line is None else Place(role=role, path=line.path, line=line.number, text=text)


def place_of(role: str, event: Event) -> Place | None:
    """Where an operator ran, with the library's line where the user's is further out."""
    text = event.op.rpartition(".")[2]
    if event.near is not None:
        text += f", in {event.near}"
    return place(role, event.line, text)

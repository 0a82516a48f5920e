"""FL512: a graph that lies there while another goes backward, and that no backward ever uses, in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from frostline.gradflow.names import describe
from frostline.gradflow.rule import Rule, place_of, write
from frostline.gradflow.step import Step, ancestors_of
from frostline.records import Finding
from frostline.tracing import Backward, Event, graph_of, kept_by, leaves_under, nodes_above
from frostline.units import format_bytes

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_NOTABLE = 0.01  # of what all graphs keep: a metric's few numbers are nobody's loss


@dataclass(frozen=True, kw_only=True)
class _Dead:
    """A graph that a backward did not go through.

    Attributes:
        events: That made it, in order.
        leaves: The numbers of the trainable tensors it alone leads to in its way.
        num_bytes: What it kept, and nothing else did.
        all_bytes: What it and the graph of the loss kept.
    """

    events: tuple[Event, ...]
    leaves: frozenset[int]
    num_bytes: int
    all_bytes: int


class DeadGraphs(Rule):
    """Compares, when a backward begins, the graphs that are there with the one it goes through."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._dead: list[_Dead] = []

    def going_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Look for results of this step that have a graph and that the loss does not depend on."""
        used = ancestors_of([backward], through_cuts=False)
        living = [(node, event) for tensor, event in self.session.flow.results() if (node := graph_of(tensor))]
        apart = [(node, event) for node, event in living if event.step == backward.step and event not in used]
        if not (apart or self._dead):
            return
        live = nodes_above([graph_of(root) if root is not None else None, *(n for n, event in living if event in used)])
        revived = {event for node, event in living if node in live}
        self._dead = [dead for dead in self._dead if revived.isdisjoint(dead.events)]
        if backward.accumulates:
            self._look_at([(node, event) for node, event in apart if node not in live], live)

    def _look_at(self, apart: list[tuple[object, Event]], live: set[object]) -> None:
        dead = nodes_above([node for node, _ in apart], but=live)
        leaves = frozenset(self.leaves.number(leaf) for leaf in leaves_under(dead)) - {-1}
        if leaves:
            events = tuple(sorted({event for _, event in apart}, key=lambda event: event.index))
            self._weigh(events, leaves, dead, live)

    def _weigh(self, events: tuple[Event, ...], leaves: frozenset[int], dead: set[object], live: set[object]) -> None:
        elsewhere = kept_by(live)
        parameters = {leaf.tensor.untyped_storage()._cdata for leaf in self.leaves.all}
        alone = {key: kept for key, kept in kept_by(dead).items() if key not in elsewhere and key not in parameters}
        num_bytes = sum(kept.nbytes() for kept in alone.values())
        others = sum(kept.nbytes() for key, kept in elsewhere.items() if key not in parameters)
        if num_bytes > _NOTABLE * (num_bytes + others):
            self._dead.append(_Dead(events=events, leaves=leaves, num_bytes=num_bytes, all_bytes=num_bytes + others))

    def observe(self, step: Step) -> None:
        """What a later backward goes through was not dead."""
        self._dead = [dead for dead in self._dead if step.connected.isdisjoint(dead.events)]

    def findings(self) -> Iterator[Finding]:
        """One finding for all graphs over the same tensors: the largest."""
        largest: dict[frozenset[int], _Dead] = {}
        for dead in self._dead:
            if dead.leaves not in largest or dead.num_bytes > largest[dead.leaves].num_bytes:
                largest[dead.leaves] = dead
        for dead in largest.values():
            names = self.leaf_names(dead.leaves)
            size = format_bytes(dead.num_bytes)
            yield write(
                "FL512",
                f"a graph through {describe(names)} keeps {size} for a backward that never comes",
                [place_of("begins", dead.events[0]), place_of("ends", dead.events[-1])],
                evidence=f"{size} of the {format_bytes(dead.all_bytes)} that graphs keep when the loss goes backward",
                parameters=names,
                num_bytes=dead.num_bytes,
            )

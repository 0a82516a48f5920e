"""Programs that raise: what torch's message means, and the line that is to blame."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from frostline.gradflow.rule import Rule, place, write
from frostline.records import Finding, Place
from frostline.where import Line, is_library

_MEANINGS = (
    ("Inference tensors cannot be saved", "FL110", "an inference tensor enters a part that trains"),
    ("Inplace update to inference tensor", "FL110", "an inference tensor is written to"),
    ("can't optimize a non-leaf Tensor", "FL206", "an optimizer is given a tensor that is the result of an operator"),
    ("optimizer got an empty parameter list", "FL203", "an optimizer is given no parameters"),
    ("backward through the graph a second time", "FL504", "a value with a graph is carried into the next step"),
    ("Expected to have finished reduction in the prior iteration", "FL207", "a parameter took no part in the loss"),
    ("No inf checks were recorded prior to update", "FL204", "an optimizer is stepped without its gradient scaler"),
    (
        "No inf checks were recorded for this",
        "FL204",
        "a scaler steps an optimizer none of whose parameters has a gradient",
    ),
    ("Recomputed values for the following tensors", "FL307", "a checkpoint recomputes something else"),
)


class Failures(Rule):
    """Reads the exception that ended the program."""

    def findings(self) -> Iterator[Finding]:
        """What the exception means, where torch's text is one that is known."""
        error = self.session.error
        if error is None:
            return
        if "element 0 of tensors does not require grad" in str(error):
            yield from self._nothing_trains(error)
        for text, code, what in _MEANINGS:
            if text in str(error):
                yield write(
                    code,
                    what,
                    [*self._creation(code), self._raised(error)],
                    evidence=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                    level="fault",
                )

    def _nothing_trains(self, error: BaseException) -> Iterator[Finding]:
        """Say so where the loss depends on nothing that requires a gradient; a cut has a finding of its own."""
        backward = self.session.last_backward
        escaped = any(escape.influence for escape in self.session.flow.notes.escapes.values())
        if backward is None or backward.influence or escaped:
            return
        frozen = [line for line, to in self.session.flow.notes.frozen_at.values() if not to]
        places = [self._raised(error), *(place("frozen", line) for line in dict.fromkeys(frozen))]
        what = "the loss depends on no parameter that requires a gradient"
        yield write("FL203", what, places[:4], do="leave what is to learn out of the freezing")

    def _creation(self, code: str) -> list[Place | None]:
        """Where an inference tensor came from."""
        if code != "FL110":
            return []
        return [place("made", line, "torch.inference_mode()") for line in self.session.flow.switches.inference]

    def _raised(self, error: BaseException) -> Place | None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
        if not frames:
            return None
        return place("raised", Line(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name))

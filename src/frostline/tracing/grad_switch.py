"""Who switched gradients off, and which `torch.no_grad()` was called and dropped."""

from __future__ import annotations

import dis
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.autograd import grad_mode

from frostline.patches import wrapped
from frostline.tracing.event import GradContext, GradSwitch
from frostline.where import Line, is_library, user_place

_TORCH = str(Path(torch.__file__).parent)


class GradSwitches:
    """Follows the grad mode of one thread, and says who switched it off.

    Attributes:
        context: Why gradients are off now; None while they are on.
        inference: Lines that entered inference mode.
        bare: Lines that call `torch.no_grad()` (or `inference_mode()`) and drop it.
    """

    def __init__(self) -> None:
        self.context: GradContext | None = None
        self.bare: set[Line] = set()
        self.inference: set[Line] = set()
        self._unused: dict[int, tuple[weakref.ref[Any], Line]] = {}

    @contextmanager
    def installed(self) -> Iterator[GradSwitches]:
        """Listen inside the block; the flow trace reports `_set_grad_enabled` to `switched`."""
        if not torch.is_grad_enabled():
            self.context = GradContext("unknown", None)
        with ExitStack() as stack:
            for kind in (grad_mode.no_grad, grad_mode.inference_mode):
                for name in ("__init__", "__enter__", "__call__"):
                    stack.enter_context(wrapped(kind, name, self._wrap(kind, name)))
            stack.enter_context(wrapped(grad_mode.inference_mode, "__exit__", self._leave_inference))
            yield self

    def switched(self, enabled: bool) -> None:
        """Autograd was told to record, or not to."""
        if enabled:
            self.context = None
        elif torch.is_grad_enabled():
            self.context = _context("no_grad")
        elif self.context is not None and self.context.kind == "set_grad_enabled" and _is_block():
            self.context = replace(self.context, kind="no_grad")  # `with set_grad_enabled(False)` comes twice

    def _wrap(self, kind: type, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def method(switch: Any, *args: Any, **kwargs: Any) -> Any:
                if name == "__init__":
                    self._remember(switch)
                else:
                    self._unused.pop(id(switch), None)
                was_enabled = torch.is_grad_enabled()
                result = original(switch, *args, **kwargs)
                if name == "__enter__" and kind is grad_mode.inference_mode and was_enabled and switch.mode:
                    self.context = _context("inference_mode")
                    if self.context.line is not None:
                        self.inference.add(self.context.line)
                return result

            return method

        return wrap

    def _leave_inference(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(switch: Any, *args: Any) -> Any:
            result = original(switch, *args)
            if torch.is_grad_enabled():
                self.context = None
            return result

        return method

    def _remember(self, switch: Any) -> None:
        frame = sys._getframe(2)
        if is_library(frame.f_code.co_filename):
            return  # a library's own affair
        if not _is_dropped(frame):
            return
        line, key = Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name), id(switch)

        def dropped(_: object) -> None:
            if self._unused.pop(key, None) is not None:
                self.bare.add(line)

        self._unused[key] = weakref.ref(switch, dropped), line


def _is_dropped(frame: FrameType) -> bool:
    """Whether the call that runs in a frame is a statement of its own."""
    code, place = frame.f_code.co_code, frame.f_lasti + 2
    while place < len(code) and code[place] == 0:  # CACHE
        place += 2
    return place < len(code) and code[place] == dis.opmap["POP_TOP"]


def reentrant_context() -> GradContext | None:
    """The activation checkpoint whose autograd.Function runs the forward now, with gradients off."""
    frame: FrameType | None = sys._getframe(2)
    inside: GradContext | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_filename.endswith("torch/utils/checkpoint.py"):
            inside = GradContext("checkpoint", None)
        elif inside is not None and not is_library(code.co_filename):
            return GradContext("checkpoint", Line(code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return inside


def _is_block() -> bool:
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.endswith("grad_mode.py"):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name == "__enter__"


def _context(kind: GradSwitch) -> GradContext:
    """Name the ``with``, the decorator or the call on the stack that switches gradients off now."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_TORCH):
            if code.co_name == "decorate_context" and "func" in frame.f_locals:
                decorated = getattr(frame.f_locals["func"], "__code__", None)
                if decorated is not None:
                    return GradContext(kind, _definition(decorated), decorated)
            elif code.co_filename.endswith("checkpoint.py") and code.co_name == "forward":
                kind = "checkpoint"
            elif code.co_filename.endswith("grad_mode.py"):
                switch = frame.f_locals.get("self")
                if isinstance(switch, torch.set_grad_enabled):
                    kind = "set_grad_enabled"
                elif isinstance(switch, torch.no_grad):
                    kind = "no_grad"  # which calls the former
        elif not is_library(code.co_filename):
            return GradContext(kind, Line(code.co_filename, frame.f_lineno, code.co_name), code)
        frame = frame.f_back
    return GradContext(kind, None)


def _definition(code: Any) -> Line | None:
    if is_library(code.co_filename):
        return user_place(3)
    return Line(code.co_filename, code.co_firstlineno, code.co_name)

"""Which lines of whose code are running: the user's, a library's, an activation checkpoint's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch

from frostline.where import Line, is_library

TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


class Located(NamedTuple):
    """Where an operator was called.

    Attributes:
        line: The user's line; the library's where no user code is on the stack.
        near: The line outside torch that is nearest to the operator, where it is not the user's.
        is_running: Whether the function that was asked for is on the stack.
    """

    line: Line | None
    near: Line | None
    is_running: bool


def locate(code: CodeType | None = None) -> Located:
    """Find the caller outside torch, and the user's caller outside all libraries.

    Args:
        code: A function to look for on the stack.
    """
    user: Line | None = None
    near: Line | None = None
    is_running = code is None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (user is None or not is_running):
        this = frame.f_code
        if user is None and not this.co_filename.startswith((TORCH, _HERE, "<")):
            if not is_library(this.co_filename):
                user = line_of(frame)
            elif near is None:
                near = line_of(frame)
        is_running = is_running or this is code
        frame = frame.f_back
    return Located(user or near, near if user else None, is_running)


def checkpoint_line() -> tuple[Line | None, Line | None]:
    """The user's line that called an activation checkpoint around what runs now, and the user's nearest line."""
    user: Line | None = None
    is_inside = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith("torch/utils/checkpoint.py"):
            is_inside = True
        elif not is_library(name):
            user = user or line_of(frame)
            if is_inside:
                return line_of(frame), user
        frame = frame.f_back
    return None, user


def apply_line() -> Line | None:
    """The user's line that called an autograd.Function whose forward runs now."""
    is_inside = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith("torch/autograd/function.py") and frame.f_code.co_name == "apply":
            is_inside = True
        elif is_inside and not is_library(name):
            return line_of(frame)
        frame = frame.f_back
    return None


def line_of(frame: FrameType) -> Line:
    """The line a frame is at."""
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def is_called_by_torch(depth: int) -> bool:
    """Whether the frame so far up belongs to torch."""
    return sys._getframe(depth + 1).f_code.co_filename.startswith(TORCH)

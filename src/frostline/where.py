"""The user's line: the nearest frame outside torch, the standard library and frostline."""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_PACKAGE = str(Path(__file__).parent)
_LIBRARY = tuple(
    str(Path(folder)) for folder in {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib", "scripts")}
)


class Line(NamedTuple):
    """A line of a source file, and the function it stands in."""

    path: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{Path(self.path).name}:{self.number}"


@cache  # asked for every frame of every traced operator
def is_library(filename: str) -> bool:
    """Whether a source file belongs to an installed library, to Python itself or to frostline."""
    return filename.startswith((_PACKAGE, *_LIBRARY, "<"))


def user_frame(depth: int = 1) -> FrameType | None:
    """The nearest calling frame that the user wrote; None where there is none.

    Args:
        depth: How many frames to leave out at once, the caller's own being 1.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def user_line(depth: int = 1) -> str:
    """``file.py:12`` of the nearest calling frame that the user wrote, or an empty text."""
    frame = user_frame(depth + 1)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""


def user_place(depth: int = 1) -> Line | None:
    """The line of the nearest calling frame that the user wrote; None where there is none."""
    frame = user_frame(depth + 1)
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name) if frame else None

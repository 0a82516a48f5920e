"""The run's log: window means as JSON lines, and what is odd about them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from frostline.errors import import_extra
from frostline.records import StepRecord, to_json
from frostline.units import GIB, format_bytes

_MAX_SKIPS_IN_A_ROW, _MAX_SKIPPED_SHARE = 3, 0.1
_MAX_RESERVED_RATIO, _MAX_SPARE_BYTES = 1.5, GIB
_MAX_DATA_SHARE = 0.3


class RunLog:
    """One line a phase every `log_every` steps: a `StepRecord` of means over the window.

    Means leave out skipped steps; rates, factors and counters are the last step's, the peak is the largest.
    A line ``{"warning": ..., "step": ...}`` stands where something odd was first seen. Only the main process
    starts a log.

    Args:
        path: The JSON lines file.
        log_every: Steps a window has.
        tensorboard: Also write the same numbers into ``tensorboard`` beside the file.
    """

    def __init__(self, path: Path, *, log_every: int, tensorboard: bool) -> None:
        self._path, self._log_every, self._tensorboard = path, log_every, tensorboard
        self._windows: dict[str, list[StepRecord]] = defaultdict(list)
        self._skips_in_a_row: dict[str, int] = defaultdict(int)
        self._warned: set[str] = set()
        self._peak_bytes = 0
        self._file: TextIO | None = None
        self._writer: Any = None

    def start(self, first_step: int) -> None:
        """Open the log behind step `first_step`; later lines, of a run that died, are dropped.

        Raises:
            MissingExtraError: TensorBoard was asked for and is not installed.
        """
        if self._tensorboard:
            tensorboard = import_extra("torch.utils.tensorboard", extra="tensorboard")
            self._writer = tensorboard.SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=first_step + 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        old = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self._file = self._path.open("w", encoding="utf-8")
        self._write(*(line for line in old if _step_of(line) <= first_step))

    def add(self, record: StepRecord) -> list[str]:
        """Take one phase's step; returns the warnings it gave rise to, each kind once a run."""
        self._windows[record.phase].append(record)
        row = self._skips_in_a_row[record.phase] = record.skipped * (self._skips_in_a_row[record.phase] + 1)
        self._peak_bytes = max(self._peak_bytes, record.peak_bytes)
        odd = {
            "skips": _skips(record) if row >= _MAX_SKIPS_IN_A_ROW else "",
            "fragmentation": _fragmentation(record.reserved_bytes, self._peak_bytes),
        }
        if record.step % self._log_every == 0:
            window = self._close_window(record.phase)
            num_skipped = sum(member.skipped for member in window)
            if num_skipped > max(1, _MAX_SKIPPED_SHARE * len(window)):
                odd["skips"] = _skips(record)
            if len(window) > 1:  # one step may be the one that started the workers
                odd["data"] = _data_wait(window)
        warnings = [text for kind, text in odd.items() if text and kind not in self._warned]
        self._warned |= {kind for kind, text in odd.items() if text}
        self._write(*(json.dumps({"warning": text, "step": record.step}) for text in warnings))
        return warnings

    def close(self) -> None:
        """Write the windows begun and let go of the files."""
        for phase in list(self._windows):
            self._close_window(phase)
        if self._file:
            self._file.close()
        if self._writer:
            self._writer.close()

    def _close_window(self, phase: str) -> list[StepRecord]:
        window = self._windows.pop(phase)
        mean = _window_mean(window)
        self._write(to_json(mean))
        if self._writer:
            for name, value in _scalars(mean).items():
                self._writer.add_scalar(f"{phase}/{name}", value, mean.step)
        return window

    def _write(self, *lines: str) -> None:
        if self._file:
            self._file.writelines(f"{line}\n" for line in lines)
            self._file.flush()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # the line a crash cut short
        return math.inf


def _window_mean(window: Sequence[StepRecord]) -> StepRecord:
    made = [record for record in window if not record.skipped] or window
    names = dict.fromkeys(name for record in made for name in record.terms)
    return replace(
        window[-1],
        loss=_mean(record.loss for record in made),
        terms={name: _mean(r.terms[name] for r in made if name in r.terms) for name in names},
        gradient_norm=_mean(record.gradient_norm for record in made),
        peak_bytes=max(record.peak_bytes for record in window),
        data_seconds=_mean(record.data_seconds for record in window),
        step_seconds=_mean(record.step_seconds for record in window),
    )


def _mean(values: Iterable[float]) -> float:
    """Unlike `statistics.fmean`, no error where a diverged run holds both infinities."""
    held = list(values)
    return sum(held) / len(held)


def _scalars(record: StepRecord) -> dict[str, float]:
    return {
        "loss": record.loss,
        **{f"terms/{name}": value for name, value in record.terms.items()},
        "learning_rate": record.learning_rate,
        "gradient_norm": record.gradient_norm,
        "loss_scale": record.loss_scale,
        "num_skipped": record.num_skipped,
        "peak_bytes": record.peak_bytes,
        "step_seconds": record.step_seconds,
    }


def _skips(record: StepRecord) -> str:
    return (
        f"phase {record.phase!r} skips updates for non-finite gradients, {record.num_skipped} of"
        f" {record.step} so far, at a loss scale of {record.loss_scale:g}; if it goes on,"
        " take --training.precision bf16-mixed"
    )


def _fragmentation(reserved_bytes: int, peak_bytes: int) -> str:
    if reserved_bytes <= _MAX_RESERVED_RATIO * peak_bytes or reserved_bytes - peak_bytes <= _MAX_SPARE_BYTES:
        return ""
    return (
        f"the allocator holds {format_bytes(reserved_bytes)} for a peak of {format_bytes(peak_bytes)}: it is"
        " fragmented; set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    )


def _data_wait(window: Sequence[StepRecord]) -> str:
    waited = sum(record.data_seconds for record in window)
    share = waited / (waited + sum(record.step_seconds for record in window))
    if share <= _MAX_DATA_SHARE:
        return ""
    return (
        f"{share:.0%} of the time is spent waiting for data: raise --data.num-workers (2 to 4 from an SSD);"
        " on CUDA see that the batch's `pin_memory` pins every tensor"
    )

"""Measure one step of a system, or predict it; measure the training steps of any script."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from frostline.config import RunConfig
from frostline.errors import ConfigError
from frostline.memory import MeasuredRun, Workload, chrome_trace, estimate, measure, memory_snapshot, recording
from frostline.records import MemoryReport
from frostline.workflow.planning import planned
from frostline.workflow.script import ScriptEnd, StopScript, run_script
from frostline.workflow.session import Device, make_directory, open_group, verbs_of


@dataclass(frozen=True)
class Exports:
    """Files that a measurement also writes.

    Attributes:
        trace: A Chrome trace of the step, for ui.perfetto.dev.
        snapshot: A memory snapshot, for pytorch.org/memory_viz.
    """

    trace: Path | None = None
    snapshot: Path | None = None


def measure_system(
    config: RunConfig, *, fake: bool = False, device: Device = "auto", exports: Exports | None = None
) -> MemoryReport:
    """Where the bytes of one training step go.

    Args:
        config: Of any system.
        fake: Predict on fake tensors.
        device: Where a real step runs; ``auto`` takes a GPU where there is one. With `fake`, what to predict for:
            ``cuda`` needs no GPU, ``auto`` is the CPU.
        exports: What else to write.

    Raises:
        ConfigError: A value cannot be used, nothing trains, or a file cannot be written.
        DataError: The data cannot be used.
        DeviceError: The device is not there.
    """
    verbs = verbs_of(config)
    with _exporting(exports):
        if fake:
            return _estimate(config, "cuda" if device == "cuda" else "cpu")
        group = open_group(device)
        try:
            system = verbs.build(config, group, None)
            if not system.phases:
                raise ConfigError("the system has 0 trainable parameters: there is no training step to measure")
            work = system.workload()
            system.release_upstream_()
            with planned(config, work):
                return measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)
        finally:
            group.close()


def _estimate(config: RunConfig, device: Literal["cpu", "cuda"]) -> MemoryReport:
    build_model, build_workload = verbs_of(config).blueprint(config)
    with ExitStack() as stack:

        def build_planned(model: nn.Module) -> Workload:
            work = build_workload(model)
            stack.enter_context(planned(config, work))
            return work

        return estimate(build_model, build_planned, device=device)


def measure_script(
    path: str | Path,
    arguments: Sequence[str] = (),
    *,
    num_steps: int = 2,
    module: bool = False,
    quiet: bool = False,
    exports: Exports | None = None,
) -> tuple[MemoryReport, ScriptEnd]:
    """Where the bytes of an unmodified script's training steps go; it is stopped when they are seen.

    Args:
        path: The script, or with `module` the dotted name of a module.
        arguments: Of the script.
        num_steps: Training steps to see, of each phase. The first of them makes the optimizer state and counts only
            where it is the only one. A script without one is measured as a whole.
        module: Whether `path` names a module.
        quiet: Send the script's standard output to standard error.
        exports: What else to write.

    Returns:
        What was found until the script ended, and how it ended.

    Raises:
        ConfigError: There is no such script, or a file cannot be written.
    """
    with _exporting(exports):
        run = MeasuredRun(num_steps, _stop)
        end = run_script(path, arguments, under=run, module=module, quiet=quiet)
        return run.report(), end


def _stop() -> None:
    raise StopScript


@contextmanager
def _exporting(exports: Exports | None) -> Iterator[None]:
    """Write what is measured inside to files, too; whether they can be is found out before."""
    if exports is None or exports == Exports():
        yield
        return
    files = [file.absolute() for file in (exports.trace, exports.snapshot) if file is not None]
    for file in files:
        make_directory(file.parent)
        _write(file, b"", "ab")
    with recording(stacks=exports.snapshot is not None) as kept:
        yield
    log, device = kept.logs[-1]
    if exports.trace is not None:
        _write(exports.trace, json.dumps(chrome_trace(log, device)).encode())
    if exports.snapshot is not None:
        _write(exports.snapshot, pickle.dumps(memory_snapshot(log, device), protocol=4))  # its viewer reads 2 to 4


def _write(file: Path, content: bytes, mode: str = "wb") -> None:
    try:
        with file.open(mode) as stream:
            stream.write(content)
    except OSError as error:
        raise ConfigError(f"the file cannot be written: {error.strerror}", where=str(file)) from None

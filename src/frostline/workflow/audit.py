"""Audit the training steps of any script, or of a system: is the gradient whole?"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from frostline.config import RunConfig
from frostline.errors import ConfigError
from frostline.gradflow import Audit, Intent, audit
from frostline.memory import Workload
from frostline.records import AuditReport
from frostline.workflow.comments import unused_comments
from frostline.workflow.script import ScriptEnd, StopScript, run_script
from frostline.workflow.session import Device, Intending, TrainableSystem, open_group, verbs_of


def audit_script(
    path: str | Path,
    arguments: Sequence[str] = (),
    *,
    learn: Iterable[str] | str = (),
    stay: Iterable[str] | str = (),
    flow: Mapping[str, Iterable[str] | str] | None = None,
    accept: Iterable[str] = (),
    num_steps: int = 3,
    probe: bool = False,
    module: bool = False,
    quiet: bool = False,
) -> tuple[AuditReport, ScriptEnd]:
    """Audit the training steps of an unmodified script; it is stopped when they are seen.

    Args:
        path: The script, or with `module` the dotted name of a module.
        arguments: Of the script.
        learn: Globs of what should learn; what the optimizers hold where nothing is declared.
        stay: Globs of what must not move.
        flow: By loss term: globs of what it should train, and nothing else.
        accept: Codes of findings to accept.
        num_steps: Training steps to see, of each phase.
        probe: Prove or refute every suspected cut by finite differences in float64; the script is run again, silenced,
            some times for each.
        module: Whether `path` names a module.
        quiet: Send the script's standard output to standard error.

    Returns:
        What was found until the script ended, and how it ended. An exception of the script is among the faults where
        the audit knows its cause.

    Raises:
        ConfigError: There is no such script, or no such code; or the script ran, and a glob of `learn` or `stay`
            matches nothing of it.
    """
    watch = _Watch(Audit(Intent.of(learn, stay, flow), accept, enough=lambda _: watch.look()), num_steps)
    end = run_script(path, arguments, under=watch.running(), module=module, quiet=quiet)
    if watch.audit.num_steps and not end.exit_code:
        watch.audit.check_intent()
    report = watch.audit.report()
    report = replace(
        report,
        not_examined=(*report.not_examined, *watch.left_out(end)),
        unused_comments=tuple(unused_comments(report, () if module else (os.path.abspath(path),))),  # noqa: PTH100
    )
    if probe and end.reason != "interrupted":
        again = partial(run_script, path, arguments, module=module, quiet=True)
        report = watch.audit.probe_script(report, again, end=StopScript)
    return report, end


class _Watch:
    """An audit that stops its script as soon as it has seen enough."""

    def __init__(self, audit: Audit, num_steps: int) -> None:
        self.audit, self._num_steps = audit, num_steps
        self._home = os.getpid(), threading.get_ident()
        self._running = False

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.audit.running():
            self._running = True
            yield
            self._running = False  # the last step ends with the script: there is nothing left to stop

    def look(self) -> None:
        at_home = (os.getpid(), threading.get_ident()) == self._home  # not in a loader's process, nor in a thread
        if self._running and at_home and self.audit.has_seen(self._num_steps):
            raise StopScript

    def left_out(self, end: ScriptEnd) -> tuple[str, ...]:
        """What the end of the script left unseen."""
        seen = self.audit.num_steps
        steps = "1 step" if seen == 1 else f"{seen or 'no'} steps"
        after = f"what comes after {steps}" if seen else "everything"
        if end.reason == "interrupted":
            return (f"interrupted after {steps}",)
        if end.reason == "stopped":
            return (f"{after}: the audit stopped the script there, {self._num_steps} of each phase were asked for",)
        if end.reason == "failed":
            first_line = str(end.error).partition("\n")[0]
            return (f"{after}: the script failed there by {type(end.error).__name__}: {first_line}".rstrip(": "),)
        if end.exit_code:
            return (f"{after}: the script exited there with code {end.exit_code}",)
        if seen and not self.audit.has_seen(self._num_steps):
            return (f"{after}: the script ended there by itself, before {self._num_steps} of each phase",)
        return ()


def audit_system(
    config: RunConfig,
    *,
    learn: Iterable[str] | str = (),
    stay: Iterable[str] | str = (),
    flow: Mapping[str, Iterable[str] | str] | None = None,
    accept: Iterable[str] = (),
    num_steps: int = 1,
    probe: bool = False,
    device: Device = "auto",
) -> AuditReport:
    """Audit the training step of a system.

    Args:
        config: Of any system.
        learn: Globs of what should learn; what the system's optimizers hold where nothing is declared.
        stay: Globs of what must not move; what the system froze where nothing is declared.
        flow: By loss term: globs of what it should train, and nothing else.
        accept: Codes of findings to accept.
        num_steps: How often the step is run.
        probe: Prove or refute every suspected cut by finite differences in float64.
        device: Where it runs; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: A value cannot be used, or nothing trains.
        DataError: The data cannot be used.
        DeviceError: The device is not there.
    """
    verbs = verbs_of(config)
    group = open_group(device)
    try:
        system = verbs.build(config, group, None)
        if not system.phases:
            raise ConfigError("the system has 0 trainable parameters: there is no training step to audit")
        work = system.workload()
        system.release_upstream_()
        return audit_workload(
            work, system, learn=learn, stay=stay, flow=flow, accept=accept, num_steps=num_steps, probe=probe
        )
    finally:
        group.close()


def audit_workload(
    work: Workload,
    system: TrainableSystem,
    *,
    learn: Iterable[str] | str = (),
    stay: Iterable[str] | str = (),
    flow: Mapping[str, Iterable[str] | str] | None = None,
    accept: Iterable[str] = (),
    num_steps: int = 1,
    probe: bool = False,
) -> AuditReport:
    """Audit a system's step against what the system means to train; everything is afterwards as it was.

    Args:
        work: The step, of the system's model.
        system: Says what trains: its phases' optimizers; the rest must stay.
        learn: Globs of what should learn, instead of what the system says, or the step's optimizers hold.
        stay: Globs of what must not move, instead of what no phase trains.
        flow: By loss term: globs of what it should train, and nothing else.
        accept: Codes of findings to accept.
        num_steps: How often the step is run.
        probe: Prove or refute every suspected cut by finite differences in float64.
    """
    learn = learn or (system.learning() if isinstance(system, Intending) else ())
    named = list(work.model.named_parameters())
    stepped = {id(p) for optimizer in work.optimizers for group in optimizer.param_groups for p in group["params"]}
    moving = stepped | {id(parameter) for phase in system.phases for parameter in phase.parameters}
    if learn:
        asked = Intent.of(learn)
        moving |= {id(parameter) for name, parameter in named if asked.should_learn(name)}
    learn = learn or [name for name, parameter in named if id(parameter) in stepped]
    stay = stay or list(_standing(work.model, moving))
    return audit(
        work.step,
        work.model,
        work.optimizers,
        learn=learn,
        stay=stay,
        flow=flow,
        accept=accept,
        steps=num_steps,
        probe=probe,
    )


def _standing(module: nn.Module, moving: set[int], prefix: str = "") -> Iterator[str]:
    """Globs of the outermost modules with parameters, none of which moves."""
    inside = [id(parameter) in moving for parameter in module.parameters()]
    if inside and not any(inside):
        yield f"{prefix}*"
    elif inside:
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in moving:
                yield prefix + name
        for name, child in module.named_children():
            yield from _standing(child, moving, f"{prefix}{name}.")

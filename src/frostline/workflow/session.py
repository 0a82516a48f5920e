"""What every verb on a system starts with: its device, its modules, its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import nn

from frostline.config import RunConfig
from frostline.errors import ConfigError, DeviceError
from frostline.memory import Workload
from frostline.records import Component, EvaluationReport, PeakTable, Plan, ProofReport, StepRecord
from frostline.systems.registry import system_verbs
from frostline.training import Group, Observer, System

Device = Literal["auto", "cpu", "cuda"]


class TrainableSystem(System, Protocol):
    """What the workflow asks of a system beyond what the engine needs."""

    def components(self) -> tuple[Component, ...]:
        """Its parts, for the run's header."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know, for the header."""
        ...

    def fill_cache(self, progress: Callable[[int, int], None]) -> None:
        """Compute what is computed once."""
        ...

    def release_upstream_(self) -> None:
        """Let go of what is no longer needed once the cache is full."""
        ...

    def workload(self) -> Workload:
        """One training step, to be measured."""
        ...


@runtime_checkable
class Intending(Protocol):
    """What a system also has that says by name what it means to train, whatever its optimizers hold."""

    def learning(self) -> tuple[str, ...]:
        """Globs of parameters."""
        ...


class Verbs(Protocol):
    """A system's module of verbs."""

    TRAINABLES: str

    def build(self, config: RunConfig, group: Group, directory: Path | None) -> TrainableSystem:
        """The system a configuration describes."""
        ...

    def blueprint(self, config: RunConfig) -> tuple[Callable[[], nn.Module], Callable[[Any], Workload]]:
        """How to build the model, and a training step for it, from shapes alone."""
        ...

    def peak_table(self, config: RunConfig) -> PeakTable:
        """The run's own step beside the plain ones, really run."""
        ...

    def evaluate(self, system: TrainableSystem, baselines: bool, note: Callable[[str], None]) -> EvaluationReport:
        """How good it is."""
        ...


@runtime_checkable
class OwnTreatments(Protocol):
    """What the verbs of a system also have whose network is treated from inside, not by the planner."""

    def plan(self, config: RunConfig) -> Plan:
        """The cheapest of its treatments that fits `memory.budget`."""
        ...

    def prove(self, config: RunConfig, plan: Plan | None, group: Group) -> tuple[ProofReport, Plan]:
        """Compare a training step under a plan, or under the configuration, with the plain one."""
        ...


@runtime_checkable
class OwnPlan(Protocol):
    """What a system also has that was built by a plan of its verbs' own (`OwnTreatments`)."""

    plan: Plan | None


@runtime_checkable
class Generative(Protocol):
    """What the verbs of a system also have that makes something to look at."""

    def generate(self, system: TrainableSystem, directory: Path, note: Callable[[str], None]) -> list[Path]:
        """Write files, and say which."""
        ...


@runtime_checkable
class OwnGeneration(Protocol):
    """What the verbs of a system also have that makes what it is asked for, from a run or from other files.

    Its configuration's module then has ``GENERATE_OPTIONS``, the dataclass of the request.
    """

    def generate_from(
        self,
        config: RunConfig,
        options: Any,
        group: Group,
        *,
        checkpoint: Path | None,
        out: Path | None,
        note: Callable[[str], None],
    ) -> list[Path]:
        """Write files, and say which."""
        ...


class RunObserver(Observer, Protocol):
    """Who is told how a run goes, from its header on."""

    def introduced(self, components: tuple[Component, ...], notes: tuple[str, ...]) -> None:
        """The system is built."""
        ...

    def filling(self, done: int, total: int) -> None:
        """The feature cache is being filled."""
        ...

    def note(self, text: str) -> None:
        """Something is going on that takes a while."""
        ...


class _Silent:
    """Tells nobody."""

    def introduced(self, components: tuple[Component, ...], notes: tuple[str, ...]) -> None: ...

    def filling(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...

    def started(self, total_steps: int, first_step: int) -> None: ...

    def stepped(self, record: StepRecord) -> None: ...

    def warned(self, text: str) -> None: ...

    def saved(self, path: Path) -> None: ...


SILENT: RunObserver = _Silent()


def verbs_of(config: RunConfig) -> Verbs:
    """A system's verbs; imports torch and all the system needs.

    Raises:
        ConfigError: It is no configuration.
        MissingExtraError: A package the system needs is not installed.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"{config!r} is not a configuration", do="give one such as frostline.systems.semcom.SemcomConfig()"
        )
    return cast(Verbs, system_verbs(config.SYSTEM))


def open_group(device: Device) -> Group:
    """Join the run's processes on a device.

    Raises:
        DeviceError: There is no GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no GPU that torch can use", do="leave out --device cuda")
    return Group.open(device)


def new_directory(out: Path) -> None:
    """Make the directory of a new run.

    Raises:
        ConfigError: It holds a run already, or cannot be made.
    """
    if (out / "resume.pt").exists():
        raise ConfigError(
            "the directory holds a run already", where=str(out), do="add --resume, or choose another --out"
        )
    make_directory(out)


def make_directory(out: Path) -> None:
    """Make a directory that results go to; one that is there already will do.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the directory cannot be made: {error.strerror}", where=str(out)) from None

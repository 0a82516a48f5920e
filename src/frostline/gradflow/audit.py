"""Audit a step, or whatever runs inside a block: is the gradient whole?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import ConfigError, StepError
from frostline.gradflow.acceptance import accept, check_codes
from frostline.gradflow.cuts import Cuts
from frostline.gradflow.dead_graphs import DeadGraphs
from frostline.gradflow.equivalence import Equivalence
from frostline.gradflow.failures import Failures
from frostline.gradflow.intent import Intent, matches
from frostline.gradflow.intents import Intents
from frostline.gradflow.optimizers import Optimizers
from frostline.gradflow.penalties import Penalties
from frostline.gradflow.precision import Precision
from frostline.gradflow.probe import probe_script, probe_step
from frostline.gradflow.rerun import Ended
from frostline.gradflow.roles import Roles
from frostline.gradflow.session import Session
from frostline.gradflow.states import States
from frostline.gradflow.suspects import Suspects, with_evidence
from frostline.gradflow.terms import Terms
from frostline.gradflow.waste import Waste
from frostline.records import AuditedPhase, AuditReport, Finding
from frostline.regions import optimizers_of, preserved

Models = nn.Module | Mapping[str, nn.Module] | None
_LEVELS = ("fault", "cost", "note")


class Audit:
    """A running audit: what it watches, and what it has found so far.

    Args:
        intent: What the author declared.
        accepted: Codes of findings the author accepts.
        enough: Asked after every step; raises when it has seen enough.
    """

    def __init__(
        self,
        intent: Intent | None = None,
        accepted: Iterable[str] = (),
        enough: Callable[[Audit], None] | None = None,
    ) -> None:
        self._accepted = check_codes(accepted)
        self._session = Session(intent or Intent(), None if enough is None else lambda _: enough(self))
        self._set_up()

    def watch(self, module: nn.Module, name: str = "") -> None:
        """Name a module that could not be given before."""
        self._session.watch(module, name)

    def watch_optimizer(self, optimizer: Optimizer) -> None:
        """Know an optimizer that was made before the audit began."""
        self._session.watch_optimizer(optimizer)

    def watch_tensor(self, tensor: Tensor, name: str) -> None:
        """Name a tensor that is in no module, a trainable vector for example."""
        self._session.names.add_tensor(tensor, name)
        if tensor.requires_grad and tensor.is_leaf:
            self._session.leaves.add(tensor)

    def keep_originals(self) -> None:
        """Remember what parameters were before the program itself writes to them, as it does to averages."""
        self._session.flow.notes.originals = {}

    def put_back_(self) -> None:
        """Write the remembered values back."""
        for parameter, values in (self._session.flow.notes.originals or {}).values():
            with torch.no_grad():
                parameter.copy_(values)

    def check_intent(self) -> None:
        """Hold declared globs against the names there are.

        Raises:
            ConfigError: One matches nothing.
        """
        session = self._session
        names = [name for name, _ in (*session.names.parameters(), *session.names.buffers())]
        names += [session.names.leaf(leaf) for leaf in session.leaves.all]
        for glob in (*session.intent.learn, *session.intent.stay):
            if not any(matches(name, (glob,)) for name in names):
                known = ", ".join(sorted(names)[:12]) + (", ..." if len(names) > 12 else "")
                raise ConfigError(f"{glob!r} matches no parameter and no buffer", do=f"the names are {known}")

    def terms(self, **terms: Tensor) -> None:
        """Name the terms of the next loss, before it goes backward."""
        self._terms.name(terms)

    def prepared(self) -> None:
        """What ran so far was preparation: findings are about what follows, lines may be of what went before."""
        self._session.prepared()
        self._set_up()

    def _set_up(self) -> None:
        session = self._session
        cuts = Cuts(session)
        self._terms, self._roles, self._suspects = Terms(session), Roles(session), Suspects(session)
        session.rules = [
            cuts,
            self._terms,
            Optimizers(session, lambda: cuts.explained),
            Intents(session),
            States(session),
            Equivalence(session),
            Precision(session),
            Penalties(session),
            Waste(session),
            DeadGraphs(session),
            Failures(session),
            self._roles,
            self._suspects,
        ]

    @contextmanager
    def running(self) -> Iterator[Audit]:
        """Watch what runs inside the block."""
        with self._session.running():
            yield self

    @property
    def num_steps(self) -> int:
        """Steps seen so far."""
        return self._session.num_steps

    def has_seen(self, num_steps: int) -> bool:
        """Whether every phase has had so many steps, and every optimizer that was made has stepped."""
        phases = self._session.phases.values()
        if not phases:
            return False
        idle = [use for use in self._session.procedure.optimizers.values() if not use.num_updates]
        waiting = any(phase.num_steps < num_steps for phase in phases) or bool(idle)
        return not waiting or self.num_steps >= 10 * num_steps

    def report(self) -> AuditReport:
        """Everything found so far."""
        session = self._session
        found: dict[Finding, None] = {}
        for rule in session.rules:
            found.update(dict.fromkeys(rule.findings()))
        findings = [accept(finding, self._accepted) for finding in found]
        findings.sort(key=lambda finding: (_LEVELS.index(finding.level), finding.code, finding.what))
        return AuditReport(
            findings=tuple(findings),
            phases=tuple(self._phases()),
            roles=self._roles.table(),
            terms=self._terms.table(),
            not_examined=tuple(self._not_examined()),
            num_steps=session.num_steps,
            wall_seconds=session.wall_seconds,
            method="fake" if session.is_fake else "real",
        )

    def probe(self, report: AuditReport, program: Callable[[], object]) -> AuditReport:
        """Prove or refute a report's suspected cuts by finite differences, on a step that can be run again."""
        session, suspects = self._session, self._suspects.of(report)
        differences = probe_step(
            program,
            [suspect.question for suspect in suspects],
            modules=session.names.roots.values(),
            optimizers=[use.optimizer for use in session.procedure.optimizers.values()],
            learners=[target.tensor for target in self._suspects.learners() if target.tensor is not None],
        )
        return with_evidence(report, suspects, differences)

    def probe_script(
        self, report: AuditReport, run_once: Callable[[], object], end: type[BaseException] = Ended
    ) -> AuditReport:
        """The same for a whole script, run again by `run_once` and ended by raising `end` in it."""
        suspects = self._suspects.of(report)
        questions = [suspect.question for suspect in suspects]
        return with_evidence(
            report, suspects, probe_script(run_once, questions, learners=self._suspects.learners(), end=end)
        )

    def _phases(self) -> Iterator[AuditedPhase]:
        session = self._session
        for (optimizers, lines), phase in session.phases.items():
            uses = [session.procedure.optimizers[key] for key in optimizers]
            names = " + ".join(type(use.optimizer).__name__ for use in uses)
            at = ", ".join(str(line) for line in lines if line is not None)
            yield AuditedPhase(
                name=f"{names} after {at}" if at else names,
                num_steps=phase.num_steps,
                num_backwards=phase.num_backwards,
                num_skipped=phase.num_skipped,
                num_parameters=phase.held.bit_count(),
                num_reached=phase.reached.bit_count(),
            )

    def _not_examined(self) -> Iterator[str]:
        session = self._session
        if not session.num_steps:
            yield "no optimizer stepped: nothing can be said of what trains"
        if session.is_fake:
            yield "values: fake tensors have none, so zero and NaN gradients, movement and equality are not looked at"
        for use in session.procedure.optimizers.values():
            if not use.num_updates and session.num_steps:
                at = f" made at {use.made_at}" if use.made_at else ""
                yield f"{type(use.optimizer).__name__}{at} did not step"
        seen = {row.term for row in self._terms.table()}
        for term in session.intent.flow.keys() - seen:
            yield f"loss term {term!r} was declared, and no loss has a term of this name"
        if any(phase.num_steps < 2 for phase in session.phases.values()):
            yield "what shows only from the second step on, such as gradients that are not cleared"


@contextmanager
def auditing(
    model: Models = None,
    optimizers: Iterable[Optimizer] | Optimizer = (),
    *,
    learn: Iterable[str] | str = (),
    stay: Iterable[str] | str = (),
    flow: Mapping[str, Iterable[str] | str] | None = None,
    accept: Iterable[str] = (),
) -> Iterator[Audit]:
    """Audit whatever runs inside the block; models and optimizers that are not given are found when they are used.

    The block runs as it is, and moves what it moves; the audit itself leaves nothing behind. Keep it to a few steps.

    Args:
        model: Gives parameters their names; several by name.
        optimizers: All that step.
        learn: Globs of what should learn; what the optimizers hold where nothing is declared.
        stay: Globs of what must not move.
        flow: By loss term: globs of what it should train, and nothing else.
        accept: Codes of findings to accept.

    Example:
        >>> with auditing(model, optimizer) as audit:  # doctest: +SKIP
        ...     train_one_step()
        >>> audit.report().faults  # doctest: +SKIP
        ()
    """
    audit = Audit(Intent.of(learn, stay, flow), accept)
    _watch(audit, model, optimizers)
    with audit.running():
        yield audit


def audit(
    step: Callable[[], object],
    model: Models = None,
    optimizers: Iterable[Optimizer] | Optimizer = (),
    *,
    learn: Iterable[str] | str = (),
    stay: Iterable[str] | str = (),
    flow: Mapping[str, Iterable[str] | str] | None = None,
    accept: Iterable[str] = (),
    steps: int = 1,
    probe: bool = False,
) -> AuditReport:
    """Run a training step, and say whether the gradient is whole; model and optimizers are afterwards as they were.

    Works on real tensors and, inside `fake_tensors()`, on fake ones.

    Args:
        step: Forward, backward and update.
        model: Gives parameters their names; several by name.
        optimizers: All that step.
        learn: Globs of what should learn; what the optimizers hold where nothing is declared.
        stay: Globs of what must not move.
        flow: By loss term: globs of what it should train, and nothing else.
        accept: Codes of findings to accept.
        steps: How often the step is run; more tell more.
        probe: Prove or refute every suspected cut by finite differences in float64: the step is run again, some
            times for each, up to a backward pass.

    Raises:
        StepError: The step raised an error that the audit cannot explain.
    """
    __tracebackhide__ = True
    if not callable(step):
        raise StepError(f"the step is {step!r:.60}, not a function", do="give the function itself, without calling it")
    given: object = model
    if not (given is None or isinstance(given, (nn.Module, Mapping))):
        what = f"the model is of type {type(given).__name__}, not a module"
        raise StepError(what, do="give step, model, optimizers in this order; the model may be None")
    if steps < 1:
        raise StepError(f"{steps} steps cannot be audited", do="audit one step or more")
    optimizers = optimizers_of(optimizers)
    running = Audit(Intent.of(learn, stay, flow), accept)
    running.keep_originals()
    _watch(running, model, optimizers)

    def run() -> None:
        for _ in range(steps):
            step()

    with ExitStack() as stack:
        for module in _modules(model).values() or (nn.Module(),):  # what optimizers hold is put back in any case
            stack.enter_context(preserved(module, optimizers))
        stack.callback(running.put_back_)
        try:
            with running.running():
                run()
        except Exception as error:
            report = running.report()
            if not report.faults:
                raise StepError(f"the step raised {type(error).__name__}: {error}") from error
        else:
            report = running.report()
    return running.probe(report, run) if probe else report


def assert_gradients_flow(
    step: Callable[[], object],
    model: Models = None,
    optimizers: Iterable[Optimizer] | Optimizer = (),
    *,
    learn: Iterable[str] | str = (),
    stay: Iterable[str] | str = (),
    flow: Mapping[str, Iterable[str] | str] | None = None,
    accept: Iterable[str] = (),
    steps: int = 1,
) -> AuditReport:
    """For tests: audit a step, and fail with the findings' texts where there is a fault. See `audit`.

    Raises:
        AssertionError: There is a fault that is not accepted.
        StepError: The step raised an error that the audit cannot explain.
    """
    __tracebackhide__ = True
    report = audit(step, model, optimizers, learn=learn, stay=stay, flow=flow, accept=accept, steps=steps)
    if report.faults:
        raise AssertionError("\n\n".join(str(finding) for finding in report.faults))
    return report


def _watch(audit: Audit, model: Models, optimizers: Iterable[Optimizer] | Optimizer) -> None:
    for name, module in _modules(model).items():
        audit.watch(module, name)
    for optimizer in (optimizers,) if isinstance(optimizers, Optimizer) else optimizers:
        audit.watch_optimizer(optimizer)


def _modules(model: Models) -> dict[str, nn.Module]:
    if model is None:
        return {}
    return {"": model} if isinstance(model, nn.Module) else dict(model)

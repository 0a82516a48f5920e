"""Run a user's script in this process as `python script.py` would, and leave no trace of it."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, Literal, TextIO

import numpy as np
import torch

import frostline
from frostline.errors import ConfigError, FrostlineError
from frostline.where import is_library, user_frame

_PACKAGE = str(Path(frostline.__file__).parent)
_TORCH_STATE: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)


class StopScript(BaseException):
    """Raised by an instrument that has seen enough: the script ends here."""


@dataclass(frozen=True)
class ScriptEnd:
    """How a script ended.

    Attributes:
        reason: ``finished`` at its last line, ``exited`` by `sys.exit`, ``failed`` by an exception, ``stopped`` by
            `StopScript`, ``interrupted`` by Ctrl-C.
        exit_code: What the shell would have seen; 0 where it was stopped.
        error_text: What was written to standard error about the end: a traceback without our frames, or the text
            given to `sys.exit`.
        error: The exception that it failed by.
    """

    reason: Literal["finished", "exited", "failed", "stopped", "interrupted"]
    exit_code: int = 0
    error_text: str = ""
    error: BaseException | None = None


def run_script(
    path: str | Path,
    arguments: Sequence[str] = (),
    *,
    under: AbstractContextManager[object] | None = None,
    module: bool = False,
    quiet: bool = False,
) -> ScriptEnd:
    """Run a script to its end, whatever that is.

    It is `__main__`, with its own `sys.argv` and its folder first in `sys.path`, so that it can pickle its classes,
    import its neighbours and start workers. Afterwards `__main__`, `sys.argv`, `sys.path`, the working directory,
    environment variables, standard streams, modules imported from its folder, random states and torch's global
    settings are what they were. Its threads, `atexit` and signal handlers and open files are its own affair.

    Args:
        path: The script, or the dotted name of a module to run as `python -m` does.
        arguments: What follows it in `sys.argv`.
        under: Entered around the script alone; it may raise `StopScript` from the script's calls.
        module: Whether `path` names a module.
        quiet: Send all that the script and its children write to standard output to standard error.

    Raises:
        ConfigError: There is no such script or module, or it is not Python.
        BrokenPipeError: Nobody reads what it prints any more.
    """
    with _same_interpreter(), _same_settings(), _warnings_at_its_lines():
        sys.argv[:] = [str(path), *arguments]
        folder = str(Path.cwd() if module else Path(path).resolve().parent)
        with _imports_from(folder), _stdout_on_stderr() if quiet else nullcontext():
            main = code = None
            try:
                main, code = _load_module(str(path)) if module else _load_script(Path(path))
                sys.modules["__main__"] = main
                with under or nullcontext():
                    exec(code, main.__dict__)
                return ScriptEnd("finished")
            except FrostlineError as error:
                if code is None:
                    raise
                return _failed(error)
            except BaseException as error:
                return _end_of(error)


def _end_of(error: BaseException) -> ScriptEnd:
    if isinstance(error, StopScript):
        return ScriptEnd("stopped")
    if isinstance(error, KeyboardInterrupt):
        return ScriptEnd("interrupted", 130)
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        raise error  # as behind `| head`, which is no failure of the script
    if not isinstance(error, SystemExit):
        return _failed(error)
    if error.code is None or isinstance(error.code, int):
        return ScriptEnd("exited", error.code or 0)
    sys.stderr.write(f"{error.code}\n")
    return ScriptEnd("exited", 1, str(error.code))


def _nobody_reads() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _failed(error: BaseException) -> ScriptEnd:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = _without_our_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    sys.excepthook(type(error), error, error.__traceback__)  # the script may have brought its own
    return ScriptEnd("failed", 1, "".join(traceback.format_exception(error)), error)


def _without_our_frames(frames: TracebackType | None) -> TracebackType | None:
    if frames is None:
        return None
    rest = _without_our_frames(frames.tb_next)
    if frames.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        return rest
    return TracebackType(rest, frames.tb_frame, frames.tb_lasti, frames.tb_lineno)


def _load_script(path: Path) -> tuple[ModuleType, CodeType]:
    file = os.path.abspath(path)  # noqa: PTH100  # as Python does, which leaves links as they are
    if path.is_dir():
        raise ConfigError("the script is a directory", where=str(path), do="name the Python file in it to run")
    try:
        with io.open_code(file) as source:
            code = compile(source.read(), file, "exec", dont_inherit=True)
    except OSError as error:
        do = "give the path of a Python file, from the directory you are in"
        raise ConfigError(f"cannot read the script: {error.strerror}", where=str(path), do=do) from None
    except SyntaxError as error:
        where = f"{path}:{error.lineno}" if error.lineno else str(path)
        raise ConfigError(f"the script is not Python: {error.msg}", where=where, do="check it with python") from None
    except ValueError as error:  # a null byte
        raise ConfigError(f"the script is not Python: {error}", where=str(path), do="give a source file") from None
    main = _new_main(file, None)
    main.__loader__ = SourceFileLoader("__main__", file)
    return main, code


def _load_module(name: str) -> tuple[ModuleType, CodeType]:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a package on the way imports something that is not there
        spec = None
    except ValueError:
        spec = None
    code = spec.loader.get_code(spec.name) if spec and isinstance(spec.loader, SourceFileLoader) else None
    if spec is None or spec.origin is None or code is None:
        do = "write it as for python -m, from the directory its package lies in"
        raise ConfigError(f"there is no module {name!r} that can be run", where=str(Path.cwd()), do=do)
    main = _new_main(spec.origin, spec.parent)
    main.__spec__, main.__loader__ = spec, spec.loader
    sys.argv[0] = spec.origin
    return main, code


def _new_main(file: str, package: str | None) -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__file__=file, __package__=package, __builtins__=builtins, __cached__=None)
    return main


@contextmanager
def _same_interpreter() -> Iterator[None]:
    """Bring back what a script may change in the interpreter."""
    main, folder, environment = sys.modules["__main__"], Path.cwd(), dict(os.environ)
    argv, path = list(sys.argv), list(sys.path)
    streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr", "excepthook", "displayhook")}
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # the script may have closed it
            sys.stdout.flush()
        sys.modules["__main__"] = main
        sys.argv[:], sys.path[:] = argv, path
        for name, value in streams.items():
            setattr(sys, name, value)
        os.chdir(folder)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)


@contextmanager
def _warnings_at_its_lines() -> Iterator[None]:
    """Show what torch warns of at the script's line, once, where an instrument stands between the two."""
    original, shown = warnings.showwarning, set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        frame = user_frame() if filename.startswith(_PACKAGE) else None
        if frame is not None:
            filename, lineno = frame.f_code.co_filename, frame.f_lineno
            key = str(message), category, filename, lineno
            if key in shown:
                return
            shown.add(key)
        original(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original


@contextmanager
def _imports_from(folder: str) -> Iterator[None]:
    """The script's folder comes first, and what was imported from it is forgotten: the next may be called the same."""
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            places = [getattr(sys.modules[name], "__file__", None), *getattr(sys.modules[name], "__path__", ())]
            if any(place and place.startswith(folder + os.sep) and not is_library(place) for place in places):
                del sys.modules[name]


@contextmanager
def _same_settings() -> Iterator[None]:
    """Bring back torch's global settings and every random state."""
    settings = [get() for get, _ in _TORCH_STATE]
    device = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    python, legacy_numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        try:
            yield
        finally:
            for (get, set_), value in zip(_TORCH_STATE, settings, strict=True):
                if get() != value:
                    set_(value)
            if getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None) is not device:
                torch.set_default_device(device.device if device is not None else None)
            random.setstate(python)
            np.random.set_state(legacy_numpy)


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send Python's standard output, and that of C code and children, to standard error."""
    ours = sys.stdout
    ours.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        ours.flush()  # of those who kept hold of it
        os.dup2(saved, 1)
        os.close(saved)

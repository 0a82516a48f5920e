"""Global state that a test must leave as it found it."""

import os
import sys
import threading
import time

import torch
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_NOT_OURS = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_")  # torch sets the latter when its compiler is imported
_PATIENCE_SECONDS = 2.0  # for threads that are on their way out


def snapshot() -> dict[str, object]:
    """Everything that is watched, by name."""
    state: dict[str, object] = {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.get_deterministic_debug_mode(),
        "number of threads": torch.get_num_threads(),
        "torch function modes": list(map(id, _get_current_function_mode_stack())),
        "torch dispatch modes": list(map(id, _get_current_dispatch_mode_stack())),
        "saved-tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(False) is not None,
        "threads": set(threading.enumerate()),
    }
    state |= {f"environment {name}": value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    state |= {
        f"module hooks {name}": dict(value)
        for name, value in vars(modules).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
    return state | _pictures()


def leaks(before: dict[str, object]) -> list[str]:
    """What differs from an earlier snapshot, in words; threads are given a moment to end."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := _differences(before, snapshot())) and time.monotonic() < deadline:
        if not any(text.startswith("threads") for text in found):
            break
        time.sleep(0.01)
    return found


def _differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, set) and isinstance(new, set):
            if new - old:
                found.append(f"{name}: {sorted(map(str, new - old))} are left")
        elif old != new and not (old is None and name.startswith("matplotlib")):  # imported by the test
            found.append(f"{name}: was {old!r}, is {new!r}")
    return found


def _pictures() -> dict[str, object]:
    if "matplotlib.pyplot" not in sys.modules:
        return {}
    from matplotlib import pyplot

    return {"matplotlib figures": pyplot.get_fignums(), "matplotlib settings": dict(pyplot.rcParams)}

"""The police sees each kind of leak, and nothing where nothing leaks."""

import os
import threading
from contextlib import contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from leaks import leaks, snapshot


@contextmanager
def grad_mode():
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield
    torch.set_num_threads(before)


@contextmanager
def environment_leak():
    os.environ["LEAK"] = "1"
    yield
    del os.environ["LEAK"]


@contextmanager
def threads():
    ready = threading.Event()
    thread = threading.Thread(target=ready.wait, name="left behind")
    thread.start()
    yield
    ready.set()
    thread.join()


@contextmanager
def torch_function_modes():
    with TorchFunctionMode():
        yield


@contextmanager
def torch_dispatch_modes():
    with TorchDispatchMode():
        yield


@contextmanager
def saved_tensor_hooks():
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


@contextmanager
def module_hooks():
    handle = register_module_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def matplotlib_figures():
    from matplotlib import pyplot

    figure = pyplot.figure()
    yield
    pyplot.close(figure)


@contextmanager
def matplotlib_settings():
    from matplotlib import pyplot

    with pyplot.rc_context({"lines.linewidth": 9.0}):
        yield


KINDS = [
    grad_mode,
    default_dtype,
    deterministic_algorithms,
    number_of_threads,
    environment_leak,
    threads,
    torch_function_modes,
    torch_dispatch_modes,
    saved_tensor_hooks,
    module_hooks,
    matplotlib_figures,
    matplotlib_settings,
]


@pytest.mark.parametrize("leak", KINDS, ids=lambda leak: leak.__name__)
def test_it_names_what_was_left_behind(leak):
    if leak.__name__.startswith("matplotlib"):
        pytest.importorskip("matplotlib.pyplot", reason="the plots extra is not installed")
    before = snapshot()
    with leak():
        found = leaks(before)
    assert len(found) == 1, found
    words = leak.__name__.replace("_", " ").removesuffix(" leak").split()
    assert all(word.rstrip("s") in found[0].lower() for word in words), found
    assert leaks(before) == []


def test_a_thread_that_is_on_its_way_out_is_waited_for():
    before = snapshot()
    threading.Timer(0.05, int).start()
    assert leaks(before) == []

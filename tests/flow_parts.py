"""A flow trace on its own, without an audit around it."""

import inspect
from contextlib import contextmanager

from frostline.tracing import FlowTrace, Leaves


class Recorder:
    """A listener that writes down what it is told."""

    def __init__(self):
        self.forwards, self.backwards, self.ended, self.clippings, self.written = [], [], [], [], []

    def began_forward(self, module):
        self.forwards.append(module)

    def began_backward(self, backward, root):
        self.backwards.append(backward)

    def ended_backward(self, backward):
        self.ended.append(backward)

    def wrote(self, number, line):
        self.written.append((number, line))

    def clipped(self, gradients, line):
        self.clippings.append((gradients, line))


class Flow:
    """A running trace, asked by names."""

    def __init__(self, leaves):
        self.recorder, self.leaves = Recorder(), Leaves()
        self.names = list(leaves)
        for leaf in leaves.values():
            self.leaves.add(leaf)
        self.trace = FlowTrace(self.recorder, self.leaves)
        self.notes = self.trace.notes

    def influence(self, tensor):
        """Names of what a value depends on."""
        return self.set(self.trace.source(tensor).influence)

    def reach(self, tensor):
        """Names of what autograd gets to."""
        return self.set(self.trace.source(tensor).reach)

    def event(self, tensor):
        return self.trace.source(tensor).event

    def set(self, bits):
        return {self.names[n] if n < len(self.names) else f"leaf {n}" for n in self.leaves.members(bits)}

    @property
    def backward(self):
        """The last backward pass."""
        return self.recorder.backwards[-1]


@contextmanager
def flowing(**leaves):
    """Watch with these tensors numbered."""
    flow = Flow(leaves)
    with flow.trace:
        yield flow


def here():
    """The number of the line that calls."""
    return inspect.currentframe().f_back.f_lineno

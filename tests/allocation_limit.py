"""A machine with little memory."""

import weakref
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationLimit(TorchDispatchMode):
    """Raises `torch.OutOfMemoryError` where what operators made under it takes more than so many bytes.

    Attributes:
        num_failures: How often it did.
        peak_bytes: The most that was alive since this was last set to 0.
    """

    def __init__(self, limit_bytes):
        super().__init__()
        self.limit_bytes, self.live_bytes, self.peak_bytes, self.num_failures = limit_bytes, 0, 0, 0
        self._alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = self.live_bytes
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if self._counts(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in filter(self._counts, tree_leaves(out)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in known and key not in self._alive:
                num_bytes = storage.nbytes()
                self._alive[key] = weakref.ref(storage, partial(self._freed, key, num_bytes))
                self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if self.live_bytes > max(before, self.limit_bytes):
            self.num_failures += 1
            raise torch.OutOfMemoryError(f"{self.live_bytes} bytes are more than {self.limit_bytes}")
        return out

    def _freed(self, key, num_bytes, _):
        del self._alive[key]
        self.live_bytes -= num_bytes

    @staticmethod
    def _counts(tensor):
        return isinstance(tensor, torch.Tensor) and not isinstance(tensor, FakeTensor) and tensor.device.type == "cpu"

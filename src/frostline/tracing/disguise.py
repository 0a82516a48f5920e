"""Let code that treats fake tensors otherwise than real ones treat them alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _foreach_utils

from frostline.patches import wrapped

_ASKS = (("transformers.utils.import_utils", "is_fake_tensor"),)
"""Functions of other packages that ask; transformers then takes the way of an exported graph, with larger masks."""


@contextmanager
def taken_for_real() -> Iterator[None]:
    """Inside, modules, optimizers, gradient clipping and transformers do with fake tensors as with real ones."""
    with ExitStack() as stack:
        stack.enter_context(wrapped(nn.Module, "_apply", _converts_in_place))
        for module, name in _ASKS:
            if name in vars(sys.modules.get(module, sys)):  # nobody who has not imported it asks
                stack.enter_context(wrapped(sys.modules[module], name, _denied))
        lists: list[list[Any]] = [_foreach_utils._foreach_supported_types]
        if torch_optimizer._foreach_supported_types is not lists[0]:
            lists.append(torch_optimizer._foreach_supported_types)
        for kinds in lists:
            kinds.append(FakeTensor)
            stack.callback(kinds.remove, FakeTensor)
        yield


def _converts_in_place(apply: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Convert as `nn.Module.to` converts real parameters: fake ones it would swap, which a weak reference forbids."""

    @wraps(apply)
    def converted(self: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        own = (*self._parameters.values(), *self._buffers.values())
        if not any(isinstance(tensor, FakeTensor) for tensor in own):
            return apply(self, convert, recurse)
        for module in self.children() if recurse else ():
            module._apply(convert)
        for parameter in self._parameters.values():
            for tensor in (parameter, parameter.grad) if parameter is not None else ():
                if tensor is not None:
                    with torch.no_grad():
                        tensor.data = convert(tensor)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = convert(buffer)
        return self

    return converted


def _denied(_: Callable[..., bool]) -> Callable[..., bool]:
    return lambda value: False

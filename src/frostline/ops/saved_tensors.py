"""Keep what autograd saves for backward in another place or form, as safely as autograd keeps it."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor, disable_fake_tensor_cache
from torch.autograd.graph import saved_tensors_hooks

from frostline.regions import Override
from frostline.tracing.versions import alias_without_memory, refuse_changed


class SavedTensorStore(ABC):
    """Where saved tensors go between forward and backward.

    It takes whole storages: tensors that share one are written once, across calls and modules, and read once
    as long as backward still holds what was read. A write that autograd does not count (`.data`, numpy) between
    two saves of one storage is not noticed: the second one then gets the values of the first.

    Args:
        min_bytes: Smaller storages stay where they are.

    Attributes:
        min_bytes: As given.
        written_bytes: Bytes of the storages that are away now, in their own size.
        peak_written_bytes: The most that were away at once.
    """

    def __init__(self, min_bytes: int) -> None:
        self.min_bytes = min_bytes
        self.written_bytes = self.peak_written_bytes = 0
        self._away: weakref.WeakKeyDictionary[UntypedStorage, weakref.ref[_Written]] = weakref.WeakKeyDictionary()

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """A copied or pickled model starts with an empty store of the same settings."""

    @abstractmethod
    def takes(self, tensor: Tensor) -> bool:
        """Whether this tensor may go: neither a leaf nor a view of one, strided, of `min_bytes` or more."""

    @abstractmethod
    def write(self, flat: Tensor) -> Callable[[], Tensor] | None:
        """Put a storage away.

        Args:
            flat: All of it as one row, in the type of the tensor that was saved; not to be held on to.

        Returns:
            What makes it again, at the same size, type and device; None leaves the tensor where it is.
        """

    def put(self, tensor: Tensor) -> Callable[[], Tensor] | None:
        """Put a tensor away that `takes` accepted; the function that returns it again, or None."""
        storage = tensor.untyped_storage()
        version, alias = tensor._version, alias_without_memory(tensor)
        known = self._away.get(storage)
        written = None if known is None else known()
        if written is None or (written.version, written.dtype) != (version, tensor.dtype):
            num_elements = storage.nbytes() // tensor.element_size()
            with torch.no_grad():
                read = self.write(tensor.detach().as_strided((num_elements,), (1,), 0))
            if read is None:
                return None
            written = _Written(read, tensor)
            self._away[storage] = weakref.ref(written)
            self.written_bytes += storage.nbytes()
            self.peak_written_bytes = max(self.peak_written_bytes, self.written_bytes)
            weakref.finalize(written, self._forget, storage.nbytes())
        size, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()

        def take() -> Tensor:
            refuse_changed(alias, version, size)
            with torch.no_grad():
                return written.restore().as_strided(size, strides, offset)

        return take

    def _forget(self, num_bytes: int) -> None:
        self.written_bytes -= num_bytes


class _Written:
    """A storage that was put away."""

    def __init__(self, read: Callable[[], Tensor], tensor: Tensor) -> None:
        self.version, self.dtype, self._device = tensor._version, tensor.dtype, tensor.device
        self._read = read
        self._storage: weakref.ref[UntypedStorage] | None = None

    def restore(self) -> Tensor:
        """All of the storage as one row; the one that an operator still holds, if there is one."""
        storage = None if self._storage is None else self._storage()
        if storage is None:
            flat = self._read()
            self._storage = weakref.ref(flat.untyped_storage())
            return flat
        with _uncached():
            return torch.empty(0, dtype=self.dtype, device=self._device).set_(storage)


def _uncached() -> AbstractContextManager[None]:
    """Fake tensors' memory of earlier calls would keep the storage that `set_` is given, for ever."""
    mode: Any = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return nullcontext() if mode is None else disable_fake_tensor_cache(mode)


@dataclass(frozen=True)
class StoreSaved:
    """Stands in for a module's forward: what the forward saves goes to the store.

    Args:
        store: Where to.
        applies: Asked with the module at every call.
    """

    store: SavedTensorStore
    applies: Callable[[nn.Module], bool]

    def __call__(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `inner`, and put away what autograd saves in it."""
        module: nn.Module = inner.__self__  # type: ignore[attr-defined]
        if torch.compiler.is_compiling() or not _records_plainly() or not self.applies(module):
            return inner(*args, **kwargs)
        with _stored(self.store, module):
            return inner(*args, **kwargs)


def is_installed(module: nn.Module, kind: type[SavedTensorStore]) -> bool:
    """Whether the module's forward already puts what it saves into a store of this type."""
    override = vars(module).get("forward")
    while isinstance(override, Override):
        if isinstance(override.function, StoreSaved) and isinstance(override.function.store, kind):
            return True
        override = override.inner
    return False


def is_large_activation(tensor: Tensor, min_bytes: int) -> bool:
    """Whether a saved tensor was computed, is strided and plain, and its storage has `min_bytes` or more."""
    if type(tensor) not in (Tensor, FakeTensor) or tensor.layout is not torch.strided:
        return False
    if tensor.is_conj() or tensor.is_neg() or tensor.untyped_storage().nbytes() < max(min_bytes, 1):
        return False
    root = tensor._base if tensor._base is not None else tensor
    return not (isinstance(root, nn.Parameter) or (root.is_leaf and root.requires_grad))


def _records_plainly() -> bool:
    # A checkpoint's own hooks drop what is saved here, in the forward, and keep it for a moment in the
    # recomputation: nothing to put away in either.
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return (
        torch.is_grad_enabled()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and (hooks is None or hooks[0].__module__ != "torch.utils.checkpoint")
    )


@contextmanager
def _stored(store: SavedTensorStore, module: nn.Module) -> Iterator[None]:
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    # Only the innermost hooks are called: what this store leaves is theirs.
    outer: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)

    def pack(tensor: Tensor) -> Callable[[], Tensor]:
        if store.takes(tensor) and tensor.untyped_storage()._cdata not in own:
            take = store.put(tensor)
            if take is not None:
                return take
        if outer is None:
            return _keep(tensor)
        packed = outer[0](tensor)
        return lambda: outer[1](packed)

    with saved_tensors_hooks(pack, lambda take: take()):
        yield


def _keep(tensor: Tensor) -> Callable[[], Tensor]:
    # An operator's own output, kept as it is, would keep its graph alive in a reference cycle.
    kept, version = tensor.detach(), tensor._version

    def take() -> Tensor:
        refuse_changed(kept, version, kept.shape)
        return kept

    return take

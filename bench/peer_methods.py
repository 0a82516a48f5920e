"""The methods of bench/peers.py: ways to need less memory, each applied to a fresh `Case`.

A peer that is a package of its own is used where it can be imported, and says otherwise what it lacks.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from frostline.ops import checkpoint_, chunked_cross_entropy, lean_
from frostline.planner import apply_, chunk_, plan_workload
from peer_models import SMALLEST, Case

_LOSS_CHUNK_TOKENS = 16
_ONE_BY_ONE = 64  # chunks: no batch here is larger


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way.

    Attributes:
        what: What is called, in a few words.
        apply: Changes a case.
        refuses: Why it does not apply to a model, by its name and case; empty if it does.
        lacks: Why it cannot run on this machine; empty if it can.
        package: Whose version belongs to the result.
        around: What forward and backward run in.
        compiled: Whether it runs in compiled code, which no trace of operators sees.
    """

    what: str
    apply: Callable[[Case], object]
    refuses: Callable[[str, Case], str] = lambda name, case: ""
    lacks: Callable[[], str] = lambda: ""
    package: str = "torch"
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiled: bool = False

    @property
    def source(self) -> str:
        """What is called and the code that does it: a cell is as old as that."""
        return f"{self.what}\n{_source_of(self.apply)}"

    @property
    def ours(self) -> bool:
        """Whether it is frostline's."""
        return self.package == "frostline"


def _source_of(function: Any) -> str:
    if isinstance(function, partial):
        parts = (function.func, *function.args, *function.keywords.values())
        return "".join(_source_of(part) if callable(part) else repr(part) for part in parts)
    return inspect.getsource(function)


def _without_blocks(name: str, case: Case) -> str:
    return "" if case.blocks else "no gradient passes a block: there is nothing to recompute"


def _without_vocabulary(name: str, case: Case) -> str:
    return "" if case.head_loss else "there is no loss over a vocabulary"


def _without_convolutions(name: str, case: Case) -> str:
    behind = [case.model.get_submodule(name) for name in case.blocks]
    found = any(isinstance(part, nn.Conv2d) for block in behind for part in block.modules())
    return "" if found else "no gradient passes a layer that it replaces"


def _without_hub(name: str, case: Case) -> str:
    return "" if case.hub else "not a transformers model"


def _lacks_package(package: str, install: str) -> Callable[[], str]:
    def lacks() -> str:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"not installed: {install}"
        return ""

    return lacks


def _never(reason: str) -> Method:
    """A row for a method that this benchmark cannot run."""
    return Method(what=reason.partition(":")[0], apply=lambda case: None, lacks=lambda: reason)


def _hub_checkpointing(case: Case) -> None:
    # It is silently left out in eval mode, so the model is put into training mode, with every dropout and drop-path
    # at 0: then the two modes compute the same.
    for model in case.hub:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers 5 has another name for it too
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in model.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, float) and (name == "p" or "drop" in name):
                    setattr(module, name, 0.0)
            module.training = True


def _each_block(case: Case, wrap: Callable[[nn.Module], None]) -> None:
    for name in case.blocks:
        wrap(case.model.get_submodule(name))


def _torch_checkpoint(module: nn.Module) -> None:
    module.forward = partial(torch_checkpoint, module.forward, use_reentrant=False)


def _fairscale(module: nn.Module) -> None:
    from fairscale.nn.checkpoint import checkpoint_wrapper  # type: ignore[import-not-found]

    checkpoint_wrapper(module)


def _deepspeed(module: nn.Module) -> None:
    from deepspeed.runtime.activation_checkpointing.checkpointing import checkpoint  # type: ignore[import-not-found]

    forward = module.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(lambda *tensors: forward(*tensors, **kwargs), *args)  # it takes no keywords

    module.forward = recomputed


def _remat(module: nn.Module) -> None:
    import torch_remat  # type: ignore[import-not-found]

    module.forward = torch_remat.checkpoint(region_name="block")(module.forward)


def _memsave(case: Case) -> None:
    from memsave_torch.nn import convert_to_memory_saving  # type: ignore[import-not-found]

    case.model.trunk = convert_to_memory_saving(case.model.trunk, dropout=False)  # a frozen one does nothing


def _torch_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.linear_cross_entropy(
        hidden.flatten(0, -2),
        weight,
        target.flatten(),
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=_LOSS_CHUNK_TOKENS),
    )


def _set_head_loss(case: Case, head_loss: Callable[..., Tensor]) -> None:
    if case.head_loss is not None:
        case.head_loss = case.model.head_loss = head_loss  # type: ignore[assignment]


def _checkpoint_and_torch_loss(case: Case) -> None:
    _each_block(case, _torch_checkpoint)
    _set_head_loss(case, _torch_cross_entropy)


def _compile(case: Case) -> None:
    torch.compiler.reset()
    case.call = torch.compile(case.model)


def _not_compiled(name: str, case: Case) -> str:
    return "" if name in SMALLEST else f"compiled for {' and '.join(SMALLEST)} alone, for the time it takes"


def _lacks_compiler() -> str:
    return "" if shutil.which("g++") or shutil.which("clang++") else "there is no C++ compiler"


def _chunks(case: Case) -> None:
    for name in case.upstream:
        chunk_(case.model.get_submodule(name), _ONE_BY_ONE)
    _set_head_loss(case, partial(chunked_cross_entropy, chunk_tokens=_LOSS_CHUNK_TOKENS))


def _by_hand(case: Case) -> None:
    lean_(case.model)
    if case.blocks:
        checkpoint_(case.model, case.blocks)
    _chunks(case)


def _planned(case: Case) -> object:
    _set_head_loss(case, partial(chunked_cross_entropy, chunk_tokens=_LOSS_CHUNK_TOKENS))
    chosen = plan_workload(case.workload(), budget="smallest", allow=("exact", "rounding"))
    apply_(case.model, chosen)
    return chosen


def _compiled(budget: float) -> Method:
    return Method(
        what=f"torch.compile, activation_memory_budget={budget}",
        apply=_compile,
        refuses=_not_compiled,
        lacks=_lacks_compiler,
        around=partial(functorch_config.patch, activation_memory_budget=budget),
        compiled=True,
    )


METHODS: dict[str, Method] = {
    "plain": Method(what="PyTorch, frozen", apply=lambda case: None),
    "hf-checkpointing": Method(
        what="gradient_checkpointing_enable", apply=_hub_checkpointing, refuses=_without_hub, package="transformers"
    ),
    "torch-checkpoint": Method(
        what="torch.utils.checkpoint on every block",
        apply=partial(_each_block, wrap=_torch_checkpoint),
        refuses=_without_blocks,
    ),
    "torch-checkpoint+loss": Method(
        what="torch.utils.checkpoint on every block, F.linear_cross_entropy in chunks",
        apply=_checkpoint_and_torch_loss,
        refuses=_without_vocabulary,
    ),
    "save-on-cpu": _never(
        "save_on_cpu: what is saved is moved to the host, where it lies already in a run on the CPU, so nothing can "
        "be saved"
    ),
    "compile-0.5": _compiled(0.5),
    "compile-0.0": _compiled(0.0),
    "memsave-torch": Method(
        what="memsave_torch's layers",
        apply=_memsave,
        refuses=_without_convolutions,
        lacks=_lacks_package("memsave-torch", "a git repository, its torchvision left out"),
        package="memsave-torch",
    ),
    "fairscale": Method(
        what="fairscale's checkpoint_wrapper on every block",
        apply=partial(_each_block, wrap=_fairscale),
        refuses=_without_blocks,
        lacks=_lacks_package("fairscale", "pip install fairscale"),
        package="fairscale",
    ),
    "deepspeed": Method(
        what="deepspeed's checkpoint on every block",
        apply=partial(_each_block, wrap=_deepspeed),
        refuses=_without_blocks,
        lacks=_lacks_package("deepspeed", "pip install deepspeed"),
        package="deepspeed",
    ),
    "torch-remat": Method(
        what="torch_remat on every block",
        apply=partial(_each_block, wrap=_remat),
        refuses=_without_blocks,
        lacks=_lacks_package("torch-remat", "pip install torch_remat"),
        package="torch-remat",
    ),
    "liger-kernel": _never("liger-kernel: its kernels are Triton's, which need a GPU"),
    "frostline-lean": Method(what="lean_", apply=lambda case: lean_(case.model), package="frostline"),
    "frostline": Method(
        what="lean_, checkpoint_ on every block, chunk_ upstream, chunked_cross_entropy",
        apply=_by_hand,
        package="frostline",
    ),
    "frostline-plan": Method(
        what='plan with budget="smallest", chunked_cross_entropy', apply=_planned, package="frostline"
    ),
}
"""Every method by its name in the table; ``plain`` comes first."""

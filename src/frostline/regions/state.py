"""What trains, by name: to count it, save it and load it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from frostline.errors import CheckpointError, ConfigError
from frostline.regions.freeze import is_frozen


@dataclass(frozen=True, kw_only=True)
class Component:
    """A named part of a model, as run headers show it; tied parameters count once."""

    name: str
    num_parameters: int
    num_trainable: int
    mode: Literal["eval", "train"]


def components(model: nn.Module, names: Iterable[str]) -> tuple[Component, ...]:
    """Size and mode of the named submodules.

    Raises:
        ConfigError: The model has no submodule of that name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    return tuple(_component(modules, name) for name in names)


def _component(modules: Mapping[str, nn.Module], name: str) -> Component:
    if name not in modules:
        children = sorted(known for known in modules if known and "." not in known)
        raise ConfigError(f"the model has no module {name!r}", do=f"its children are {children}")
    module = modules[name]
    return Component(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        num_trainable=sum(parameter.numel() for parameter in trainable_parameters(module).values()),
        mode="train" if module.training else "eval",
    )


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by qualified name; tied ones once, under their first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters, and persistent buffers of modules that are not frozen.

    The tensors are the model's own, detached; clone them to keep them.
    """
    state = {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}
    for prefix, module in model.named_modules():
        if not is_frozen(module):
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                    state[name] = buffer.detach()
    return state


def load_trainable_state_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what `trainable_state` returned into the model; all of it, or nothing.

    Raises:
        CheckpointError: A name is missing or unexpected, or a shape differs. The model is as it was.
    """
    own = trainable_state(model)
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(
            f"the trainable state does not fit the model: {'; '.join(problems)}",
            do="freeze and build the model as it was when the state was saved",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])

"""What trains, by name: to count it, save it and load it back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from frostline.errors import CheckpointError
from frostline.regions.freeze import is_frozen


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

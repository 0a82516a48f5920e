"""Let the frozen layers of a model keep less for backward, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from frostline.ops.lean import convolution, gates, linear, normalisation, padding, pooling
from frostline.regions import Override, find_override, override_


@dataclass(frozen=True)
class Lean:
    """What `lean_` installed, and what it left alone.

    Attributes:
        units: Qualified names of the layers it took, in the model's order.
        overrides: Their changed forwards, in the same order.
        left: The other layers' names, each with the reason. Where a forward calls a function such as
            ``F.relu`` itself there is no layer to take, and none is named here.
    """

    units: tuple[str, ...]
    overrides: tuple[Override, ...]
    left: dict[str, str]

    def remove(self) -> None:
        """Let every layer keep what torch keeps again. Twice is once."""
        for override in self.overrides:
            override.remove()


def lean_(module: nn.Module) -> Lean:
    """Let the frozen layers of a model keep for backward only what the gradient of their input needs.

    For the frozen part behind a trainable one. Types, `state_dict`, copying and pickling stay as they are.
    Freeze first: a layer with a trainable parameter is left, and so is one without parameters where nothing
    around it is frozen, because there the next layer keeps its output anyway.

    A layer is lean in a call whose input requires a gradient, with its weights frozen at that moment. BatchNorm
    must be in eval mode. Any other call is a plain one, and so is one inside ``torch.compile`` (the compiler
    chooses what to keep), under ``torch.func`` transforms and forward mode, and on tensor subclasses.

    =====================================  =======================================  ==========================
    layer                                  torch keeps, beside the module's own     this keeps
    =====================================  =======================================  ==========================
    Conv1d-3d, ConvTranspose1d-3d          input (padded input too where it pads    0
                                           by reflection or replication); under
                                           autocast a cast weight
    BatchNorm1d-3d in eval mode            input                                    0
    ReflectionPad, ReplicationPad 1d-3d    input                                    0
    AvgPool, AdaptiveAvgPool 1d-3d         input (nothing to a single place)        0
    MaxPool1d-3d, window <= 256 places     input, 8 bytes an output                 1 byte an output
    ReLU, ReLU6, Hardtanh, LeakyReLU       output or input                          1 bit an element
    Linear under autocast                  a cast weight                            0
    RMSNorm, half precision, CPU           a float32 copy of the input              input
    =====================================  =======================================  ==========================

    Measured and not built:

    - LayerNorm, GroupNorm, InstanceNorm and RMSNorm in float32 keep their input once, and one or two numbers
      a group; the normalised input would be as large. Taking it back from the output saves the input only
      where the next layer keeps the output, which a frozen linear layer or convolution does not and a
      trainable one does. A layer cannot see what comes next, the result is only ``ROUNDING``, nine times
      the float32 noise at weights of 0.02, and there is none where a weight is 0.
    - GELU, SiLU, Mish, Softplus, ELU and Hardswish keep their input once, tanh, sigmoid and softmax their
      output once, and the gradient is a function of exactly that.
    - Attention in one kernel keeps query, key, value, output and one number a row; its gradient needs all
      of them. To recompute any of these costs the layers before it as well: that is `checkpoint_`.

    Same as: the model without it; buffers and random numbers are not touched. A frozen weight or a running
    statistic changed in place before backward raises, as without it. An input changed in place, which this no
    longer keeps, does not, and the gradient is that of the forward.

    Proof class: ``EXACT``. The layers' functions tell on which types it was shown; on CUDA it was not.

    Memory: behind one trainable convolution, four pictures of 112 x 112 in float32, channels first, on the CPU:
    a ResNet-18 keeps 0.5 MiB instead of 21.4, and its step peaks 7.0 MiB above what is resident instead of
    21.7; three blocks of VGG keep 3.5 MiB instead of 62.6, and peak 28.3 instead of 66.4.

    Cost: in the same steps 10 to 20 % of the time, for bits and window offsets; under autocast, where the
    convolutions take less, 20 to 45 %.

    Args:
        module: The model or the part of it to treat.

    Returns:
        The handle whose `remove` takes it off again.

    Raises:
        StepError: Not here, but in a backward with ``create_graph=True``: lean layers have no second
            derivative.
    """
    units: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    for name, layer, is_in_frozen_part in _layers(module):
        reason = _reason_to_leave(layer, is_in_frozen_part)
        if reason:
            left[name] = reason
        else:
            units[name] = layer
    return Lean(tuple(units), tuple(override_(layer, "forward", _call) for layer in units.values()), left)


@dataclass(frozen=True)
class _Form:
    """How a type of layer is made lean, and when that is any use."""

    forward: Callable[..., Tensor]
    applies: Callable[[Any, Tensor], bool] = lambda module, input: True
    refuses: Callable[[Any], str] = lambda module: ""


def _refuse_max_pool(module: pooling.MaxPool) -> str:
    if module.return_indices:
        return "returns indices, which are kept anyway"
    num_places = pooling.num_places(module)
    return f"has {num_places} places in a window, more than a byte can tell apart" if num_places > 256 else ""


_CONVOLUTION = _Form(convolution.lean_convolution)
_TRANSPOSED = _Form(convolution.lean_transposed_convolution)
_BATCH_NORM = _Form(
    normalisation.lean_batch_norm,
    applies=lambda module, input: not module.training and module.running_mean is not None,
)
_PADDING = _Form(padding.lean_padding)
_MAX_POOL = _Form(pooling.lean_max_pool, applies=pooling.keeps_type, refuses=_refuse_max_pool)
_AVG_POOL = _Form(pooling.lean_avg_pool)
_ADAPTIVE_AVG_POOL = _Form(pooling.lean_adaptive_avg_pool, applies=pooling.has_several_places)
_HARDTANH = _Form(gates.lean_hardtanh)

_FORMS: dict[type[nn.Module], _Form] = {
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.ReflectionPad1d: _PADDING,
    nn.ReflectionPad2d: _PADDING,
    nn.ReflectionPad3d: _PADDING,
    nn.ReplicationPad1d: _PADDING,
    nn.ReplicationPad2d: _PADDING,
    nn.ReplicationPad3d: _PADDING,
    nn.MaxPool1d: _MAX_POOL,
    nn.MaxPool2d: _MAX_POOL,
    nn.MaxPool3d: _MAX_POOL,
    nn.AvgPool1d: _AVG_POOL,
    nn.AvgPool2d: _AVG_POOL,
    nn.AvgPool3d: _AVG_POOL,
    nn.AdaptiveAvgPool1d: _ADAPTIVE_AVG_POOL,
    nn.AdaptiveAvgPool2d: _ADAPTIVE_AVG_POOL,
    nn.AdaptiveAvgPool3d: _ADAPTIVE_AVG_POOL,
    nn.ReLU: _Form(gates.lean_relu),
    nn.ReLU6: _HARDTANH,
    nn.Hardtanh: _HARDTANH,
    nn.LeakyReLU: _Form(gates.lean_leaky_relu),
    nn.Linear: _Form(linear.lean_linear, applies=linear.casts_weight),
    nn.RMSNorm: _Form(
        normalisation.lean_rms_norm,
        applies=lambda module, input: input.device.type == "cpu" and input.dtype.itemsize < 4,
    ),
}

_KEEPS_ONCE = (
    nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.ELU, nn.Hardswish,
    nn.Tanh, nn.Sigmoid, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip


def _call(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    module: nn.Module = inner.__self__  # type: ignore[attr-defined]
    form = _FORMS.get(type(module))
    input = args[0] if args else kwargs.get("input")
    if form is None or not _is_plain(inner, module) or not _wants(input):
        return inner(*args, **kwargs)
    if _trains(module) or not _is_dense(module) or form.refuses(module) or not form.applies(module, input):
        return inner(*args, **kwargs)
    return form.forward(module, *args, **kwargs)


def _is_plain(inner: Callable[..., Any], module: nn.Module) -> bool:
    """Whether the class's own forward is all that would run, and plain autograd all that would record it."""
    elsewhere = (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
    return getattr(inner, "__func__", None) is type(module).forward and not elsewhere


def _wants(input: Any) -> TypeGuard[Tensor]:
    return (
        torch.is_grad_enabled()
        and isinstance(input, Tensor)
        and input.requires_grad
        and input.is_floating_point()
        and input.layout is torch.strided
        and input.numel() > 0  # torch has paths of its own for an empty batch, and nothing to keep
        and not is_traceable_wrapper_subclass(input)
    )


def _trains(module: nn.Module) -> bool:
    # Not its parameters alone: older weight and spectral norms make the weight anew at each call.
    own = (*module.parameters(recurse=False), getattr(module, "weight", None), getattr(module, "bias", None))
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in own)


def _is_dense(module: nn.Module) -> bool:
    return not any(is_traceable_wrapper_subclass(tensor) for tensor in module.parameters(recurse=False))


def _layers(
    module: nn.Module, name: str = "", is_in_frozen_part: bool = True, seen: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module, bool]]:
    """Every module that computes something itself, once, and whether what lies around it is frozen at all."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    children = dict(module.named_children())
    if not children or any(True for _ in module.parameters(recurse=False)):
        yield name, module, is_in_frozen_part
    parameters = list(module.parameters())
    if parameters:
        is_in_frozen_part = not all(parameter.requires_grad for parameter in parameters)
    for child_name, child in children.items():
        yield from _layers(child, f"{name}.{child_name}" if name else child_name, is_in_frozen_part, seen)


def _reason_to_leave(layer: nn.Module, is_in_frozen_part: bool) -> str:
    form, kind = _FORMS.get(type(layer)), type(layer).__name__
    if find_override(layer, "forward", _call):
        return "is lean already"
    if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
        return "trains"
    if form is None:
        once = isinstance(layer, _KEEPS_ONCE)
        return f"{kind} keeps what its gradient needs, once" if once else f"{kind} has no lean form"
    if "forward" in vars(layer):
        return "has another forward than its class"
    if not is_in_frozen_part:
        return "nothing around it is frozen"
    return form.refuses(layer)

"""LINet's training step with modality dropout in its published ways, to be measured as advised."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.memory import measure
from frostline.proof import Gradients, gradients_of
from frostline.records import ProofCheck
from frostline.systems.linet.availability import draw_availability
from frostline.systems.linet.checks import check_network
from frostline.systems.linet.layers import LIBatchNorm2d
from frostline.systems.linet.network import LINet
from frostline.systems.linet.peak_table import Setting
from frostline.systems.linet.reference import Masking, plain_logits
from frostline.systems.linet.treatment import Treatment

NUM_CLASSES = 19
_RECOMPUTING = Treatment(recompute="outputs", stem_slices=4)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the step is run.

    Attributes:
        masking: A published way of taking missing rows out; None runs frostline's network.
        checkpointed: Whether each published block runs under torch's checkpointing.
        recompute: Whether frostline's network makes outputs again and goes through the stem in slices.
    """

    masking: Masking | None = "before"
    checkpointed: bool = False
    recompute: bool = False


class Rig:
    """A network and one random batch, some of whose samples lack a stream.

    Args:
        setting: The size; with rate 0 nothing is missing.
        dtype: Of weights and pictures.
    """

    def __init__(self, setting: Setting, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        width = setting.width_multiplier
        self.model = LINet(NUM_CLASSES, setting.stream_channels, depth=setting.depth, width_multiplier=width).to(dtype)
        generator = torch.Generator().manual_seed(1)
        num, size = setting.batch_size, setting.image_size
        self.streams = tuple(
            torch.randn(num, channels, size, size, dtype=dtype, generator=generator).contiguous(
                memory_format=torch.channels_last
            )
            for channels in setting.stream_channels
        )
        self.labels = torch.randint(NUM_CLASSES, (num,), generator=generator)
        generator.manual_seed(0)
        self.availability = draw_availability(
            setting.sampler, num, len(setting.stream_channels), setting.rate, generator=generator
        )

    def step(self, way: Way, rows: slice = slice(None), share: float = 1.0) -> Tensor:
        """Forward and backward of some rows; their mean loss counts with a share, and gradients add up."""
        streams, there = [stream[rows] for stream in self.streams], self.availability[rows]
        if way.masking is None:
            self.model.treatment = _RECOMPUTING if way.recompute else Treatment()
            logits = self.model(streams, there)
        else:
            logits = plain_logits(self.model, streams, there, masking=way.masking, checkpointed=way.checkpointed)
        loss = share * F.cross_entropy(logits, self.labels[rows])
        loss.backward()
        return loss.detach()


@cache
def step_bytes(setting: Setting, way: Way) -> int:
    """Bytes at the peak of a step above what is there before it: weights, gradients, pictures."""
    rig = Rig(setting)
    for parameter in rig.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    inputs = (rig.streams, rig.labels, rig.availability)
    report = measure(lambda: rig.step(way), rig.model, inputs=inputs, warmup_steps=0)
    return report.peak_bytes - report.resident_bytes


def mask_copy_bytes(setting: Setting) -> int:
    """Bytes of all that one forward makes by multiplying convolved streams by their masks out of place."""
    rig, counter = Rig(setting), _Products()
    with torch.no_grad(), counter:
        plain_logits(rig.model, rig.streams, rig.availability, masking="before")
    return counter.num_bytes


def layer_saved_bytes(setting: Setting, masking: Masking) -> int:
    """Bytes that one normalisation of the first stage and the ReLU behind it keep for backward."""
    width, side = int(64 * setting.width_multiplier), setting.image_size // 4
    norm, x = nn.BatchNorm2d(width), torch.randn(setting.batch_size, width, side, side, requires_grad=True)
    rows = Rig(replace(setting, image_size=32)).availability[:, 0].nonzero().flatten()
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        active = norm(x[rows])
        if masking == "writes":
            out = x.new_zeros(x.shape).index_copy_(0, rows, active)
        else:
            out = torch.zeros_like(x)
            out[rows] = active
        out.relu_()
    return sum(storage.nbytes() for storage in kept.values())


def gradients(setting: Setting, num_parts: int, *, training: bool = True, backwards: bool = False) -> Gradients:
    """The float64 gradients of the mean loss of a batch, taken in parts, and the running statistics behind them."""
    rig = Rig(setting, torch.float64)
    rig.model.train(training)
    if backwards:
        rig.streams = tuple(stream.flip(0) for stream in rig.streams)
        rig.labels, rig.availability = rig.labels.flip(0), rig.availability.flip(0)
    size = setting.batch_size // num_parts
    for part in range(num_parts):
        rig.step(Way(), slice(part * size, (part + 1) * size), 1 / num_parts)
    return gradients_of(rig.model)


@cache
def checks(setting: Setting) -> dict[str, ProofCheck]:
    """What `frostline prove linet` says of a narrow network of this depth, by name."""
    size = min(setting.image_size, 64)
    model = LINet(NUM_CLASSES, setting.stream_channels, depth=setting.depth, width_multiplier=0.25)
    return {check.name: check for check in check_network(model, size)}


def steps_under_ddp(setting: Setting, *, published: bool, num_steps: int = 3) -> tuple[int, str]:
    """Train under torch's DistributedDataParallel, one process, as it comes.

    Args:
        setting: Its streams and depth.
        published: With the published parameters, among them those that no gradient can reach.
        num_steps: At most.

    Returns:
        Steps that went through, and the error of the next one.
    """
    small = replace(setting, batch_size=4, image_size=32, width_multiplier=0.125)
    rig = Rig(small)
    if published:
        own_dead_parameters_(rig.model)
    way = Way(masking="before" if published else None)
    with _process_group():
        wrapped = DistributedDataParallel(_Called(rig, way))
        for done in range(num_steps):
            try:
                F.cross_entropy(wrapped(), rig.labels).backward()
            except RuntimeError as error:
                return done, str(error).partition(".")[0]
    return num_steps, ""


def own_dead_parameters_(model: LINet) -> int:
    """Make parameters again of what the published network has as such and nothing can train.

    Returns:
        How many.
    """
    own = torch.empty_like(model.conv1.integrated_weight)
    del model.conv1.integrated_weight
    model.conv1.integrated_weight = nn.Parameter(own)
    num = 1
    for norm in model.modules():
        if isinstance(norm, LIBatchNorm2d) and norm.streams_end:
            lists = [
                nn.ParameterList(map(nn.Parameter, tensors)) for tensors in (norm.stream_weights, norm.stream_biases)
            ]
            norm.stream_weights, norm.stream_biases = lists
            num += sum(map(len, lists))
    return num


def num_dead_parameters(setting: Setting) -> int:
    """How many those are."""
    return own_dead_parameters_(Rig(replace(setting, batch_size=2, image_size=32, width_multiplier=0.125)).model)


class _Called(nn.Module):
    """A rig's forward, of its own batch."""

    def __init__(self, rig: Rig, way: Way) -> None:
        super().__init__()
        self.model, self._run = rig.model, _forward(rig, way)

    def forward(self) -> Tensor:
        return self._run()


def _forward(rig: Rig, way: Way) -> Callable[[], Tensor]:
    if way.masking is None:
        return lambda: rig.model(rig.streams, rig.availability)
    masking = way.masking
    return lambda: plain_logits(rig.model, rig.streams, rig.availability, masking=masking)


class _Products(TorchDispatchMode):
    """Counts what is made by multiplying two tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul.Tensor:
            self.num_bytes += out.nbytes
        return out


@contextmanager
def _process_group() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{Path(directory) / 'store'}", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()

"""Advice on training a codec inside a frozen Florence-2, put to the test.

Bytes are counted at the released model's size on fake tensors; gradients and times come from the nano model that
ships with frostline. The published project is github.com/hssam1002/SemCom_FL2 at commit 22be35f, whose documents
are in Korean; other claims are what forums and tutorials repeat.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from advice_verdict import Claim, Finding, median_interval, saving_verdict, speed_verdict, time_ratios
from frostline.config import MemoryConfig
from frostline.memory import Workload, estimate
from frostline.ops import checkpoint_
from frostline.proof import Gradients, compare_gradients, gradients_of
from frostline.regions import trainable_parameters
from frostline.systems.semcom.backbone import load_backbone, shape_backbone, shape_model
from frostline.systems.semcom.channel import Realisation
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.peak_table import Row, Setting, random_batch
from frostline.tracing import build_fake, fake_tensors
from frostline.units import format_mib

SETTING = Setting(batch_size=1)
NANO = Setting(system=SemcomSystemConfig(model="nano", codec="linear"), batch_size=4, image_size=64, target_tokens=13)
_PLAIN = MemoryConfig(checkpoint="none", loss_chunk_tokens=0, upstream_chunk=0)
_PENALTY = 0.01
_NUM_PAIRS = 60


class Outputs(NamedTuple):
    """What a script has at hand after its forward."""

    features: Tensor
    power: Tensor
    rebuilt: Tensor
    logits: Tensor
    loss: Tensor


class Rig:
    """The published pipeline, stage by stage, so that each stage can be run as advised.

    Args:
        florence: The whole model; weights real or fake.
        setting: The size of the step.
        frozen: Whether Florence-2 is frozen and only the codec trains.
    """

    def __init__(self, florence: nn.Module, setting: Setting, *, frozen: bool = True) -> None:
        self.florence = florence
        self.model = SemcomModel(shape_backbone(florence), setting.system, _PLAIN, image_size=setting.image_size)
        parameters = list(trainable_parameters(self.model).values())
        if not frozen:
            florence.requires_grad_(True)
            parameters += florence.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        self.batch = random_batch(Row(name="plain"), setting, florence, self.model)

    def forward(self, *, no_grad: Collection[str] = (), detach: Collection[str] = ()) -> Outputs:
        """One forward: tower, compression, channel, decompression, receiver.

        Args:
            no_grad: Stages to run under `no_grad`.
            detach: Outputs to detach.
        """
        model, batch = self.model, self.batch
        assert batch.pixels is not None
        with _grad_mode("tower" not in no_grad):
            map_NCHW = self.florence.model.vision_tower(batch.pixels.to(self.florence.dtype)).last_hidden_state
        features = map_NCHW.flatten(2).transpose(1, 2).float()
        features = features.detach() if "features" in detach else features
        symbols, amplitude = model.transmitter(features, batch.snr_db)
        realisation = Realisation.draw(symbols.shape, batch.noise_seeds)
        with _grad_mode("channel" not in no_grad):
            received = model.channel(symbols, batch.snr_db, realisation)
        rebuilt = model.receiver.features(received, batch.snr_db, amplitude=amplitude, shape=model.shape)
        rebuilt = rebuilt.detach() if "rebuilt" in detach else rebuilt
        with _grad_mode("receiver" not in no_grad):
            visual = self.florence.model.multi_modal_projector(
                rebuilt.to(map_NCHW.dtype).transpose(1, 2).reshape(map_NCHW.shape)
            )
            prompt, _ = model.receiver.prompt(batch.tasks)
            answer = self.florence(inputs_embeds=torch.cat([visual, prompt], 1), labels=batch.labels)
        return Outputs(features, amplitude.square().mean(), rebuilt, answer.logits, answer.loss)

    def update(self, loss: Tensor) -> None:
        """Backward and optimizer; a loss without a graph has no backward."""
        if loss.requires_grad:
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self, loss: Tensor) -> Gradients:
        """The codec's gradients of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return gradients_of(self.model)


def no_grad_over_frozen_tower(setting: Setting) -> Finding:
    """Frozen or not, with `no_grad` or without."""
    unfrozen, frozen = _plain_peak(setting, frozen=False), _plain_peak(setting)
    unfrozen_no_grad = _peak(setting, _no_grad_step("tower"), frozen=False)
    frozen_no_grad = _peak(setting, _no_grad_step("tower"))
    rig = nano_rig()
    plain = rig.gradients(rig.forward().loss)
    proof = compare_gradients(plain, rig.gradients(rig.forward(no_grad={"tower"}).loss))
    return Finding(
        saving_verdict(frozen, frozen_no_grad, promised=0.30),
        f"Against the frozen model: {_mib(frozen)} without and {_mib(frozen_no_grad)} with no_grad, "
        f"{frozen - frozen_no_grad:,} bytes saved, the same gradients ({proof.proof_class}). "
        f"Against a model nobody froze: {_mib(unfrozen)}; no_grad over its tower alone "
        f"{_mib(unfrozen_no_grad)} ({_change(unfrozen, unfrozen_no_grad)}), freezing it all "
        f"{_mib(frozen)} ({_change(unfrozen, frozen)}). The saving is the freezing.",
        {
            "unfrozen_bytes": unfrozen,
            "unfrozen_no_grad_bytes": unfrozen_no_grad,
            "frozen_bytes": frozen,
            "frozen_no_grad_bytes": frozen_no_grad,
        },
    )


def no_grad_over_everything(setting: Setting) -> Finding:
    """The whole forward under `no_grad`."""
    unfrozen, frozen = _plain_peak(setting, frozen=False), _plain_peak(setting)

    def step(rig: Rig) -> None:
        with torch.no_grad():
            loss = rig.forward().loss
        rig.update(loss)

    everything = _peak(setting, step)
    with torch.no_grad():
        trains = nano_rig().forward().loss.requires_grad
    return Finding(
        saving_verdict(frozen, everything, promised=0.50),
        f"{_mib(everything)}: {everything / frozen:.1%} of the frozen step's {_mib(frozen)} and "
        f"{everything / unfrozen:.1%} of the unfrozen step's {_mib(unfrozen)}. "
        f"As the source says, {'something' if trains else 'nothing'} trains.",
        {"no_grad_bytes": everything, "frozen_bytes": frozen, "unfrozen_bytes": unfrozen},
    )


def no_grad_behind_the_codec(setting: Setting) -> Finding:
    """The frozen receiver and language model under `no_grad`: as published, patched, and with a penalty."""
    rig = nano_rig()
    cut = rig.forward(no_grad={"receiver"})
    try:
        rig.gradients(cut.loss)
        error = "no error"
    except RuntimeError as raised:
        error = f"RuntimeError: {str(raised).splitlines()[0]}"
    patched = rig.gradients(rig.forward(no_grad={"receiver"}).loss.requires_grad_(True))
    whole = rig.forward()
    healthy = rig.gradients(whole.loss + _PENALTY * whole.power)
    silent = rig.gradients(cut.loss + _PENALTY * cut.power)
    alone = rig.gradients(_PENALTY * rig.forward().power)
    penalty_only = compare_gradients(alone, silent).proof_class
    lost = sum(gradient is not None for gradient in healthy.values()) - _num_trained(silent)
    saved = _plain_peak(setting) - _peak(setting, _no_grad_step("tower", "receiver"))
    return Finding(
        "harmful" if lost else "true",
        f"Literally: {error} With `loss.requires_grad_(True)` backward passes and {_num_trained(patched)} of "
        f"{len(patched)} codec tensors get a gradient. With a power penalty, usual in this field, nothing fails "
        f"either: the compression gets the gradient of the penalty alone ({penalty_only}) and the decompression "
        f"{_arrived(silent, 'decompression')}. All this saves {_mib(saved)} of {_mib(_plain_peak(setting))}.",
        {
            "trained_with_requires_grad": _num_trained(patched),
            "trained_with_penalty": _num_trained(silent),
            "codec_tensors": len(healthy),
            "saved_bytes": saved,
        },
    )


def no_grad_over_the_channel(setting: Setting) -> Finding:
    """The channel alone under `no_grad`."""
    rig = nano_rig()
    gradients = rig.gradients(rig.forward(no_grad={"channel"}).loss)
    lost = len(gradients) - _num_trained(gradients)
    return Finding(
        "harmful" if lost else "true",
        f"No error. The decompression gets {_arrived(gradients, 'decompression')}, the compression "
        f"{_arrived(gradients, 'compression')}: the transmitter keeps its initial values while the loss falls.",
        {"trained": _num_trained(gradients), "codec_tensors": len(gradients)},
    )


def detach_cuts_the_gradient(setting: Setting) -> Finding:
    """`detach` before the first trainable part, and after it."""
    rig = nano_rig()
    plain = rig.gradients(rig.forward().loss)
    before = compare_gradients(plain, rig.gradients(rig.forward(detach={"features"}).loss))
    after = rig.forward(detach={"rebuilt"}).loss.requires_grad
    return Finding(
        "false" if before.proof_class == "EXACT" else "true",
        f"On the frozen tower's output, the example given: all {len(plain)} codec gradients are what they were "
        f"({before.proof_class}), for there was nothing to cut. On the decompression's output it is true: the loss "
        f"{'still has' if after else 'no longer has'} a graph.",
        {"max_relative_difference": before.worst.max_relative if before.worst else 0.0},
    )


def freezing_still_builds_the_graph(setting: Setting) -> Finding:
    """What autograd keeps of the frozen tower, and of the whole step."""
    tower = _saved_bytes(setting, lambda rig: rig.florence.model.vision_tower(rig.batch.pixels))
    step = _saved_bytes(setting, Rig.forward)
    return Finding(
        "true" if tower else "false",
        f"In front of the codec autograd keeps {tower:,} bytes: neither an input nor a weight of the tower requires a "
        f"gradient, so there is no graph. Over the whole forward it keeps {_mib(step)}, in the codec and behind it, "
        f"where the gradient has to pass and no_grad would cut it.",
        {"tower_saved_bytes": tower, "forward_saved_bytes": step},
    )


def freezing_is_enough(setting: Setting) -> Finding:
    """An update with every parameter in the optimizer, weight decay included."""
    rig = nano_rig()
    frozen = [parameter for parameter in rig.model.parameters() if not parameter.requires_grad]
    before = [parameter.clone() for parameter in frozen]
    rig.optimizer = torch.optim.AdamW(rig.model.parameters(), lr=1e-2, weight_decay=0.1)
    rig.update(rig.forward().loss)
    changed = sum(not torch.equal(old, new) for old, new in zip(before, frozen, strict=True))
    peaks = _plain_peak(setting, frozen=False), _plain_peak(setting)
    return Finding(
        "false" if changed else saving_verdict(*peaks),
        f"After an update of AdamW over all parameters, weight decay included, {changed} of {len(frozen)} frozen tensors "
        f"have changed. And the peak falls from {_mib(peaks[0])} to {_mib(peaks[1])} ({_change(*peaks)}).",
        {"changed_tensors": changed, "unfrozen_bytes": peaks[0], "frozen_bytes": peaks[1]},
    )


def no_grad_is_faster(_: Setting) -> Finding:
    """Seconds of an update with the frozen tower under `no_grad` over those without, in pairs."""
    rig = nano_rig()
    ratios = time_ratios(lambda: _update(rig), lambda: _no_grad_step("tower")(rig), _NUM_PAIRS)
    median, low, high = median_interval(ratios)
    verdict = speed_verdict(low, high)
    noise = " One is inside: this is noise." if low <= 1 <= high else ""
    return Finding(
        verdict,
        f"Update time with no_grad over that without: {median:.3f}, 95 % interval {low:.3f} to {high:.3f}, from "
        f"{len(ratios)} alternating pairs that spread from {min(ratios):.2f} to {max(ratios):.2f}.{noise} This is the "
        f"nano model, whose kernels are so small that bookkeeping weighs more than anywhere else.",
        {"time_ratio": median, "time_ratio_low": low, "time_ratio_high": high},
    )


def autocast_over_frozen_weights(setting: Setting) -> Finding:
    """bf16 autocast around fp32 weights, at batch 1 and 8, against bf16 weights."""

    def step(rig: Rig) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = rig.forward().loss
        rig.update(loss)

    large = replace(setting, batch_size=8 * setting.batch_size)
    plain, autocast, stored = (
        _plain_peak(setting),
        _peak(setting, step),
        _peak(setting, _update, dtype=torch.bfloat16),
    )
    large_plain, large_autocast = _plain_peak(large), _peak(large, step)
    large_stored = _peak(large, _update, dtype=torch.bfloat16)
    return Finding(
        saving_verdict(plain, autocast),
        f"Batch {setting.batch_size}: fp32 {_mib(plain)}, autocast {_mib(autocast)} ({_change(plain, autocast)}), since "
        f"autograd keeps a fresh bf16 copy of each frozen weight; weights stored in bf16 {_mib(stored)} "
        f"({_change(plain, stored)}). Batch {large.batch_size}: fp32 {_mib(large_plain)}, autocast "
        f"{_mib(large_autocast)} ({_change(large_plain, large_autocast)}), stored in bf16 {_mib(large_stored)} "
        f"({_change(large_plain, large_stored)}).",
        {
            "fp32_bytes": plain,
            "autocast_bytes": autocast,
            "stored_bf16_bytes": stored,
            "large_fp32_bytes": large_plain,
            "large_autocast_bytes": large_autocast,
            "large_stored_bf16_bytes": large_stored,
        },
    )


def transformers_checkpointing(setting: Setting) -> Finding:
    """`gradient_checkpointing_enable()` on a frozen model in eval mode, against checkpointing that ignores the mode."""

    def enable(rig: Rig) -> None:
        rig.florence.gradient_checkpointing_enable()
        assert rig.florence.is_gradient_checkpointing

    def ours(rig: Rig) -> None:
        checkpoint_(rig.model.receiver.language_model, ["encoder.layers.*", "decoder.layers.*"])

    plain = _saved_bytes(setting, Rig.forward)
    theirs, recomputed = _saved_bytes(setting, Rig.forward, enable), _saved_bytes(setting, Rig.forward, ours)
    return Finding(
        saving_verdict(plain, theirs),
        f"Kept for backward: {_mib(plain)} before, {_mib(theirs)} after, although the model now reports that it "
        f"checkpoints. transformers skips it in eval mode without a word, and a frozen model belongs in eval mode. "
        f"The same layers recomputed whatever the mode: {_mib(recomputed)} ({_change(plain, recomputed)}).",
        {"saved_bytes": plain, "enabled_saved_bytes": theirs, "checkpoint_saved_bytes": recomputed},
    )


def deleting_intermediates(setting: Setting) -> Finding:
    """Outputs that stay bound until the next forward has returned, as in a script's loop, or not."""
    held: list[Outputs] = []

    def hold(rig: Rig) -> None:
        held[:] = [rig.forward()]
        rig.update(held[0].loss)

    def delete(rig: Rig) -> None:
        outputs = rig.forward()
        rig.update(outputs.loss)
        del outputs

    long = replace(setting, batch_size=8 * setting.batch_size, target_tokens=16 * setting.target_tokens)
    short_held, short_deleted = _peak(setting, hold), _peak(setting, delete)
    long_held, long_deleted, loss_only = _peak(long, hold), _peak(long, delete), _plain_peak(long)
    held.clear()
    return Finding(
        saving_verdict(long_held, long_deleted),
        f"Batch {long.batch_size} with {long.target_tokens} target tokens: {_mib(long_held)} with all outputs bound until "
        f"the next forward returns, {_mib(long_deleted)} with del ({_change(long_held, long_deleted)}), {_mib(loss_only)} "
        f"if the forward returns the loss alone ({_change(long_held, loss_only)}): what counts are the logits. Batch "
        f"{setting.batch_size} with {setting.target_tokens}: {_mib(short_held)} and {_mib(short_deleted)} "
        f"({_change(short_held, short_deleted)}).",
        {
            "long_held_bytes": long_held,
            "long_deleted_bytes": long_deleted,
            "long_loss_only_bytes": loss_only,
            "short_held_bytes": short_held,
            "short_deleted_bytes": short_deleted,
        },
    )


def collecting_garbage(setting: Setting) -> Finding:
    """`gc.collect()` and `empty_cache()` between two updates."""

    def tidy() -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def two_updates(rig: Rig, between: Callable[[], None]) -> None:
        _update(rig)
        between()
        _update(rig)

    untidy = _peak(setting, lambda rig: two_updates(rig, lambda: None))
    tidied = _peak(setting, lambda rig: two_updates(rig, tidy))
    rig = nano_rig()
    median, low, high = median_interval(
        time_ratios(lambda: _update(rig), lambda: (_update(rig), tidy()), _NUM_PAIRS // 4)
    )
    return Finding(
        saving_verdict(untidy, tidied),
        f"Two updates: {_mib(untidy)} without and {_mib(tidied)} with it in between, {untidy - tidied:,} bytes saved: a "
        f"step leaves no cycles behind. It is not free: an update of the nano model takes {median:.1f} times as long "
        f"({low:.1f} to {high:.1f}). Bytes are live ones; what a GPU's allocator holds in reserve is not counted, and "
        f"empty_cache can release only what no tensor uses.",
        {"plain_bytes": untidy, "collected_bytes": tidied, "time_ratio": median},
    )


@cache
def _nano() -> nn.Module:
    return load_backbone("nano").model


def nano_rig() -> Rig:
    """The nano model that ships, with its trained weights and the same new codec every time."""
    torch.manual_seed(0)
    return Rig(_nano(), NANO)


def _update(rig: Rig) -> None:
    rig.update(rig.forward().loss)


def _no_grad_step(*stages: str) -> Callable[[Rig], None]:
    return lambda rig: rig.update(rig.forward(no_grad=stages).loss)


@cache
def _plain_peak(setting: Setting, *, frozen: bool = True) -> int:
    return _peak(setting, _update, frozen=frozen)


def _peak(
    setting: Setting,
    step: Callable[[Rig], object],
    *,
    frozen: bool = True,
    dtype: torch.dtype = torch.float32,
) -> int:
    def workload(florence: nn.Module) -> Workload:
        rig = Rig(florence, setting, frozen=frozen)
        batch = rig.batch
        return Workload(
            step=lambda: step(rig),
            model=rig.model,
            optimizers=(rig.optimizer,),
            inputs=(batch.pixels, batch.labels, batch.snr_db),
        )

    return estimate(lambda: shape_model(setting.system.model).to(dtype), workload).peak_bytes


def _saved_bytes(
    setting: Setting, forward: Callable[[Rig], object], prepare: Callable[[Rig], object] = lambda rig: None
) -> int:
    """Bytes autograd keeps for backward, weights aside; each storage counts once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    mode = fake_tensors()
    florence = build_fake(lambda: shape_model(setting.system.model), mode)
    with mode:
        rig = Rig(florence, setting)
        prepare(rig)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = forward(rig)
        del outputs
    weights = {parameter.untyped_storage()._cdata for parameter in rig.model.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def _num_trained(gradients: Gradients) -> int:
    return sum(gradient is not None for gradient in gradients.values())


def _arrived(gradients: Gradients, half: str) -> str:
    arrived = [gradient is not None for name, gradient in gradients.items() if f".{half}." in name]
    return "its gradient" if all(arrived) else "part of its gradient" if any(arrived) else "none"


def _grad_mode(enabled: bool) -> AbstractContextManager[None]:
    return nullcontext() if enabled else torch.no_grad()


def _mib(num_bytes: float) -> str:
    return f"{format_mib(num_bytes)} MiB"


def _change(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}"


_MEMORY_GUIDE = "SemCom_FL2 docs/MEMORY_OPTIMIZATION.md"
_ARCHITECTURE = "SemCom_FL2 docs/TRAINING_ARCHITECTURE.md"

CLAIMS = (
    Claim(
        "no_grad() over the frozen tower saves 30-40 % of the memory",
        f"{_MEMORY_GUIDE}:157 and :162 (30-50 % and 30-40 %)",
        "Freeze: `requires_grad_(False)` and eval mode. no_grad in front of the codec is then harmless and a good insurance "
        "against a parameter somebody unfreezes, but it saves nothing.",
        no_grad_over_frozen_tower,
    ),
    Claim(
        "no_grad() over everything brings memory down to 40-50 %",
        f"{_MEMORY_GUIDE}:163 (which adds that nothing can train)",
        "Keep it for evaluation. The peak is the frozen tower's own forward: send pictures through it one at a time, or cache "
        "its features.",
        no_grad_over_everything,
    ),
    Claim(
        "Frozen modules behind the trainable ones may run under no_grad() too",
        f"{_MEMORY_GUIDE}:22-24, :65-70, :93 and :123-131",
        "Leave everything behind the codec outside no_grad: its weights stay frozen, the gradient passes through. To save "
        "memory there, recompute its layers in backward and compute the loss in chunks; the gradients stay.",
        no_grad_behind_the_codec,
    ),
    Claim(
        "The channel typically runs under no_grad(), for its noise is not trained",
        f"{_MEMORY_GUIDE}:86",
        "Leave the channel in the graph. The noise needs no gradient, the symbols it is added to do.",
        no_grad_over_the_channel,
    ),
    Claim(
        "detach() on a frozen module's output cuts the gradient of what comes after it",
        f"{_MEMORY_GUIDE}:137-146",
        "Detach what you like in front of the first trainable part, and nothing behind it.",
        detach_cuts_the_gradient,
    ),
    Claim(
        "requires_grad=False still builds the graph and can use more memory than no_grad()",
        f"{_ARCHITECTURE}:70-72",
        "Ask where the part lies. In front of everything that trains, freezing builds no graph; behind it, the graph is "
        "the gradient's way and must stay.",
        freezing_still_builds_the_graph,
    ),
    Claim(
        "requires_grad=False is enough to keep frozen weights as they are",
        f"{_MEMORY_GUIDE}:141 and {_ARCHITECTURE}:60",
        "Do exactly this, and keep the frozen modules in eval mode through every later `train()`: dropout and BatchNorm do "
        "not ask `requires_grad`.",
        freezing_is_enough,
    ),
    Claim(
        "no_grad() over the frozen tower makes steps faster",
        f"{_MEMORY_GUIDE}:158",
        "Cache the tower's features: the tower then runs once a picture, not once a step.",
        no_grad_is_faster,
    ),
    Claim(
        "bf16 autocast saves memory around a frozen fp32 model",
        "common advice",
        "Store the frozen weights in bf16 and keep the codec in fp32. That changes gradients by about 1 %, so compare "
        "them (`frostline prove`).",
        autocast_over_frozen_weights,
    ),
    Claim(
        "gradient_checkpointing_enable() saves memory on a frozen transformers model",
        "common advice",
        "Use checkpointing that does not ask for the mode, such as `frostline.ops.checkpoint_`.",
        transformers_checkpointing,
    ),
    Claim(
        "del outputs at the end of each step lowers the peak",
        "common advice",
        "Let the forward return the loss alone, or never make all logits at once: `frostline.ops.chunked_cross_entropy`.",
        deleting_intermediates,
    ),
    Claim(
        "gc.collect() and empty_cache() after each step lower the peak",
        "common advice",
        "Leave them out of the loop.",
        collecting_garbage,
    ),
)

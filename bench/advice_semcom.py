"""Advice on training a codec inside a frozen Florence-2: each function runs one claim, the table lists them all."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace

import torch

from advice_semcom_rig import Outputs, Rig, nano_rig, peak_bytes, plain_peak_bytes, saved_bytes
from advice_verdict import Claim, Finding, median_interval, saving_verdict, speed_verdict, time_ratios
from frostline.ops import checkpoint_
from frostline.proof import Gradients, compare_gradients
from frostline.systems.semcom.peak_table import Setting
from frostline.units import format_mib

SETTING = Setting(batch_size=1)
ABOUT = (
    f"A linear codec inside {SETTING.system.model}, batch {SETTING.batch_size}, {SETTING.image_size} px, "
    f"{SETTING.target_tokens} target tokens, AdamW. Bytes are counted on fake tensors of this size; gradients "
    "and times are those of the nano Florence-2 that ships with frostline. The *codec*, a compression before "
    "the channel and a decompression behind it, is all that trains; *frozen* is `requires_grad_(False)` and "
    "eval mode. The published project is [SemCom_FL2](https://github.com/hssam1002/SemCom_FL2) at commit "
    "22be35f; the numbers after a file are its lines. *Common advice* is what forums and tutorials repeat."
)
_PENALTY = 0.01
_NUM_PAIRS = 60


def no_grad_over_frozen_tower(setting: Setting) -> Finding:
    """Frozen or not, with `no_grad` or without."""
    unfrozen, frozen = plain_peak_bytes(setting, frozen=False), plain_peak_bytes(setting)
    unfrozen_no_grad = peak_bytes(setting, lambda rig: rig.step("tower"), frozen=False)
    frozen_no_grad = peak_bytes(setting, lambda rig: rig.step("tower"))
    rig = nano_rig()
    plain = rig.gradients(rig.forward().loss)
    proof = compare_gradients(plain, rig.gradients(rig.forward(no_grad={"tower"}).loss))
    return Finding(
        saving_verdict(frozen, frozen_no_grad, promised=0.30),
        f"Against the frozen model: {_mib(frozen)} without no_grad, {_mib(frozen_no_grad)} with it, "
        f"{frozen - frozen_no_grad:,} bytes saved; the gradients are the same ({proof.proof_class}). "
        f"Against a model that nobody froze: {_mib(unfrozen)}; no_grad over its tower alone "
        f"{_mib(unfrozen_no_grad)} ({_change(unfrozen, unfrozen_no_grad)}), freezing all of it "
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
    unfrozen, frozen = plain_peak_bytes(setting, frozen=False), plain_peak_bytes(setting)
    everything = peak_bytes(setting, lambda rig: rig.update(torch.no_grad()(rig.forward)().loss))
    trains = torch.no_grad()(nano_rig().forward)().loss.requires_grad
    return Finding(
        saving_verdict(frozen, everything, promised=0.50),
        f"{_mib(everything)}: {100 * everything / frozen:.1f} % of the frozen step's {_mib(frozen)}, and "
        f"{100 * everything / unfrozen:.1f} % of the {_mib(unfrozen)} with nothing frozen. "
        f"{'Something' if trains else 'Nothing'} trains.",
        {"no_grad_bytes": everything, "frozen_bytes": frozen, "unfrozen_bytes": unfrozen},
    )


def no_grad_behind_the_codec(setting: Setting) -> Finding:
    """The frozen receiver and language model under `no_grad`: as published, patched, and with a penalty."""
    rig = nano_rig()
    cut, whole = rig.forward(no_grad={"receiver"}), rig.forward()
    alone = rig.gradients(_PENALTY * rig.forward().power)
    try:
        rig.gradients(cut.loss)
        error = "no error"
    except RuntimeError as raised:
        error = f"`RuntimeError: {str(raised).splitlines()[0]}`"
    silent = rig.gradients(cut.loss + _PENALTY * cut.power)
    healthy = rig.gradients(whole.loss + _PENALTY * whole.power)
    patched = rig.gradients(rig.forward(no_grad={"receiver"}).loss.requires_grad_(True))
    same = compare_gradients(alone, silent).proof_class
    frozen = plain_peak_bytes(setting)
    saved = frozen - peak_bytes(setting, lambda rig: rig.step("tower", "receiver"))
    return Finding(
        "harmful" if _num_arrived(silent) < _num_arrived(healthy) else "true",
        f"Literally: {error}. With `loss.requires_grad_(True)` on top, backward passes and "
        f"{_num_arrived(patched)} of {len(patched)} codec tensors get a gradient. With a power penalty, usual "
        f"in this field, nothing fails either: the compression gets the penalty's gradient and no other "
        f"({same}), the decompression gets {_arrived(silent, 'decompression')}. "
        f"All this saves {_mib(saved)} of {_mib(frozen)}.",
        {
            "codec_tensors": len(healthy),
            "arrived_with_requires_grad": _num_arrived(patched),
            "arrived_with_penalty": _num_arrived(silent),
            "saved_bytes": saved,
        },
    )


def no_grad_over_the_channel(_: Setting) -> Finding:
    """The channel alone under `no_grad`."""
    rig = nano_rig()
    gradients = rig.gradients(rig.forward(no_grad={"channel"}).loss)
    return Finding(
        "harmful" if _num_arrived(gradients) < len(gradients) else "true",
        f"No error. The decompression gets {_arrived(gradients, 'decompression')}, the compression gets "
        f"{_arrived(gradients, 'compression')}.",
        {"codec_tensors": len(gradients), "arrived": _num_arrived(gradients)},
    )


def detach_cuts_the_gradient(_: Setting) -> Finding:
    """`detach` before the first trainable part, and after it."""
    rig = nano_rig()
    plain = rig.gradients(rig.forward().loss)
    before = compare_gradients(plain, rig.gradients(rig.forward(detach={"features"}).loss))
    after = rig.forward(detach={"rebuilt"}).loss.requires_grad
    return Finding(
        "false" if before.proof_class == "EXACT" else "true",
        f"On the frozen tower's output, which is the example given, nothing is lost: all {len(plain)} codec "
        f"gradients are the same ({before.proof_class}). Behind something that trains it is true: with the "
        f"decompression's output detached, the loss {'still has' if after else 'no longer has'} a graph.",
        {"max_relative_difference": before.worst.max_relative if before.worst else 0.0},
    )


def freezing_still_builds_the_graph(setting: Setting) -> Finding:
    """What autograd keeps of the frozen tower, and of the whole forward."""
    tower, forward = saved_bytes(setting, Rig.tower), saved_bytes(setting, Rig.forward)
    return Finding(
        "true" if tower else "false",
        f"In front of the codec autograd keeps {tower:,} bytes: neither the pictures nor the tower's weights "
        f"require a gradient, so there is no graph. Over the whole forward it keeps {_mib(forward)}, in the "
        f"codec and behind it, where the gradient has to pass and no_grad would cut it.",
        {"tower_saved_bytes": tower, "forward_saved_bytes": forward},
    )


def freezing_is_enough(setting: Setting) -> Finding:
    """An update with every parameter in the optimizer, weight decay included."""
    rig = nano_rig()
    frozen = [parameter for parameter in rig.model.parameters() if not parameter.requires_grad]
    before = [parameter.clone() for parameter in frozen]
    rig.optimizer = torch.optim.AdamW(rig.model.parameters(), lr=1e-2, weight_decay=0.1)
    rig.step()
    num_changed = sum(not torch.equal(old, new) for old, new in zip(before, frozen, strict=True))
    peaks = plain_peak_bytes(setting, frozen=False), plain_peak_bytes(setting)
    return Finding(
        "false" if num_changed else saving_verdict(*peaks),
        f"An update of AdamW over all parameters, weight decay included, changes {num_changed} of "
        f"{len(frozen)} frozen tensors. The peak falls from {_mib(peaks[0])} to {_mib(peaks[1])} "
        f"({_change(*peaks)}).",
        {"changed_tensors": num_changed, "unfrozen_bytes": peaks[0], "frozen_bytes": peaks[1]},
    )


def no_grad_is_faster(_: Setting) -> Finding:
    """Seconds of a step with the frozen tower under `no_grad` over those without, in pairs."""
    rig = nano_rig()
    ratios = time_ratios(rig.step, lambda: rig.step("tower"), _NUM_PAIRS)
    median, low, high = median_interval(ratios)
    noise = " Both faster and slower lie inside: this is noise." if low <= 1 <= high else ""
    return Finding(
        speed_verdict(low, high),
        f"Step time with no_grad over step time without: {median:.3f}, 95 % interval {low:.3f} to {high:.3f}; "
        f"{len(ratios)} alternating pairs spread from {min(ratios):.2f} to {max(ratios):.2f}.{noise} This is "
        f"the nano model, whose kernels are so small that bookkeeping weighs more than in a large one.",
        {"time_ratio": median, "time_ratio_low": low, "time_ratio_high": high},
    )


def autocast_over_frozen_weights(setting: Setting) -> Finding:
    """bf16 autocast around fp32 weights at two batch sizes, against weights stored in bf16."""
    rows: list[str] = []
    numbers: dict[str, float] = {}
    for one in (setting, replace(setting, batch_size=8 * setting.batch_size)):
        plain = plain_peak_bytes(one)
        autocast = peak_bytes(one, lambda rig: rig.update(rig.autocast_loss()))
        stored = peak_bytes(one, Rig.step, dtype=torch.bfloat16)
        rows.append(
            f"| {one.batch_size} | {_mib(plain)} | {_mib(autocast)} ({_change(plain, autocast)}) "
            f"| {_mib(stored)} ({_change(plain, stored)}) |\n"
        )
        for name, num_bytes in (("fp32", plain), ("autocast", autocast), ("stored", stored)):
            numbers[f"{name}_batch_{one.batch_size}_bytes"] = num_bytes
    kept, kept_autocast = saved_bytes(setting, Rig.forward), saved_bytes(setting, Rig.autocast_loss)
    first = (numbers[f"{name}_batch_{setting.batch_size}_bytes"] for name in ("fp32", "autocast"))
    return Finding(
        saving_verdict(*first),
        f"At batch {setting.batch_size} autograd keeps {_mib(kept_autocast)} beside the fp32 weights instead "
        f"of {_mib(kept)}, for it saves the bf16 copy of each frozen weight that the gradient passes. The "
        "larger the batch, the less that weighs.\n\n"
        "| batch | fp32 | autocast | frozen weights stored in bf16 |\n|---|---|---|---|\n" + "".join(rows),
        numbers,
    )


def transformers_checkpointing(setting: Setting) -> Finding:
    """Transformers' own checkpointing on a frozen model in eval mode, and one that ignores the mode."""

    def enable(rig: Rig) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it is to be renamed
            rig.florence.gradient_checkpointing_enable()

    def checkpoint(rig: Rig) -> None:
        checkpoint_(rig.model.receiver.language_model, ["encoder.layers.*", "decoder.layers.*"])

    long = replace(setting, target_tokens=16 * setting.target_tokens)
    plain, plain_long = saved_bytes(setting, Rig.forward), saved_bytes(long, Rig.forward)
    enabled, enabled_long = saved_bytes(setting, Rig.forward, enable), saved_bytes(long, Rig.forward, enable)
    recomputed = saved_bytes(setting, Rig.forward, checkpoint)
    return Finding(
        saving_verdict(plain, enabled),
        f"Kept for backward: {_mib(plain)} before the call and {_mib(enabled)} after it "
        f"({_change(plain, enabled)}); with {long.target_tokens} target tokens {_mib(plain_long)} and "
        f"{_mib(enabled_long)} ({_change(plain_long, enabled_long)}). transformers leaves checkpointing out in "
        "eval mode without a word, and eval mode is where a frozen model belongs; but the call still makes the "
        "token embeddings require a gradient, so autograd follows the answer's tokens too. The same layers "
        f"checkpointed whatever the mode: {_mib(recomputed)} ({_change(plain, recomputed)}).",
        {
            "saved_bytes": plain,
            "enabled_saved_bytes": enabled,
            "long_saved_bytes": plain_long,
            "long_enabled_saved_bytes": enabled_long,
            "checkpoint_saved_bytes": recomputed,
        },
    )


def deleting_outputs(setting: Setting) -> Finding:
    """All outputs bound until the next forward has returned, as in a script's loop, or deleted before it."""
    bound: list[Outputs] = []

    def keep(rig: Rig) -> None:
        bound[:] = [rig.forward()]
        rig.update(bound[0].loss)

    def delete(rig: Rig) -> None:
        outputs = rig.forward()
        rig.update(outputs.loss)
        del outputs

    large = replace(setting, batch_size=8 * setting.batch_size)
    rows: list[str] = []
    numbers: dict[str, float] = {}
    peaks: list[tuple[int, int]] = []
    for one in (setting, large, replace(large, target_tokens=16 * setting.target_tokens)):
        kept, deleted, loss_only = peak_bytes(one, keep), peak_bytes(one, delete), plain_peak_bytes(one)
        peaks.append((kept, deleted))
        rows.append(
            f"| {one.batch_size} | {one.target_tokens} | {_mib(kept)} | {_mib(deleted)} "
            f"({_change(kept, deleted)}) | {_mib(loss_only)} ({_change(kept, loss_only)}) |\n"
        )
        for name, num_bytes in (("kept", kept), ("deleted", deleted), ("loss_only", loss_only)):
            numbers[f"{name}_batch_{one.batch_size}_tokens_{one.target_tokens}_bytes"] = num_bytes
    bound.clear()
    best = min(peaks, key=lambda peak: peak[1] / peak[0])
    return Finding(
        saving_verdict(*best),
        "*Kept* outputs stay bound until the next forward has returned, *deleted* ones go after the "
        "optimizer's step; with *loss alone* the forward returns nothing else.\n\n"
        "| batch | target tokens | kept | deleted | loss alone |\n|---|---|---|---|---|\n" + "".join(rows),
        numbers,
    )


def collecting_garbage(setting: Setting) -> Finding:
    """`gc.collect()` and `empty_cache()` between two steps."""

    def two_steps(rig: Rig) -> None:
        rig.step()
        rig.step()

    def tidy_steps(rig: Rig) -> None:
        rig.step()
        gc.collect()
        torch.cuda.empty_cache()
        rig.step()

    plain, tidy = peak_bytes(setting, two_steps), peak_bytes(setting, tidy_steps)
    rig = nano_rig()
    ratios = time_ratios(lambda: two_steps(rig), lambda: tidy_steps(rig), _NUM_PAIRS // 4)
    median, low, high = median_interval(ratios)
    return Finding(
        saving_verdict(plain, tidy),
        f"Two steps: {_mib(plain)} without a collection in between, {_mib(tidy)} with it, {plain - tidy:,} bytes "
        f"saved. The time of the two steps becomes {median:.1f} times as long with the nano model ({low:.1f} to "
        f"{high:.1f}). Bytes are those of live tensors; a GPU's allocator keeps more in reserve, of which "
        f"empty_cache gives back what no tensor uses.",
        {"plain_bytes": plain, "collected_bytes": tidy, "time_ratio": median},
    )


def _num_arrived(gradients: Gradients) -> int:
    return sum(gradient is not None for gradient in gradients.values())


def _arrived(gradients: Gradients, half: str) -> str:
    arrived = [gradient is not None for name, gradient in gradients.items() if f".{half}." in name]
    return "a gradient" if all(arrived) else "part of its gradient" if any(arrived) else "none"


def _mib(num_bytes: float) -> str:
    return f"{format_mib(num_bytes)} MiB"


def _change(before: float, after: float) -> str:
    return "the same" if after == before else f"{100 * (after / before - 1):+.1f} %"


_GUIDE = "SemCom_FL2, docs/MEMORY_OPTIMIZATION.md"
_ARCHITECTURE = "SemCom_FL2, docs/TRAINING_ARCHITECTURE.md"

CLAIMS = (
    Claim(
        "`no_grad()` over the frozen parts saves 30-40 % of the memory",
        f"{_GUIDE}: 162 (157 says 30-50 %)",
        "Freeze. In front of the codec `no_grad` is then harmless, and a good insurance against a parameter "
        "that somebody unfreezes; behind the codec it is not (below).",
        no_grad_over_frozen_tower,
    ),
    Claim(
        "Full `no_grad()` brings the memory down to 40-50 %",
        f"{_GUIDE}: 163, with the remark that nothing can train then",
        "Keep it for evaluation. The peak is the frozen tower's own forward: send pictures through it one at "
        "a time, or cache its features.",
        no_grad_over_everything,
    ),
    Claim(
        "Frozen modules behind the trainable ones can run under `no_grad()` as well",
        f"{_GUIDE}: 22-24, 65-70, 93 and 123-131",
        "Leave everything behind the codec outside `no_grad`: the weights stay frozen and the gradient passes. "
        "To save memory there, recompute its layers in backward and take the loss in chunks.",
        no_grad_behind_the_codec,
    ),
    Claim(
        "The channel typically runs under `no_grad()`, its noise being deterministic",
        f"{_GUIDE}: 86",
        "Leave the channel in the graph: the noise needs no gradient, but the symbols it is added to do.",
        no_grad_over_the_channel,
    ),
    Claim(
        "`detach()` on a frozen module's output cuts the gradient of the trainable one after it",
        f"{_GUIDE}: 137-146",
        "Detach what you like in front of the first trainable part, and nothing behind it.",
        detach_cuts_the_gradient,
    ),
    Claim(
        "With `requires_grad=False` the graph is still built, so `no_grad()` takes less memory",
        f"{_ARCHITECTURE}: 70-72",
        "Ask where the frozen part lies. In front of everything that trains, freezing is all it takes; behind "
        "it, the graph is the gradient's way.",
        freezing_still_builds_the_graph,
    ),
    Claim(
        "`requires_grad=False` is enough for frozen modules",
        f"{_GUIDE}: 141, {_ARCHITECTURE}: 60",
        "Just this, and eval mode for the frozen modules through every later `train()`: dropout and BatchNorm "
        "do not ask `requires_grad`.",
        freezing_is_enough,
    ),
    Claim(
        "`no_grad()` over the frozen parts makes steps faster",
        f"{_GUIDE}: 158",
        "Cache the tower's features: it then runs once a picture instead of once a step.",
        no_grad_is_faster,
    ),
    Claim(
        "bf16 autocast saves memory around a frozen fp32 model",
        "common advice",
        "Store the frozen weights in bf16 and keep the codec in fp32. That changes the gradients, so look at "
        "them: `fl.compare_gradients`.",
        autocast_over_frozen_weights,
    ),
    Claim(
        "`gradient_checkpointing_enable()` saves memory on a frozen transformers model",
        "common advice",
        "Use checkpointing that does not ask for the mode, such as `frostline.ops.checkpoint_`.",
        transformers_checkpointing,
    ),
    Claim(
        "`del` of a step's outputs at its end lowers the peak",
        "common advice",
        "Let the forward return nothing but the loss; where logits are large, never make all of them: "
        "`frostline.ops.chunked_cross_entropy`.",
        deleting_outputs,
    ),
    Claim(
        "`gc.collect()` and `empty_cache()` after each step lower the peak",
        "common advice",
        "Leave them out of the loop.",
        collecting_garbage,
    ),
)

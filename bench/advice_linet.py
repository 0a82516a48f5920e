"""Advice on modality dropout in a multi-stream net: each function runs one claim, the table lists them all."""

from __future__ import annotations

from dataclasses import replace

from advice_linet_rig import (
    Way,
    checks,
    gradients,
    layer_saved_bytes,
    mask_copy_bytes,
    num_dead_parameters,
    step_bytes,
    steps_under_ddp,
)
from advice_verdict import NOTABLE, Claim, Finding, saving_verdict
from frostline.proof import compare_gradients, noise_floor
from frostline.records import ProofClass
from frostline.systems.linet.peak_table import Setting
from frostline.units import format_mib

SETTING = Setting()
ABOUT = (
    f"li_resnet{SETTING.depth} with {len(SETTING.stream_channels)} streams, batch {SETTING.batch_size}, "
    f"{SETTING.image_size} px, where each sample lacks one stream with probability {SETTING.rate:g}: the setting the "
    "advice is given for. Every step is really run on the CPU in float32, and its bytes are those above weights, "
    "gradients and pictures; gradients are compared in float64, with a quarter of the width at 64 px. The published "
    "project is [Multi-Stream-Neural-Networks](https://github.com/clingergab/Multi-Stream-Neural-Networks) at commit "
    "e6c2f00, restated on frostline's weights. *Before* its optimisation, masks multiply out of place and normalised "
    "rows are written by an index; *after* it, `mul_` masks and `index_copy_` writes. *Compact*: a stream runs on the "
    "samples that have it and on no other."
)
_PROMISED_COPIES = 39.2e9
_BEFORE, _MASKS, _WRITES, _AFTER = (
    Way(masking="before"),
    Way(masking="masks"),
    Way(masking="writes"),
    Way(masking="after"),
)
_COMPACT, _RECOMPUTING = Way(masking=None), Way(masking=None, recompute=True)
_RATES = (0.05, 0.2, 0.5)


def masks_in_place(setting: Setting) -> Finding:
    """What out-of-place masks allocate in a forward, and what the peak loses without them."""
    copies = 2 * mask_copy_bytes(setting)  # the published layer masks a stream's result twice
    before, after = step_bytes(setting, _BEFORE), step_bytes(setting, _MASKS)
    kept = copies >= (1 - NOTABLE) * _PROMISED_COPIES
    return Finding(
        saving_verdict(before, after) if kept else "false",
        f"All masked copies of one forward, two for each stream and convolution as published, are {_mib(copies)}: "
        f"{copies / 1e9:.2f} GB, not 39. The estimate takes each for 128 channels of {setting.image_size} x "
        f"{setting.image_size}; a ResNet has none so large. The peak of the step: {_mib(before)} before, "
        f"{_mib(after)} with masks in place ({_change(before, after)}).",
        {"copies_bytes": copies, "before_bytes": before, "masks_in_place_bytes": after},
    )


def writing_by_index_copy(setting: Setting) -> Finding:
    """One normalisation of the first stage, and the whole step."""
    before, after = layer_saved_bytes(setting, "before"), layer_saved_bytes(setting, "writes")
    whole_before, whole_after = step_bytes(setting, _BEFORE), step_bytes(setting, _WRITES)
    return Finding(
        saving_verdict(before, after, promised=0.05),
        f"One normalisation of the first stage and the ReLU behind it keep {_mib(before)} for backward with "
        f"`out[rows] = values`, {_mib(after)} with `index_copy_` ({_change(before, after)}). The whole step: "
        f"{_mib(whole_before)} and {_mib(whole_after)} ({_change(whole_before, whole_after)}). Autograd keeps all that "
        "`index_copy_` writes, though its backward reads nothing but the shape; of the assignment it keeps the index.",
        {
            "layer_saved_before_bytes": before,
            "layer_saved_after_bytes": after,
            "step_before_bytes": whole_before,
            "step_after_bytes": whole_after,
        },
    )


def whole_optimisation(setting: Setting) -> Finding:
    """Both halves together, against the step before and the one without dropout."""
    plain = step_bytes(replace(setting, rate=0.0), _BEFORE)
    before, after = step_bytes(setting, _BEFORE), step_bytes(setting, _AFTER)
    return Finding(
        saving_verdict(before, after, promised=0.30),
        f"Without dropout the step takes {_mib(plain)}, with it {_mib(before)} before the optimisation "
        f"({before / plain:.2f}x) and {_mib(after)} after it ({after / plain:.2f}x). Promised were 2.0-2.5x and "
        f"1.4-1.8x: what dropout costs was to fall by 30-40 % and {'rises' if after > before else 'falls'} by "
        f"{abs(after - before) / max(1, before - plain):.0%}. Gradients: "
        f"{checks(setting)['published optimisation'].verdict}.",
        {"no_dropout_bytes": plain, "before_bytes": before, "after_bytes": after},
    )


def near_optimal(setting: Setting) -> Finding:
    """The optimised step beside compact streams, and beside recomputing too."""
    plain = step_bytes(replace(setting, rate=0.0), _BEFORE)
    after, compact, least = (step_bytes(setting, way) for way in (_AFTER, _COMPACT, _RECOMPUTING))
    found = checks(setting)
    verdicts = found["compact streams"].verdict, found["recompute outputs, stem in 4 slices"].verdict
    return Finding(
        "false" if min(compact, least) < (1 - NOTABLE) * after else "true",
        f"After the optimisation the step takes {_mib(after)}. With compact streams, which gather once at the picture "
        f"and scatter nothing but the sum, {_mib(compact)} ({_change(after, compact)}; gradients {verdicts[0]}); if "
        f"what follows a normalisation is made again in backward, {_mib(least)} ({_change(after, least)}; "
        f"{verdicts[1]}). Both are below the {_mib(plain)} without dropout.",
        {"no_dropout_bytes": plain, "after_bytes": after, "compact_bytes": compact, "frostline_bytes": least},
    )


def checkpointing_each_block(setting: Setting) -> Finding:
    """The published blocks under torch's checkpoint."""
    after, checkpointed = step_bytes(setting, _BEFORE), step_bytes(setting, Way(checkpointed=True))
    least = step_bytes(setting, _RECOMPUTING)
    return Finding(
        saving_verdict(after, checkpointed, promised=0.50),
        f"{_mib(after)} without, {_mib(checkpointed)} with each block checkpointed ({_change(after, checkpointed)}). "
        f"And the network that comes out is another: {checks(setting)[_CHECKPOINT].text}. Recomputing by recipes, "
        f"which leaves the statistics alone: {_mib(least)} ({_change(after, least)}).",
        {"plain_bytes": after, "checkpoint_bytes": checkpointed, "frostline_bytes": least},
    )


def accumulation(setting: Setting) -> Finding:
    """Gradients of two half batches against those of the whole one, with BatchNorm in training and in eval mode."""
    small = replace(setting, image_size=min(setting.image_size, 64), width_multiplier=0.25)
    proof, worst = _accumulated(small, training=True)
    eval_proof, eval_worst = _accumulated(small, training=False)
    half = setting.batch_size // 2
    whole, parts = step_bytes(setting, _BEFORE), step_bytes(replace(setting, batch_size=half), _BEFORE)
    least = step_bytes(setting, _RECOMPUTING)
    same = proof in ("EXACT", "ROUNDING")
    return Finding(
        saving_verdict(whole, parts, promised=0.45) if same else "false",
        f"It takes {_mib(parts)} instead of {_mib(whole)} ({_change(whole, parts)}), but it is not the same step: "
        f"gradients differ by up to {worst:.2g} times the parameter's largest ({proof}), because each half is "
        "normalised by its own mean and variance, and the running statistics are updated twice. With BatchNorm in eval "
        f"mode the difference is {eval_worst:.0e} ({eval_proof}). Recomputing takes {_mib(least)} "
        f"({_change(whole, least)}) and changes no gradient and no statistic.",
        {
            "whole_bytes": whole,
            "half_bytes": parts,
            "frostline_bytes": least,
            "max_relative_difference": worst,
            "eval_max_relative_difference": eval_worst,
        },
    )


def lower_rate(setting: Setting) -> Finding:
    """Peaks over the dropout rate: as published, and with compact streams."""
    plain = step_bytes(replace(setting, rate=0.0), _BEFORE)
    rows, numbers = [], {"no_dropout_bytes": float(plain)}
    peaks: dict[float, int] = {}
    for rate in _RATES:
        one = replace(setting, rate=rate, sampler="fixed_count")
        after, compact = step_bytes(one, _AFTER), step_bytes(one, _COMPACT)
        peaks[rate] = after
        rows.append(f"| {rate:.0%} | {_ratio(after, plain)} | {_ratio(compact, plain)} |\n")
        numbers |= {f"after_rate_{rate:g}_bytes": after, f"compact_rate_{rate:g}_bytes": compact}
    return Finding(
        saving_verdict(peaks[0.2], peaks[0.05]),
        f"Over the {_mib(plain)} without dropout, in a batch in which samples of both streams are missing, for a run "
        "needs what its largest batch needs:\n\n| rate | after the optimisation | compact |\n|---|---|---|\n"
        + "".join(rows)
        + "\nOne blanked sample is enough for two more copies of every map, of all samples that are there. Where "
        "missing samples are not run at all, memory falls as the rate rises.",
        numbers,
    )


def under_ddp(setting: Setting) -> Finding:
    """Steps under torch's DistributedDataParallel, with the published parameters and with frostline's."""
    done, error = steps_under_ddp(setting, published=True)
    own, own_error = steps_under_ddp(setting, published=False)
    dead = num_dead_parameters(setting)
    return Finding(
        "true" if not error else "false",
        f"With the published parameters {done} of 3 steps went through"
        + (f", then `RuntimeError: {error}`" if error else "")
        + f": {dead} parameters, those of the last block's stream normalisations and one of no elements in the stem, "
        f"can never have a gradient. frostline's network holds them as buffers: {own} of 3 steps"
        + (f", then `{own_error}`." if own_error else "."),
        {"published_steps": done, "frostline_steps": own, "dead_parameters": dead},
    )


def _accumulated(setting: Setting, *, training: bool) -> tuple[ProofClass, float]:
    whole = gradients(setting, 1, training=training)
    floor = noise_floor(whole, gradients(setting, 1, training=training, backwards=True))
    report = compare_gradients(whole, gradients(setting, 2, training=training), floor=floor)
    return report.proof_class, report.worst.max_relative if report.worst else 0.0


def _mib(num_bytes: float) -> str:
    return f"{format_mib(num_bytes)} MiB"


def _change(before: float, after: float) -> str:
    return "the same" if after == before else f"{100 * (after / before - 1):+.1f} %"


def _ratio(num_bytes: float, plain: float) -> str:
    return f"{_mib(num_bytes)}, {num_bytes / plain:.2f}x"


_CHECKPOINT = "torch's checkpoint per block"
_GUIDE = "Multi-Stream-Neural-Networks, MODALITY_DROPOUT_OPTIMIZATION.md"

CLAIMS = (
    Claim(
        "Masking convolutions in place avoids about 39 GB of temporary tensors",
        f"{_GUIDE}: Conv Layer In-Place Masking; Why This Matters for Modality Dropout",
        "Mask in place if you like: convolutions do not keep their result. Expect nothing at the peak.",
        masks_in_place,
    ),
    Claim(
        "`index_copy_` takes 5-10 % off the allocations of each BatchNorm layer",
        f"{_GUIDE}: BatchNorm Subset Processing Optimization",
        "Write `out[rows] = values`, or do not take the rows out at all: `frostline.ops.MaskedBatchNorm2d`.",
        writing_by_index_copy,
    ),
    Claim(
        "Both together take 30-40 % off what modality dropout costs at the peak",
        f"{_GUIDE}: Estimated GPU Memory Reduction",
        "Run each stream on the samples that have it: dropout then saves memory and work instead of costing them.",
        whole_optimisation,
    ),
    Claim(
        "This subset BatchNorm is near-optimal: indexing and scattering cannot be avoided",
        f"{_GUIDE}: Limitations",
        "Gather once, at the picture; see [linet](linet.md).",
        near_optimal,
    ),
    Claim(
        "Gradient checkpointing takes 50-80 % off the memory",
        f"{_GUIDE}: Future Optimization Opportunities, 1",
        "Recompute what follows BatchNorm, not BatchNorm's bookkeeping: `frostline plan linet --memory.budget 1GiB`.",
        checkpointing_each_block,
    ),
    Claim(
        "Batch 16 with two accumulation steps is equivalent to batch 32, at about half the memory",
        f"{_GUIDE}: Future Optimization Opportunities, 3",
        "Keep the batch and recompute: `frostline plan linet --memory.budget smallest`.",
        accumulation,
    ),
    Claim(
        "A lower dropout rate has less overhead",
        f"{_GUIDE}: Future Optimization Opportunities, 4",
        "Choose the rate for the accuracy. With compact streams a higher one is cheaper.",
        lower_rate,
    ),
    Claim(
        "It is compatible with multi-GPU training (DDP)",
        f"{_GUIDE}: Compatibility",
        "Leave out what nothing can train, or pay for `find_unused_parameters=True` in every step.",
        under_ddp,
    ),
)

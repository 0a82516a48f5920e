"""Advice on training a radiance-field GAN: each function runs one claim, the table lists them all."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import cache

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advice_graf_rig import Way, made_of_nothing_bytes, peak_bytes, real_rig
from advice_verdict import Claim, Finding, median_interval, saving_verdict, time_ratios
from frostline.proof import compare_gradients, noise_floor
from frostline.systems.graf.peak_table import Setting

SETTING = Setting()
ABOUT = (
    f"One iteration, discriminator and generator, of a radiance-field GAN with super-resolution at the published "
    f"default size: batch {SETTING.batch_size}, {SETTING.image_size} x {SETTING.image_size} rays, "
    f"{SETTING.num_samples} samples, an {SETTING.depth} x {SETTING.width} field, R1 in every iteration, RMSprop. "
    "Bytes are counted on fake tensors of this size, in MB of 10^6; gradients and times are those of batch 2, 16 x 16 "
    "rays, 16 samples. Autocast is to bfloat16, which has the bytes of float16. The published project is "
    "[graf_ccsr](https://github.com/chiayu2002/graf_ccsr) at commit 0520322, its loop restated on frostline's modules; "
    "the numbers after its file are its sections, in its order. What a GPU's allocator holds in reserve is not counted."
)
_PLAIN, _HALF = Way(), Way(half=True)
_ALL = Way(half=True, cut=True, deletes=True, collects=True, set_to_none=True, non_blocking=True)
_CHUNKS = Way(chunk_rays=512)
_NUM_PAIRS = 8
_CLEANED_EVERY = 500  # iterations between two of the published clean-ups


def default_tensor_type(setting: Setting) -> Finding:
    """What a default type for new tensors can decide about at all."""
    plain, made = peak_bytes(setting, _PLAIN), made_of_nothing_bytes(setting)
    return Finding(
        saving_verdict(plain, plain - made, promised=0.10),
        f"All that an iteration makes from no other tensor, which is what the default decides about, is {made:,} "
        f"bytes: {made / plain:.5%} of the peak of {_mb(plain)}, if every byte of it were useless. Whatever else is on "
        "the GPU is there because weights and batch are, and they have to be.",
        {"peak_bytes": plain, "made_bytes": made},
    )


def loader_workers(setting: Setting) -> Finding:
    """The published loader at the published number of workers, beside the one it replaces; and the step's bytes."""
    data = TensorDataset(torch.zeros(2 * setting.batch_size, 3, setting.image_size, setting.image_size))
    before = DataLoader(data, setting.batch_size, num_workers=0)
    workers = min(0, 4)
    after = DataLoader(
        data,
        setting.batch_size,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        persistent_workers=workers > 0,
    )
    keys = ("num_workers", "prefetch_factor", "persistent_workers")
    differ = [key for key in keys if getattr(before, key) != getattr(after, key)]
    batch, plain = next(iter(after))[0].nbytes, peak_bytes(setting, _PLAIN)
    return Finding(
        "no effect" if batch < 0.01 * plain else "false",
        f"The published configuration has 0 workers, where {len(differ)} of the {len(keys)} settings differ from "
        f"before. With more, a batch is {_mb(batch)} of a step that peaks at {_mb(plain)}, and arrives one at a time; "
        f"what is prefetched, {_mb(4 * 2 * batch)} at 4 workers and a factor of 2, waits in the computer's memory, not "
        "in the GPU's.",
        {"settings_changed": len(differ), "batch_bytes": batch, "peak_bytes": plain},
    )


def set_to_none(setting: Setting) -> Finding:
    """What torch does unasked, what is advised, and the opposite."""
    plain, advised, zeros = (peak_bytes(setting, Way(set_to_none=given)) for given in (None, True, False))
    return Finding(
        saving_verdict(plain, advised, promised=0.05),
        f"`zero_grad()` does so unasked since torch 2.0: {_mb(plain)} without, {_mb(advised)} with it "
        f"({_change(plain, advised)}). Only who asks for zeros pays: {_mb(zeros)} ({_change(plain, zeros)}).",
        {"default_bytes": plain, "set_to_none_bytes": advised, "zeros_bytes": zeros},
    )


def losses_made_once(setting: Setting) -> Finding:
    """A loss object an iteration, and one for all."""
    anew, once = peak_bytes(setting, Way(makes_losses=True)), peak_bytes(setting, _PLAIN)
    held = [*nn.CrossEntropyLoss().parameters(), *nn.CrossEntropyLoss().buffers()]
    return Finding(
        saving_verdict(anew, once),
        f"{_mb(anew)} with a new one in each iteration, {_mb(once)} with one ({_change(anew, once)}): it holds "
        f"{len(held)} tensors.",
        {"anew_bytes": anew, "once_bytes": once},
    )


def non_blocking_copies(setting: Setting) -> Finding:
    """The same copies, asked for asynchronously."""
    plain, advised = peak_bytes(setting, _PLAIN), peak_bytes(setting, Way(non_blocking=True))
    return Finding(
        saving_verdict(plain, advised),
        f"{_mb(plain)} and {_mb(advised)} ({_change(plain, advised)}). It is about time: a copy from pinned memory may "
        "run beside the GPU's work, until the next line reads a label with `.item()` and waits for it.",
        {"plain_bytes": plain, "non_blocking_bytes": advised},
    )


def deleted_names(setting: Setting) -> Finding:
    """The published `del` lines, and the log behind them."""
    plain, advised = peak_bytes(setting, _PLAIN), peak_bytes(setting, Way(deletes=True))
    try:
        real_rig(_small(setting), Way(deletes=True)).loop(10, logs=True)
        error = "no error"
    except UnboundLocalError as raised:
        error = f"`UnboundLocalError: {raised}`"
    return Finding(
        saving_verdict(plain, advised, promised=0.15),
        f"{_mb(plain)} without, {_mb(advised)} with `del` at the end of each player's step "
        f"({_change(plain, advised)}): backward has freed the graphs by then, and a name holds numbers and one image. "
        f"The published list deletes the losses too; logging them in every 10th iteration: {error}.",
        {"plain_bytes": plain, "deleted_bytes": advised, "failures": float(error != "no error")},
    )


def emptied_cache(setting: Setting) -> Finding:
    """Collections and emptied caches behind every iteration, far more often than published."""
    plain, advised = peak_bytes(setting, _PLAIN), peak_bytes(setting, Way(collects=True))
    return Finding(
        saving_verdict(plain, advised, promised=0.15),
        f"{_mb(plain)} without, {_mb(advised)} with both behind every iteration ({_change(plain, advised)}). An "
        "emptied cache gives back what no tensor uses; the peak is made of what tensors use.",
        {"plain_bytes": plain, "collected_bytes": advised},
    )


def no_grad_for_fakes(setting: Setting) -> Finding:
    """The discriminator's step with the generator's graph and without, and the iteration round it."""
    graph = Way(fakes_with_graph=True)
    before, after = (peak_bytes(setting, way, "discriminator") for way in (graph, _PLAIN))
    whole_before, whole_after = peak_bytes(setting, graph), peak_bytes(setting, _PLAIN)
    return Finding(
        saving_verdict(before, after),
        f"The discriminator's step: {_mb(before)} with the fakes' graph, {_mb(after)} without "
        f"({_change(before, after)}). The iteration peaks in the generator's step, which needs that graph: "
        f"{_mb(whole_before)} and {_mb(whole_after)} ({_change(whole_before, whole_after)}). The code had it "
        "before.",
        {
            "discriminator_graph_bytes": before,
            "discriminator_no_grad_bytes": after,
            "iteration_graph_bytes": whole_before,
            "iteration_no_grad_bytes": whole_after,
        },
    )


def cut_superres(setting: Setting) -> Finding:
    """Super-resolution under `no_grad`, its result made a leaf: bytes, and who still learns."""
    plain, advised = peak_bytes(setting, _PLAIN), peak_bytes(setting, Way(cut=True))
    still, num = lost_parameters(setting, Way(cut=True))
    return Finding(
        "harmful" if still else saving_verdict(plain, advised),
        f"It saves {_mb(plain - advised)} of {_mb(plain)} ({_change(plain, advised)}), and {still} of the {num} "
        "parameters of super-resolution get no gradient any more, without an error: the loss goes on being logged, and "
        "falls with its weight. `frostline audit` calls it FL107.",
        {"plain_bytes": plain, "cut_bytes": advised, "parameters": num, "parameters_without_gradient": still},
    )


def evaluation_on_cpu(setting: Setting) -> Finding:
    """Eight views, kept on the device until the last one or moved away at once."""
    kept, moved = (peak_bytes(setting, Way(keeps_views=keeps), "sampling") for keeps in (True, False))
    chunked = peak_bytes(setting, _CHUNKS, "sampling")
    return Finding(
        saving_verdict(kept, moved),
        f"8 views of {setting.batch_size} images: {_mb(kept)} where all wait on the device, {_mb(moved)} where each "
        f"leaves it at once ({_change(kept, moved)}). What rendering takes is the rays of one call: {_mb(chunked)} "
        f"with {_CHUNKS.chunk_rays} at once ({_change(kept, chunked)}).",
        {"kept_bytes": kept, "moved_bytes": moved, "chunked_bytes": chunked},
    )


def mixed_precision(setting: Setting) -> Finding:
    """Autocast round everything: bytes, and gradients of the generator's loss and of the penalty."""
    plain, advised = peak_bytes(setting, _PLAIN), peak_bytes(setting, _HALF)
    generator, penalty = gradient_errors(setting, _HALF)
    return Finding(
        saving_verdict(plain, advised, promised=0.30),
        f"{_mb(plain)} and {_mb(advised)} ({_change(plain, advised)}): the one piece that saves. Gradients are off by "
        f"up to {generator:.0%} of a parameter's largest. The remark that the penalty stays in float32 does not hold: "
        f"the discriminator went forward under autocast, and backward has forward's types; the penalty's own gradients "
        f"are off by up to {penalty:.0%}.",
        {
            "plain_bytes": plain,
            "half_bytes": advised,
            "max_relative_difference": generator,
            "penalty_max_relative_difference": penalty,
        },
    )


def all_together(setting: Setting) -> Finding:
    """All of it at once, beside chunks that are made again in backward."""
    plain, advised = peak_bytes(setting, _PLAIN), peak_bytes(setting, _ALL)
    least = peak_bytes(setting, _CHUNKS, "iteration")
    still, num = lost_parameters(setting, _ALL)
    return Finding(
        "harmful" if still else saving_verdict(plain, advised, promised=0.60),
        f"{_mb(plain)} before, {_mb(advised)} after ({_change(plain, advised)}), of which mixed precision alone is "
        f"{_change(plain, peak_bytes(setting, _HALF))}; {still} of {num} parameters of super-resolution stand still. "
        f"In float32, with {_CHUNKS.chunk_rays} rays at once that are made again in backward: {_mb(least)} "
        f"({_change(plain, least)}), gradients {chunk_proof(setting)}, and nothing stands still.",
        {"plain_bytes": plain, "all_bytes": advised, "frostline_bytes": least, "parameters_without_gradient": still},
    )


def slower_by_cleaning(setting: Setting) -> Finding:
    """What one clean-up costs, spread over the iterations between two."""
    rig = real_rig(_small(setting), _PLAIN)

    def cleaning() -> None:
        rig.loop(1)
        torch.cuda.empty_cache()
        gc.collect()

    median, low, high = median_interval(time_ratios(lambda: rig.loop(1), cleaning, _NUM_PAIRS))
    spread = 1 + max(0.0, median - 1) / _CLEANED_EVERY
    within = 1.05 <= spread <= 1.10
    return Finding(
        "true" if within else "no effect" if spread < 1.01 else "false",
        f"An iteration with a collection and an emptied cache behind it takes {median:.2f} times as long at the small "
        f"size ({low:.2f} to {high:.2f}). One of {_CLEANED_EVERY} iterations is followed by one: {spread - 1:.3%}. At "
        "the default size, where an iteration takes longer, it is less.",
        {"time_ratio": median, "time_ratio_low": low, "time_ratio_high": high, "published_time_ratio": spread},
    )


def larger_batch(setting: Setting) -> Finding:
    """All of it at once, at larger batches than the one before."""
    plain = peak_bytes(setting, _PLAIN)
    sizes = [setting.batch_size * quarters // 4 for quarters in (5, 6, 7, 8)]
    peaks = {size: peak_bytes(replace(setting, batch_size=size), _ALL) for size in sizes}
    fitting = max((size for size, peak in peaks.items() if peak <= plain), default=setting.batch_size)
    times = fitting / setting.batch_size
    still, num = lost_parameters(setting, _ALL)
    doubled = replace(setting, batch_size=2 * setting.batch_size)
    least, twice = (peak_bytes(size, _CHUNKS, "iteration") for size in (setting, doubled))
    rows = "".join(f"| {size} | {_mb(peak)} |\n" for size, peak in peaks.items())
    return Finding(
        "true" if times >= 1.5 else "false",
        f"Of {_mb(plain)}, which batch {setting.batch_size} took before, a batch of {fitting} makes use "
        f"({times:.2g} times), with {still} of {num} parameters of super-resolution standing still:\n\n"
        f"| batch | all advice |\n|---|---|\n{rows}\nMixed precision does that. In float32, with {_CHUNKS.chunk_rays} "
        f"rays at once that are made again in backward, batch {setting.batch_size} takes {_mb(least)} and batch "
        f"{2 * setting.batch_size} takes {_mb(twice)}.",
        {
            "plain_bytes": plain,
            "times": times,
            "frostline_bytes": least,
            "frostline_twice_batch_bytes": twice,
            **{f"batch_{size}_bytes": peak for size, peak in peaks.items()},
        },
    )


@cache
def lost_parameters(setting: Setting, way: Way) -> tuple[int, int]:
    """How many parameters of super-resolution get no gradient, and how many there are."""
    gradients = real_rig(_small(setting), way).gradients()
    own = [gradient for name, gradient in gradients.items() if name.startswith("superres.")]
    return sum(gradient is None or not bool(gradient.any()) for gradient in own), len(own)


def gradient_errors(setting: Setting, way: Way) -> tuple[float, float]:
    """Largest relative difference of the generator's gradients and of the penalty's from the plain step's."""
    plain, found = real_rig(_small(setting), _PLAIN), real_rig(_small(setting), way)
    pairs = ((plain.gradients(), found.gradients()), (plain.penalty_gradients(), found.penalty_gradients()))
    worst = [compare_gradients(*pair).worst for pair in pairs]
    generator, penalty = (found.max_relative if found else 0.0 for found in worst)
    return generator, penalty


def chunk_proof(setting: Setting) -> str:
    """The proof class of chunks' gradients."""
    small = _small(setting)
    plain, truth = (real_rig(small, _PLAIN, dtype).gradients() for dtype in (torch.float32, torch.float64))
    found = real_rig(small, replace(_CHUNKS, chunk_rays=64)).gradients()
    return compare_gradients(plain, found, floor=noise_floor(plain, truth)).proof_class


def _small(setting: Setting) -> Setting:
    """A size that runs."""
    return replace(
        setting,
        batch_size=2,
        image_size=min(setting.image_size, 16),
        num_samples=min(setting.num_samples, 16),
        channels=min(setting.channels, 32),
    )


def _mb(num_bytes: float) -> str:
    megabytes = num_bytes / 1e6
    return f"{megabytes:,.0f} MB" if megabytes >= 100 else f"{megabytes:.1f} MB"


def _change(before: float, after: float) -> str:
    change = after / before - 1
    return (
        "the same"
        if before == after
        else f"{change:+.1%}".replace("%", " %")
        if abs(change) >= 5e-4
        else (f"{change:+.3%}".replace("%", " %"))
    )


_GUIDE = "graf_ccsr, MEMORY_OPTIMIZATION.md"
CLAIMS = (
    Claim(
        "Dropping `set_default_tensor_type('torch.cuda.FloatTensor')` saves about 10 %",
        f"{_GUIDE}: 1 and the estimates",
        "Drop it for another reason: a device that is written down, `device=`, can be tested without a GPU.",
        default_tensor_type,
    ),
    Claim(
        "At most 4 loader workers, a prefetch factor of 2 and persistent workers save memory",
        f"{_GUIDE}: 2",
        "Choose them by how long the loop waits for data; small pictures need none.",
        loader_workers,
    ),
    Claim(
        "`zero_grad(set_to_none=True)` saves 5-10 %",
        f"{_GUIDE}: 3 and the estimates",
        "Write `zero_grad()`.",
        set_to_none,
    ),
    Claim(
        "Making the loss object once instead of in each iteration saves memory",
        f"{_GUIDE}: 4",
        "Write `F.cross_entropy`, which needs no object.",
        losses_made_once,
    ),
    Claim(
        "`non_blocking=True` saves memory or lets copies overlap",
        f"{_GUIDE}: 5",
        "Pin the loader's memory, and keep on the CPU what the CPU reads.",
        non_blocking_copies,
    ),
    Claim(
        "`del` of the step's tensors, with an emptied cache, saves 15-20 %",
        f"{_GUIDE}: 6 and the estimates",
        "Leave it out. A name matters where it holds a graph through the peak: `frostline audit`, FL504 and FL512.",
        deleted_names,
    ),
    Claim(
        "`empty_cache()` and `gc.collect()` save 15-20 %, with `del`",
        f"{_GUIDE}: 7 and the estimates",
        "Leave them out.",
        emptied_cache,
    ),
    Claim(
        "`no_grad()` where the discriminator's fakes are made saves memory",
        f"{_GUIDE}: 8",
        "Do it, and render in chunks as well: then neither player's step grows with the rays.",
        no_grad_for_fakes,
    ),
    Claim(
        "Super-resolution can run under `no_grad()` if `requires_grad_(True)` follows",
        f"{_GUIDE}: 9",
        "Leave it in the graph, and look for bytes where they are: `frostline measure graf`.",
        cut_superres,
    ),
    Claim(
        "Moving each view to the CPU and emptying the cache makes evaluation smaller",
        f"{_GUIDE}: 10",
        "Render fewer rays at once.",
        evaluation_on_cpu,
    ),
    Claim(
        "Mixed precision saves 30-50 %",
        f"{_GUIDE}: 11 and the estimates",
        "Autocast the field's MLP alone, `--training.precision bf16-mixed`: discriminator and penalty hold few bytes.",
        mixed_precision,
    ),
    Claim(
        "All together save 60-90 %",
        f"{_GUIDE}: the estimates' sum",
        "`frostline plan graf --memory.budget 400MB`: chunks of rays, made again in backward, and the same gradients.",
        all_together,
    ),
    Claim(
        "The clean-ups make training 5-10 % slower",
        f"{_GUIDE}: effects on performance",
        "Leave them out for what they do not save, not for their time.",
        slower_by_cleaning,
    ),
    Claim(
        "The batch can be 1.5 to 2 times as large",
        f"{_GUIDE}: effects on performance",
        "Render in chunks: memory then no longer asks for the batch.",
        larger_batch,
    ),
)

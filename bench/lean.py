"""What lean layers keep for backward: ``python bench/lean.py [--json]``.

Frozen nets behind a trainable part, plain and treated: bytes that autograd keeps from forward to backward, counted by
`saved_tensors_hooks` (one storage once, without what is there anyway), the peak of the step above what is resident,
by the log of allocations, the step's time in turns with the plain one, and the gradients. Writes
bench/results/lean.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from frostline.memory import measure
from frostline.ops import checkpoint_, lean_
from frostline.proof import compare_gradients, noise_floor
from peer_models import Case, Front, Stage, build, conv_case, names_of, resnet18, vgg16_features
from peers import first_gradients, put_table, timed

RESULTS = Path(__file__).parent / "results" / "lean.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "peers.md"
_ROUNDS = 15


class Block(nn.Module):
    """A pre-norm transformer block; its second half is one module, norm included."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.into, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attention over (batch, length, width), then the feed-forward part."""
        heads = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.into(self.norm(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        result: Tensor = x + self.feed_forward(x)
        return result


def plain_stack(depth: int = 12, width: int = 64) -> nn.Module:
    """Convolution, BatchNorm, ReLU, again and again."""
    layers: list[nn.Module] = [Stage(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))]
    for _ in range(depth - 1):
        layers.append(Stage(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def block_case(num_blocks: int = 6, width: int = 256, batch_size: int = 4, length: int = 256) -> Case:
    """Frozen pre-norm blocks behind a trainable linear map."""
    model = Front(nn.Linear(width, width), nn.Sequential(*(Block(width, 4) for _ in range(num_blocks))))
    inputs = {"x": torch.randn(batch_size, length, width), "target": torch.randn(batch_size, length, width)}
    return Case(model=model, inputs=inputs, blocks=names_of(model, Block), call=model)


def _lean(case: Case) -> None:
    lean_(case.model)


def _recompute_feed_forward(case: Case) -> None:
    lean_(case.model)
    checkpoint_(case.model, [f"{name}.feed_forward" for name in case.blocks])


def _recompute_blocks(case: Case) -> None:
    lean_(case.model)
    checkpoint_(case.model, case.blocks)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model, how it is treated, and how much less it must keep for backward."""

    model: str
    treatment: str
    make: Callable[[], Case]
    treat: Callable[[Case], None]
    target: float


TRIALS = (
    Trial(
        model="12 x conv + BN(eval) + ReLU",
        treatment="lean_",
        make=partial(conv_case, plain_stack, 64, batch_size=8, size=128),
        treat=_lean,
        target=14,
    ),
    Trial(
        model="ResNet-18",
        treatment="lean_",
        make=partial(conv_case, resnet18, 1000, batch_size=8, size=128),
        treat=_lean,
        target=14,
    ),
    Trial(
        model="VGG-16 with BN",
        treatment="lean_",
        make=partial(conv_case, vgg16_features, 512, batch_size=4, size=112),
        treat=_lean,
        target=14,
    ),
    Trial(
        model="6 pre-norm blocks",
        treatment="lean_, checkpoint_ on norm and MLP",
        make=block_case,
        treat=_recompute_feed_forward,
        target=1.6,
    ),
    Trial(
        model="6 pre-norm blocks",
        treatment="lean_, checkpoint_ on blocks",
        make=block_case,
        treat=_recompute_blocks,
        target=1.6,
    ),
)


def main() -> int:
    """Measure every trial; exit 1 where one misses its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--documents", action="store_true", help="also put the table into docs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row(trial) for trial in TRIALS]
    results = {"torch": torch.__version__, "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        print(table(rows))
    if arguments.documents:
        put_table(DOCUMENT, "lean", table(rows))
    return 0 if all(met(each) for each in rows) else 1


def row(trial: Trial, rounds: int = _ROUNDS) -> dict[str, Any]:
    """One trial, plain and treated."""
    plain, treated = build(trial.make), build(trial.make)
    trial.treat(treated)
    gradients = first_gradients(plain)
    floor = noise_floor(gradients, first_gradients(build(trial.make, torch.float64)))
    proof = compare_gradients(gradients, first_gradients(treated), floor=floor)
    kept_plain, kept = kept_bytes(plain), kept_bytes(treated)
    peak_plain, peak = peak_above(plain), peak_above(treated)
    ours, theirs = treated.workload(), plain.workload()
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    return {
        "model": trial.model,
        "treatment": trial.treatment,
        "plain_kept_bytes": kept_plain,
        "kept_bytes": kept,
        "kept_ratio": round(kept_plain / kept, 2),
        "kept_ratio_target": trial.target,
        "plain_peak_above_resident_bytes": peak_plain,
        "peak_above_resident_bytes": peak,
        "peak_ratio": round(peak_plain / peak, 2),
        "step_seconds_ratio": round(median(truediv(*pair) for pair in pairs), 3),
        "proof_class": proof.proof_class,
        "max_rel_grad_diff": proof.worst.max_relative if proof.worst else None,
    }


def kept_bytes(case: Case) -> int:
    """What autograd keeps between forward and backward, beside parameters, buffers and inputs."""
    there = {tensor.untyped_storage().data_ptr() for tensor in (*case.model.parameters(), *case.model.buffers())}
    there |= {tensor.untyped_storage().data_ptr() for tensor in case.inputs.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = case.loss()
    del loss
    return sum(kept.values())


def peak_above(case: Case) -> int:
    """The peak of a training step above what is there before it."""
    work = case.workload()
    report = measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)
    return report.peak_bytes - report.resident_bytes


def met(result: dict[str, Any]) -> bool:
    """Whether a row keeps its promise."""
    same = result["proof_class"] in ("EXACT", "ROUNDING")
    return same and result["kept_ratio"] >= result["kept_ratio_target"] and result["step_seconds_ratio"] <= 1.5


def table(rows: list[dict[str, Any]]) -> str:
    """The same in Markdown."""
    names = (
        "frozen, behind a trainable part",
        "treatment",
        "kept for backward, MiB",
        "less",
        "peak above resident, MiB",
    )
    lines = [f"| {' | '.join((*names, 'less', 'step time', 'gradients'))} |", "|---" * 8 + "|"]
    for each in rows:
        kept = each["plain_kept_bytes"], each["kept_bytes"]
        peak = each["plain_peak_above_resident_bytes"], each["peak_above_resident_bytes"]
        cells = [each["model"], each["treatment"]]
        for pair, ratio in ((kept, each["kept_ratio"]), (peak, each["peak_ratio"])):
            cells += [" to ".join(f"{num_bytes / 2**20:.1f}" for num_bytes in pair), f"{ratio:.1f}x"]
        cells += [f"x{each['step_seconds_ratio']:.2f}", each["proof_class"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

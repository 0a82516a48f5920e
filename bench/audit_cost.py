"""What an audit costs: ``python bench/audit_cost.py [--json] [--device cuda] [--num-pairs N]``.

Two rows audit one training step of a 12-layer Llama-shaped decoder, everything trainable and LoRA on a frozen base;
time is a ratio of audited to plain steps that alternate in one run, peak bytes are counted. The third audits a LoRA
step of a 7B-shaped decoder on fake tensors, in a process of its own whose memory is read from the kernel. Without
--json the numbers also go to bench/results/audit-cost.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from advice_verdict import median_interval
from frostline.errors import DeviceError, FrostlineError
from frostline.gradflow import audit, auditing
from frostline.memory import measure
from frostline.tracing import build_fake, fake_tensors
from frostline.units import format_bytes

RESULTS = Path(__file__).parent / "results" / "audit-cost.json"
TARGET_RATIO, TARGET_FAKE_SECONDS, TARGET_FAKE_BYTES = 1.5, 20.0, 2**30
_LORA_RANK = 8


@dataclass(frozen=True, kw_only=True)
class Size:
    """A decoder and its batch.

    Attributes:
        num_layers: Blocks.
        dim: Of the residual stream.
        num_heads: Of attention.
        hidden: Width of the feed-forward part.
        vocabulary: Tokens.
        batch_size: Sequences.
        num_tokens: Of each sequence.
    """

    num_layers: int
    dim: int
    num_heads: int
    hidden: int
    vocabulary: int
    batch_size: int
    num_tokens: int


SMALL = Size(num_layers=12, dim=384, num_heads=6, hidden=1024, vocabulary=2048, batch_size=4, num_tokens=128)
LLAMA_7B = Size(num_layers=32, dim=4096, num_heads=32, hidden=11008, vocabulary=32000, batch_size=1, num_tokens=2048)


@dataclass(frozen=True, kw_only=True)
class RealRow:
    """What the audit of a real step costs.

    Attributes:
        name: What trains.
        plain_seconds: A step without an audit, the median.
        step_ratio: An audited step over a plain one, the median; the audit has been running for a step by then.
        step_ratio_low: The lower end of its 95 % interval.
        step_ratio_high: The upper end.
        whole_ratio: Of an audit of one step, from its beginning to its report, over a plain step.
        plain_peak_bytes: Live at the peak of a step.
        audited_peak_bytes: The same, of an audited step.
        num_faults: What it reported; 0, for nothing is wrong.
    """

    name: str
    plain_seconds: float
    step_ratio: float
    step_ratio_low: float
    step_ratio_high: float
    whole_ratio: float
    plain_peak_bytes: int
    audited_peak_bytes: int
    num_faults: int


@dataclass(frozen=True, kw_only=True)
class FakeRow:
    """What the audit of a step on fake tensors costs.

    Attributes:
        name: What is audited.
        num_parameters: Of the model.
        build_seconds: To build the model.
        plain_seconds: A step without an audit.
        audit_seconds: The audit, to its report.
        peak_rss_bytes: The most memory the process ever had, torch included.
        num_faults: What it reported; 0, for nothing is wrong.
    """

    name: str
    num_parameters: int
    build_seconds: float
    plain_seconds: float
    audit_seconds: float
    peak_rss_bytes: int
    num_faults: int


class LoRA(nn.Module):
    """A frozen linear layer, and a trainable product of two thin ones beside it."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.base = nn.Linear(num_in, num_out, bias=False).requires_grad_(False)
        self.down = nn.Linear(num_in, _LORA_RANK, bias=False)
        self.up = nn.Linear(_LORA_RANK, num_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., num_in)`` to ``(..., num_out)``."""
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


class Block(nn.Module):
    """Attention with rotary positions and a gated feed-forward part, as in Llama."""

    def __init__(self, size: Size, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.attention_norm, self.forward_norm = nn.RMSNorm(size.dim), nn.RMSNorm(size.dim)
        self.query, self.value = linear(size.dim, size.dim), linear(size.dim, size.dim)
        self.key, self.out = nn.Linear(size.dim, size.dim, bias=False), nn.Linear(size.dim, size.dim, bias=False)
        self.gate, self.up = (nn.Linear(size.dim, size.hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(size.hidden, size.dim, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """``(batch, tokens, dim)`` to the same."""
        h = self.attention_norm(x)
        query, key, value = (self._split(part(h)) for part in (self.query, self.key, self.value))
        query, key = (part * cosine + _rotated(part) * sine for part in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.forward_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return heads


class Decoder(nn.Module):
    """A language model of Llama's shape; with `lora`, all but LoRA on queries and values is frozen."""

    def __init__(self, size: Size, *, lora: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.dim)
        linear: Callable[[int, int], nn.Module] = LoRA if lora else lambda n, m: nn.Linear(n, m, bias=False)
        self.blocks = nn.ModuleList([Block(size, linear) for _ in range(size.num_layers)])
        self.norm, self.head = nn.RMSNorm(size.dim), nn.Linear(size.dim, size.vocabulary, bias=False)
        self.head_dim = size.dim // size.num_heads
        if lora:
            self.requires_grad_(False)
            for module in self.modules():
                if isinstance(module, LoRA):
                    nn.init.zeros_(module.up.weight)
                    module.down.requires_grad_(True)
                    module.up.requires_grad_(True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(batch, tokens)`` to logits ``(batch, tokens, vocabulary)``."""
        x = self.embedding(tokens)
        rates = 10000.0 ** (-torch.arange(0, self.head_dim, 2, device=x.device) / self.head_dim)
        angles = torch.outer(torch.arange(tokens.shape[1], device=x.device), rates).repeat(1, 2)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        logits: Tensor = self.head(self.norm(x))
        return logits


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


@dataclass(frozen=True)
class Training:
    """A step of a decoder, and what it moves."""

    model: Decoder
    optimizer: torch.optim.Optimizer
    tokens: Tensor

    def step(self) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        logits = self.model(self.tokens)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten()).backward()
        self.optimizer.step()


def prepare(model: Decoder, size: Size, device: str) -> Training:
    """Random tokens, and AdamW on what trains."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.randint(size.vocabulary, (size.batch_size, size.num_tokens), device=device)
    return Training(model, optimizer, tokens)


def real_row(name: str, *, lora: bool, device: str, num_pairs: int) -> RealRow:
    """Audit real steps, plain ones between them."""
    torch.manual_seed(0)
    training = prepare(Decoder(SMALL, lora=lora).to(device), SMALL, device)
    training.step()  # the first step of an optimizer makes its state
    _audit_steps(training, device)
    plain, steps, wholes, num_faults = [], [], [], 0
    for _ in range(num_pairs):
        before = _seconds(training.step, device)
        first_and_ends, second, num_faults = _audit_steps(training, device)
        after = _seconds(training.step, device)
        plain.append((before + after) / 2)
        steps.append(second / plain[-1])
        wholes.append(first_and_ends / plain[-1])
    ratio, low, high = median_interval(steps)
    return RealRow(
        name=name,
        plain_seconds=statistics.median(plain),
        step_ratio=ratio,
        step_ratio_low=low,
        step_ratio_high=high,
        whole_ratio=statistics.median(wholes),
        plain_peak_bytes=_peak_bytes(training, training.step),
        audited_peak_bytes=_peak_bytes(training, lambda: _audit_once(training)),
        num_faults=num_faults,
    )


def _audit_steps(training: Training, device: str) -> tuple[float, float, int]:
    """Seconds of an audit without its second step, and of that step; and how many faults it reports."""
    start = time.perf_counter()
    with auditing(training.model, training.optimizer) as running:
        training.step()
        second = _seconds(training.step, device)
    num_faults = len(running.report().faults)
    return time.perf_counter() - start - second, second, num_faults


def _audit_once(training: Training) -> None:
    with auditing(training.model, training.optimizer):
        training.step()


def _peak_bytes(training: Training, step: Callable[[], object]) -> int:
    report = measure(step, training.model, optimizers=[training.optimizer], inputs=training.tokens)
    return report.peak_bytes


def _seconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def fake_row() -> FakeRow:
    """Audit a LoRA step of a 7B-shaped decoder in this process."""
    start = time.perf_counter()
    with fake_tensors() as mode:
        model = build_fake(lambda: Decoder(LLAMA_7B, lora=True), mode)
        training = prepare(model, LLAMA_7B, "cpu")
        built = time.perf_counter()
        training.step()
        stepped = time.perf_counter()
        report = audit(training.step, model, training.optimizer)
    return FakeRow(
        name="LoRA on 7B, fake tensors",
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        build_seconds=built - start,
        plain_seconds=stepped - built,
        audit_seconds=time.perf_counter() - stepped,
        peak_rss_bytes=_peak_rss_bytes(),
        num_faults=len(report.faults),
    )


def _peak_rss_bytes() -> int:
    """The process's own high-water mark; `ru_maxrss` may be that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fake_row_in_a_process() -> FakeRow:
    command = [sys.executable, __file__, "--only-fake"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return FakeRow(**json.loads(done.stdout))


def render(real: Sequence[RealRow], fake: FakeRow) -> Table:
    """Every row, and what it should be at most."""
    table = Table("audited", "number", "measured", "at most", title="What an audit costs")
    for row in real:
        interval = f"{row.step_ratio:.2f} ({row.step_ratio_low:.2f}-{row.step_ratio_high:.2f})"
        peaks = f"{format_bytes(row.plain_peak_bytes)} → {format_bytes(row.audited_peak_bytes)}"
        table.add_row(row.name, "audited step / plain step", interval, f"{TARGET_RATIO}")
        table.add_row("", "whole audit of one step / plain step", f"{row.whole_ratio:.2f}", "")
        table.add_row("", "peak bytes", peaks, "")
    table.add_row(fake.name, "seconds", f"{fake.audit_seconds:.1f}", f"{TARGET_FAKE_SECONDS:.0f}")
    table.add_row("", "memory of the process", format_bytes(fake.peak_rss_bytes), format_bytes(TARGET_FAKE_BYTES))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and write nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the real steps")
    parser.add_argument("--num-pairs", type=int, default=15, help="how often each real step is repeated")
    parser.add_argument("--only-fake", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.only_fake:
        print(json.dumps(asdict(fake_row())))
        return 0
    try:
        if asked.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("there is no GPU that torch can use", do="leave out --device cuda")
        names = {"all trainable": False, "LoRA on a frozen base": True}
        real = [real_row(n, lora=lora, device=asked.device, num_pairs=asked.num_pairs) for n, lora in names.items()]
    except FrostlineError as error:
        print(f"audit_cost.py: {error}", file=sys.stderr)
        return 2
    fake = _fake_row_in_a_process()
    results = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else "cpu",
        "num_threads": torch.get_num_threads(),
        "num_pairs": asked.num_pairs,
        "size": asdict(SMALL),
        "real": [asdict(row) for row in real],
        "fake": asdict(fake),
    }
    if asked.json:
        print(json.dumps(results, indent=1))
        return 0
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Console().print(render(real, fake), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A small system with everything the engine must handle; run as a script it is one of two gloo processes."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.config import DataConfig, TrainingConfig
from frostline.regions import freeze_, trainable_state
from frostline.training import (
    BatchStream,
    CheckpointStore,
    Group,
    Loss,
    Phase,
    RunLog,
    cosine,
    run,
)

ALONE = Group(torch.device("cpu"))
SETTINGS = TrainingConfig(
    num_steps=10,
    batch_size=6,
    gradient_accumulation_steps=2,
    log_every=4,
    checkpoint_every=100,
    clip_norm=0.5,
)


@dataclass(frozen=True)
class Tokens:
    x: Tensor
    target: Tensor
    mask: Tensor

    def to(self, device, non_blocking):
        return Tokens(*(t.to(device, non_blocking=non_blocking) for t in (self.x, self.target, self.mask)))

    def pin_memory(self):
        return Tokens(self.x.pin_memory(), self.target.pin_memory(), self.mask.pin_memory())


class Sentences:
    """Rows with 0 to 4 target tokens; noise depends on the sample alone."""

    def __init__(self, num_rows=20):
        self.num_rows = num_rows

    def __len__(self):
        return self.num_rows

    def __getitems__(self, samples):
        examples = []
        for index, epoch in samples:
            row, noise = np.random.default_rng(index), np.random.default_rng((index, epoch))
            x = row.normal(size=(4, 8)) + 0.1 * noise.normal(size=(4, 8))
            examples.append((x, row.integers(0, 5, 4), np.arange(4) < row.integers(0, 5)))
        return examples


def collate(examples):
    x, target, mask = (torch.from_numpy(np.stack(column)) for column in zip(*examples, strict=True))
    return Tokens(x.float(), target, mask)


class Codec(nn.Module):
    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.encoder = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.trunk = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Tanh())
        freeze_(self.trunk)
        self.decoder = nn.Linear(16, 5)
        self.critic = nn.Linear(8, 1)

    def forward(self, x):
        return self.decoder(self.trunk(self.dropout(self.norm(self.encoder(x).flatten(0, -2)))))


def num_tokens(batch):
    return float(batch.mask.sum())


class Toy:
    """Two phases: one loss that feeds two optimizers, and a critic."""

    name = "toy"

    def __init__(self, settings=SETTINGS, *, group=ALONE, num_workers=0, seed=0, **model):
        torch.manual_seed(seed)
        self.settings, self.group, self.num_workers = settings, group, num_workers
        self.model = Codec(**model)
        shared = {
            "schedule": cosine(2, settings.num_steps),
            "device": group.device,
            "clip_norm": settings.clip_norm,
            "precision": settings.precision,
        }
        inner = [*self.model.encoder.parameters(), *self.model.norm.parameters()]
        optimizers = (
            torch.optim.AdamW(inner, lr=0.01),
            torch.optim.SGD(self.model.decoder.parameters(), lr=0.1, momentum=0.9),
        )
        critic = (torch.optim.Adam(self.model.critic.parameters(), lr=0.01),)
        self.phases = (
            Phase("codec", self.loss, num_tokens, optimizers, **shared),
            Phase("critic", self.critic_loss, lambda batch: len(batch.x), critic, **shared),
        )

    def loss(self, batch):
        logits = self.model(batch.x)
        losses = F.cross_entropy(logits, batch.target.flatten(), reduction="none")
        mean = (losses * batch.mask.flatten()).sum() / batch.mask.sum()
        level = batch.x[batch.mask].mean()
        return Loss(mean, {"cross_entropy": mean, "level": level})

    def critic_loss(self, batch):
        return Loss((self.model.critic(batch.x).float().mean(dim=1) - 1).square().mean(), {})

    def batches(self):
        return BatchStream(
            Sentences(),
            collate,
            data=DataConfig(num_workers=self.num_workers),
            batch_size=self.settings.batch_size,
            gradient_accumulation_steps=self.settings.gradient_accumulation_steps,
            seed=self.settings.seed,
            group=self.group,
        )

    def state(self):
        """Everything a resumed run must have bit by bit."""
        return {
            "trainables": {name: tensor.clone() for name, tensor in trainable_state(self.model).items()},
            "phases": {phase.name: phase.state_dict() for phase in self.phases},
            "rng": torch.get_rng_state(),
        }


class Stubborn(Toy):
    """Gets SIGTERM in its third step."""

    def critic_loss(self, batch):
        if self.phases[1].step == 2:
            signal.raise_signal(signal.SIGTERM)
        return super().critic_loss(batch)


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.records, self.warnings, self.saved_paths, self.start = [], [], [], ()

    def started(self, total_steps, first_step):
        self.start = (total_steps, first_step)

    def stepped(self, record):
        self.records.append(record)

    def warned(self, text):
        self.warnings.append(text)

    def saved(self, path):
        self.saved_paths.append(path)


def train(toy, directory, *, num_steps=None, resume=False, observer=None):
    settings = replace(toy.settings, num_steps=num_steps or toy.settings.num_steps)
    return run(
        toy,
        settings,
        group=toy.group,
        store=CheckpointStore(Path(directory)),
        config_text="name: toy\n",
        log=RunLog(Path(directory) / "log.jsonl", log_every=settings.log_every, tensorboard=False),
        observer=observer or Recorder(),
        resume=resume,
        known_peak_bytes=123,
    )


def straight_and_resumed(directory, settings, **options):
    """The states after 10 steps in one go, and after 5, a checkpoint, new objects and 5 more."""
    straight = Toy(settings, dropout=0.3, norm=True, **options)
    train(straight, directory / "straight")
    expected = straight.state()
    train(Toy(settings, dropout=0.3, norm=True, **options), directory / "halves", num_steps=5)
    resumed = Toy(settings, dropout=0.3, norm=True, seed=99, **options)  # every initial value differs
    resumed.model.trunk.load_state_dict(straight.model.trunk.state_dict())
    train(resumed, directory / "halves", resume=True)
    return expected, resumed.state()


def equal(left, right):
    """Bitwise, through any nesting."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def one_of_two(directory):
    group = Group.open("cpu")
    plain = Toy(replace(SETTINGS, gradient_accumulation_steps=1), group=group)
    watch = Recorder()
    report = train(plain, directory / "plain", observer=watch)
    mixed = replace(SETTINGS, precision="16-mixed")
    expected, resumed = straight_and_resumed(directory, mixed, group=group)
    idle = Toy(mixed, group=group)
    if group.rank == 1:
        idle.phases[0].weight = lambda batch: 0.0
    idle_report = train(idle, directory / "idle", num_steps=2)
    stopped = train(Stubborn(group=group) if group.rank == 1 else Toy(group=group), directory / "interrupted")
    result = {
        "records": [vars(record) for record in watch.records],
        "loss": report.last[0].loss,
        "trainables": plain.state()["trainables"],
        "resumed_equal": equal(expected, resumed),
        "scale": resumed["phases"]["codec"]["scaler"]["scale"],
        "rng": resumed["rng"],
        "buffers": resumed["trainables"],
        "idle": (idle.state()["trainables"], idle_report.last[0].loss, idle_report.last[0].num_skipped),
        "gathered": group.gather(group.rank),
        "stopped": (stopped.num_steps, stopped.interrupted),
    }
    path = directory / f"result{group.rank}.pt"
    torch.save(result, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    group.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    one_of_two(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort at a normal exit

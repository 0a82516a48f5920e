"""Training steps to plan: a frozen transformer, a frozen conv net and semcom's nano, each behind a trainable part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from estimate_models import Residual, resnet18
from frostline.memory import Workload
from frostline.systems.semcom import verbs
from frostline.systems.semcom.config import SemcomConfig
from frostline.training import Group


class Transformer(nn.Module):
    """A trainable front, and frozen pre-norm layers with dropout and a frozen head behind it."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.front = nn.Linear(16, 128)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.head = nn.Linear(128, 64)
        self.layers.requires_grad_(False)
        self.head.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, length, 64)."""
        x = self.front(x)
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.head(x)
        return scores


class Behind(nn.Module):
    """A trainable convolution, and a frozen trunk in eval mode behind it."""

    def __init__(self, trunk: nn.Module, num_channels: int) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, num_channels, 3, padding=1)
        self.trunk = trunk.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """What the trunk makes of the front's output."""
        made: Tensor = self.trunk(self.front(x))
        return made


def transformer(num_layers: int = 12, *, batch_size: int = 4, length: int = 64) -> Workload:
    """A step of `Transformer` on sequences of so many tokens."""
    torch.manual_seed(0)
    model = Transformer(num_layers)
    return _classified(model, torch.randn(batch_size, length, 16), torch.randint(0, 64, (batch_size, length)))


def frozen_resnet(*, batch_size: int = 4) -> Workload:
    """A step of a convolution before a frozen ResNet-18, on pictures of 112 x 112 with the channels first."""
    torch.manual_seed(0)
    model = Behind(resnet18(), 3)
    return _classified(model, torch.randn(batch_size, 3, 112, 112), torch.randint(0, 10, (batch_size,)))


def frozen_blocks(*, batch_size: int = 4) -> Workload:
    """A step of a convolution before five frozen residual blocks that halve the picture twice."""
    torch.manual_seed(0)
    widths = [(32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    model = Behind(nn.Sequential(nn.Sequential(*(Residual(*width) for width in widths)), *head), 32)
    return _classified(model, torch.randn(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,)))


def semcom_nano() -> Workload:
    """A step of semcom's default configuration at batch 16, with the tower in one piece and nothing recomputed."""
    config = SemcomConfig()
    config = replace(
        config,
        memory=replace(config.memory, checkpoint="none", upstream_chunk=0),
        training=replace(config.training, batch_size=16),
        data=replace(config.data, num_scenes=32, num_test=20),
    )
    return verbs.build(config, Group(torch.device("cpu")), None).workload()


def _classified(model: nn.Module, x: Tensor, labels: Tensor) -> Workload:
    """Cross-entropy, and one update by AdamW of what trains."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> Tensor:
        loss = F.cross_entropy(model(x).flatten(0, -2), labels.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Workload(step=step, model=model, optimizers=(optimizer,), inputs=(x, labels))


MODELS: dict[str, Callable[[], Workload]] = {
    "transformer": transformer,
    "ResNet-18": frozen_resnet,
    "semcom nano": semcom_nano,
}
"""Planned for six budgets each."""

SMALL: dict[str, Callable[[], Workload]] = {
    "transformer, 7 layers": lambda: transformer(7, batch_size=2, length=32),
    "5 residual blocks": frozen_blocks,
    "semcom nano": semcom_nano,
}
"""Small enough to try every choice there is."""

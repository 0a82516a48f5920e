"""The published training loop of a GRAF with super-resolution, on frostline's modules, to be run as advised."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frostline.memory import Workload, estimate
from frostline.proof import Gradients, gradients_of
from frostline.systems.graf import Generator, GrafSystemConfig, Poses, build_discriminator
from frostline.systems.graf.config import CameraConfig, CcsrConfig, FieldConfig, RenderingConfig
from frostline.systems.graf.losses import fake_loss, real_loss
from frostline.systems.graf.objective import judge, standing_still
from frostline.systems.graf.peak_table import Setting
from frostline.tracing import fake_tensors

_R1_WEIGHT = 10.0
_LOG_EVERY = 10
Part = Literal["loop", "iteration", "discriminator", "sampling"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the loop is run.

    Attributes:
        half: bfloat16 autocast around everything, both players and the penalty.
        cut: Super-resolution under `no_grad`, its result re-attached by ``requires_grad_(True)``.
        set_to_none: What `zero_grad` is given; None where it is given nothing.
        fakes_with_graph: The discriminator's fakes keep the generator's graph.
        deletes: Names are deleted at the end of each player's step.
        collects: The garbage is collected and the cache emptied behind each iteration.
        makes_losses: The loss objects are made anew in each iteration.
        non_blocking: Batches are copied asynchronously.
        keeps_views: Sampled views stay on the device until the last is done.
        chunk_rays: Rays at once, which are made again in backward; 0 for all.
    """

    half: bool = False
    cut: bool = False
    set_to_none: bool | None = None
    fakes_with_graph: bool = False
    deletes: bool = False
    collects: bool = False
    makes_losses: bool = False
    non_blocking: bool = False
    keeps_views: bool = False
    chunk_rays: int = 0


class Players(nn.Module):
    """Generator and discriminator of the published sizes.

    Args:
        setting: How large.
        way: How the generator renders.
    """

    def __init__(self, setting: Setting, way: Way) -> None:
        super().__init__()
        plain = GrafSystemConfig()
        rendering = RenderingConfig(
            num_samples=setting.num_samples,
            chunk_rays=way.chunk_rays,
            recompute="deferred" if way.chunk_rays else "none",
        )
        config = replace(
            plain,
            camera=CameraConfig(image_size=setting.image_size),
            field=FieldConfig(depth=setting.depth, width=setting.width, skip_layer=setting.depth // 2),
            rendering=rendering,
            ccsr=CcsrConfig(loss="consistency", width=setting.superres_width),
            discriminator=replace(plain.discriminator, channels=setting.channels),
        )
        self.generator = Generator(config, "bf16-mixed" if way.half else "32-true")
        self.discriminator = build_discriminator(self.generator)


class Rig:
    """Both players, their optimizers and one batch.

    Args:
        players: Made for the same setting and way.
        setting: The size.
        way: How the loop is run.
    """

    def __init__(self, players: Players, setting: Setting, way: Way) -> None:
        self.players, self.way = players, way
        self.optimizers = [
            torch.optim.RMSprop(players.discriminator.parameters(), lr=1e-6),
            torch.optim.RMSprop(players.generator.parameters(), lr=1e-6),
        ]
        num, numbers = setting.batch_size, torch.arange(setting.batch_size, dtype=torch.float32)
        poses = Poses.from_degrees(360 / num * numbers + 5, 10 + 40 / num * numbers)
        generator = players.generator
        draw = generator.draw(torch.arange(num) % generator.config.field.num_classes, poses)
        self.draw = replace(draw, latents=draw.latents.to(generator.dtype))
        side = generator.output_size
        self.real = torch.rand(num, 3, side, side).to(generator.dtype)

    @property
    def inputs(self) -> list[Tensor]:
        """All that the loop is given."""
        draw = self.draw
        return [draw.latents, draw.classes, draw.poses.azimuth, draw.poses.elevation, draw.seeds, self.real]

    def loop(self, num_steps: int = 2, *, logs: bool = False) -> None:
        """Train as published: names stay bound until the next iteration writes to them.

        Args:
            num_steps: Iterations.
            logs: Every tenth iteration reads its losses once more.
        """
        way = self.way
        for number in range(num_steps):
            if way.makes_losses:
                criterion: Any = nn.CrossEntropyLoss()  # noqa: F841  # held until the next one is made
            real = self.real.to(self.real.device, non_blocking=way.non_blocking)
            self._clear(0)
            total_d_loss, reg, d_real, d_fake, fake = self.discriminator_loss(real)
            total_d_loss.backward()
            self.optimizers[0].step()
            if way.deletes:
                del fake, d_real, d_fake, reg, total_d_loss
            self._clear(1)
            g_loss, image, result = self.generator_loss()
            g_loss.backward()
            self.optimizers[1].step()
            if way.deletes:
                del image, result
            if way.collects:
                torch.cuda.empty_cache()
                gc.collect()
            if logs and (number + 1) % _LOG_EVERY == 0:
                float(total_d_loss.detach() + reg.detach() + g_loss.detach())

    def discriminator_step(self) -> None:
        """One update of the discriminator."""
        self._clear(0)
        loss, *_ = self.discriminator_loss(self.real)
        loss.backward()
        self.optimizers[0].step()

    def discriminator_loss(self, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the published step keeps names of: the loss, its penalty, both scores and the fakes."""
        generator, discriminator = self.players.generator, self.players.discriminator
        with self._autocast():
            d_real, penalty = self.penalty(real)
            with nullcontext() if self.way.fakes_with_graph else torch.no_grad():
                fake = generator(self.draw).image
            d_fake = judge(discriminator, fake, self.draw).score
        return real_loss(d_real) + fake_loss(d_fake) + _R1_WEIGHT * penalty, penalty, d_real, d_fake, fake

    def penalty(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of real images and R1, in whatever types autocast chooses."""
        real = real.detach().requires_grad_()
        score = judge(self.players.discriminator, real, self.draw).score
        (gradient,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        return score, gradient.float().square().flatten(1).sum(1).mean()

    def generator_loss(self) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the rendering, and what super-resolution brings it back to."""
        generator = self.players.generator
        with self._autocast():
            image = generator(self.draw).image
            with torch.no_grad() if self.way.cut else nullcontext():
                result = generator.restore(image, self.draw.poses)
            if self.way.cut:
                result.requires_grad_(True)
            with standing_still(self.players.discriminator):
                score = judge(self.players.discriminator, image, self.draw).score
            loss = real_loss(score) + F.mse_loss(result.float(), image.detach().float())
        return loss, image, result

    @torch.no_grad()
    def sample(self, num_views: int = 8) -> None:
        """Look at the batch from all round, as the evaluation does."""
        views = []
        for _ in range(num_views):
            rendering = self.players.generator(self.draw, jitter=False)
            if self.way.keeps_views:
                views.append((rendering.image, rendering.depth, rendering.accumulation))

    def gradients(self) -> Gradients:
        """The generator's, of its loss."""
        for parameter in self.players.parameters():
            parameter.grad = None
        self.generator_loss()[0].backward()
        return gradients_of(self.players.generator)

    def penalty_gradients(self) -> Gradients:
        """The discriminator's, of the penalty alone."""
        for parameter in self.players.parameters():
            parameter.grad = None
        with self._autocast():
            _, penalty = self.penalty(self.real)
        penalty.backward()
        return gradients_of(self.players.discriminator)

    def _clear(self, player: int) -> None:
        given = {} if self.way.set_to_none is None else {"set_to_none": self.way.set_to_none}
        self.optimizers[player].zero_grad(**given)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.way.half, cache_enabled=False)


def real_rig(setting: Setting, way: Way, dtype: torch.dtype = torch.float32) -> Rig:
    """A rig of real tensors, with the same weights and inputs every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Rig(Players(setting, way).to(dtype), setting, way)


@cache
def peak_bytes(setting: Setting, way: Way, part: Part = "loop") -> int:
    """Bytes at the peak, weights and optimizer state included, on fake tensors."""

    def workload(model: nn.Module) -> Workload:
        rig = Rig(cast(Players, model), setting, way)
        steps: dict[Part, Callable[[], None]] = {
            "loop": rig.loop,
            "iteration": lambda: rig.loop(1),
            "discriminator": rig.discriminator_step,
            "sampling": rig.sample,
        }
        return Workload(step=steps[part], model=model, optimizers=tuple(rig.optimizers), inputs=rig.inputs)

    return estimate(lambda: Players(setting, way), workload).peak_bytes


def made_of_nothing_bytes(setting: Setting) -> int:
    """Bytes of all that one iteration makes from no other tensor: what a default device or type decides about."""
    counter = _Factories()
    with fake_tensors():
        rig = Rig(Players(setting, Way()), setting, Way())
        with counter:
            rig.loop(1)
    return counter.num_bytes


class _Factories(TorchDispatchMode):
    """Counts what operators make that are given no tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            self.num_bytes += sum(leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out

"""Pre-train nano on scenes: ``python -m frostline.systems.ti.pretrain DIRECTORY``.

Three stages, each with pictures and a file of its own; a stage whose file is there is skipped. The judge learns from
pictures and labels, the picture tokenizer from pictures, the transformer from the tokenizer's bits and captions. No
picture is shown twice. The text encoder's weights are random and never trained: all that is needed of it is that
words differ.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5EncoderModel

from frostline.errors import ConfigError
from frostline.scenes import Things, render_things
from frostline.systems.ti.infinity.loss import bit_losses, scale_weights
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.tokenizer import ImageTokenizer
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.judge import Judge
from frostline.systems.ti.nano import (
    NANO_IMAGE_SIZE,
    NANO_SCHEDULE,
    NANO_TOKENIZER,
    NANO_TRANSFORMER,
    TEXT_ENCODER,
    nano_image_tokenizer,
    text_encoder_config,
    text_tokenizer,
)
from frostline.systems.ti.nano_scores import judge_score, to_pixels, tokenizer_score, transformer_score
from frostline.systems.ti.pictures import TEMPLATES
from frostline.systems.ti.text_encoder import load_text_encoder

_MENTIONED = 0.75
"""How often a caption names the colour, and how often the background."""
_PLAIN = 0.5
"""How often it has no template."""
_FIRST_STEPS = 10  # are a line of the log to themselves

Note = Callable[..., None]
"""Writes one line of the log."""


@dataclass(frozen=True)
class Stage:
    """How one part is trained."""

    num_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup_share: float = 0.08
    final_share: float = 0.01
    clip_norm: float = 2.0

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then half a cosine."""
        rise = min(1.0, (step + 1) / (self.warmup_share * self.num_steps))
        fall = 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
        return self.learning_rate * rise * (self.final_share + (1 - self.final_share) * fall)


@dataclass(frozen=True)
class Recipe:
    """What is done; the defaults made the weights that ship."""

    judge: Stage = Stage(400, 64, 4e-3)
    judge_noise: float = 0.1
    tokenizer: Stage = Stage(600, 32, 3e-3)
    entropy_weight: float = 0.02
    coarse_share: float = 0.5
    transformer: Stage = Stage(1800, 32, 2.5e-3, weight_decay=0.02)
    templates: tuple[str, ...] = TEMPLATES["object"]
    flip: float = 0.1
    null_share: float = 0.1
    seed: int = 0


class Progress:
    """Lines of a stage's log: mean losses and CPU time.

    Args:
        stage: Its name.
        note: Writes a line.
        note_every: Steps in one.
    """

    def __init__(self, stage: str, note: Note, note_every: int) -> None:
        self._stage, self._note, self._note_every = stage, note, note_every
        self._start = time.process_time()
        self._losses: list[float] = []

    def add(self, step: int, loss: float, *, is_last: bool) -> None:
        """One more step."""
        self._losses.append(loss)
        if step == _FIRST_STEPS or step % self._note_every == 0 or is_last:
            seconds = round(time.process_time() - self._start)
            self._note(stage=self._stage, step=step, loss=round(fmean(self._losses), 4), cpu_seconds=seconds)
            self._losses.clear()


def pretrain(recipe: Recipe, directory: Path, *, note_every: int = 100) -> float:
    """Train what is not there yet, and write float16 weights, configuration, text encoder and log.

    Args:
        recipe: The recipe.
        directory: Where the parts are written; those that are there are kept.
        note_every: Steps between two lines of the log.

    Returns:
        The share of generated pictures of named things that the judge finds right in shape, colour and background,
        all parts as written.

    Raises:
        ConfigError: The directory holds what another recipe made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "pretraining.jsonl"
    header = {**asdict(recipe), "data_digest": _shown(recipe, "transformer", 0).digest()}
    if log.exists() and log.read_text("utf-8").splitlines()[:1] != [json.dumps(header)]:
        raise ConfigError("parts of another recipe are there", where=str(directory), do="write to a new directory")
    with log.open("a", encoding="utf-8") as file:

        def note(**entry: object) -> None:
            text = json.dumps(entry)
            file.write(text + "\n")
            file.flush()
            sys.stdout.write(text + "\n")

        if file.tell() == 0:
            note(**header)
        write_settings(recipe, directory)
        for name, train in _STAGES.items():
            path = directory / f"{name}.safetensors"
            if path.exists():
                continue
            torch.manual_seed(recipe.seed)
            model = train(recipe, directory, Progress(name, note, note_every))
            save_file({key: _compact(tensor) for key, tensor in model.state_dict().items()}, path)
        scores = {"judge": judge_score(directory), "tokenizer": tokenizer_score(directory)}
        scores["transformer"] = transformer_score(directory)
        note(right=scores)
    return scores["transformer"]


def write_settings(recipe: Recipe, directory: Path) -> None:
    """Write sizes, the text tokenizer, and a text encoder of random weights."""
    settings = {
        "image_size": NANO_IMAGE_SIZE,
        "grids": NANO_SCHEDULE.grids,
        "tokenizer": asdict(NANO_TOKENIZER),
        "transformer": asdict(NANO_TRANSFORMER),
    }
    (directory / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    torch.manual_seed(recipe.seed)
    encoder = T5EncoderModel(text_encoder_config())
    encoder.half().save_pretrained(directory / TEXT_ENCODER)
    text_tokenizer().save_pretrained(directory / TEXT_ENCODER)


def train_judge(recipe: Recipe, directory: Path, progress: Progress) -> Judge:
    """Learn shapes, colours and backgrounds from noisy pictures."""
    judge = Judge(NANO_IMAGE_SIZE)

    def loss(step: int) -> Tensor:
        things = _shown(recipe, "judge", step)
        pixels = to_pixels(things)
        pairs = zip(judge(pixels + recipe.judge_noise * torch.randn(pixels.shape)), things[1:], strict=True)
        return torch.stack([F.cross_entropy(scores, label) for scores, label in pairs]).sum()

    _optimise_(judge, recipe.judge, loss, progress)
    return judge


def train_tokenizer(recipe: Recipe, directory: Path, progress: Progress) -> ImageTokenizer:
    """Learn to bring pictures back from their bits; each bit is to be sure of itself and of no fixed value.

    A share of the pictures comes back from the first scales alone, or what is shown would be left to the finest:
    a scale's bits are drawn independently of each other, and 64 cells do not agree on a shape by themselves.
    """
    tokenizer, quantizer = ImageTokenizer(NANO_TOKENIZER), MultiScaleBSQ(NANO_TOKENIZER.code_bits)

    def loss(step: int) -> Tensor:
        images = to_pixels(_shown(recipe, "tokenizer", step))
        features: Tensor = tokenizer.encode(images)
        sums = sums_of_scales(features, quantizer)
        last = torch.randint(len(sums), (len(images),)).where(torch.rand(len(images)) < recipe.coarse_share, -1)
        restored = tokenizer.decode(torch.stack(sums, 1)[torch.arange(len(images)), last])
        chance = torch.sigmoid(10 * F.normalize(features, dim=1))
        doubt = _entropy(chance).mean() - _entropy(chance.mean((0, 2, 3))).mean()
        return F.l1_loss(restored, images) + F.mse_loss(restored, images) + recipe.entropy_weight * doubt

    _optimise_(tokenizer, recipe.tokenizer, loss, progress)
    return tokenizer


def train_transformer(recipe: Recipe, directory: Path, progress: Progress) -> Infinity:
    """Learn the written tokenizer's bits from captions in which colour, background and template come and go."""
    tokenizer, quantizer = nano_image_tokenizer(directory), MultiScaleBSQ(NANO_TOKENIZER.code_bits)
    wordings = Wordings(recipe.templates, directory, recipe.seed)
    weights = scale_weights(NANO_SCHEDULE, "sides")
    model = Infinity(NANO_TRANSFORMER)
    model.initialise_(gate=0.1, head=0.1)

    def loss(step: int) -> Tensor:
        things = _shown(recipe, "transformer", step)
        with torch.no_grad():
            features = tokenizer.encode(to_pixels(things))
        codes = quantizer.encode(features, NANO_SCHEDULE, flip=recipe.flip)
        text = model.drop_text(wordings.draw(things.captions()), recipe.null_share)
        losses = bit_losses(model(text, codes.inputs, NANO_SCHEDULE), codes.bits)
        return (losses * weights).sum(1).mean()

    _optimise_(model, recipe.transformer, loss, progress)
    return model


def sums_of_scales(features: Tensor, quantizer: MultiScaleBSQ) -> list[Tensor]:
    """What the bits of the first 1, 2, ... scales stand for, each as large as `features` (N, code bits, 8, 8).

    The last is `MultiScaleBSQ.quantize`, and gradients are passed on in the same way.
    """
    bits = quantizer.encode(features, NANO_SCHEDULE).bits
    total, slope = torch.zeros_like(features), torch.zeros_like(features)
    sums = []
    for scale, (grid, span) in enumerate(zip(NANO_SCHEDULE.grids, NANO_SCHEDULE.spans, strict=True)):
        direction = F.normalize(F.interpolate(features - total, size=grid, mode="area"), dim=1)
        slope = slope + F.interpolate(direction, size=NANO_SCHEDULE.final_grid, mode="bilinear")
        total = quantizer.add(total, bits[:, span], NANO_SCHEDULE, scale)
        sums.append(total + (slope - slope.detach()))
    return sums


class Wordings:
    """Text features of captions in the words of templates, with and without colour and background.

    Args:
        templates: With ``{}``.
        directory: Of the text encoder.
        seed: Draws what is said.
    """

    def __init__(self, templates: Sequence[str], directory: Path, seed: int) -> None:
        self._templates = templates
        self._encoder = load_text_encoder(str(directory / TEXT_ENCODER))
        self._known: dict[str, Tensor] = {}
        self._chance = random.Random(seed)

    def draw(self, captions: Sequence[str]) -> CompactText:
        """One wording of each caption such as ``a red thing on dark``."""
        return CompactText.join([self._features(self._word(caption)) for caption in captions])

    def _word(self, caption: str) -> str:
        _, colour, noun, _, background = caption.split()
        chance = self._chance
        words = [colour, noun] if chance.random() < _MENTIONED else [noun]
        words += ["on", background] if chance.random() < _MENTIONED else []
        template = "a {}" if chance.random() < _PLAIN else chance.choice(self._templates)
        return template.format(" ".join(words))

    def _features(self, text: str) -> Tensor:
        if text not in self._known:
            encoder = self._encoder
            self._known[text] = encoder.encode([encoder.rewrite(text, (), required=False)]).features
        return self._known[text]


def _shown(recipe: Recipe, stage: str, step: int) -> Things:
    """A batch that no other step sees, nor another stage."""
    size = getattr(recipe, stage).batch_size
    seed = len(_STAGES) * recipe.seed + list(_STAGES).index(stage)
    return render_things(range(step * size, (step + 1) * size), split="pretrain", seed=seed)


def _optimise_(model: nn.Module, stage: Stage, loss_at: Callable[[int], Tensor], progress: Progress) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=stage.weight_decay
    )
    for step in range(stage.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), stage.clip_norm)
        optimizer.step()
        progress.add(step + 1, loss.item(), is_last=step + 1 == stage.num_steps)


def _entropy(chance: Tensor) -> Tensor:
    likely, unlikely = chance + 1e-6, 1 - chance + 1e-6
    return -(chance * likely.log() + (1 - chance) * unlikely.log())


def _compact(tensor: Tensor) -> Tensor:
    """Its own memory, for a name may share another's; float16 where it is a number with a fraction."""
    return (tensor.half() if tensor.is_floating_point() else tensor).clone()


_STAGES = {"judge": train_judge, "tokenizer": train_tokenizer, "transformer": train_transformer}


def main() -> None:
    """Read the command line and pre-train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path, help="where weights, text encoder and log are written")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    pretrain(Recipe(seed=arguments.seed), arguments.directory)


if __name__ == "__main__":
    main()

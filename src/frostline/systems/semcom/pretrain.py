"""Pre-train nano on scenes: ``python -m frostline.systems.semcom.pretrain DIRECTORY``.

Scenes are described in reading order, so each has one right caption. Two helpers train along and are thrown away.
A dense head asks each tower token for the colour, shape and size of the object centred on it; without it the
captions teach the tower only where things are for a long time. And a writer puts random text in the tower's place,
to be read out word for word: a language model that has seen nothing but scenes cannot be made to say anything else,
whatever reaches it, and no codec could be trained on photographs around it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.models.bart.modeling_bart import shift_tokens_right

from frostline.scenes import COLOURS, SHAPES, SIZES, Scenes, captions, describe, digest, render_flat
from frostline.systems.semcom.data import detections
from frostline.systems.semcom.nano import IMAGE_SIZE, LOCATION_TOKENS, NUM_CELLS, nano_config, nano_processor
from frostline.systems.semcom.receiver import IGNORED

_ATTRIBUTES = (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES))


@dataclass(frozen=True)
class Recipe:
    """What is done; the defaults made the weights that ship."""

    num_steps: int = 2600
    batch_size: int = 64
    detection_share: float = 0.25
    reading_share: float = 1.0
    learning_rate: float = 1.5e-3
    final_share: float = 0.02
    warmup_steps: int = 150
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    auxiliary_weight: float = 0.5
    reading_weight: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """A batch: pixels (N, 3, S, S), prompts (N, P), labels (N, T) with pads ignored, and what they show."""

    pixels: Tensor
    prompt: Tensor
    labels: Tensor
    scenes: Scenes


def examples(processor: Florence2Processor, indices: range, num_detections: int, split: str, seed: int) -> Examples:
    """Scenes with captions, the first few with detections instead."""
    scenes = describe(indices, split=split, seed=seed)  # type: ignore[arg-type]
    task = ["<OD>"] * num_detections + ["<CAPTION>"] * (len(scenes) - num_detections)
    texts = detections(scenes, LOCATION_TOKENS)[:num_detections] + captions(scenes)[num_detections:]
    prompts = processor.task_prompts_without_inputs
    prompt = processor.tokenizer([prompts[name] for name in task], padding=True, return_tensors="pt").input_ids
    labels = processor.tokenizer(texts, padding=True, return_tensors="pt").input_ids
    labels[labels == processor.tokenizer.pad_token_id] = IGNORED
    return Examples(render_flat(scenes, IMAGE_SIZE) * 2 - 1, prompt, labels, scenes)


def logits(model: Florence2ForConditionalGeneration, tower_NCHW: Tensor, prompt: Tensor, labels: Tensor) -> Tensor:
    """Next-token scores (N, T, V) from the tower's map, the prompt, and the labels fed to the decoder."""
    text = model.config.text_config
    embeddings = torch.cat([model.model.multi_modal_projector(tower_NCHW), model.get_input_embeddings()(prompt)], 1)
    mask = F.pad(prompt != text.pad_token_id, (embeddings.shape[1] - prompt.shape[1], 0), value=True)
    decoder_input = shift_tokens_right(labels, text.pad_token_id, text.decoder_start_token_id)
    output = model(
        inputs_embeds=embeddings, attention_mask=mask.long(), decoder_input_ids=decoder_input, use_cache=False
    )
    scores: Tensor = output.logits
    return scores


def auxiliary_loss(head: nn.Linear, tower_NCHW: Tensor, scenes: Scenes) -> Tensor:
    """Cross-entropy of each cell's colour, shape and size; class 0 is 'no object centred here'."""
    num, _, height, width = tower_NCHW.shape
    scores = head(tower_NCHW.flatten(2).transpose(1, 2))
    cell_x = (scenes.centre[..., 0] * width).long().clamp(0, width - 1)
    cell_y = (scenes.centre[..., 1] * height).long().clamp(0, height - 1)
    loss: Tensor = scores.new_zeros(())
    for part, (name, values) in zip(
        scores.split([len(values) + 1 for _, values in _ATTRIBUTES], -1), _ATTRIBUTES, strict=True
    ):
        target = torch.zeros(num, height * width, dtype=torch.long)
        target.scatter_(1, cell_y * width + cell_x, getattr(scenes, name) + 1)
        weight = torch.ones(len(values) + 1)
        weight[0] = 0.15  # nearly every cell is empty
        loss = loss + F.cross_entropy(part.flatten(0, 1), target.flatten(), weight=weight)
    return loss


class Writer(nn.Module):
    """Puts text where the tower's features go, a token in each cell of the map.

    Args:
        vocabulary: Tokens in all.
        dim: Width of the tower's map.
    """

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (N, s^2) to a map (N, C, s, s)."""
        side = round(tokens.shape[1] ** 0.5)
        written: Tensor = self.embed(tokens).transpose(1, 2).unflatten(2, (side, side))
        return written


def random_text(processor: Florence2Processor, num: int, max_tokens: int, generator: torch.Generator) -> Tensor:
    """Labels (N, T) of random ordinary tokens between the special ones that begin and end a sentence."""
    tokenizer = processor.tokenizer
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids])
    text = ordinary[torch.randint(len(ordinary), (num, max_tokens), generator=generator)]
    length = torch.randint(4, max_tokens - 1, (num, 1), generator=generator)
    place = torch.arange(max_tokens)
    text[:, 0] = tokenizer.bos_token_id
    text = text.where(place < length, IGNORED)
    return text.where(place != length, tokenizer.eos_token_id)


@torch.no_grad()
def exact_captions(model: Florence2ForConditionalGeneration, processor: Florence2Processor, num: int) -> float:
    """Share of unseen scenes whose caption comes out word for word.

    Greedy decoding gives exactly the label if and only if each token is the most likely one after the true
    ones before it, so one teacher-forced pass decides it.
    """
    hits = 0
    for start in range(0, num, 100):
        batch = examples(processor, range(start, min(start + 100, num)), 0, "test", 0)
        best = logits(
            model, model.model.vision_tower(batch.pixels).last_hidden_state, batch.prompt, batch.labels
        ).argmax(-1)
        hits += int(((best == batch.labels) | (batch.labels == IGNORED)).all(1).sum())
    return hits / num


class Pretraining:
    """nano and its two helpers, and what one step asks of them.

    Args:
        recipe: The recipe.
        processor: nano's.
    """

    def __init__(self, recipe: Recipe, processor: Florence2Processor) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.processor = recipe, processor
        self.model = Florence2ForConditionalGeneration(nano_config(processor))
        _initialise_(self.model)
        dim = self.model.config.vision_config.embed_dim[-1]
        self.head = nn.Linear(dim, sum(len(values) + 1 for _, values in _ATTRIBUTES))
        self.writer = Writer(len(processor.tokenizer), dim)
        self._generator = torch.Generator().manual_seed(recipe.seed)

    def parameters(self) -> list[nn.Parameter]:
        """Everything that trains."""
        return [p for part in (self.model, self.head, self.writer) for p in part.parameters()]

    def losses(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropy of the answers, of the attributes in each cell, and of the texts read."""
        recipe = self.recipe
        rows = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        num_detections = int(recipe.batch_size * recipe.detection_share)
        batch = examples(self.processor, rows, num_detections, "pretrain", recipe.seed)
        tower = self.model.model.vision_tower(batch.pixels).last_hidden_state
        num_texts = int(recipe.batch_size * recipe.reading_share)
        labels = random_text(self.processor, num_texts, NUM_CELLS, self._generator)
        written = self.writer(labels.where(labels != IGNORED, self.processor.tokenizer.pad_token_id))
        prompt = batch.prompt[-1:].expand(num_texts, -1)  # the last rows are asked for captions
        return (
            self._answer_loss(tower, batch.prompt, batch.labels),
            auxiliary_loss(self.head, tower, batch.scenes),
            self._answer_loss(written, prompt, labels),
        )

    def _answer_loss(self, tower_NCHW: Tensor, prompt: Tensor, labels: Tensor) -> Tensor:
        scores = logits(self.model, tower_NCHW, prompt, labels)
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine."""
        recipe = self.recipe
        rise = min(1.0, (step + 1) / recipe.warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))
        return recipe.learning_rate * rise * (recipe.final_share + (1 - recipe.final_share) * fall)


def pretrain(recipe: Recipe, directory: Path, *, evaluate_every: int = 200, num_unseen: int = 1000) -> float:
    """Train nano, and write its bfloat16 weights, configuration, processor and log.

    Returns:
        The share of exact captions on unseen scenes, computed from the weights as written.
    """
    processor = nano_processor()
    run = Pretraining(recipe, processor)
    optimizer = torch.optim.AdamW(
        run.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "pretraining.jsonl").open("w") as file:

        def note(**entry: object) -> None:
            text = json.dumps(entry)
            file.write(text + "\n")
            file.flush()
            sys.stdout.write(text + "\n")

        first = describe(range(recipe.batch_size), split="pretrain", seed=recipe.seed)
        note(**asdict(recipe), data_digest=digest(first), num_parameters=run.model.num_parameters())
        start = time.process_time()
        recent: list[tuple[float, float]] = []
        for step in range(recipe.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = run.learning_rate(step)
            answers, attributes, reading = run.losses(step)
            optimizer.zero_grad(set_to_none=True)
            (answers + recipe.auxiliary_weight * attributes + recipe.reading_weight * reading).backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip_norm)
            optimizer.step()
            recent.append((answers.item(), reading.item()))
            if (step + 1) % evaluate_every == 0 or step + 1 == recipe.num_steps:
                run.model.eval()
                exact = exact_captions(run.model, processor, 200)
                run.model.train()
                loss, reading_loss = (round(fmean(column), 4) for column in zip(*recent, strict=True))
                recent.clear()
                seconds = round(time.process_time() - start)
                note(
                    step=step + 1,
                    loss=loss,
                    reading_loss=reading_loss,
                    exact_captions=exact,
                    cpu_seconds=seconds,
                )
        run.model.bfloat16().save_pretrained(directory)
        processor.save_pretrained(directory)
        shipped = Florence2ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        exact = exact_captions(shipped, processor, num_unseen)
        note(exact_captions_unseen=exact, num_unseen=num_unseen)
    return exact


def _initialise_(model: Florence2ForConditionalGeneration) -> None:
    """Scale weights to their fan-in: transformers' 0.02 suits nets ten times as wide.

    For the embeddings it decides whether nano learns to read: at 0.02 the writer's text is not found in 1,000 steps.
    """
    language_model = model.model.language_model
    embeddings = (language_model.encoder.embed_positions, language_model.decoder.embed_positions)
    for embedding in (language_model.shared, *embeddings):
        nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


def main() -> None:
    """Read the command line and pre-train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path, help="where weights, processor and log are written")
    parser.add_argument("--num-steps", type=int, default=Recipe.num_steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    pretrain(Recipe(num_steps=arguments.num_steps, seed=arguments.seed), arguments.directory)


if __name__ == "__main__":
    main()

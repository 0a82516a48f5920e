"""Pre-train nano on scenes: ``python -m frostline.systems.semcom.pretrain DIRECTORY``.

Two things make it fast. Scenes are described in reading order, so each has one right caption. And a dense
auxiliary loss asks each tower token for the colour, shape and size of the object centred on it; without it the
captions teach the tower only where things are for a long time. Its head is thrown away at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.models.bart.modeling_bart import shift_tokens_right

from frostline.scenes import COLOURS, SHAPES, SIZES, Scenes, captions, describe, digest, render_flat
from frostline.systems.semcom.data import detections
from frostline.systems.semcom.nano import IMAGE_SIZE, LOCATION_TOKENS, nano_config, nano_processor
from frostline.systems.semcom.receiver import IGNORED

_ATTRIBUTES = (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES))


@dataclass(frozen=True)
class Pretraining:
    """The recipe; the defaults made the weights that ship."""

    num_steps: int = 2600
    batch_size: int = 64
    detection_share: float = 0.25
    learning_rate: float = 2e-3
    final_share: float = 0.02
    warmup_steps: int = 150
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    auxiliary_weight: float = 0.5
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


def logits(model: Florence2ForConditionalGeneration, tower_NCHW: Tensor, batch: Examples) -> Tensor:
    """Next-token scores (N, T, V) from the tower's map, the prompt, and the labels fed to the decoder."""
    text = model.config.text_config
    embeddings = torch.cat(
        [model.model.multi_modal_projector(tower_NCHW), model.get_input_embeddings()(batch.prompt)], 1
    )
    mask = F.pad(batch.prompt != text.pad_token_id, (embeddings.shape[1] - batch.prompt.shape[1], 0), value=True)
    decoder_input = shift_tokens_right(batch.labels, text.pad_token_id, text.decoder_start_token_id)
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


@torch.no_grad()
def exact_captions(model: Florence2ForConditionalGeneration, processor: Florence2Processor, num: int) -> float:
    """Share of unseen scenes whose caption comes out word for word.

    Greedy decoding gives exactly the label if and only if each token is the most likely one after the true
    ones before it, so one teacher-forced pass decides it.
    """
    hits = 0
    for start in range(0, num, 100):
        batch = examples(processor, range(start, min(start + 100, num)), 0, "test", 0)
        best = logits(model, model.model.vision_tower(batch.pixels).last_hidden_state, batch).argmax(-1)
        hits += int(((best == batch.labels) | (batch.labels == IGNORED)).all(1).sum())
    return hits / num


def pretrain(recipe: Pretraining, directory: Path, *, evaluate_every: int = 200, num_unseen: int = 1000) -> float:
    """Train nano, and write its bfloat16 weights, configuration, processor and log.

    Returns:
        The share of exact captions on unseen scenes, computed from the weights as written.
    """
    torch.manual_seed(recipe.seed)
    processor = nano_processor()
    model = Florence2ForConditionalGeneration(nano_config(processor))
    _initialise_(model)
    head = nn.Linear(model.config.vision_config.embed_dim[-1], sum(len(v) + 1 for _, v in _ATTRIBUTES))
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *head.parameters()],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "pretraining.jsonl").open("w") as log:

        def note(**entry: object) -> None:
            text = json.dumps(entry)
            log.write(text + "\n")
            log.flush()
            sys.stdout.write(text + "\n")

        first = describe(range(recipe.batch_size), split="pretrain", seed=recipe.seed)
        note(**asdict(recipe), data_digest=digest(first), num_parameters=model.num_parameters())
        start = time.process_time()
        recent: list[float] = []
        for step in range(recipe.num_steps):
            rise = min(1.0, (step + 1) / recipe.warmup_steps)
            fall = 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))
            rate = recipe.learning_rate * rise * (recipe.final_share + (1 - recipe.final_share) * fall)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = range(step * recipe.batch_size, (step + 1) * recipe.batch_size)
            num_detections = int(recipe.batch_size * recipe.detection_share)
            batch = examples(processor, rows, num_detections, "pretrain", recipe.seed)
            tower = model.model.vision_tower(batch.pixels).last_hidden_state
            scores = logits(model, tower, batch).flatten(0, 1)
            loss = F.cross_entropy(scores, batch.labels.flatten(), ignore_index=IGNORED)
            total = loss + recipe.auxiliary_weight * auxiliary_loss(head, tower, batch.scenes)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            recent.append(loss.item())
            if (step + 1) % evaluate_every == 0 or step + 1 == recipe.num_steps:
                model.eval()
                exact = exact_captions(model, processor, 200)
                model.train()
                mean = sum(recent) / len(recent)
                recent.clear()
                seconds = round(time.process_time() - start)
                note(step=step + 1, loss=round(mean, 4), exact_captions=exact, cpu_seconds=seconds)
        model.bfloat16().save_pretrained(directory)
        processor.save_pretrained(directory)
        shipped = Florence2ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        exact = exact_captions(shipped, processor, num_unseen)
        note(exact_captions_unseen=exact, num_unseen=num_unseen)
    return exact


def _initialise_(model: Florence2ForConditionalGeneration) -> None:
    """Scale weights to their fan-in: a net this small stays near zero from transformers' fixed 0.02."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


def main() -> None:
    """Read the command line and pre-train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path, help="where weights, processor and log are written")
    parser.add_argument("--num-steps", type=int, default=Pretraining.num_steps)
    parser.add_argument("--seed", type=int, default=Pretraining.seed)
    arguments = parser.parse_args()
    pretrain(Pretraining(num_steps=arguments.num_steps, seed=arguments.seed), arguments.directory)


if __name__ == "__main__":
    main()

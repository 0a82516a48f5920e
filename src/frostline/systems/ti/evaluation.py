"""What a concept draws: judged where there is a judge, and checks that nothing else has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from frostline.records import Curve, EvaluationReport
from frostline.scenes import NAMED_THINGS, THING_BACKGROUNDS, THING_COLOURS, THINGS
from frostline.systems.ti.batches import ThingPictures, TiDataset, collate
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.drawing import Painter, sheet, write_picture
from frostline.systems.ti.files import load_concepts, read_safetensors, save_concepts
from frostline.systems.ti.generating import CONCEPT_FILE
from frostline.systems.ti.infinity.loss import bit_losses, mean_per_scale
from frostline.systems.ti.judge import Judge
from frostline.systems.ti.nano import nano_judge
from frostline.systems.ti.phase import new_concepts
from frostline.systems.ti.system import TiSystem
from frostline.systems.ti.texts import Texts
from frostline.systems.ti.validation import painter, validation_prompts
from frostline.training import Sample, autocast

GRID = "concepts.png"
_NUM_PLAIN = 6
_NUM_EXAMPLES = 20
_GRID_SIDE = 720

_ASKED = tuple((colour, ground) for ground in THING_BACKGROUNDS for colour in THING_COLOURS)
Say = Callable[[str], None]


@torch.no_grad()
def evaluation_report(system: TiSystem, note: Say) -> EvaluationReport:
    """Draw every concept before and after training, and look what else has changed.

    Args:
        system: With a run's vectors.
        note: Told what was checked.
    """
    before = new_concepts(system.config, system.encoder)
    curves, x_name = _judged(system, before, note), "step"
    if not curves:
        curves, x_name = _losses(system, before), "scale"
    facts = _checks(system, note)
    if system.directory is not None:
        path = system.directory / GRID
        write_picture(_grid(system, before), path, least_side=_GRID_SIDE)
        note(f"pictures, carriers and concepts: {path}")
    pictures = " and ".join(f"{len(source)} pictures" for source in system.sources)
    names = ", ".join(concept.name for concept in system.concepts)
    return EvaluationReport(
        system="ti", title=f"{names}, learned from {pictures}", x_name=x_name, curves=tuple(curves), facts=facts
    )


def _judged(system: TiSystem, before: Sequence[Concept], note: Say) -> list[Curve]:
    """Shares of pictures in which the judge finds what was asked for, before and after."""
    path = system.image_model.judge_path
    if path is None or not all(isinstance(source, ThingPictures) for source in system.sources):
        return []
    judge, steps = nano_judge(path.parent), (0.0, float(_steps(system)))
    num = system.config.system.validation.num_judged
    curves = []
    for concept, source in zip(system.concepts, system.sources, strict=True):
        assert isinstance(source, ThingPictures)
        note(f"drawing and judging {2 * num * len(_ASKED)} pictures of {concept.name}")
        found = [_judge(system, judge, concept.name, source, concepts) for concepts in (before, system.concepts)]
        title = f"{concept.name}, {source.shape}, {num * len(_ASKED)} pictures judged"
        curves += [
            Curve(name=name, y_name=title, x=steps, y=(found[0][name], share)) for name, share in found[1].items()
        ]
    return curves


def _judge(
    system: TiSystem, judge: Judge, name: str, source: ThingPictures, concepts: Sequence[Concept]
) -> dict[str, float]:
    settings = system.config.system.validation
    asked = [pair for pair in _ASKED for _ in range(settings.num_judged)]
    pictures = _draw(system, [f"a {colour} {name} on {ground}" for colour, ground in asked], concepts)
    seen = judge.verdict(pictures)
    colours = torch.tensor([THING_COLOURS.index(colour) for colour, _ in asked])
    grounds = torch.tensor([THING_BACKGROUNDS.index(ground) for _, ground in asked])
    right = {
        "shape as shown": seen.shapes == THINGS.index(source.shape),
        "colour as asked": seen.colours == colours,
        "background as asked": seen.backgrounds == grounds,
    }
    new = ~torch.isin(colours, source.things.colours)
    shares = {what: _share(found) for what, found in right.items()}
    if bool(new.any()):
        shares |= {f"{what}, in colours not shown": _share(found[new]) for what, found in right.items()}
    return shares


def _losses(system: TiSystem, before: Sequence[Concept]) -> list[Curve]:
    """Each scale's bit loss on the pictures that were learned from, over that of the carriers."""
    after = _bit_loss(system, system.concepts)
    shares = (after / _bit_loss(system, before)).tolist()
    scales = tuple(float(number + 1) for number in range(len(shares)))
    return [Curve(name="concepts", y_name="bit loss, share of the carriers'", x=scales, y=tuple(shares))]


def _bit_loss(system: TiSystem, concepts: Sequence[Concept]) -> Tensor:
    """Of every scale, on the first examples of training, without turned bits."""
    model, training = system.image_model, system.config.training
    dataset = TiDataset(
        system.sources, system.latents, model.quantizer, model.schedule, bit_flips=0.0, seed=training.seed, num_rows=1
    )
    losses = []
    for number in range(_NUM_EXAMPLES):
        batch = collate(dataset.__getitems__([Sample(0, number)])).to(system.group.device)
        text = system.texts.fetch(batch.prompts.tolist(), concepts)
        with autocast(training.precision, system.group.device):
            logits = system.model.transformer(text, batch.inputs, model.schedule)
        losses.append(mean_per_scale(bit_losses(logits, batch.bits), model.schedule))
    return torch.stack(losses).mean(0).cpu()


def _checks(system: TiSystem, note: Say) -> dict[str, float]:
    """Whether prompts without a concept draw what they always drew, and a file's concepts what these draw."""
    plain = plain_prompts(system)
    fresh = Painter(
        system.image_model,
        system.image_model.load_transformer(system.group.device),
        system.tokenizer,
        sampling=system.config.system.sampling,
        precision=system.config.training.precision,
    )
    text = Texts.of(system.encoder, plain, ()).fetch_all(())
    untouched = torch.equal(fresh.draw(text, seed=0), _draw(system, plain, system.concepts, seed=0))
    named = [prompt for concept in system.concepts for prompt in validation_prompts(system.config, concept.name)]
    same = torch.equal(_draw(system, named, system.concepts), _draw(system, named, reloaded(system)))
    before = _bit_loss(system, new_concepts(system.config, system.encoder)).mean().item()
    facts = {
        "prompts without a concept, pictures bit-identical": float(untouched),
        "saved and loaded concepts, pictures bit-identical": float(same),
        "bit loss, share of the carriers'": _bit_loss(system, system.concepts).mean().item() / before,
    }
    note(f"{len(plain)} prompts without a concept: pictures {_same(untouched)} those of the untouched model")
    note(f"concepts saved and loaded: pictures {_same(same)} those of the trained ones")
    return facts


def plain_prompts(system: TiSystem) -> tuple[str, ...]:
    """Prompts that name no concept."""
    if system.config.data.kind == "things":
        pairs = zip(NAMED_THINGS, _ASKED, strict=False)
        return tuple(f"a {colour} {thing} on {ground}" for thing, (colour, ground) in pairs)
    carriers = dict.fromkeys(concept.carrier for concept in system.concepts)
    return tuple(f"a photo of a {carrier}" for carrier in carriers for _ in range(_NUM_PLAIN))


def reloaded(system: TiSystem) -> tuple[Concept, ...]:
    """The concepts, from a file that was written now."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / CONCEPT_FILE
        ids = {"base_model": system.image_model.identity, "text_encoder": system.encoder.identity}
        save_concepts(path, system.concepts, step=0, **ids)
        concepts = load_concepts(path, width=system.encoder.width, **ids)
    return tuple(concept.to(system.group.device) for concept in concepts)


def _draw(system: TiSystem, prompts: Sequence[str], concepts: Sequence[Concept], seed: int | None = None) -> Tensor:
    text = Texts.of(system.encoder, prompts, concepts).fetch_all(concepts)
    return painter(system).draw(text, seed=system.config.system.validation.seed if seed is None else seed)


def _grid(system: TiSystem, before: Sequence[Concept]) -> Tensor:
    """For each concept its pictures, what its carrier draws, and what it draws."""
    rows = []
    for concept, source in zip(system.concepts, system.sources, strict=True):
        prompts = validation_prompts(system.config, concept.name)
        rows.append(torch.stack([source.pixels(number) for number in range(min(len(source), len(prompts)))]))
        rows += [_draw(system, prompts, concepts) for concepts in (before, system.concepts)]
    return sheet(rows)


def _steps(system: TiSystem) -> int:
    """Updates behind the run's vectors."""
    path = None if system.directory is None else system.directory / CONCEPT_FILE
    if path is not None and path.is_file():
        return int(read_safetensors(path)[0].get("step", "0"))
    return system.config.training.num_steps


def _share(found: Tensor) -> float:
    return found.double().mean().item()


def _same(equal: bool) -> str:
    return "bit-identical to" if equal else "NOT the same as"

"""The one phase of a run: the concepts, their loss and their optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from frostline.errors import ConfigError
from frostline.memory import Workload
from frostline.systems.ti.batches import Batch
from frostline.systems.ti.concept import Concept, concept_optimizer
from frostline.systems.ti.config import TiConfig
from frostline.systems.ti.infinity.loss import scale_weights
from frostline.systems.ti.infinity.schedule import Schedule
from frostline.systems.ti.model import TiModel
from frostline.systems.ti.objective import concept_loss
from frostline.systems.ti.prompts import Slot
from frostline.systems.ti.text_encoder import TextEncoder
from frostline.systems.ti.texts import TextSource
from frostline.training import Loss, Phase, bare_step, constant, cosine


def concept_slots(config: TiConfig) -> tuple[Slot, ...]:
    """What rewriting needs to know of the concepts.

    Raises:
        ConfigError: Not one carrier, nor as many as placeholders; or a placeholder twice.
    """
    settings = config.system.concept
    names, carriers = settings.placeholder, settings.carrier
    if len(set(names)) != len(names) or not names:
        raise ConfigError(
            f"the placeholders are {', '.join(names) or 'none'}", do="give each concept a name of its own"
        )
    if len(carriers) == 1:
        carriers = carriers * len(names)
    if len(carriers) != len(names):
        raise ConfigError(
            f"{len(carriers)} carriers for {len(names)} placeholders",
            do="give one --system.concept.carrier, or as many",
        )
    pairs = zip(names, carriers, strict=True)
    return tuple(Slot(name, carrier, settings.num_vectors, settings.space) for name, carrier in pairs)


def new_concepts(config: TiConfig, encoder: TextEncoder) -> tuple[Concept, ...]:
    """The concepts as they start: their carriers' rows.

    Raises:
        ConfigError: See `concept_slots`.
    """
    fixed_norm = config.system.concept.fixed_norm
    concepts = []
    for slot in concept_slots(config):
        concept = encoder.new_concept(slot.name, carrier=slot.carrier, num_vectors=slot.num_vectors, space=slot.space)
        if fixed_norm != "auto":
            concept.fixed_norm = fixed_norm == "always"
        concepts.append(concept)
    return tuple(concepts)


def concept_phase(
    model: TiModel, texts: TextSource, config: TiConfig, schedule: Schedule, device: torch.device, *, warn: bool = True
) -> Phase:
    """The one phase: the loss of bits, and an AdamW over exactly the concepts.

    Args:
        model: On the device; what is no concept in it is frozen.
        texts: Of the prompts that batches name.
        config: Of the run.
        schedule: Of tokens.
        device: Where the loss is computed.
        warn: Whether a learning rate that takes the vectors nowhere is noticed.
    """
    training, settings = config.training, config.system.concept
    weights = scale_weights(schedule, config.system.loss.weighting).to(device)
    frozen = [part for part in (model.transformer, model.text_encoder) if part is not None]
    optimizer = concept_optimizer(
        model.concepts,
        frozen,
        relative_lr=training.learning_rate,
        ti_lr=settings.ti_lr or None,
        num_steps=training.num_steps if warn else None,
    )
    warmup = training.warmup_steps

    def loss(batch: Batch) -> Loss:
        text = texts.fetch(batch.prompts.tolist(), model.concepts)
        return concept_loss(model.transformer, text, batch, schedule, weights)

    def renormalise_(step: int) -> None:
        for concept in model.concepts:
            concept.renormalise_()

    return Phase(
        "concept",
        loss,
        _num_pictures,
        (optimizer,),
        schedule=constant(warmup) if training.schedule == "constant" else cosine(warmup, training.num_steps),
        device=device,
        clip_norm=training.clip_norm,
        precision=training.precision,
        on_update=renormalise_,
    )


def training_step(model: TiModel, phase: Phase, batches: Sequence[Batch]) -> Workload:
    """One step of a phase on one micro-batch or several, whose gradients add up."""
    inputs = [tensor for batch in batches for tensor in (batch.bits, batch.inputs)]
    return Workload(step=bare_step([phase], batches), model=model, optimizers=phase.optimizers, inputs=inputs)


def _num_pictures(batch: Batch) -> float:
    return float(len(batch))

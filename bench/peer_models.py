"""The models of bench/peers.py: a small trainable part in front of, behind or inside a large frozen one.

Weights are random, sizes are real ones or a fraction of them. No definition needs torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer

from frostline.config import MemoryConfig
from frostline.memory import Workload
from frostline.regions import freeze_, trainable_parameters
from frostline.systems.semcom.backbone import shape_backbone, shape_model
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.peak_table import Row, Setting, random_batch
from frostline.systems.semcom.reference import plain_loss

HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Mean cross-entropy of ``hidden @ weight.T`` against targets: hidden (..., D), weight (V, D), targets (...)."""


def plain_head_loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All the logits, and the loss of torch."""
    return F.cross_entropy(F.linear(hidden, weight).flatten(0, -2), target.flatten())


@dataclass(kw_only=True)
class Case:
    """A model that is ready to take steps; a method changes it, once.

    Attributes:
        model: Its call gives the loss.
        inputs: What it is called with.
        blocks: Qualified names of the repeated blocks that a gradient passes, none inside another.
        upstream: Frozen modules that no gradient passes.
        hub: The transformers models inside, for their own switches.
        call: What a step calls; the model, or what a method makes of it.
        head_loss: What stands in for the loss over a vocabulary; None where there is no vocabulary.
    """

    model: nn.Module
    inputs: dict[str, Any]
    blocks: tuple[str, ...]
    upstream: tuple[str, ...] = ()
    hub: tuple[Any, ...] = ()
    call: Callable[..., Tensor]
    head_loss: HeadLoss | None = None

    def loss(self) -> Tensor:
        """One forward pass."""
        return self.call(**self.inputs)

    def workload(self) -> Workload:
        """A training step, with AdamW on all that trains."""
        optimizer = torch.optim.AdamW(trainable_parameters(self.model).values(), lr=1e-4)

        def step() -> Tensor:
            loss = self.loss()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        tensors = [value for value in self.inputs.values() if isinstance(value, Tensor)]
        return Workload(step=step, model=self.model, optimizers=(optimizer,), inputs=tensors)


PLAIN = MemoryConfig(checkpoint="none", loss_chunk_tokens=0, upstream_chunk=0)


def names_of(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> tuple[str, ...]:
    """The modules of some types, by qualified name."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, kind))


class Front(nn.Module):
    """A trainable part, a frozen trunk behind it, and a target for the trunk's output."""

    def __init__(self, front: nn.Module, trunk: nn.Module) -> None:
        super().__init__()
        self.front, self.trunk = front, trunk
        freeze_(trunk)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean squared error."""
        return F.mse_loss(self.features(self.front(x)), target)

    def features(self, x: Tensor) -> Tensor:
        """What the trunk makes of the trainable part's output."""
        output: Tensor = self.trunk(x)
        return output


class Residual(nn.Module):
    """The basic block of ResNet-18, its ReLU a module as in the usual definition."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or num_in != num_out:
            self.downsample = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions round which the input is added."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class Stage(nn.Sequential):
    """A run of layers that is checkpointed as one block."""


def resnet18(num_classes: int = 1000) -> nn.Sequential:
    """ResNet-18."""
    stem = Stage(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    )
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Residual(*width) for width in (*widths, (512, 512, 1))]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))


def vgg16_features() -> nn.Sequential:
    """The convolutions of VGG-16 with BatchNorm, one stage before each pooling, and the mean over places."""
    stages, num_in = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(num_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            num_in = width
        stages.append(Stage(*layers, nn.MaxPool2d(2)))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def conv_case(make_trunk: Callable[[], nn.Module], width: int, batch_size: int, size: int) -> Case:
    """A convolution of 3 x 3 that trains, and a frozen net behind it."""
    model = Front(nn.Conv2d(3, 3, 3, padding=1), make_trunk())
    for module in model.modules():  # else a net of random weights is the identity to BatchNorm
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    inputs = {"x": torch.randn(batch_size, 3, size, size), "target": torch.randn(batch_size, width)}
    return Case(model=model, inputs=inputs, blocks=names_of(model, (Stage, Residual)), call=model)


class FrontOfTransformer(Front):
    """A trainable map of vectors, and a frozen decoder without a head behind it."""

    def features(self, x: Tensor) -> Tensor:
        """The last hidden states."""
        hidden: Tensor = self.trunk(inputs_embeds=x, use_cache=False).last_hidden_state
        return hidden


def transformer_case(width: int = 256, num_layers: int = 12, batch_size: int = 4, length: int = 256) -> Case:
    """A frozen pre-norm transformer, GPT-2's, behind a trainable linear map."""
    config = hf.GPT2Config(
        n_embd=width, n_layer=num_layers, n_head=4, vocab_size=64, n_positions=length, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    trunk = hf.GPT2Model(config)
    model = FrontOfTransformer(nn.Linear(width, width), trunk)
    inputs = {"x": torch.randn(batch_size, length, width), "target": torch.randn(batch_size, length, width)}
    blocks = tuple(f"trunk.h.{i}" for i in range(num_layers))
    return Case(model=model, inputs=inputs, blocks=blocks, hub=(trunk,), call=model)


class HeadOnTrunk(nn.Module):
    """A trainable linear classifier on the first token of a frozen encoder."""

    def __init__(self, trunk: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(width, num_classes)
        freeze_(trunk)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean cross-entropy."""
        features: Tensor = self.trunk(pixel_values=x).last_hidden_state[:, 0]
        return F.cross_entropy(self.head(features), target)


def head_case(width: int = 384, num_layers: int = 12, batch_size: int = 8, size: int = 224) -> Case:
    """One trainable layer behind a frozen ViT-S/16."""
    config = hf.ViTConfig(
        hidden_size=width, num_hidden_layers=num_layers, num_attention_heads=6, intermediate_size=4 * width,
        image_size=size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    trunk = hf.ViTModel(config, add_pooling_layer=False)
    model = HeadOnTrunk(trunk, width, 1000)
    inputs = {"x": torch.randn(batch_size, 3, size, size), "target": torch.randint(0, 1000, (batch_size,))}
    return Case(model=model, inputs=inputs, blocks=(), upstream=("trunk",), hub=(trunk,), call=model)


class LowRank(nn.Module):
    """A frozen linear layer and a trainable update of low rank beside it."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Both together."""
        result: Tensor = self.base(x) + self.up(self.down(x))
        return result


class LoraDecoder(nn.Module):
    """A frozen Llama with an update of low rank at every query and value projection."""

    def __init__(self, config: hf.LlamaConfig) -> None:
        super().__init__()
        self.llama = hf.LlamaForCausalLM(config).requires_grad_(False)
        self.head_loss: HeadLoss = plain_head_loss
        for layer in self.llama.model.layers:
            attention = layer.self_attn
            attention.q_proj, attention.v_proj = LowRank(attention.q_proj), LowRank(attention.v_proj)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of each next token."""
        hidden = self.llama.model(input_ids=tokens, use_cache=False).last_hidden_state
        return self.head_loss(hidden[:, :-1], self.llama.lm_head.weight, tokens[:, 1:])


def lora_case(width: int = 512, num_layers: int = 12, batch_size: int = 2, length: int = 256) -> Case:
    """A Llama of 12 layers with Llama 2's vocabulary."""
    config = hf.LlamaConfig(
        hidden_size=width, num_hidden_layers=num_layers, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=11 * width // 4, vocab_size=32_000, max_position_embeddings=length, use_cache=False,
    )  # fmt: skip
    model = LoraDecoder(config)
    blocks = tuple(f"llama.model.layers.{i}" for i in range(num_layers))
    inputs = {"tokens": torch.randint(0, 32_000, (batch_size, length))}
    return Case(model=model, inputs=inputs, blocks=blocks, hub=(model.llama,), call=model, head_loss=plain_head_loss)


class Captioner(nn.Module):
    """semcom's linear codec between the two halves of a frozen Florence-2, called as people write it."""

    def __init__(self, florence: Any, setting: Setting) -> None:
        super().__init__()
        # Its parts are registered once each; the whole model is not, or every name would be there twice.
        self._florence = (florence,)
        self.parts = SemcomModel(shape_backbone(florence), setting.system, PLAIN, image_size=setting.image_size)
        self.head_loss: HeadLoss = plain_head_loss

    def forward(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the answers after the channel."""
        (florence,) = self._florence
        if self.head_loss is plain_head_loss:
            return plain_loss(self.parts, florence, batch)
        rebuilt = self.parts(self.parts.features_of(batch), batch.snr_db, batch.noise_seeds)
        hidden = self.parts.receiver.hidden(rebuilt, batch.tasks, batch.labels)
        return self.head_loss(hidden, florence.lm_head.weight, batch.labels)


def florence_case(name: str = "florence-community/Florence-2-base", size: int = 384, batch_size: int = 2) -> Case:
    """Florence-2-base with real sizes, a linear codec in its middle, and 32 tokens of answer."""
    system = SemcomSystemConfig(model=name, codec="linear", symbols_per_token=32)
    setting = Setting(system=system, batch_size=batch_size, image_size=size, target_tokens=32)
    florence = shape_model(name)
    model = Captioner(florence, setting)
    batch = random_batch(Row(name="plain"), setting, florence, model.parts)
    layers = names_of(model, (BartEncoderLayer, BartDecoderLayer))
    return Case(
        model=model,
        inputs={"batch": batch},
        blocks=layers,
        upstream=("parts.transmitter.tower",),
        hub=(florence,),
        call=model,
        head_loss=plain_head_loss,
    )


MODELS: dict[str, Callable[[], Case]] = {
    "resnet18": partial(conv_case, resnet18, 1000, batch_size=8, size=128),
    "vgg16": partial(conv_case, vgg16_features, 512, batch_size=4, size=112),
    "transformer": transformer_case,
    "head": head_case,
    "lora": lora_case,
    "florence2": florence_case,
}
"""Every model by its name in the table."""
SMALLEST = ("resnet18", "transformer")
"""The two that are compiled."""


def build(make: Callable[[], Case], dtype: torch.dtype = torch.float32) -> Case:
    """A model and its batch, the same at every call; in another type with the same values."""
    torch.manual_seed(0)
    case = make()
    if dtype is not torch.float32:
        case.model.to(dtype)
        case.inputs = {name: _converted(value, dtype) for name, value in case.inputs.items()}
    return case


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return (
        replace(value, **{name: _converted(part, dtype) for name, part in vars(value).items()})
        if isinstance(value, Batch)
        else value
    )

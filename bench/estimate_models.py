"""Training steps of many families of models, made from configurations: each builds on fake tensors and on real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frostline.memory import Workload
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.peak_table import ROWS, Setting, build_florence, build_workload

VOCAB = 2048


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model and its step.

    Attributes:
        build_model: Makes the model.
        build_step: Makes inputs, optimizers and step for it.
        bound: The most entries of a selection by values.
    """

    build_model: Callable[[], nn.Module]
    build_step: Callable[[nn.Module], Workload]
    bound: int | None = None


def family(
    build_model: Callable[[], nn.Module],
    make_inputs: Callable[[], dict[str, Tensor]],
    loss_of: Callable[..., Tensor],
    *,
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
    bfloat16: bool = False,
    clip: bool = False,
    bound: int | None = None,
) -> Family:
    """A family whose step is forward, backward, and one update of what requires gradients."""

    def build_step(model: nn.Module) -> Workload:
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        inputs, update = make_inputs(), optimizer(trained)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = loss_of(model, **inputs)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(trained, 1.0)
            update.step()
            update.zero_grad()

        return Workload(step=step, model=model, optimizers=(update,), inputs=inputs)

    return Family(build_model=build_model, build_step=build_step, bound=bound)


def own_loss(model: nn.Module, **inputs: Tensor) -> Tensor:
    """What a transformers model returns as its loss."""
    loss: Tensor = model(**inputs).loss
    return loss


def classify(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the last dimension but for sequences, where it is over each token's."""
    return F.cross_entropy(model(x).flatten(0, -2), labels.flatten())


def regress(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), labels)


def text(batch_size: int, length: int, vocab: int = VOCAB) -> dict[str, Tensor]:
    """Tokens that are their own labels."""
    ids = torch.randint(4, vocab - 1, (batch_size, length))
    return {"input_ids": ids, "labels": ids}


def pictures(batch_size: int, size: int) -> dict[str, Tensor]:
    """Pictures and classes, by the names of transformers."""
    return {"pixel_values": torch.randn(batch_size, 3, size, size), "labels": torch.randint(0, 10, (batch_size,))}


def sequences(batch_size: int, length: int, width: int) -> dict[str, Tensor]:
    """Sequences of vectors, and one of 32 classes for each of these."""
    return {"x": torch.randn(batch_size, length, width), "labels": torch.randint(0, 32, (batch_size, length))}


class Residual(nn.Module):
    """The basic block of ResNet-18."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.second = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        same = stride == 1 and num_in == num_out
        self.skip: nn.Module = nn.Identity()
        if not same:
            self.skip = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions round which the input is added."""
        out = F.relu(self.norm1(self.first(x)), inplace=True)
        return F.relu(self.norm2(self.second(out)) + self.skip(x), inplace=True)


def resnet18() -> nn.Module:
    """ResNet-18 for ten classes."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    blocks = [Residual(*width) for width in (*widths, (512, 512, 1))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class UNet(nn.Module):
    """Two steps down, two up, with group norm, SiLU and the skips of a diffusion model."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(self._block(width * 2**i, width * 2 ** (i + 1)) for i in range(2))
        self.middle = self._block(width * 4, width * 4)
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(width * 2 ** (2 - i), width * 2 ** (2 - i), 2, 2) for i in range(2)
        )
        self.up = nn.ModuleList(self._block(width * 2 ** (3 - i), width * 2 ** (1 - i)) for i in range(2))
        self.leave = nn.Conv2d(width, 3, 1)

    @staticmethod
    def _block(num_in: int, num_out: int) -> nn.Module:
        layers = (nn.GroupNorm(8, num_in), nn.SiLU(), nn.Conv2d(num_in, num_out, 3, padding=1))
        return nn.Sequential(*layers, nn.GroupNorm(8, num_out), nn.SiLU(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        """The noise in a picture."""
        x, skips = self.enter(x), []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat((rise(x), skips.pop()), dim=1))
        return F.interpolate(self.leave(x), scale_factor=1.0, mode="nearest")


class Nerf(nn.Module):
    """A field of colour and density, and the volume rendering of its samples along rays of shape (rays, 6)."""

    def __init__(self, width: int = 128, num_samples: int = 32) -> None:
        super().__init__()
        layers = [nn.Linear(63, width), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.field = nn.Sequential(*layers, nn.Linear(width, 4))
        self.num_samples = num_samples

    def forward(self, rays: Tensor) -> Tensor:
        """The colour of each ray."""
        depths = torch.linspace(2.0, 6.0, self.num_samples)
        points = rays[:, None, :3] + rays[:, None, 3:] * depths[:, None]
        waves = [wave(points * 2.0**i) for i in range(10) for wave in (torch.sin, torch.cos)]
        colour, density = self.field(torch.cat((points, *waves), dim=-1)).split((3, 1), dim=-1)
        opacity = 1 - torch.exp(-F.relu(density[..., 0]) * 0.1)
        seen = torch.cumprod(torch.cat((torch.ones_like(opacity[:, :1]), 1 - opacity + 1e-10), dim=1), dim=1)[:, :-1]
        rays_colour: Tensor = ((opacity * seen)[..., None] * colour.sigmoid()).sum(dim=1)
        return rays_colour


class Encoder(nn.Module):
    """A pre-norm transformer encoder with a classifier, every layer checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        make = partial(nn.TransformerEncoderLayer, 128, 4, 512, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(make() for _ in range(6))
        self.head = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, length, 32)."""
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        scores: Tensor = self.head(x)
        return scores


class Tagger(nn.Module):
    """A recurrent net and a score for each of its steps.

    Args:
        recurrent: The class of the net.
    """

    def __init__(self, recurrent: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.net = recurrent(64, 128, 2, batch_first=True)
        self.head = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of shape (batch, length, 32)."""
        scores: Tensor = self.head(self.net(x)[0])
        return scores


class Mixture(nn.Module):
    """Four experts, each for the tokens that are routed to it: its sizes depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(64, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """The input, changed by one expert for each token."""
        out, choice = torch.zeros_like(x), self.router(x).argmax(dim=-1)
        for i, expert in enumerate(self.experts):
            out = out.masked_scatter((choice == i)[..., None], expert(x[choice == i]))
        return out


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


def llama_with_lora(**sizes: int) -> nn.Module:
    """A frozen Llama with a `LowRank` at every query and value projection."""
    config = hf.LlamaConfig(use_cache=False, attn_implementation="sdpa", **sizes)
    model: nn.Module = hf.LlamaForCausalLM(config)
    model.requires_grad_(False)
    for layer in model.model.layers:  # type: ignore[union-attr]
        attention: Any = layer.self_attn
        attention.q_proj, attention.v_proj = LowRank(attention.q_proj), LowRank(attention.v_proj)
    return model


def llama_7b() -> nn.Module:
    """The sizes of Llama 7B."""
    return llama_with_lora(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=2048,
    )


LARGE = family(llama_7b, lambda: text(1, 2048, 32_000), own_loss)
"""One step of it with a sequence of 2048 tokens."""


def semcom() -> Family:
    """A linear codec inside frostline's own Florence-2 of 1.5 M parameters."""
    setting = Setting(
        system=SemcomSystemConfig(model="nano", codec="linear"), batch_size=8, image_size=64, target_tokens=13
    )
    row = next(row for row in ROWS if row.name == "frozen")
    return Family(
        build_model=lambda: build_florence(row, setting), build_step=lambda model: build_workload(row, setting, model)
    )


def gan() -> Family:
    """Generator and discriminator, two losses and two optimizers a step."""

    def build_model() -> nn.Module:
        up = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        down = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)
        generator = nn.Sequential(up(32, 128), nn.BatchNorm2d(128), nn.ReLU(), up(128, 64), nn.ReLU(), up(64, 3))
        critic = nn.Sequential(down(3, 64), nn.LeakyReLU(0.2), down(64, 128), nn.LeakyReLU(0.2), down(128, 1))
        return nn.ModuleDict({"generator": generator, "critic": critic})

    def build_step(model: nn.Module) -> Workload:
        generator, critic = model["generator"], model["critic"]  # type: ignore[index]
        noise, real = torch.randn(16, 32, 8, 8), torch.randn(16, 3, 64, 64)
        for_generator, for_critic = (torch.optim.Adam(part.parameters()) for part in (generator, critic))

        def step() -> None:
            fake = generator(noise)
            (F.softplus(critic(fake.detach())) + F.softplus(-critic(real))).mean().backward()
            for_critic.step()
            for_critic.zero_grad()
            F.softplus(-critic(fake)).mean().backward()
            for_generator.step()
            model.zero_grad()

        return Workload(step=step, model=model, optimizers=(for_generator, for_critic), inputs=(noise, real))

    return Family(build_model=build_model, build_step=build_step)


def families() -> Iterator[tuple[str, Family]]:
    """Every family by name."""
    small = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    bert = hf.BertConfig(vocab_size=VOCAB, max_position_embeddings=128, **small)
    yield "BERT", family(lambda: hf.BertForMaskedLM(bert), lambda: text(8, 128), own_loss)
    yield (
        "BERT, autocast, clipped",
        family(lambda: hf.BertForMaskedLM(bert), lambda: text(8, 128), own_loss, bfloat16=True, clip=True),
    )
    gpt2 = hf.GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    yield "GPT-2", family(lambda: hf.GPT2LMHeadModel(gpt2), lambda: text(8, 128), own_loss)
    t5 = hf.T5Config(
        vocab_size=VOCAB, d_model=128, d_kv=32, d_ff=512, num_layers=3, num_heads=4, decoder_start_token_id=0
    )
    yield "T5", family(lambda: hf.T5ForConditionalGeneration(t5), lambda: text(8, 64), own_loss)
    vit = hf.ViTConfig(image_size=64, patch_size=8, num_labels=10, **small)
    yield "ViT", family(lambda: hf.ViTForImageClassification(vit), lambda: pictures(8, 64), own_loss)
    swin = hf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=10
    )
    yield "Swin", family(lambda: hf.SwinForImageClassification(swin), lambda: pictures(8, 64), own_loss)
    convnext = hf.ConvNextConfig(
        hidden_sizes=[32, 64, 128, 256], depths=[2, 2, 2, 2], num_labels=10, drop_path_rate=0.1
    )
    yield "ConvNeXt", family(lambda: hf.ConvNextForImageClassification(convnext), lambda: pictures(8, 96), own_loss)
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    yield (
        "ResNet-18",
        family(
            resnet18,
            lambda: {"x": torch.randn(8, 3, 128, 128), "labels": torch.randint(0, 10, (8,))},
            classify,
            optimizer=momentum,
        ),
    )
    yield "U-Net", family(UNet, lambda: {"x": torch.randn(4, 3, 64, 64), "labels": torch.randn(4, 3, 64, 64)}, regress)
    yield "NeRF", family(Nerf, lambda: {"x": torch.randn(1024, 6), "labels": torch.rand(1024, 3)}, regress)
    yield "GAN, two phases", gan()
    wav2vec2 = hf.Wav2Vec2Config(
        vocab_size=32,
        conv_dim=[64] * 4,
        conv_kernel=[10, 3, 3, 2],
        conv_stride=[5, 2, 2, 2],
        num_feat_extract_layers=4,
        num_conv_pos_embeddings=16,
        layerdrop=0.0,
        apply_spec_augment=False,
        **small,
    )
    yield (
        "wav2vec 2.0",
        family(
            lambda: hf.Wav2Vec2ForCTC(wav2vec2),
            lambda: {"input_values": torch.randn(4, 8000), "labels": torch.randint(1, 32, (4, 12))},
            own_loss,
            bound=4 * 12,  # it selects the labels that are not padding
        ),
    )
    yield "Florence-2 with a codec", semcom()
    lora = {**small, "vocab_size": VOCAB, "num_key_value_heads": 2}
    yield "Llama with LoRA", family(partial(llama_with_lora, **lora), lambda: text(4, 256), own_loss)
    yield "checkpointed encoder", family(Encoder, partial(sequences, 8, 128, 128), classify)
    yield "GRU", family(partial(Tagger, nn.GRU), partial(sequences, 16, 64, 64), classify)


def refused() -> Iterator[tuple[str, Callable[[int], Family]]]:
    """Families that fake tensors cannot tell, by batch size."""
    yield "LSTM", lambda size: family(partial(Tagger, nn.LSTM), partial(sequences, size, 64, 64), classify)
    yield (
        "mixture of experts",
        lambda size: family(
            Mixture,
            lambda: {"x": torch.randn(size, 32, 64), "labels": torch.randn(size, 32, 64)},
            regress,
            bound=size * 32,
        ),
    )

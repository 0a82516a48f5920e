"""The transformer: text and the coarser scales in, two logits for every bit of every scale out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError
from frostline.systems.ti.infinity.attention import CrossAttention, KeyValueCache
from frostline.systems.ti.infinity.blocks import AdaptiveHeadNorm, Block, RMSNorm
from frostline.systems.ti.infinity.rope import rotations
from frostline.systems.ti.infinity.schedule import Schedule
from frostline.systems.ti.infinity.sizes import InfinityConfig
from frostline.systems.ti.infinity.text import CompactText

__all__ = ["Condition", "Infinity", "InfinityConfig"]


@dataclass(frozen=True)
class Condition:
    """What the blocks and the head are told of the text.

    Attributes:
        pooled: Shape (B, C): the first token, and what modulates everything.
        modulation: Gates, scales and shifts for all blocks, shape (B, 1, 6, C).
        text: Shape (B, T, C), padded with zeros.
        mask: Which of T are there, bool of shape (B, 1, 1, T); None where all are.
    """

    pooled: Tensor
    modulation: Tensor
    text: Tensor
    mask: Tensor | None


class Infinity(nn.Module):
    """The bitwise autoregressive transformer of Infinity (Han et al., arXiv 2412.04431).

    Names and shapes of its `state_dict` are those of the published checkpoints. It can be built on torch's meta
    device. Blocks follow the caller's autocast; text and the embedding of tokens stay in the parameters' type.

    Args:
        config: Its size.

    Example::

        codes = MultiScaleBSQ(config.code_bits).encode(features, schedule)
        logits = model(text, codes.inputs, schedule)  # (B, L, D, 2)
        loss = bit_losses(logits, codes.bits).mean()
    """

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        width, text_width = config.width, config.text_width
        self.cfg_uncond = nn.Parameter(torch.empty(config.max_text_tokens, text_width))
        self.text_norm = RMSNorm(text_width)
        self.text_proj_for_sos = nn.ModuleDict(
            {"ca": CrossAttention(config, text_width=text_width, num_heads=config.num_pool_heads, pools=True)}
        )
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.lvl_embed = nn.Embedding(config.num_levels, width)
        self.word_embed = nn.Linear(config.token_bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        blocks = [Block(config) for _ in range(config.depth)]
        if config.num_chunks == 1:
            self.blocks = nn.ModuleList(blocks)
        else:
            size = config.depth // config.num_chunks
            chunks = [blocks[start : start + size] for start in range(0, config.depth, size)]
            self.block_chunks = nn.ModuleList(nn.ModuleDict({"module": nn.ModuleList(chunk)}) for chunk in chunks)
        self.head_nm = AdaptiveHeadNorm(width)
        self.head = nn.Linear(width, 2 * config.token_bits)
        nn.init.trunc_normal_(self.cfg_uncond, std=1.2 / math.sqrt(text_width))
        nn.init.trunc_normal_(self.pos_start, std=math.sqrt(1 / width / 3))

    @property
    def all_blocks(self) -> tuple[Block, ...]:
        """The blocks in their order, whatever their names."""
        return tuple(module for module in self.block_list.modules() if isinstance(module, Block))

    @property
    def block_list(self) -> nn.ModuleList:
        """What holds the blocks: themselves, or their chunks."""
        return self.blocks if self.config.num_chunks == 1 else self.block_chunks

    @torch.no_grad()
    def initialise_(self, *, gate: float = 1e-3, head: float = 0.02) -> None:
        """Draw the weights of a model that is to be trained from scratch, as the published code does.

        Args:
            gate: Factor on the blocks' own gates.
            head: Factor on the head.
        """
        std = math.sqrt(1 / self.config.width / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.head.weight.mul_(head)
        self.head_nm.ada_lin[1].weight.mul_(1e-3)  # type: ignore[operator]
        for block in self.all_blocks:
            for layer in (block.sa.proj, block.ca.proj, block.ffn.fc2):
                layer.weight.mul_(1 / math.sqrt(2 * self.config.depth))
            block.ada_gss[:, :, :2].mul_(gate)
            block.ada_gss[:, :, 2:].mul_(1e-3)

    def forward(self, text: CompactText, inputs: Tensor, schedule: Schedule) -> Tensor:
        """Logits of every bit, each scale from the text and the coarser scales.

        Args:
            text: Features of B prompts.
            inputs: Of all scales but the first, shape (B, L - 1, D), as `MultiScaleBSQ.encode` gives them.
            schedule: Of L tokens, the first scale being one; a `Schedule.prefix` for the first scales' loss alone.

        Returns:
            Shape (B, L, D, 2), for bit 0 and bit 1; bfloat16 under autocast.

        Raises:
            ShapeError: Text, inputs, schedule and model do not belong together.
            ConfigError: More scales than the model has levels, or a first scale of several tokens.
        """
        return self.logits(*self.hidden(text, inputs, schedule))

    def hidden(self, text: CompactText, inputs: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """What the last block gives, shape (B, L, C), and the pooled text, shape (B, C); arguments as `forward`'s."""
        self._check(text, inputs, schedule)
        condition = self.condition(text)
        tokens = self.embed(condition, inputs, schedule)
        turns = rotations(schedule, self.config.head_width, device=tokens.device)
        for block in self.all_blocks:
            tokens = self.run_block(block, tokens, condition, turns, schedule.ends)
        return tokens, condition.pooled

    def logits(self, hidden: Tensor, pooled: Tensor) -> Tensor:
        """Two logits for each bit, shape (B, n, D, 2), of `hidden` (B, n, C) and pooled text (B, C)."""
        logits: Tensor = self.head(self.head_nm(hidden, pooled)).unflatten(-1, (-1, 2))
        return logits

    def condition(self, text: CompactText) -> Condition:
        """Prepare text for blocks and head."""
        with torch.autocast(self.pos_start.device.type, enabled=False):
            features = self.text_norm(text.features.to(self.pos_start.dtype))
            padded, mask = _pad(features, text.lengths)
            pooled: Tensor = self.text_proj_for_sos["ca"](None, padded, mask).squeeze(1)
            modulation: Tensor = self.shared_ada_lin(pooled).unflatten(-1, (1, 6, -1))
            return Condition(pooled, modulation, _pad(self.text_proj_for_ca(features), text.lengths)[0], mask)

    def embed(self, condition: Condition, inputs: Tensor | None, schedule: Schedule, *, scale: int = 0) -> Tensor:
        """Tokens for the first block.

        Args:
            condition: Of B prompts.
            inputs: Of the scales behind the first, shape (B, n, D), or None for the first scale alone.
            schedule: Of all tokens.
            scale: Where these tokens begin; from 1 on, `inputs` is this scale's alone.

        Returns:
            Shape (B, n + 1, C), or (B, n, C) from scale 1 on.
        """
        with torch.autocast(self.pos_start.device.type, enabled=False):
            parts = [] if scale else [condition.pooled[:, None] + self.pos_start]
            if inputs is not None:
                parts.append(self.word_embed(inputs.to(self.pos_start.dtype)))
            tokens = torch.cat(parts, 1)
            lengths = schedule.lengths if inputs is not None and not scale else schedule.lengths[scale : scale + 1]
            levels = [self.lvl_embed.weight[scale + i].expand(length, -1) for i, length in enumerate(lengths)]
            return tokens + torch.cat(levels)

    def run_block(
        self,
        block: Block,
        tokens: Tensor,
        condition: Condition,
        turns: Tensor,
        ends: tuple[int, ...],
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """One block; see `Block.forward`."""
        output: Tensor = block(tokens, condition.modulation, condition.text, condition.mask, turns, ends, cache)
        return output

    def null_text(self, lengths: tuple[int, ...]) -> CompactText:
        """The learned empty prompt, as long as others: what guidance is measured from.

        Raises:
            ConfigError: A prompt is longer than the learned one.
        """
        if max(lengths) > self.config.max_text_tokens:
            raise ConfigError(
                f"a prompt of {max(lengths)} tokens has no null prompt",
                do=f"cut it to {self.config.max_text_tokens} tokens",
            )
        return CompactText.join([self.cfg_uncond[:length] for length in lengths])

    def drop_text(self, text: CompactText, rate: float, generator: torch.Generator | None = None) -> CompactText:
        """Prompts of which a share is replaced by the null prompt, to train guidance; `text` stays as it is.

        Args:
            text: Features of B prompts.
            rate: The probability for each, 0 to 1.
            generator: Draws, on the CPU.
        """
        dropped = torch.rand(text.num_prompts, generator=generator) < rate
        nulls = self.null_text(text.lengths).split()
        pairs = zip(dropped.tolist(), text.split(), nulls, strict=True)
        return CompactText.join([null if drop else prompt for drop, prompt, null in pairs])

    def _check(self, text: CompactText, inputs: Tensor, schedule: Schedule) -> None:
        self.check_schedule(schedule)
        expected = (text.num_prompts, schedule.num_tokens - 1, self.config.token_bits)
        if tuple(inputs.shape) != expected:
            raise ShapeError("inputs of the scales behind the first", expected=expected, actual=tuple(inputs.shape))
        if text.features.size(1) != self.config.text_width:
            raise ShapeError(
                "text features",
                expected=("tokens", self.config.text_width),
                actual=tuple(text.features.shape),
                do="use the text encoder that the checkpoint was trained with",
            )

    def check_schedule(self, schedule: Schedule) -> None:
        """Refuse a schedule that the model has no levels for.

        Raises:
            ConfigError: More scales than levels, or a first scale of several tokens.
        """
        if schedule.lengths[0] != 1:
            raise ConfigError(f"the first grid is {schedule.grids[0]}", do="begin with 1 x 1: the text's own token")
        if schedule.num_scales > self.config.num_levels:
            raise ConfigError(f"{schedule.num_scales} scales", do=f"give {self.config.num_levels} at most")


def _pad(features: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    longest = max(lengths)
    if all(length == longest for length in lengths):
        return features.unflatten(0, (-1, longest)), None
    rows = [F.pad(row, (0, 0, 0, longest - row.size(0))) for row in features.split(list(lengths))]
    places = torch.arange(longest, device=features.device)
    mask = places < torch.tensor(lengths, device=features.device)[:, None]
    return torch.stack(rows), mask[:, None, None]

"""The receiver: the decompression, and the frozen part behind it that reads the picture and answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.florence2.modeling_florence2 import shift_tokens_right

from frostline.errors import ShapeError
from frostline.ops import chunked_cross_entropy
from frostline.systems.semcom.backbone import Backbone, CutPoint
from frostline.systems.semcom.channel import real_values

IGNORED = -100


class Receiver(nn.Module):
    """Received symbols to an answer, or to the loss of the right one.

    The gradient passes through everything frozen here, so nothing of it may run under `no_grad`.

    Args:
        backbone: The frozen Florence-2; only the parts behind the cut are used.
        decompression: Received values (B, ..., 2c) and snr_db (B,) to features (B, N, D); None takes them as they are.
        mode: Where the model is cut.
        loss_chunk_tokens: Target tokens whose logits are alive at once; 0 for all.
    """

    def __init__(
        self,
        backbone: Backbone,
        decompression: nn.Module | None,
        *,
        mode: CutPoint = "vision_tower",
        loss_chunk_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.decompression = decompression
        self.projector = backbone.projector if mode == "vision_tower" else None
        self.language_model = backbone.model.model.language_model
        self.head = backbone.model.lm_head
        self.loss_chunk_tokens = loss_chunk_tokens
        self._backbone = (backbone,)  # a tuple, lest the whole model be registered a second time
        self._prompts: dict[str, Tensor] = {}

    def features(self, received: Tensor, snr_db: Tensor, *, amplitude: Tensor, shape: tuple[int, int]) -> Tensor:
        """Rebuild the features.

        Args:
            received: Equalised symbols, complex (B, ..., c).
            snr_db: Es/N0 of each sample, (B,).
            amplitude: What the transmitter divided out, (B,); used only without a decompression.
            shape: N and D at the cut.

        Returns:
            Features (B, N, D).

        Raises:
            ShapeError: The decompression returned another shape.
        """
        values = real_values(received)
        if self.decompression is None:
            return (values * amplitude.view((-1,) + (1,) * (values.dim() - 1))).reshape(-1, *shape)
        features: Tensor = self.decompression(values, snr_db)
        if features.shape != (len(snr_db), *shape):
            raise ShapeError(
                "the decompression's output",
                expected=(len(snr_db), *shape),
                actual=tuple(features.shape),
                where=type(self.decompression).__name__,
                do="return the shape of the cut: (batch, visual tokens, feature width)",
            )
        return features

    def hidden(self, features: Tensor, tasks: Sequence[str], labels: Tensor) -> Tensor:
        """Run the frozen rest on features, with the true answer as the decoder's input.

        Args:
            features: (B, N, D) at the cut.
            tasks: Florence-2's task token for each sample, such as ``<CAPTION>``.
            labels: Answers (B, T), padded with -100.

        Returns:
            The decoder's last states (B, T, W); the head makes logits of them.
        """
        encoded, mask = self.encode(features, tasks)
        text = self.language_model.config
        decoder_input = shift_tokens_right(labels, text.pad_token_id, text.decoder_start_token_id)
        output: Tensor = self.language_model.decoder(
            input_ids=decoder_input,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return output

    def encode(self, features: Tensor, tasks: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The encoder's states (B, N' + P, W) over picture and prompt, and their mask where prompts are padded."""
        visual = self._visual(features)
        prompt, mask = self.prompt(tasks)
        if mask is not None:
            mask = F.pad(mask, (visual.shape[1], 0), value=1)
        embeddings = torch.cat([visual, prompt.to(visual.dtype)], 1)
        encoded: Tensor = self.language_model.encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return encoded, mask

    def loss(self, features: Tensor, tasks: Sequence[str], labels: Tensor) -> Tensor:
        """Mean cross-entropy of the answers, in nats a token; -100 does not count."""
        hidden = self.hidden(features, tasks, labels)
        return chunked_cross_entropy(hidden, self.head.weight, labels, chunk_tokens=self.loss_chunk_tokens)

    @torch.no_grad()
    def predict(self, features: Tensor, tasks: Sequence[str], labels: Tensor) -> Tensor:
        """The most likely token after the true ones before it, (B, T).

        An answer of greedy decoding is exactly right if and only if all of these are.
        """
        best: Tensor = self.head(self.hidden(features, tasks, labels)).argmax(-1)
        return best

    @torch.no_grad()
    def generate(
        self, features: Tensor, tasks: Sequence[str], *, max_new_tokens: int = 64, num_beams: int = 1
    ) -> list[str]:
        """Answer in words, without special tokens other than locations."""
        backbone = self._backbone[0]
        encoded, mask = self.encode(features, tasks)
        tokens = backbone.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
        )
        texts: list[str] = backbone.require_processor().tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def _visual(self, features: Tensor) -> Tensor:
        features = features.to(self.head.weight.dtype)
        if self.projector is None:
            return features
        side = round(features.shape[1] ** 0.5)
        visual: Tensor = self.projector(features.transpose(1, 2).unflatten(2, (side, side)))
        return visual

    def prompt(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Prompt embeddings (B, P, W), computed once a task, and a mask (B, P) if some are shorter."""
        rows = [self._embedded(task) for task in tasks]
        if len(set(tasks)) == 1:
            return rows[0].expand(len(tasks), -1, -1), None
        mask = pad_sequence([row.new_ones(row.shape[0], dtype=torch.long) for row in rows], batch_first=True)
        return pad_sequence(rows, batch_first=True), mask

    @torch.no_grad()
    def _embedded(self, task: str) -> Tensor:
        if task not in self._prompts:
            ids = torch.tensor(self._backbone[0].prompt_ids[task], device=self.head.weight.device)
            self._prompts[task] = self.language_model.get_input_embeddings()(ids)
        return self._prompts[task]

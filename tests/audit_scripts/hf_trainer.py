"""Fine-tune low-rank adapters inside a frozen GPT-2 with transformers' Trainer."""

from __future__ import annotations

import argparse
import math
import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.pytorch_utils import Conv1D


class LowRankAdapter(nn.Module):
    """A frozen projection plus a low-rank update whose second factor starts at zero."""

    def __init__(self, base: Conv1D, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base = base
        num_in, num_out = base.weight.shape
        self.lora_A = nn.Parameter(torch.empty(rank, num_in))
        self.lora_B = nn.Parameter(torch.zeros(num_out, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.scaling = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        update = self.dropout(x) @ self.lora_A.T @ self.lora_B.T
        return self.base(x) + self.scaling * update


def inject_adapters(model: GPT2LMHeadModel, rank: int, alpha: float, dropout: float) -> None:
    model.requires_grad_(False)
    for block in model.transformer.h:
        block.attn.c_attn = LowRankAdapter(block.attn.c_attn, rank, alpha, dropout)
        block.mlp.c_proj = LowRankAdapter(block.mlp.c_proj, rank, alpha, dropout)


class CountingText(Dataset):
    """Arithmetic progressions modulo the vocabulary."""

    def __init__(self, num_samples: int, length: int, vocab_size: int) -> None:
        start = torch.randint(vocab_size, (num_samples, 1))
        stride = torch.randint(1, 5, (num_samples, 1))
        self.tokens = (start + stride * torch.arange(length)) % vocab_size

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index].clone()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=8.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    set_seed(args.seed)

    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    model = GPT2LMHeadModel(config)
    inject_adapters(model, args.rank, args.alpha, dropout=0.05)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"trainable params: {trainable} || all params: {sum(p.numel() for p in model.parameters())}")

    with tempfile.TemporaryDirectory() as output_dir:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=output_dir,
                per_device_train_batch_size=args.batch_size,
                gradient_accumulation_steps=2,
                max_steps=args.max_steps,
                learning_rate=args.lr,
                warmup_steps=1,
                lr_scheduler_type="cosine",
                weight_decay=0.01,
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
                seed=args.seed,
            ),
            train_dataset=CountingText(64, 16, config.vocab_size),
        )
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
    print(f"{result.global_step} steps, train loss {result.training_loss:.4f}")


if __name__ == "__main__":
    main()

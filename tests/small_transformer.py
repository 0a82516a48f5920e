"""A transformer behind a trainable front, small enough for tests, and what autograd keeps of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

WIDTH, VOCABULARY = 32, 50


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        heads = [part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)]
        x = x + self.drop(self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


class Transformer(nn.Module):
    def __init__(self, num_layers=2, width=WIDTH, dropout=0.0):
        super().__init__()
        self.front = nn.Linear(8, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(num_layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, x):
        x = self.front(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build(dtype=torch.float32, *, frozen=True, **settings):
    """A model, frozen but for its front unless told otherwise, and a batch of inputs and targets."""
    torch.manual_seed(0)
    model = Transformer(**settings).to(dtype)
    model.blocks.requires_grad_(not frozen)
    model.norm.requires_grad_(not frozen)
    model.head.requires_grad_(not frozen)
    x = torch.randn(3, 16, 8).to(dtype)
    return model, x, torch.randint(VOCABULARY, (3, 16))


def loss_of(model, x, target, *, autocast=False):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(x)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype).flatten(0, -2), target.flatten())


def step(model, x, target, *, autocast=False):
    """The loss and every gradient of one forward and backward."""
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, x, target, autocast=autocast)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def equal(actual, expected):
    return len(actual) == len(expected) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(actual, expected, strict=True)
    )


def relative_error(actual, expected):
    a, b = (torch.cat([part.double().flatten() for part in parts[1:]]) for parts in (actual, expected))
    return float((a - b).norm() / b.norm())


def kept_bytes(run, model):
    """Bytes that autograd keeps where it was, each storage once; what the model owns left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in storages.values())

"""Published weights from disk: one file or shards, strictly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frostline.errors import CheckpointError
from frostline.systems.ti.infinity.sizes import InfinityConfig, TokenizerConfig
from frostline.systems.ti.infinity.tokenizer import BIT_MASKS, ImageTokenizer, bit_mask
from frostline.systems.ti.infinity.transformer import Infinity

_WRAPPERS = (("trainer", "gpt_fsdp"), ("trainer", "gpt_wo_ddp"), ("vae",), ("state_dict",))
"""Where a training checkpoint holds the weights."""
_DERIVED = ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen")
"""Tables of older transformers, made from the schedule: not weights."""
_INDEX = "*.index.json"


def load_transformer(path: Path | str, config: InfinityConfig, *, device: torch.device | str = "cpu") -> Infinity:
    """An `Infinity` with the weights of a file or of a folder of shards, in their own type.

    The null prompt is cut to the model's length, as in the published code; one that is too short is refused.

    Args:
        path: ``.pth`` (or ``.pt``, ``.bin``), ``.safetensors``, or a folder with an index of shards.
        config: Its size; see `TRANSFORMERS`.
        device: Where the weights go.

    Raises:
        CheckpointError: No such file, an unreadable one, or names or shapes that are not the model's.
    """
    state = read_state(path)
    for name in _DERIVED:
        state.pop(name, None)
    null = state.get("cfg_uncond")
    if null is not None and null.dim() == 2 and null.size(0) > config.max_text_tokens:
        state["cfg_uncond"] = null[: config.max_text_tokens].clone()
    with torch.device("meta"):
        model = Infinity(config)
    load_strictly_(model, state, path, device=device)
    return model


def load_tokenizer(path: Path | str, config: TokenizerConfig, *, device: torch.device | str = "cpu") -> ImageTokenizer:
    """An `ImageTokenizer` with the weights of a file; arguments and errors as `load_transformer`'s.

    The quantiser's bit masks say no more than the size does: a file may lack them.
    """
    with torch.device("meta"):
        model = ImageTokenizer(config)
    state = read_state(path)
    for name in BIT_MASKS:
        state.setdefault(name, bit_mask(config.code_bits))
    load_strictly_(model, state, path, device=device)
    return model


def read_state(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, out of a training checkpoint's wrappers.

    Files that hold anything but tensors and plain values are refused: unpickling them could run code.

    Raises:
        CheckpointError: It is not there, cannot be read, or lacks a shard.
    """
    path = Path(path)
    if path.is_dir():
        return _read_shards(path)
    if not path.is_file():
        raise CheckpointError("no such checkpoint", where=str(path), do="give a file, or a folder with its index")
    return _read_file(path)


def load_strictly_(
    module: nn.Module, state: Mapping[str, Tensor], path: Path | str, *, device: torch.device | str = "cpu"
) -> None:
    """Give a module, on the meta device or not, exactly these weights.

    Raises:
        CheckpointError: A missing or unexpected name, or another shape; the first of them are named.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [
        f"{name} ({_sizes(state[name])}, the model has {_sizes(own[name])})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [("lacks", missing), ("holds what the model does not have:", extra), ("has other shapes:", wrong)]
    told = [f"{fault} {_first(names)}" for fault, names in faults if names]
    if told:
        raise CheckpointError(
            f"the checkpoint {'; it '.join(told)}", where=str(path), do="give the configuration it was made with"
        )
    module.load_state_dict({name: tensor.to(device) for name, tensor in state.items()}, strict=True, assign=True)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    indices = sorted(folder.glob(_INDEX))
    if len(indices) != 1:
        what = "several indices" if indices else "no index"
        raise CheckpointError(f"the folder has {what} of shards ({_INDEX})", where=str(folder), do="give one file")
    try:
        places: dict[str, str] = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError("the index of shards cannot be read", where=str(indices[0])) from error
    state: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"the shard {shard!r} is missing", where=str(folder), do="download it again")
        found = _read_file(folder / shard)
        promised = {name for name, place in places.items() if place == shard}
        if found.keys() != promised:
            what = _first(sorted(found.keys() ^ promised))
            raise CheckpointError(f"the index and the shard {shard!r} do not agree on {what}", where=str(folder))
        state |= found
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"the checkpoint cannot be read: {reason}", where=str(path)) from None
    state = _unwrap(content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError("the checkpoint is not a table of tensors", where=str(path))
    return state


def _unwrap(content: Any) -> dict[str, Any]:
    for wrapper in _WRAPPERS:
        inner = content
        for key in wrapper:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return dict(inner)
    return dict(content) if isinstance(content, dict) else {}


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sizes(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single value"

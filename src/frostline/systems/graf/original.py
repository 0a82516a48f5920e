"""A configuration of the published code as one of ours, key by key; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from frostline.config import ConfigSource
from frostline.errors import ConfigError, FrostlineError

KEYS = {
    "data.datadir": "data.path",
    "data.fov": "system.camera.fov_degrees",
    "data.radius": "system.camera.radius",
    "data.near": "system.camera.near",
    "data.far": "system.camera.far",
    "data.white_bkgd": "system.rendering.background",
    "data.v": "data.prefix_elevations_degrees",
    "data.num_classes": "system.field.num_classes",
    "ray_sampler.min_scale": "system.rays.min_scale",
    "nerf.netdepth": "system.field.depth",
    "nerf.netwidth": "system.field.width",
    "nerf.multires": "system.field.point_frequencies",
    "nerf.multires_views": "system.field.direction_frequencies",
    "nerf.N_samples": "system.rendering.num_samples",
    "nerf.N_importance": "system.rendering.num_importance",
    "nerf.raw_noise_std": "system.rendering.density_noise",
    "nerf.decrease_noise": "system.rendering.density_noise_steps",
    "z_dist.dim": "system.field.latent_size",
    "ccsr.enabled": "system.ccsr.enabled",
    "ccsr.num_latent_codes": "system.ccsr.num_views",
    "discriminator.ndf": "system.discriminator.channels",
    "training.batch_size": "training.batch_size",
    "training.nworkers": "data.num_workers",
    "training.lr_g": "training.learning_rate",
    "training.lr_d": "system.optimizers.discriminator_learning_rate",
    "training.optimizer": "system.optimizers.kind",
    "training.lr_anneal": "system.optimizers.factor",
    "training.lr_anneal_every": "system.optimizers.milestones",
    "training.model_average_beta": "system.average.decay",
    "training.print_every": "training.log_every",
    "training.sample_every": "system.samples.every",
    "training.fid_every": "system.metrics.every",
    "training.save_best": "system.metrics.select",
}
"""Keys of the published code and the keys that take their places. What `imsize`, `N_samples` and `scale_anneal` of
the ray sampler and `reg_param` become depends on other keys: see `convert`."""

_LEFT_OUT = {
    "training.chunk": "chunks without recompute save nothing; see system.rendering.chunk_rays",
    "training.netchunk": "chunks without recompute save nothing; see system.rendering.chunk_rays",
    "nerf.chunk": "chunks without recompute save nothing; see system.rendering.chunk_rays",
    "training.outdir": "give --out",
    "training.save_every": "was in seconds; training.checkpoint_every counts steps",
    "training.backup_every": "a run keeps its last checkpoint and its best",
    "training.take_model_average": "samples and metrics always use the average",
    "training.gan_type": "the loss is the non-saturating one",
    "training.equalize_lr": "was never read",
    "expname": "give --out",
    "discriminator.type": "there is one",
    "discriminator.imsize": "follows from what the generator makes",
    "z_dist.type": "latent codes are standard normal",
}
_MAX_WORKERS = 4
_NOISE_STEPS = 5000
_MIN_SCALE = 0.25


def convert(path: Path) -> tuple[ConfigSource, list[str]]:
    """Read a published configuration.

    The published ray sampler lays its rays over the whole image when super-resolution is there, and so they are a
    smaller image; without it they are a patch. Its penalty was averaged over the rays of an image, ours is of the
    image: the weight is divided by their number, and doubled for our half.

    Args:
        path: The YAML file.

    Returns:
        Our keys, and a line for each key that was left out or changed its meaning.

    Raises:
        ConfigError: It is a checkpoint, no YAML, or holds a value that cannot be read.
    """
    if path.suffix in (".pt", ".pth", ".ckpt"):
        raise ConfigError(
            "a checkpoint of the published code cannot be mapped: its field has the latent code beside its input where"
            " ours scales and shifts every layer, and its discriminator has batch normalisation",
            where=str(path),
            do="train anew from its configuration: --from-original CONFIG.yaml",
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the published configuration: {error}", where=str(path)) from None
    if not isinstance(document, dict):
        raise ConfigError("the published configuration is no mapping", where=str(path))
    try:
        keys, notes = _converted(_flat(document))
    except FrostlineError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"a value cannot be converted: {error}", where=str(path)) from None
    return ConfigSource("graf", _nested(keys), str(path)), notes


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _value(value)
    return flat


def _value(value: Any) -> Any:
    """``True,`` and ``8,`` of the published file were texts, and were meant as values."""
    return yaml.safe_load(value.rstrip(", ")) if isinstance(value, str) and value.rstrip().endswith(",") else value


def _converted(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    keys: dict[str, Any] = {"data.kind": "folders"}
    notes: list[str] = []
    enlarged = bool(given.get("ccsr.enabled", any(key.startswith("ccsr.") for key in given)))
    keys["system.ccsr.enabled"] = enlarged
    for key, value in given.items():
        if key in _HANDLED:
            continue
        if key in KEYS:
            keys[KEYS[key]] = _one(key, value)
        else:
            notes.append(f"{key} is left out: {_LEFT_OUT.get(key, 'there is nothing like it')}")
    num_rays = int(given.get("ray_sampler.N_samples", 1024))
    _place_rays(keys, notes, num_rays, int(given.get("data.imsize", 64)), enlarged)
    if keys.get("system.rendering.num_importance"):
        keys["system.rendering.coarse"] = "own"
        notes.append("nerf.N_importance: the coarse field is trained on its own picture; before, nothing trained it")
    if "ray_sampler.scale_anneal" in given:
        least, rate = float(given.get("ray_sampler.min_scale", _MIN_SCALE)), float(given["ray_sampler.scale_anneal"])
        keys["system.rays.scale_anneal_steps"] = steps = _anneal_steps(least, rate)
        notes.append(
            f"ray_sampler.scale_anneal was an exponential's rate; now patches shrink linearly, in {steps} steps"
        )
    if "training.reg_param" in given:
        weight = 2 * float(given["training.reg_param"]) / num_rays
        keys["system.discriminator.r1_weight"] = weight
        notes.append(
            f"training.reg_param was divided by the number of rays, so {given['training.reg_param']} was {weight:g};"
            " 10 is usual"
        )
    if keys.get("data.num_workers", 0) > _MAX_WORKERS:
        notes.append(f"training.nworkers is {keys['data.num_workers']}: more than {_MAX_WORKERS} seldom load faster")
        keys["data.num_workers"] = _MAX_WORKERS
    return keys, notes


def _one(key: str, value: Any) -> Any:
    try:
        return _VALUES.get(key, lambda value: value)(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key} is {value!r}: {error}") from None


def _anneal_steps(least: float, rate: float) -> int:
    """The published bound was exp(-3 rate) every 1,000 steps; without a positive rate it was the least at once."""
    return round(1000 * math.log(1 / least) / (3 * rate)) if rate > 0 and 0 < least < 1 else 0


def _place_rays(keys: dict[str, Any], notes: list[str], num_rays: int, size: int, enlarged: bool) -> None:
    """An image of as many pixels as there are rays, brought to the full size; or a patch of the full image."""
    side = math.isqrt(num_rays)
    if side * side != num_rays:
        raise ConfigError(
            f"a patch of {num_rays} rays is no square",
            where="ray_sampler.N_samples",
            do=f"take {side**2} ({side} x {side}) or {(side + 1) ** 2} ({side + 1} x {side + 1})",
        )
    if not enlarged:
        keys |= {"system.camera.image_size": size, "system.rays.sampler": "patch", "system.rays.num_rays": num_rays}
        return
    scale = max(1, size // side)
    keys |= {"system.camera.image_size": side, "system.rays.sampler": "whole", "system.ccsr.scale": scale}
    notes.append(
        f"data.imsize {size} and ray_sampler.N_samples {num_rays}: {side} x {side} pixels are rendered, and"
        f" super-resolution makes {scale * side} x {scale * side} of them, which the discriminator sees"
    )


def _numbers(value: Any) -> list[float]:
    """``0.5, 0.4`` or a list or one number."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [float(part) for part in parts if str(part).strip()]


def _elevations(value: Any) -> list[float]:
    """From v = (1 - sine of the elevation) / 2."""
    return [round(math.degrees(math.asin(1 - 2 * v)), 2) for v in _numbers(value)]


def _select(value: Any) -> str:
    return str(value) if value in ("fid", "kid") else "kid"


_VALUES: dict[str, Callable[[Any], Any]] = {
    "data.white_bkgd": lambda value: "white" if value else "black",
    "data.v": _elevations,
    "nerf.decrease_noise": lambda value: _NOISE_STEPS if value else 0,
    "nerf.raw_noise_std": float,
    "ccsr.enabled": bool,
    "training.nworkers": int,
    "training.optimizer": lambda value: "rmsprop" if value == "rmsprop" else "adam",
    "training.lr_anneal_every": lambda value: [int(step) for step in _numbers(value)],
    "training.save_best": _select,
}
_HANDLED = {"data.imsize", "ray_sampler.N_samples", "ray_sampler.scale_anneal", "training.reg_param"}


def _nested(keys: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in keys.items():
        *path, last = key.split(".")
        place = document
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return document

"""The byte table of a system: ``python bench/peak.py SYSTEM [--fake | --real] [--device cuda] [--json]``.

semcom's bytes are counted at a size that matters, on fake tensors, so neither weights nor a GPU are needed; gradients
are compared, and times taken, on real tensors at a size that runs anywhere. linet runs every row on the CPU, in 4 GB
and a few minutes at the default size; its gradients are compared in float64 at a small one. graf's bytes are counted
on fake tensors, at GRAF's default size or of whole images (``--image N``); ``--real`` really runs every row, in 11 GB
at the default size. ti's bytes are counted on fake tensors as a GPU would need them, for ``--model 2b`` or ``8b`` at
``--pixels``. Gradients and times are from real tensors at a size that runs anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import get_args

import torch
from rich.console import Console

from frostline.errors import ConfigError, DeviceError, FrostlineError
from frostline.records import PeakTable
from frostline.reports.terminal import peak_table_view
from frostline.systems.graf import peak_table as graf_table
from frostline.systems.linet import peak_table as linet_table
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.peak_table import Setting, peak_table
from frostline.systems.ti import peak_table as ti_table
from frostline.systems.ti.infinity.schedule import Pixels, published_schedule, square_schedule
from frostline.systems.ti.infinity.sizes import TRANSFORMERS, InfinityConfig


def semcom(arguments: argparse.Namespace) -> PeakTable:
    """Florence-2 around a linear codec."""
    setting = Setting(
        system=dataclasses.replace(Setting().system, model=arguments.model or Setting().system.model),
        batch_size=arguments.batch_size or Setting.batch_size,
        image_size=arguments.image_size,
        target_tokens=arguments.target_tokens,
    )
    small = SemcomSystemConfig(model="nano", codec="linear")
    proof = Setting(system=small, batch_size=4, image_size=64, target_tokens=13)
    return peak_table(setting, proof, fake=not arguments.real and arguments.device == "cpu", device=arguments.device)


def linet(arguments: argparse.Namespace) -> PeakTable:
    """li_resnet18 with modality dropout."""
    if arguments.fake or arguments.device != "cpu" or not 0 <= arguments.rate <= 1:
        raise ConfigError("linet is measured on the CPU, at a rate from 0 to 1", do="leave out --fake and --device")
    setting = linet_table.Setting(batch_size=arguments.batch, image_size=arguments.size, rate=arguments.rate)
    proof = dataclasses.replace(setting, batch_size=min(arguments.batch, 8), image_size=min(arguments.size, 64))
    return linet_table.peak_table(setting, proof)


def graf(arguments: argparse.Namespace) -> PeakTable:
    """A radiance-field GAN with super-resolution: the generator's step."""
    if arguments.device != "cpu" or arguments.image < 0:
        raise ConfigError("graf is measured on the CPU, and an image has a positive side", do="leave out --device")
    proof = graf_table.Setting(batch_size=2, image_size=16, channels=32, superres_width=16, num_rounds=3)
    setting = graf_table.Setting()
    if arguments.image:
        setting = graf_table.Setting(batch_size=1, image_size=arguments.image, whole_image=True)
        proof = dataclasses.replace(proof, whole_image=True)
    return graf_table.peak_table(setting, proof, fake=not arguments.real)


def ti(arguments: argparse.Namespace) -> PeakTable:
    """A concept's vector in front of a frozen Infinity."""
    model = f"infinity-{arguments.model or '2b'}"
    if model not in TRANSFORMERS:
        names = ", ".join(name.removeprefix("infinity-") for name in TRANSFORMERS)
        raise ConfigError(f"there is no Infinity-{arguments.model}", do=f"choose --model from {names}")
    setting = ti_table.Setting(
        model=model,
        transformer=TRANSFORMERS[model],
        schedule=published_schedule(arguments.pixels),
        batch_size=arguments.batch_size or ti_table.Setting.batch_size,
    )
    small = InfinityConfig(depth=4, width=256, num_heads=4, text_width=256, code_bits=16, num_chunks=2)
    grids = square_schedule(1, 2, 4, 8, 12, 16)
    proof = ti_table.Setting(model="small", transformer=small, schedule=grids, batch_size=2, min_offload_bytes=2**12)
    fake = not arguments.real and arguments.device == "cpu"
    return ti_table.peak_table(setting, proof, fake=fake, device="cuda" if fake else arguments.device)


SYSTEMS = {"semcom": semcom, "linet": linet, "graf": graf, "ti": ti}


def main() -> int:
    """Read the command line and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--fake", action="store_true", help="count bytes on fake tensors (the default)")
    kind.add_argument("--real", action="store_true", help="really run every row: 9 to 26 GB for the defaults, ti 75 GB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda really runs every row there")
    parser.add_argument("--model", default="", help="semcom: name of a Florence-2; ti: 2b or 8b")
    parser.add_argument("--batch-size", type=int, default=0, help="semcom, ti: samples")
    parser.add_argument("--image-size", type=int, default=Setting.image_size)
    parser.add_argument("--target-tokens", type=int, default=Setting.target_tokens)
    parser.add_argument("--batch", type=int, default=linet_table.Setting.batch_size, help="linet: samples")
    parser.add_argument("--size", type=int, default=linet_table.Setting.image_size, help="linet: pixels")
    parser.add_argument("--rate", type=float, default=linet_table.Setting.rate, help="linet: of modality dropout")
    parser.add_argument("--image", type=int, default=0, help="graf: side of a whole rendered image; 0 for GRAF's patch")
    parser.add_argument("--pixels", choices=get_args(Pixels), default="1M", help="ti: of a picture")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("there is no GPU that torch can use", do="leave out --device cuda")
        table = SYSTEMS[arguments.system](arguments)
    except FrostlineError as error:
        print(f"peak.py: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(dataclasses.asdict(table), indent=1))
    else:
        Console().print(peak_table_view(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())

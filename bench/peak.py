"""The byte table of a system: ``python bench/peak.py SYSTEM [--fake | --real] [--device cuda] [--json]``.

Bytes are counted at a size that matters, on fake tensors, so neither weights nor a GPU are needed; gradients are
compared, and times taken, on real tensors at a size that runs anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import torch
from rich.console import Console

from frostline.errors import DeviceError, FrostlineError
from frostline.records import PeakTable
from frostline.reports.terminal import peak_table_view
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.peak_table import Setting, peak_table


def semcom(arguments: argparse.Namespace) -> PeakTable:
    """Florence-2 around a linear codec."""
    setting = Setting(
        system=dataclasses.replace(Setting().system, model=arguments.model),
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        target_tokens=arguments.target_tokens,
    )
    small = SemcomSystemConfig(model="nano", codec="linear")
    proof = Setting(system=small, batch_size=4, image_size=64, target_tokens=13)
    return peak_table(setting, proof, fake=not arguments.real and arguments.device == "cpu", device=arguments.device)


SYSTEMS = {"semcom": semcom}


def main() -> int:
    """Read the command line and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--fake", action="store_true", help="count bytes on fake tensors (the default)")
    kind.add_argument("--real", action="store_true", help="really run every row, at 9 to 26 GB for the defaults")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda really runs every row there")
    parser.add_argument("--model", default=Setting().system.model)
    parser.add_argument("--batch-size", type=int, default=Setting.batch_size)
    parser.add_argument("--image-size", type=int, default=Setting.image_size)
    parser.add_argument("--target-tokens", type=int, default=Setting.target_tokens)
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

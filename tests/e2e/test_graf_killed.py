"""A run of graf that is killed: what a checkpoint held is not lost, and what follows is bit by bit the unbroken run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frostline.cli.main import main
from frostline.systems.graf import review
from frostline.systems.graf import system as system_module
from frostline.training import CheckpointStore, loop
from frostline.training import checkpoint as checkpoint_module

pytest.importorskip("torchmetrics")

TINY = """
name: graf
data: {num_images: 16, num_test: 8}
system:
  camera: {image_size: 8}
  field: {depth: 2, width: 8, skip_layer: 0, point_frequencies: 2, direction_frequencies: 0, latent_size: 4,
    class_size: 4, mapping_width: 8}
  rendering: {num_samples: 4, chunk_rays: 256}
  ccsr: {latent_size: 4, width: 4, num_views: 4}
  discriminator: {channels: 4, max_channels: 8, r1_every: 2, augmentation: both}
  metrics: {every: 3, num_images: 8, feature_steps: 2}
  samples: {every: 0}
training: {num_steps: 6, batch_size: 4, checkpoint_every: 2, log_every: 1}
"""


def dying(
    owner: object,
    name: str,
    call: int = 1,
    *,
    counts: Callable[..., bool] = lambda *_, **__: True,
    first: Callable[..., object] = lambda *_, **__: None,
) -> None:
    """Let a function be the process's death when it is called for the so manieth time, counted from 1.

    Args:
        owner: Of the function.
        name: Of the function.
        call: Which call.
        counts: Which calls count.
        first: What is done in its stead before.
    """
    whole, num_calls = getattr(owner, name), [0]

    def counted(*arguments: object, **options: object) -> object:
        num_calls[0] += counts(*arguments, **options)
        if num_calls[0] == call:
            first(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **options)

    setattr(owner, name, counted)


def half(path: Path, content: bytes) -> None:
    """What a write has done when it is half done."""
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()


def is_resume_file(path: Path, *_: object) -> bool:
    return path.name == "resume.pt.next"


def is_record(path: Path, *_: object, **__: object) -> bool:
    return path.name == "run.json"


def is_scores(path: Path, *_: object) -> bool:
    return path.name == "scores.jsonl"


def half_beside(path: Path, content: bytes) -> None:
    half(path.with_name(f"{path.name}.next"), content)


def slowly() -> None:
    """A run that another process hits somewhere in the middle."""
    whole = loop.run_step

    def slow(*arguments: object) -> object:
        time.sleep(0.02)
        return whole(*arguments)  # type: ignore[arg-type]

    loop.run_step = slow  # type: ignore[assignment]


POINTS: dict[str, tuple[Callable[[], None], set[int]]] = {
    # What is done before the run, and the steps whose checkpoint may then be the last. A save writes the weights,
    # writes the rest, moves the weights and moves the rest.
    "in step 1": (lambda: dying(loop, "run_step", 2), {0}),
    "in step 5": (lambda: dying(system_module, "generator_loss", counts=lambda *_, step: step == 4), {4}),
    "writing the weights": (lambda: dying(checkpoint_module, "_write", 3, first=half), {2}),
    "between the moves": (lambda: dying(Path, "replace", 2, counts=is_resume_file), {4}),
    "writing scores": (lambda: dying(review, "_replace", 2, counts=is_scores, first=half_beside), {2}),
    "writing the record": (lambda: dying(Path, "write_text", counts=is_record), {6}),
    "by another process": (slowly, {2, 4}),
}


def run(out: Path, *words: str) -> int:
    return main(["train", str(out.parent / "tiny.yaml"), "--out", str(out), *words])


def tensors_of(value: object, name: str = "") -> dict[str, Tensor]:
    """Every tensor and number in nested dictionaries and lists, by its path."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {} if value is None or isinstance(value, str) else {name: torch.as_tensor(value)}
    return {path: held for key, item in pairs for path, held in tensors_of(item, f"{name}.{key}").items()}


def everything_in(out: Path) -> dict[str, Tensor]:
    held = CheckpointStore(out, review.TRAINABLES).load()
    best = CheckpointStore(out / "best", review.TRAINABLES).load_trainables()
    return tensors_of({"weights": held.trainables, "phases": held.phases, "rng": held.rng, "best": best})


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Directories of killed runs by the point of death, and of one that ran to its end."""
    place = tmp_path_factory.mktemp("killed")
    (place / "tiny.yaml").write_text(TINY)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on_from_its_last_checkpoint_bit_by_bit(killed, point, capsys):
    out = killed / point
    steps = POINTS[point][1]
    store = CheckpointStore(out, review.TRAINABLES)
    if steps == {0}:
        assert not store.resume.exists()
        assert run(out, "--resume") == 2 and "there is no gan.safetensors" in capsys.readouterr().err
        assert run(out) == 0  # nothing was saved yet: the same command begins anew
    else:
        assert store.load().step in steps
        assert run(out, "--resume") == 0
    assert (out / "run.json").exists()
    resumed, whole = everything_in(out), everything_in(killed / "whole")
    assert resumed.keys() == whole.keys() and len(whole) > 100
    different = [name for name, value in whole.items() if not torch.equal(resumed[name], value)]
    assert different == []
    assert (out / "scores.jsonl").read_bytes() == (killed / "whole" / "scores.jsonl").read_bytes()
    assert [line.count('"step": 6') for line in (out / "log.jsonl").read_text().splitlines()[-2:]] == [1, 1]


def in_a_process(work: Callable[[], object]) -> int:
    """Run something in a copy of this process; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        code = work()
    except BaseException as error:  # a copy must not go on as the original
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = 1
    os._exit(int(code or 0))


def kill_all(place: Path) -> None:
    """Kill one run at every point, and let one go to its end."""
    assert os.waitstatus_to_exitcode(os.waitpid(in_a_process(lambda: run(place / "whole")), 0)[1]) == 0
    for point, (prepare, _) in POINTS.items():

        def work(prepare: Callable[[], None] = prepare, out: Path = place / point) -> int:
            prepare()
            return run(out)

        child = in_a_process(work)
        if point == "by another process":
            for _ in range(60_000):
                if (place / point / "resume.pt").exists():
                    break
                time.sleep(0.001)
            time.sleep(0.05)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == -signal.SIGKILL, f"{point}: the run ended with {code}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_all(Path(sys.argv[1]))

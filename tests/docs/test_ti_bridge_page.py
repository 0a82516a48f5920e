"""docs/ti-bridge.md: its lines run where they are said to stand, and the table has the twelve items."""

import re
from pathlib import Path
from types import SimpleNamespace

import torch

from ti_stand_in import StandIn, loss_of
from ti_text_parts import official, t5, tokenizer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ti-bridge.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_lines_train_save_and_load_a_concept(tmp_path):
    setup, attach, rewrite, substitute, step, save, load, rewrite_again, substitute_again = BLOCKS
    args = SimpleNamespace(
        ac=2, tclip=2.0, local_out_path=tmp_path, concept=tmp_path / "concept.safetensors", text_channels=64
    )
    trainer = SimpleNamespace()
    names = {
        "gpt_wo_ddp": StandIn(), "vae_local": torch.nn.Linear(2, 2), "text_encoder": t5(),
        "text_tokenizer": tokenizer(), "args": args, "trainer": trainer, "self": trainer,
        "gpt_optim": SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=2048.0)),
    }  # fmt: skip

    def run(block):
        exec(compile(block, "docs/ti-bridge.md", "exec"), names)

    run(setup)
    run(attach)
    start = trainer.concepts[0].vectors.clone()
    losses = []
    for g_it in range(40):
        names |= {"captions": ["a photo of a <s>", "the red <s>, on grass"], "g_it": g_it}
        run(rewrite)
        names["text_cond_tuple"] = official(names["captions"])
        run(substitute)
        names["loss"] = loss_of(names["gpt_ddp"], names["text_cond_tuple"])
        losses.append(names["loss"].item())
        run(step)
        assert (names["grad_norm_t"] is None) == (g_it % 2 == 0)
    assert losses[-1] < losses[0] - 0.03 and not torch.equal(trainer.concepts[0].vectors, start)
    run(save)
    run(load)
    names["captions"] = ["a photo of a <s>"]
    run(rewrite_again)
    names["text_cond_tuple"] = official(names["captions"])
    run(substitute_again)
    assert torch.equal(names["text_cond_tuple"][0][4], trainer.concepts[0].vectors[0])


def test_the_table_has_the_twelve_items_and_each_has_its_test():
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.M)]
    assert numbers == list(range(1, 13))
    tests = (ROOT / "tests/unit/ti/test_checklist.py").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^def test_(\d\d)_", tests, re.M)] == numbers

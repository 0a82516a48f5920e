"""What the demonstration of ti promises: two words learned from five pictures each, and nothing else changed."""

import json
import time

import pytest

from frostline.cli.main import main


@pytest.mark.slow
def test_two_concepts_are_learned_and_nothing_else_changes(tmp_path, capsys):
    before = time.process_time()
    assert main(["demo", "ti", "--out", str(tmp_path / "demo"), "--json"]) == 0
    cpu_seconds = time.process_time() - before
    found = json.loads(capsys.readouterr().out)
    shares = {(curve["y_name"].partition(",")[0], curve["name"]): curve["y"] for curve in found["evaluation"]["curves"]}
    for concept in ("<heart>", "<arrow>"):
        first, last = shares[concept, "shape as shown"]
        assert first <= 0.4 and last >= 0.8, concept
        for what in ("colour as asked", "background as asked"):
            assert shares[concept, what][1] >= 0.95
            assert shares[concept, f"{what}, in colours not shown"][1] >= 0.95
        assert shares[concept, "shape as shown, in colours not shown"][1] >= 0.8
    facts = found["evaluation"]["facts"]
    assert facts["prompts without a concept, pictures bit-identical"] == 1
    assert facts["saved and loaded concepts, pictures bit-identical"] == 1
    assert (tmp_path / "demo" / "concepts.png").exists()
    assert {row["proof_class"] for row in found["table"]["rows"]} == {"EXACT"}
    assert cpu_seconds <= 180

"""docs/graf.md: the commands parse, links lead somewhere, and the table is bench/peak.py's."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "graf.md").read_text(encoding="utf-8")
TABLE = ROOT / "bench" / "results" / "peak-graf.json"
WAYS = {
    "naive": "all rays at once",
    "loop-chunks": "chunks of 1,024 rays, no recompute",
    "amp": "bfloat16 in the field",
    "published-advice": "published advice",
    "frostline": "32 rays at once, made again in backward",
}
WHOLE_WAYS = {
    **{name: WAYS[name] for name in ("naive", "loop-chunks", "amp")},
    "published-advice": "published advice: nothing trains",
    "frostline": "192 rays at once, made again in backward",
    "frostline-with-discriminator": "the same, with the discriminator in the step",
}


def rows(table=TABLE):
    return {row["name"]: row for row in json.loads(table.read_text(encoding="utf-8"))["rows"]}


def rows_of_image(side):
    return rows(TABLE.with_name(f"peak-graf-image-{side}.json"))


def in_megabytes(num_bytes):
    megabytes = num_bytes / 1e6
    return f"{megabytes:,.0f} MB" if megabytes >= 100 else f"{megabytes:.1f} MB"


def gradients_of(row):
    """What the table says of a row's gradients."""
    if row["name"] == "naive":
        return ""
    if row["num_still"]:
        return f"{row['num_still']} of {row['num_superres']} parameters of super-resolution stop learning"
    if row["proof_class"] == "EXACT":
        return "the same"
    if row["proof_class"] == "BOUNDED":
        return f"{row['max_rel_grad_diff']:.0%} off".replace("%", " %")
    return f"equal: {row['fp64_rel_grad_diff']:.0e} in float64".replace("e-0", "e-").replace("e+0", "e+")


def expected_table():
    """The page's rows as the results have them."""
    lines = []
    for name, row in rows().items():
        peak = in_megabytes(row["peak_bytes"])
        seconds = "1" if name == "naive" else f"{row['step_seconds_ratio']:.2f}"
        lines.append(f"| {WAYS[name]} | {peak} | {gradients_of(row)} | {seconds} |".replace("|  |", "| |"))
    return lines


def expected_whole_images():
    """The page's rows of whole images."""
    small, large = rows_of_image(64), rows_of_image(256)
    lines = []
    for name, way in WHOLE_WAYS.items():
        peaks = " | ".join(in_megabytes(found[name]["peak_bytes"]) for found in (small, large))
        seconds = "1" if name == "naive" else f"{large[name]['step_seconds_ratio']:.2f}"
        lines.append(f"| {way} | {peaks} | {seconds} |")
    return lines


def table_behind(head):
    return PAGE.partition(head)[2].partition("\n\n")[0].splitlines()


def test_the_table_on_grafs_page_is_the_measured_one():
    assert table_behind("| way | peak | gradients | time |\n|---|---|---|---|\n") == expected_table()
    assert table_behind("| way | 64 | 256 | time |\n|---|---|---|---|\n") == expected_whole_images()


def test_the_measured_numbers_keep_the_promise():
    found = rows()
    assert found["frostline"]["peak_bytes"] <= 0.02 * found["naive"]["peak_bytes"]
    assert found["frostline"]["num_still"] == 0 and found["frostline"]["fp64_rel_grad_diff"] < 1e-13
    assert found["published-advice"]["num_still"] == found["published-advice"]["num_superres"]
    assert found["loop-chunks"]["peak_bytes"] > 0.8 * found["naive"]["peak_bytes"], "such chunks save next to nothing"


def test_the_peak_of_whole_images_hardly_grows():
    small, large = rows_of_image(64)["frostline"], rows_of_image(256)["frostline"]
    assert large["peak_bytes"] <= 350e6 and large["peak_bytes"] - small["peak_bytes"] <= 60e6
    assert large["trains"] == "everything" and large["fp64_rel_grad_diff"] < 1e-12
    assert large["step_seconds_ratio"] <= 1


def test_the_commands_on_grafs_page_parse(tmp_path, monkeypatch, capsys):
    from frostline.cli.main import main

    commands = re.findall(r"^frostline ((?:train|measure|plan|prove|evaluate|generate|demo) [^#\n]*)", PAGE, re.M)
    assert {command.split()[0] for command in commands} == {"demo", "train", "evaluate", "generate", "plan", "prove"}
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if not command.startswith(("demo", "generate")):  # they resolve no configuration of their own
            words = command.replace("examples/", f"{ROOT}/examples/").split()
            assert main([*words, "--print-config"]) == 0, command
    assert "name: graf" in capsys.readouterr().out
    for verb in ("demo", "generate"):
        assert main([verb, "--help"]) == 0


def test_keys_on_grafs_page_exist():
    from frostline.cli.main import main

    flags = set(re.findall(r"`(--(?:data|system|memory|training)\.[\w.-]+) ", PAGE + " "))
    assert flags
    values = dict(re.findall(r"`(--(?:data|system|memory|training)\.[\w.-]+) ([\w-]+)`", PAGE))
    for flag, value in values.items():
        if value.isupper():  # FILE and the like stand for something
            continue
        assert main(["train", "graf", flag, value, "--print-config"]) == 0, flag


def test_links_on_grafs_page_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
    assert all(target.startswith("http") or (ROOT / "docs" / target).exists() for target in targets)

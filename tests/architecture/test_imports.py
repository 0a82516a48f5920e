"""The house from outside: who loads torch, what imports alone, what a package exports."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import frostline

SOURCE = Path(frostline.__file__).parent
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__main__.py")
MODULES = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
LIGHT_ROOMS = ("errors", "units", "where", "config", "records", "reports", "cli")
VERBS = ("audit", "measure", "plan", "prove", "train", "evaluate", "generate", "demo", "report")

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({"torch", "transformers", "matplotlib"} & set(sys.modules)))
"""
IMPORT_EACH_ALONE = """
import importlib, sys
import numpy, scipy.optimize, torch, transformers, torch.utils.data, torch.distributed
from transformers import BartTokenizer, CLIPImageProcessorPil, Florence2ForConditionalGeneration, Florence2Processor
from leaks import leaks, snapshot

before = snapshot()
for name in sys.argv[1:]:
    for loaded in [key for key in sys.modules if key.partition(".")[0] == "frostline"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {error!r}")
print(*leaks(before), sep="\\n")
"""


def run(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_ground_floor_the_reports_and_the_command_line_load_without_torch():
    light = [name for name in MODULES if name.split(".")[1:2] == [] or name.split(".")[1] in LIGHT_ROOMS]
    configurations = [name for name in MODULES if name.startswith("frostline.systems.") and name.endswith(".config")]
    assert {"frostline", "frostline.cli.main"} < set(light) and configurations
    assert run(IMPORT_ALL, *light, "frostline.systems.registry", *configurations) == ""


def test_every_module_imports_alone_and_does_nothing_else():
    assert run(IMPORT_EACH_ALONE, *MODULES) == ""


def test_a_public_name_loads_when_it_is_used():
    for name in frostline.__all__:
        assert getattr(frostline, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = frostline.no_such_name


PACKAGES = [path for path in FILES if path.name == "__init__.py"]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.relative_to(SOURCE.parent).as_posix())
def test_a_package_exports_what_it_lists_and_lists_what_it_exports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("frostline")
        for alias in node.names
    ]
    made = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    ]
    names = [name for name in (listed[0] if listed else []) if name != "__version__"]
    assert sorted(names) == sorted(imported + made)
    assert listed == [sorted(listed[0], key=lambda name: (not name.isupper(), name))] if listed else True


def test_no_module_is_a_drawer():
    drawers = {"util", "utils", "helper", "helpers", "common", "misc", "tools", "stuff"}
    assert [name for name in MODULES if drawers & set(name.split("."))] == []


def test_no_room_is_called_like_a_verb():
    """Importing a subpackage binds its name in the package: it would replace the function of that name."""
    assert [name for name in MODULES if name.split(".")[1:] and name.split(".")[1] in VERBS] == []

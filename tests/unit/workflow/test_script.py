import os
import random
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from frostline.errors import ConfigError
from frostline.gradflow import auditing
from frostline.workflow.script import StopScript, run_script


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def script(tmp_path: Path, text: str) -> Path:
    return write(tmp_path / "script.py", text)


def test_a_script_sees_what_python_would_show_it(tmp_path, capsys, monkeypatch):
    path = script(
        tmp_path,
        "import sys, os, __main__\n"
        "print(__name__, __file__, __package__, __spec__, sys.argv[1:], sys.path[0], os.getcwd())\n"
        "print(sys.argv[0], __main__.__dict__ is globals(), __builtins__.__name__, __doc__)\n",
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    end = run_script("../script.py", ["--lr", "3"])
    assert (end.reason, end.exit_code, end.error) == ("finished", 0, None)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"__main__ {path} None None ['--lr', '3'] {tmp_path} {tmp_path / 'elsewhere'}"
    assert second == "../script.py True builtins None"


def test_its_classes_can_be_pickled_and_its_workers_find_it(tmp_path, capsys):
    path = script(
        tmp_path,
        "import pickle, multiprocessing as mp\n"
        "class Point:\n    pass\n"
        "def double(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    print(type(pickle.loads(pickle.dumps(Point()))) is Point)\n"
        "    for method in ('fork', 'spawn'):\n"
        "        with mp.get_context(method).Pool(1) as pool:\n"
        "            print(pool.map(double, [1, 2]))\n",
    )
    assert run_script(path).reason == "finished"
    assert capsys.readouterr().out.splitlines() == ["True", "[2, 4]", "[2, 4]"]


def test_two_scripts_have_neighbours_of_the_same_name(tmp_path, capsys):
    for name in ("one", "two"):
        write(tmp_path / name / "neighbour.py", f"value = {name!r}\n")
        write(tmp_path / name / "script.py", "import neighbour\nprint(neighbour.value)\n")
        assert run_script(tmp_path / name / "script.py").reason == "finished"
    assert capsys.readouterr().out.split() == ["one", "two"]
    assert "neighbour" not in sys.modules


def test_a_module_runs_as_python_m_does(tmp_path, capsys, monkeypatch):
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "package" / "part.py", "value = 7\n")
    write(
        tmp_path / "package" / "work.py",
        "import sys\nfrom .part import value\nprint(__name__, __package__, __spec__.name, value, *sys.argv)\n",
    )
    write(tmp_path / "package" / "__main__.py", "print('whole package')\n")
    monkeypatch.chdir(tmp_path)
    assert run_script("package.work", ["-x"], module=True).reason == "finished"
    assert run_script("package", module=True).reason == "finished"
    out = capsys.readouterr().out.splitlines()
    assert out == [f"__main__ package package.work 7 {tmp_path / 'package' / 'work.py'} -x", "whole package"]


@pytest.mark.parametrize(
    ("text", "reason", "code", "said"),
    [
        ("import sys; sys.exit()", "exited", 0, ""),
        ("import sys; sys.exit(3)", "exited", 3, ""),
        ("import sys; sys.exit('no data')", "exited", 1, "no data"),
        ("raise KeyboardInterrupt", "interrupted", 130, ""),
        ("raise RuntimeError('boom')", "failed", 1, "RuntimeError: boom"),
        ("from frostline.errors import ConfigError\nraise ConfigError('own')", "failed", 1, "ConfigError: own"),
        ("import no_such_module", "failed", 1, "No module named 'no_such_module'"),
    ],
)
def test_every_end_is_told_apart(text, reason, code, said, tmp_path, capsys):
    end = run_script(script(tmp_path, text))
    assert (end.reason, end.exit_code) == (reason, code)
    assert said in end.error_text and said in capsys.readouterr().err
    assert (end.error is not None) == (reason == "failed")


def test_the_traceback_is_that_of_python(tmp_path, capsys):
    path = script(
        tmp_path,
        "def work():\n    1 / 0\ntry:\n    work()\nexcept ZeroDivisionError as e:\n    raise ValueError('so') from e\n",
    )
    end = run_script(path)
    assert end.error_text == capsys.readouterr().err
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert end.error_text == plain.stderr


def test_an_instrument_wraps_the_script_alone_and_ends_it(tmp_path, capsys):
    happened = []

    @contextmanager
    def instrument():
        happened.append(sys.argv[0])
        try:
            yield
        except StopScript:
            happened.append("stopped")
            raise

    def stop():
        raise StopScript

    text = (
        "import torch\ntry:\n    torch.stop_here()\nexcept Exception:\n    print('swallowed')\nfinally:\n"
        "    print('tidied up')\n"
    )
    path = script(tmp_path, text)
    torch.stop_here = stop
    try:
        end = run_script(path, under=instrument())
    finally:
        del torch.stop_here
    assert (end.reason, end.exit_code, end.error_text) == ("stopped", 0, "")
    assert happened == [str(path), "stopped"]
    assert capsys.readouterr().out == "tidied up\n"


LITTER = """
import os, random, sys
import numpy as np
import torch
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_num_threads(3)
torch.use_deterministic_algorithms(True)
torch.manual_seed(1); random.seed(1); np.random.seed(1)
os.chdir("/"); os.environ["LITTER"] = "1"; os.environ.pop("KEPT")
sys.path.insert(0, "/litter"); sys.argv.append("litter")
sys.stdout = open(os.devnull, "w"); sys.excepthook = print
"""


def surroundings():
    return {
        "state": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "python": (random.getstate(), list(sys.argv), list(sys.path), sys.modules["__main__"]),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "system": (str(Path.cwd()), dict(os.environ)),
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
    }


@pytest.mark.parametrize("end", ["", "raise ValueError\n", "raise SystemExit\n"])
@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_everything_is_as_it_was(end, tmp_path, monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    before = surroundings()
    run_script(script(tmp_path, LITTER + end))
    assert surroundings() == before


def test_a_default_device_that_was_set_before_comes_back(tmp_path):
    torch.set_default_device("meta")
    try:
        run_script(script(tmp_path, "import torch\ntorch.set_default_device(None)\n"))
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


def test_random_numbers_are_those_of_a_plain_run(tmp_path, capsys):
    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    run_script(script(tmp_path, "import torch\nprint(torch.rand(1).item())\n"))
    assert float(capsys.readouterr().out) == expected


def test_quiet_sends_everything_to_standard_error(tmp_path, capfd):
    text = "import os, sys\nprint('python', flush=True)\nos.system('echo child')\nos.write(1, b'raw')\n"
    assert run_script(script(tmp_path, text), quiet=True).reason == "finished"
    sys.stdout.write("ours\n")
    out, err = capfd.readouterr()
    assert out == "ours\n"
    assert {"python", "child", "raw"} <= set(err.split())


def test_the_signal_of_ctrl_c_interrupts_the_script(tmp_path):
    text = f"import os, time\nos.kill(os.getpid(), {int(signal.SIGINT)})\ntime.sleep(5)\n"
    assert run_script(script(tmp_path, text)).reason == "interrupted"


@pytest.mark.parametrize(
    ("name", "content", "module", "message"),
    [
        ("none.py", None, False, "cannot read the script: No such file or directory"),
        ("folder", "", False, "the script is a directory"),
        ("picture.py", b"\x89PNG\r\n\x1a\n\x00\x00", False, "the script is not Python"),
        ("null.py", b"x = 1\x00", False, "the script is not Python"),
        ("broken.py", b"x = 1\ndef (:\n", False, "the script is not Python: invalid syntax"),
        ("no.such.module", None, True, "there is no module 'no.such.module' that can be run"),
        ("empty_package", "", True, "there is no module 'empty_package' that can be run"),
    ],
)
def test_what_cannot_be_run_is_one_error(name, content, module, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content == "":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    before = list(sys.path), sys.modules["__main__"]
    with pytest.raises(ConfigError) as raised:
        run_script(name, module=module)
    assert message in str(raised.value)
    assert "  where  " in str(raised.value) and "  do     " in str(raised.value)
    assert ("broken.py:2" in str(raised.value)) == (name == "broken.py")
    assert (list(sys.path), sys.modules["__main__"]) == before


def test_warnings_name_the_scripts_line_once(tmp_path, monkeypatch):
    path = script(tmp_path, "import torch\nw = torch.ones(2)\nfor _ in range(3):\n    torch.tensor(w)\n")
    shown = []

    def show(message, category, filename, lineno, *_):
        shown.append((category, filename, lineno))

    monkeypatch.setattr(warnings, "showwarning", show)
    monkeypatch.setattr(warnings, "filters", [("always", None, UserWarning, None, 0)])
    run_script(path, under=auditing())
    assert shown == [(UserWarning, str(path), 4)]
    assert warnings.showwarning is show

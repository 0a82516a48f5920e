import json
import sys
from pathlib import Path

import torch

import frostline
from frostline.where import is_library, user_frame, user_line

HERE = Path(__file__).name


def test_the_line_is_that_of_the_call():
    line = user_line()
    assert line == f"{HERE}:{sys._getframe().f_lineno - 1}"


def test_frames_of_python_torch_and_frostline_are_passed_over():
    lines = []

    class Asks(json.JSONEncoder):
        def default(self, value):
            lines.append(user_line(depth=2))
            return None

    json.dumps(object(), cls=Asks)
    assert lines == [f"{HERE}:{sys._getframe().f_lineno - 1}"]


def test_depth_leaves_out_the_asking_function():
    def asks():
        return user_line(depth=2)

    assert asks() == f"{HERE}:{sys._getframe().f_lineno}"


def test_the_frame_is_the_line_s():
    frame = user_frame()
    assert frame is not None
    assert frame.f_code.co_name == "test_the_frame_is_the_line_s"


def test_libraries_are_torch_python_and_frostline_but_not_this_test():
    assert is_library(torch.__file__)
    assert is_library(json.__file__)
    assert is_library(frostline.__file__)
    assert is_library("<frozen runpy>")
    assert not is_library(__file__)

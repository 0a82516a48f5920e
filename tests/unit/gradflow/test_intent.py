import pytest

from frostline.errors import ConfigError
from frostline.gradflow import Intent
from frostline.gradflow.intent import matches


@pytest.mark.parametrize(
    ("name", "globs", "expected"),
    [
        ("head.weight", ("head.*",), True),
        ("head.weight", ("*",), True),
        ("head.weight", ("body.*", "*.weight"), True),
        ("head.weight", ("head",), False),
        ("head.weight", (), False),
        ("ahead.weight", ("head.*",), False),
        ("model.head.weight", ("head.*",), True),  # a script's variable in front
        ("model.head.weight", ("model.head.*",), True),
        ("model.net.head.weight", ("head.*",), False),  # only one part may be left out
        ("module.head.weight", ("head.*",), True),  # DistributedDataParallel
        ("model.module.head.weight", ("model.head.*",), True),
        ("layers.10.bias", ("layers.1?.bias",), True),
        ("layers.2.bias", ("layers.[0-1].bias",), False),
        ("Head.weight", ("head.*",), False),
        ("prompt", ("prompt",), True),
        ("blocks.0.lora_A.weight", ("*lora_*",), True),
    ],
)
def test_globs(name, globs, expected):
    assert matches(name, globs) is expected


def test_one_glob_or_several():
    intent = Intent.of("head.*", ["body.*", "norm.*"], {"policy": "actor.*", "value": ("critic.*",)})
    assert intent == Intent(
        learn=("head.*",), stay=("body.*", "norm.*"), flow={"policy": ("actor.*",), "value": ("critic.*",)}
    )
    assert intent.should_learn("head.bias") and not intent.should_learn("body.bias")
    assert intent.should_stay("norm.bias") and not intent.should_stay("head.bias")


def test_nothing_declared():
    intent = Intent.of()
    assert intent == Intent()
    assert not intent.should_learn("a") and not intent.should_stay("a")


@pytest.mark.parametrize("arguments", [{"learn": [3]}, {"stay": ["a", None]}, {"flow": {"term": [1]}}])
def test_what_is_no_glob_is_an_error(arguments):
    with pytest.raises(ConfigError, match=r"is not a glob\n  do     name parameters as 'head.\*'"):
        Intent.of(**arguments)

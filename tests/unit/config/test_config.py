from dataclasses import FrozenInstanceError, replace

import pytest
import yaml

from frostline.config import ConfigSource, RunConfig, dump_config, load_config, read_yaml
from frostline.errors import ConfigError
from frostline.systems.registry import SYSTEMS, config_class
from frostline.systems.semcom.config import SemcomConfig

NOTHING = ConfigSource("semcom", {})


@pytest.fixture
def written(tmp_path):
    """Writes a configuration file and reads it back, with arguments if wanted."""

    def write(text, *arguments):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(SemcomConfig, read_yaml(path), arguments)

    return write


@pytest.fixture
def refused(written, tmp_path):
    """Expects a ConfigError from a file and arguments; gives its text, in which the file is called FILE."""

    def refuse(text, *arguments):
        with pytest.raises(ConfigError) as raised:
            written(text, *arguments)
        return str(raised.value).replace(str(tmp_path / "run.yaml"), "FILE")

    return refuse


def test_without_a_file_the_defaults_count():
    assert load_config(SemcomConfig, NOTHING) == SemcomConfig()


def test_the_file_beats_the_default_and_the_command_line_beats_the_file(written):
    text = "name: semcom\ntraining: {num_steps: 7, seed: 5}\n"
    config = written(text, "--training.seed", "6", "--system.snr-min-db", "-3")
    assert config.training == replace(SemcomConfig().training, num_steps=7, seed=6)
    assert config.system == replace(SemcomConfig().system, snr_min_db=-3.0)
    assert (config.data, config.memory) == (SemcomConfig().data, SemcomConfig().memory)


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_printed_loads_again(system, tmp_path):
    kind = config_class(system)
    path = tmp_path / "printed.yaml"
    path.write_text(dump_config(kind()), encoding="utf-8")
    source = read_yaml(path)
    assert source.system == system
    assert load_config(kind, source) == kind()


def test_a_changed_configuration_prints_and_loads_again(written):
    config = load_config(
        SemcomConfig,
        NOTHING,
        ["--training.learning-rate", "3e-4", "--system.model", "dossier/été: #1", "--training.tensorboard"],
    )
    assert config.training.tensorboard is True
    assert config != SemcomConfig()
    assert written(dump_config(config)) == config


def test_every_key_is_printed_and_none_is_a_word_that_yaml_takes_for_a_boolean():
    document = yaml.safe_load(dump_config(SemcomConfig()))
    assert list(document) == ["name", "data", "memory", "training", "system"]
    for section in ("data", "memory", "training", "system"):
        assert set(document[section]) == set(vars(getattr(SemcomConfig(), section)))


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", "'3e-4'"])
def test_floats_may_be_written_in_any_notation(written, text):
    assert written(f"name: semcom\ntraining: {{learning_rate: {text}}}").training.learning_rate == 3e-4
    plain = text.strip("'")
    assert load_config(SemcomConfig, NOTHING, ["--training.learning-rate", plain]).training.learning_rate == 3e-4


def test_an_unknown_key_is_named_with_its_file_and_the_nearest_key(refused):
    text = refused("name: semcom\ntraining:\n  num_step: 3\n")
    for part in ("num_step", "FILE", "num-steps"):
        assert part in text


def test_an_unknown_option_is_named_with_the_nearest(refused):
    text = refused("name: semcom", "--training.num-step", "3")
    assert "--training.num-step" in text
    assert "--training.num-steps" in text


def test_an_unknown_section_is_named(refused):
    text = refused("name: semcom\ntrainin: {num_steps: 3}\n")
    assert "trainin" in text
    assert "FILE" in text


def test_a_key_given_twice_is_named_with_its_line(refused):
    text = refused("name: semcom\ntraining:\n  seed: 1\n  num_steps: 2\n  seed: 3\n")
    assert text == "the key 'seed' is given twice\n  where  FILE:5"


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ("num_steps: many", ("num", "steps", "many")),
        ("num_steps: 1.5", ("num", "steps", "'1.5' is not a whole number")),
        ("num_steps: 0", ("num", "steps", ">= 1")),
        ("seed: -1", ("seed", ">= 0")),
        ("learning_rate: fast", ("learning", "rate", "fast")),
        ("learning_rate: -1.0", ("learning", "rate", ">= 0")),
        ("precision: bf16", ("precision", "bf16", "bf16-mixed")),
        ("tensorboard: maybe", ("tensorboard", "maybe")),
        ("seed: [1, 2]", ("seed",)),
        ("seed: {a: 1}", ("seed",)),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key_and_file(refused, keys, parts):
    text = refused(f"name: semcom\ntraining: {{{keys}}}\n")
    for part in (*parts, "FILE"):
        assert part in text


def test_a_fraction_is_no_whole_number_on_the_command_line_either():
    with pytest.raises(ConfigError, match=r"'1\.5' is not a whole number"):
        load_config(SemcomConfig, NOTHING, ["--training.num-steps", "1.5"])


@pytest.mark.parametrize("value", ["3", "", "[1]", "text"])
def test_a_section_holds_keys(refused, value):
    text = refused(f"name: semcom\ntraining: {value}\n")
    assert text.startswith("'training' must hold keys and values, not ")
    assert "FILE" in text
    assert text.endswith("write 'training:' and its keys indented below it")


@pytest.mark.parametrize("text", ["", "training: {}", "- a", "name: 3", "name:", "just text"])
def test_a_file_names_its_system(refused, text):
    assert refused(text) == (
        "the configuration names no system\n  where  FILE\n  do     add a line such as 'name: semcom'"
    )


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path):
    with pytest.raises(ConfigError) as raised:
        read_yaml(tmp_path / "none.yaml")
    assert str(raised.value) == (
        f"cannot read the configuration: No such file or directory\n  where  {tmp_path / 'none.yaml'}"
    )
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    "text", ["name: [", "name: semcom\n\tx: 1", "a: b: c", "name: &x\n? [a]: b", "name: semcom\n? [a]\n: b\n"]
)
def test_what_is_not_yaml_is_named_with_its_line(refused, text):
    assert "where  FILE:" in refused(text)


@pytest.mark.parametrize("content", [b"name: sem\xffcom", b"name: sem\x00com", b"\xff\xfe\x00"])
def test_what_is_not_text_is_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_yaml(path)
    assert str(path) in raised.value.where


def test_python_objects_are_not_made(refused):
    assert "FILE" in refused("name: semcom\ndata: !!python/object/apply:os.getcwd []")


def test_words_left_over_are_refused():
    with pytest.raises(ConfigError, match="again"):
        load_config(SemcomConfig, NOTHING, ["again"])


def test_an_unknown_system_is_named_with_the_known_ones():
    with pytest.raises(ConfigError) as raised:
        config_class("semcon")
    assert "semcon" in raised.value.what
    assert "semcom" in raised.value.do


def test_configurations_are_frozen_and_every_one_is_a_run_config():
    for system in SYSTEMS:
        config = config_class(system)()
        assert isinstance(config, RunConfig)
        for value in (config, config.data, config.memory, config.training, config.system):
            with pytest.raises(FrozenInstanceError):
                value.data = None

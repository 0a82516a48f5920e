import inspect

import pytest

from frostline import errors
from frostline.errors import (
    AuditError,
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    FrostlineError,
    MissingExtraError,
    PlanError,
    ShapeError,
    StepError,
    import_extra,
)

RENDERED = {
    FrostlineError: (FrostlineError("it broke"), "it broke"),
    ConfigError: (
        ConfigError("no system 'semcon'", where="run.yaml:1", do="take semcom"),
        "no system 'semcon'\n  where  run.yaml:1\n  do     take semcom",
    ),
    PlanError: (PlanError("it has no 'a'", do="make another"), "it has no 'a'\n  do     make another"),
    BudgetError: (
        BudgetError("no plan fits into 1 B", smallest_bytes=2, do="give 2 B"),
        "no plan fits into 1 B\n  do     give 2 B",
    ),
    DataError: (DataError("a picture is missing", where="a.jpg"), "a picture is missing\n  where  a.jpg"),
    CheckpointError: (CheckpointError("it is damaged", do="resume"), "it is damaged\n  do     resume"),
    DeviceError: (DeviceError("there is no cuda:0", do="use cpu"), "there is no cuda:0\n  do     use cpu"),
    StepError: (StepError("no gradient", where="step 3"), "no gradient\n  where  step 3"),
    AuditError: (AuditError("1 fault", do="mend it"), "1 fault\n  do     mend it"),
    ShapeError: (
        ShapeError("the output", expected=("batch", 16, 128), actual=(2, 4), where="Mine", do="return it"),
        "the output must have shape (batch, 16, 128), got (2, 4)\n  where  Mine\n  do     return it",
    ),
    MissingExtraError: (
        MissingExtraError("sacrebleu", "metrics"),
        "sacrebleu is not installed\n  do     pip install 'frostline[metrics]'",
    ),
}


@pytest.mark.parametrize("kind", RENDERED, ids=lambda kind: kind.__name__)
def test_the_text_says_what_where_and_what_to_do(kind):
    error, text = RENDERED[kind]
    assert str(error) == text
    assert isinstance(error, ValueError)


def test_every_class_is_rendered_here():
    classes = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    assert classes == set(RENDERED)


def test_the_parts_can_be_read_one_by_one():
    error = ShapeError("x", expected=(1, "any"), actual=(2, 3), where="here", do="this")
    assert (error.expected, error.actual, error.where, error.do) == ((1, "any"), (2, 3), "here", "this")
    missing = MissingExtraError("PIL", "semcom")
    assert (missing.package, missing.extra) == ("PIL", "semcom")


def test_a_missing_extra_names_the_package_and_the_install_line():
    with pytest.raises(MissingExtraError) as raised:
        import_extra("no_such_package_at_all.part", extra="plots")
    assert raised.value.package == "no_such_package_at_all"
    assert raised.value.do == "pip install 'frostline[plots]'"


def test_an_installed_extra_is_imported():
    assert import_extra("json", extra="plots").loads("1") == 1

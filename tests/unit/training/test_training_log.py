import json
from dataclasses import replace

import pytest

from frostline.errors import MissingExtraError
from frostline.records import StepRecord, from_json
from frostline.training import RunLog
from frostline.units import GIB

RECORD = StepRecord(
    phase="fit",
    step=1,
    loss=1.0,
    terms={"rate": 2.0},
    learning_rate=0.1,
    gradient_norm=3.0,
    loss_scale=1.0,
    skipped=False,
    num_skipped=0,
    allocated_bytes=0,
    reserved_bytes=0,
    peak_bytes=7,
    data_seconds=0.1,
    step_seconds=0.9,
)


def logged(path, records, first_step=0, log_every=2, tensorboard=False):
    log = RunLog(path, log_every=log_every, tensorboard=tensorboard)
    log.start(first_step)
    warnings = [text for record in records for text in log.add(record)]
    log.close()
    return warnings


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def series(num_steps, **columns):
    return [
        replace(RECORD, step=step + 1, **{name: values[step] for name, values in columns.items()})
        for step in range(num_steps)
    ]


def test_a_line_is_a_record_of_window_means(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    records = series(5, loss=[1.0, 3.0, 5.0, 7.0, 9.0], peak_bytes=[5, 3, 1, 2, 4], learning_rate=[5, 4, 3, 2, 1])
    assert logged(path, records) == []
    means = [from_json(line) for line in path.read_text().splitlines()]
    assert [(m.step, m.loss, m.peak_bytes, m.learning_rate) for m in means] == [
        (2, 2.0, 5, 4.0),
        (4, 6.0, 2, 2.0),
        (5, 9.0, 4, 1.0),
    ]
    assert means[0].terms == {"rate": 2.0}


def test_phases_have_their_own_windows(tmp_path):
    records = [replace(record, phase=phase) for record in series(4) for phase in ("d", "g")]
    logged(tmp_path / "log.jsonl", records)
    assert [(line["phase"], line["step"]) for line in lines(tmp_path / "log.jsonl")] == [
        ("d", 2),
        ("g", 2),
        ("d", 4),
        ("g", 4),
    ]


def test_skipped_steps_stay_out_of_the_means_and_infinities_are_json(tmp_path):
    inf = float("inf")
    logged(tmp_path / "a", series(2, gradient_norm=[inf, 3.0], skipped=[True, False], num_skipped=[1, 1]))
    assert (lines(tmp_path / "a")[0]["gradient_norm"], lines(tmp_path / "a")[0]["num_skipped"]) == (3.0, 1)
    logged(tmp_path / "b", series(2, gradient_norm=[inf, inf], skipped=[True, True], num_skipped=[1, 2]))
    assert from_json((tmp_path / "b").read_text().splitlines()[0]).gradient_norm == inf
    logged(tmp_path / "c", series(2, loss=[inf, -inf]))
    assert lines(tmp_path / "c")[0]["loss"] == "nan"


def test_a_resume_appends_and_drops_lines_past_its_step(tmp_path):
    path = tmp_path / "log.jsonl"
    logged(path, series(6))
    path.write_text(path.read_text() + '{"record": "Ste')
    logged(path, series(6)[4:], first_step=4)
    assert [line["step"] for line in lines(path)] == [2, 4, 6]
    logged(path, series(2))
    assert [line["step"] for line in lines(path)] == [2]


def test_skips_in_a_row_warn_once(tmp_path):
    path = tmp_path / "log.jsonl"
    row = series(40, skipped=[step % 8 < 3 for step in range(40)], num_skipped=range(1, 41))
    (warning,) = logged(path, row, log_every=100)
    assert warning == (
        "phase 'fit' skips updates for non-finite gradients, 3 of 3 so far, at a loss scale of 1;"
        " if it goes on, take --training.precision bf16-mixed"
    )
    assert lines(path)[0] == {"warning": warning, "step": 3}


def test_a_window_with_many_skips_warns(tmp_path):
    few = series(20, skipped=[step in (3, 9) for step in range(20)])
    many = series(20, skipped=[step in (3, 9, 12) for step in range(20)])
    assert logged(tmp_path / "few", few, log_every=20) == []
    assert len(logged(tmp_path / "many", many, log_every=20)) == 1


def test_a_fragmented_allocator_warns_against_the_peak_of_all_phases(tmp_path):
    big = replace(RECORD, peak_bytes=10 * GIB, reserved_bytes=11 * GIB)
    small = replace(RECORD, phase="d", peak_bytes=GIB, reserved_bytes=11 * GIB)
    assert logged(tmp_path / "two", [big, small]) == []
    (warning,) = logged(tmp_path / "one", [small, small])
    assert "holds 11.0 GiB for a peak of 1024.0 MiB" in warning
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in warning
    tiny = replace(RECORD, peak_bytes=GIB // 8, reserved_bytes=GIB)
    assert logged(tmp_path / "tiny", [tiny]) == []


def test_waiting_for_data_warns(tmp_path):
    slow = series(4, data_seconds=[0.6] * 4)
    (warning,) = logged(tmp_path / "slow", slow)
    assert warning.startswith("40% of the time is spent waiting for data: raise --data.num-workers")
    assert "pin" in warning
    assert logged(tmp_path / "start", series(4, data_seconds=[9.0, 0, 0, 0]), log_every=1) == []


def test_a_log_that_was_never_started_writes_nothing(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", log_every=1, tensorboard=False)
    log.close()
    assert not (tmp_path / "log.jsonl").exists()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    logged(tmp_path / "log.jsonl", series(4), tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("fit/loss")] == [2, 4]
    assert events.Scalars("fit/terms/rate")[0].value == 2.0


def test_tensorboard_that_is_not_installed_names_its_extra(tmp_path, monkeypatch):
    import sys

    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"frostline\[tensorboard\]"):
        logged(tmp_path / "log.jsonl", [], tensorboard=True)

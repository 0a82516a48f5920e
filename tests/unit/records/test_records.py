import json
import math
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import get_args

import pytest

from frostline import records
from frostline.errors import FrostlineError
from frostline.records import (
    AllocatorCounters,
    AuditedPhase,
    AuditReport,
    Curve,
    EvaluationReport,
    Finding,
    GradientDifference,
    LivePoint,
    MemoryReport,
    ModuleRole,
    PeakRow,
    PeakTable,
    Place,
    Plan,
    ProofReport,
    Record,
    RunReport,
    StepRecord,
    TermFlow,
    Treatment,
    from_json,
    to_json,
)

STEP = StepRecord(
    phase="codec",
    step=3,
    loss=math.nan,
    terms={"token_loss": math.inf, "power": -math.inf},
    learning_rate=1e-3,
    gradient_norm=0.1,
    loss_scale=65536.0,
    skipped=True,
    num_skipped=1,
    allocated_bytes=0,
    reserved_bytes=0,
    peak_bytes=2**40,
    data_seconds=0.0,
    step_seconds=1 / 3,
)
FINITE_STEP = replace(STEP, loss=1.5, terms={})
MEMORY = MemoryReport(
    peak_bytes=3,
    resident_bytes=2,
    by_category={"parameters": 2},
    by_module={"": 1, "head.Größe": 2},
    peak_at="backward, head, aten::mm",
    peak_line="train.py:12",
    timeline=(LivePoint(event=0, live_bytes=2), LivePoint(event=1, live_bytes=3)),
    method="measured",
    device="cuda",
    num_ops=7,
    not_seen=("kernel scratch",),
    allocator=AllocatorCounters(peak_allocated_bytes=4, peak_reserved_bytes=5),
    timeline_by_category={"parameters": (2, 2), "temporaries": (0, 1)},
)
AUDIT = AuditReport(
    findings=(
        Finding(
            code="FL101",
            slug="grad-cut/no_grad",
            level="fault",
            what="'head' learns nothing",
            places=(Place(role="cut", path="train.py", line=3, text="linear"),),
            parameters=("head.weight",),
            num_bytes=5,
        ),
    ),
    phases=(AuditedPhase(name="Adam", num_steps=3, num_backwards=6, num_skipped=1, num_parameters=8, num_reached=4),),
    roles=(ModuleRole(module="net.0", role="upstream", cacheable=True, why="frozen"),),
    terms=(TermFlow(term="caption", line="train.py:9", modules={"head": 0}),),
    not_examined=("numpy",),
    num_steps=3,
    wall_seconds=0.5,
    method="fake",
    unused_comments=("train.py:2",),
)
MISSING = GradientDifference(name="w", equal=False, max_relative=math.inf, cosine=0.0)
PROOF = ProofReport(
    proof_class="BOUNDED", worst=MISSING, per_parameter=(MISSING,), noise_floor=1e-7, loss_difference=0.0
)
EVALUATION = EvaluationReport(
    system="semcom",
    title="caption",
    x_name="Es/N0 in dB",
    curves=(Curve(name="a", y_name="share", x=(-6.0, 0.0), y=(0.0, math.inf)),),
    facts={"bleu": 12.5},
)
RUN = RunReport(
    system="semcom",
    num_steps=10,
    num_trainable=1,
    num_frozen=2,
    first=(FINITE_STEP,),
    last=(FINITE_STEP, replace(FINITE_STEP, step=9)),
    wall_seconds=math.inf,
    interrupted=False,
    directory="runs/1",
)
PEAK = PeakRow(
    name="frostline",
    peak_bytes=3,
    resident_bytes=2,
    peak_at="forward",
    proof_class="ROUNDING",
    max_rel_grad_diff=math.inf,
    trains="codec",
    step_seconds_ratio=None,
)
EXAMPLES = {
    "audit": AUDIT,
    "audit of nothing": replace(AUDIT, findings=(), phases=(), roles=(), terms=(), unused_comments=()),
    "step": replace(FINITE_STEP, terms={"power": -math.inf}),
    "memory": MEMORY,
    "memory without allocator": replace(MEMORY, allocator=None, timeline=()),
    "proof": PROOF,
    "proof of nothing": replace(PROOF, proof_class="none", worst=None, per_parameter=(), noise_floor=None),
    "evaluation": EVALUATION,
    "run": RUN,
    "plan": Plan(
        treatments=(
            Treatment(unit="layers.0", kind="checkpoint"),
            Treatment(unit="tower", kind="chunk", arguments={"chunk_size": 2}),
        ),
        budget_bytes=5,
        predicted_peak_bytes=4,
        resident_bytes=2,
        baseline_peak_bytes=9,
        predicted_cost=0.25,
        proof_class="ROUNDING",
        method="predicted",
        notes=("layers.1 is left",),
    ),
    "peaks": PeakTable(system="semcom", setting="base", rows=(PEAK, replace(PEAK, max_rel_grad_diff=None))),
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_comes_back_from_json(name, indent):
    record = EXAMPLES[name]
    again = from_json(to_json(record, indent=indent))
    assert again == record
    assert type(again) is type(record)


def test_every_record_has_an_example():
    assert {type(record) for record in EXAMPLES.values()} == set(get_args(Record))


def test_numbers_that_json_lacks_are_strings_and_come_back():
    document = json.loads(to_json(STEP), parse_constant=pytest.fail)
    assert document["loss"] == "nan"
    assert document["terms"] == {"token_loss": "inf", "power": "-inf"}
    again = from_json(to_json(STEP))
    assert math.isnan(again.loss)
    assert again.terms == {"token_loss": math.inf, "power": -math.inf}


def test_whole_floats_come_back_as_floats():
    assert isinstance(
        from_json(to_json(STEP).replace('"loss_scale": 65536.0', '"loss_scale": 65536')).loss_scale, float
    )


def test_fields_added_later_with_a_default_may_be_missing():
    document = json.loads(to_json(MEMORY))
    del document["allocator"]
    assert from_json(json.dumps(document)) == replace(MEMORY, allocator=None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(colour=1), "MemoryReport does not fit: unknown ['colour'], missing []"),
        (lambda d: d.pop("peak_at"), "MemoryReport does not fit: unknown [], missing ['peak_at']"),
        (
            lambda d: d["allocator"].pop("peak_reserved_bytes"),
            "MemoryReport.allocator does not fit: unknown [], missing ['peak_reserved_bytes']",
        ),
        (
            lambda d: d["timeline"][0].update(x=1),
            "MemoryReport.timeline does not fit: unknown ['x'], missing []",
        ),
    ],
)
def test_unknown_and_missing_keys_are_refused_by_name(change, text):
    document = json.loads(to_json(MEMORY))
    change(document)
    with pytest.raises(FrostlineError) as raised:
        from_json(json.dumps(document))
    assert str(raised.value) == text


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"record": "MemoryReport"'])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(FrostlineError, match=r"^not JSON: "):
        from_json(text)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "1", "null", '{"record": "Component"}', '{"record": 3}', '{"record": []}']
)
def test_what_is_no_record_is_refused(text):
    with pytest.raises(FrostlineError, match=r"^not a frostline record: 'record' is .* not one of .*'MemoryReport'"):
        from_json(text)


@pytest.mark.parametrize(
    ("key", "value"), [("timeline", 3), ("allocator", [1]), ("by_category", [2]), ("timeline", [None])]
)
def test_values_of_another_kind_are_refused(key, value):
    document = json.loads(to_json(MEMORY)) | {key: value}
    with pytest.raises(FrostlineError):
        from_json(json.dumps(document))


def test_records_are_frozen():
    for kind in (getattr(records, name) for name in records.__all__):
        if is_dataclass(kind):
            assert kind.__dataclass_params__.frozen, kind
    with pytest.raises(FrozenInstanceError):
        STEP.loss = 1.0  # type: ignore[misc]
    assert all(field.kw_only for field in fields(StepRecord))

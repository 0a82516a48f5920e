"""The page: every kind of record, well-formed, without network, escaped, small."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

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
)
from frostline.reports import html
from frostline.reports.html import render_html
from frostline.reports.html.charts import Frame, nice_ticks, span
from frostline.reports.html.limits import thinned
from frostline.reports.html.page import MAX_PAGE_BYTES
from frostline.reports.html.timeline import CATEGORY_STYLES, timeline_chart
from frostline.reports.html.treemap import HEIGHT, WIDTH, squarify, treemap
from frostline.units import MIB

VOID = {"meta", "link", "br", "img", "input", "hr"}
ALONE = {"rect", "path", "line", "circle"}
EVIL = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """A reader that checks that what is opened is closed, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ALONE, f"<{tag}/> closes itself in SVG only"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


STEP = StepRecord(
    phase="codec",
    step=1,
    loss=7.5,
    terms={"caption": 7.0, "power": 0.5},
    learning_rate=1e-3,
    gradient_norm=2.0,
    loss_scale=1.0,
    skipped=False,
    num_skipped=0,
    allocated_bytes=0,
    reserved_bytes=0,
    peak_bytes=30 * MIB,
    data_seconds=0.01,
    step_seconds=0.2,
)
LOG = [
    replace(STEP, step=at, loss=7.5 / at, learning_rate=1e-3 / at, terms={"caption": 7 / at, "power": 0.1 * at})
    for at in range(1, 31)
]
MEMORY = MemoryReport(
    peak_bytes=30 * MIB,
    resident_bytes=10 * MIB,
    by_category={"parameters": 10 * MIB, "gradients": 0, "saved for backward": 15 * MIB, "temporaries": 5 * MIB},
    by_module={
        "backward": 4 * MIB,
        "net.layers.0.fc": 5 * MIB,
        "net.layers.1.fc": 5 * MIB,
        "net.layers.1": 2 * MIB,
        "head": 4 * MIB,
    },
    peak_at="backward · aten.gelu",
    peak_line="train.py:12",
    timeline=tuple(LivePoint(event=at, live_bytes=(10 + 20 * (at == 7)) * MIB + at) for at in range(10)),
    method="measured",
    device="cuda",
    num_ops=123,
    not_seen=("kernel scratch",),
    allocator=AllocatorCounters(peak_allocated_bytes=31 * MIB, peak_reserved_bytes=40 * MIB),
    by_line={"": 10 * MIB, "train.py:12": 20 * MIB},
    saved_by={"trainable parts": 5 * MIB, "frozen parts": 10 * MIB},
    timeline_by_category={
        "parameters": (10 * MIB,) * 10,
        "gradients": (0,) * 10,
        "saved for backward": tuple(15 * (at == 7) * MIB + at for at in range(10)),
        "temporaries": tuple(5 * (at == 7) * MIB for at in range(10)),
    },
)
PLACE = Place(role="cut", path="nowhere/train.py", line=3, text="linear")
FINDING = Finding(
    code="FL101",
    slug="grad-cut/no_grad",
    level="fault",
    what="'head' learns nothing",
    places=(PLACE,),
    evidence="grad None",
    so="it stays",
    do="leave it outside",
    parameters=("head.weight", "head.bias"),
)
AUDIT = AuditReport(
    findings=(
        FINDING,
        replace(FINDING, code="FL501", level="cost", num_bytes=3 * MIB, places=()),
        replace(FINDING, code="FL305", accepted="meant so"),
    ),
    phases=(AuditedPhase(name="Adam", num_steps=3, num_backwards=6, num_skipped=1, num_parameters=8, num_reached=4),),
    roles=(
        ModuleRole(module="net.0", role="upstream", cacheable=True, why="the same"),
        ModuleRole(module="net.1", role="upstream", cacheable=True, why="the same"),
        ModuleRole(module="head", role="trainable", cacheable=False, why="it trains"),
    ),
    terms=(
        TermFlow(term="caption", line="train.py:9", modules={"head": 0, "codec.0": 0, "codec.1": 0}),
        TermFlow(term="power", line="train.py:10", modules={"codec.0": 2, "codec.1": 2}),
    ),
    not_examined=("numpy",),
    num_steps=3,
    wall_seconds=0.5,
)
PLAN = Plan(
    treatments=(
        Treatment(unit="net.layers.0", kind="checkpoint"),
        Treatment(unit="net.layers.1", kind="checkpoint"),
        Treatment(unit="tower", kind="chunk", arguments={"chunk_size": 4}),
        Treatment(unit="head", kind="keep"),
    ),
    budget_bytes=24 * MIB,
    predicted_peak_bytes=20 * MIB,
    resident_bytes=10 * MIB,
    baseline_peak_bytes=30 * MIB,
    predicted_cost=0.18,
    proof_class="EXACT",
    method="predicted",
    peak_at="backward",
    notes=("norm was left out",),
)
PEAK = PeakRow(
    name="frozen",
    peak_bytes=30 * MIB,
    resident_bytes=10 * MIB,
    peak_at="forward",
    proof_class="EXACT",
    max_rel_grad_diff=0.0,
    trains="codec",
    step_seconds_ratio=1.0,
)
PEAKS = PeakTable(
    system="semcom",
    setting="batch 8",
    rows=(
        PEAK,
        replace(PEAK, name="frostline", peak_bytes=12 * MIB, proof_class="ROUNDING", max_rel_grad_diff=1e-7),
        replace(PEAK, name="no grad", peak_bytes=9 * MIB, proof_class="none", max_rel_grad_diff=None, trains="nothing"),
    ),
)
SAME = GradientDifference(name="a.weight", equal=True, max_relative=0.0, cosine=1.0)
OTHER = GradientDifference(name="b.weight", equal=False, max_relative=3e-7, cosine=0.999999)
PROOF = ProofReport(
    proof_class="ROUNDING", worst=OTHER, per_parameter=(SAME, OTHER), noise_floor=1e-7, loss_difference=0.0
)
RUN = RunReport(
    system="semcom",
    num_steps=30,
    num_trainable=10,
    num_frozen=90,
    first=(LOG[0],),
    last=(LOG[-1],),
    wall_seconds=3.0,
    interrupted=False,
    directory="runs/a",
)
SCORES = EvaluationReport(
    system="semcom",
    title="captions of 100 scenes",
    x_name="Es/N0 in dB",
    curves=(
        Curve(name="codec", y_name="exact answers", x=(-6.0, 0.0, 6.0), y=(0.1, 0.5, 0.9), note="64 uses"),
        Curve(name="the bound", y_name="exact answers", x=(-6.0, 0.0, 6.0), y=(1.0, 1.0, math.nan)),
        Curve(name="codec", y_name="BLEU", x=(-6.0, 0.0, 6.0), y=(10.0, 20.0, 30.0)),
    ),
    facts={"num_test": 1000.0},
)
RECORDS: dict[type, Record] = {type(r): r for r in (AUDIT, MEMORY, PLAN, PEAKS, PROOF, RUN, STEP, SCORES)}
EMPTY = {
    "audit": replace(AUDIT, findings=(), phases=(), roles=(), terms=(), not_examined=(), num_steps=0),
    "memory": replace(
        MEMORY,
        peak_bytes=0,
        by_category={},
        by_module={},
        timeline=(),
        by_line={},
        saved_by={},
        timeline_by_category={},
    ),
    "memory of zeros": replace(
        MEMORY,
        by_module={"a": 0},
        timeline=(LivePoint(event=0, live_bytes=0),) * 2,
        timeline_by_category={"parameters": (0, 0)},
    ),
    "plan": replace(PLAN, treatments=(), budget_bytes=0, baseline_peak_bytes=0, predicted_peak_bytes=0, notes=()),
    "peaks": replace(PEAKS, rows=()),
    "proof": ProofReport(proof_class="none", worst=None, per_parameter=(), noise_floor=None, loss_difference=0.0),
    "proof of a missing gradient": replace(
        PROOF, per_parameter=(replace(OTHER, max_relative=math.inf), replace(OTHER, max_relative=math.nan))
    ),
    "run": replace(RUN, first=(), last=(), num_trainable=0, num_frozen=0),
    "step that diverged": replace(STEP, loss=math.nan, gradient_norm=math.inf),
    "scores": replace(SCORES, curves=(), facts={}),
    "scores of one point": replace(SCORES, curves=(Curve(name="a", y_name="b", x=(1.0,), y=(math.inf,)),)),
    "scores of no point": replace(SCORES, curves=(Curve(name="a", y_name="b", x=(), y=()),)),
}


def check(text: str) -> Page:
    """A page is well-formed, reaches out to nothing, and is small."""
    page = Page(text)
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "data", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
        for name, value in attributes.items():
            numbers = ("d", "x", "y", "width", "height", "cx", "cy", "x1", "x2", "y1", "y2")
            assert name not in numbers or not re.search("nan|inf|None", value or "")
    targets = {attributes["href"] for attributes in page.all("a")}
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert targets <= {f"#{name}" for name in ids} and len(ids) == len(set(ids))
    assert not page.all("script") and not page.all("link") and not page.all("img")
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", text)
    assert len(text.encode()) < MAX_PAGE_BYTES
    return page


def shown(*records: Record, **how) -> Page:
    return check(render_html(records, title="a page", **how))


def test_every_kind_of_record_has_a_page():
    assert set(RECORDS) == set(get_args(Record))


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_page_of_one_record(kind):
    page = shown(RECORDS[kind])
    assert len(page.all("h2")) == 1
    assert len(page.all("a")) == 1


@pytest.mark.parametrize("name", EMPTY)
def test_a_record_with_nothing_in_it_renders(name):
    shown(EMPTY[name])


def test_no_records_is_a_page_that_says_so():
    assert "There are no records" in shown().text


def test_all_records_in_the_order_of_the_verbs():
    page = shown(SCORES, RUN, *LOG, PROOF, PEAKS, PLAN, MEMORY, AUDIT, configuration="lr: 1", warnings=["it waits"])
    order = ("Gradient flow", "Memory of a step", "Plan", "Before and after", "Proof", "Training run", "Evaluation")
    headings = re.findall("|".join(order), page.text)
    assert [*dict.fromkeys(headings)] == sorted(set(headings), key=order.index) and set(headings) == set(order)
    assert "lr: 1" in page.text and "warning it waits" in page.text


def test_every_drawing_says_what_it_is_or_is_hidden():
    def outer(text: str) -> list[str]:
        depth, found = 0, []
        for match in re.finditer(r"<svg\b[^>]*>|</svg>", text):
            if match[0] == "</svg>":
                depth -= 1
            else:
                found += [match[0]] if depth == 0 else []
                depth += 1
        return found

    drawings = outer(render_html([*RECORDS.values(), *LOG], title="t"))
    assert len(drawings) > 20
    assert [
        d for d in drawings if 'aria-hidden="true"' not in d and not re.search('role="img" aria-label="[^"]+"', d)
    ] == []


def test_what_a_record_says_is_escaped_everywhere():
    evil_place = replace(PLACE, role=EVIL, path=EVIL, text=EVIL)
    finding = replace(
        FINDING, what=EVIL, places=(evil_place,), evidence=EVIL, so=EVIL, do=EVIL, parameters=(EVIL, EVIL)
    )
    curve = Curve(name=EVIL, y_name=EVIL, x=(0.0, 1.0), y=(0.0, 1.0), note=EVIL)
    step = replace(STEP, phase=EVIL, terms={EVIL: 1.0, "other": 2.0})
    text = render_html(
        [
            replace(
                AUDIT,
                findings=(finding, replace(finding, code=EVIL, slug=EVIL, accepted=EVIL)),
                phases=(replace(AUDIT.phases[0], name=EVIL),),
                roles=(ModuleRole(module=EVIL, role=EVIL, cacheable=True, why=EVIL),),
                terms=(TermFlow(term=EVIL, line=EVIL, modules={EVIL: 1}),),
                not_examined=(EVIL,),
            ),
            replace(
                MEMORY,
                by_category={EVIL: MIB},
                by_module={EVIL: MIB, f"{EVIL}.a": MIB},
                by_line={EVIL: MIB},
                peak_at=EVIL,
                covers=EVIL,
                not_seen=(EVIL,),
                device=EVIL,
            ),
            replace(PLAN, treatments=(Treatment(unit=EVIL, kind=EVIL),), notes=(EVIL,), proof_class=EVIL, method=EVIL),
            PeakTable(system=EVIL, setting=EVIL, rows=(replace(PEAK, name=EVIL, peak_at=EVIL, trains=EVIL),)),
            replace(PROOF, per_parameter=(replace(OTHER, name=EVIL),), worst=replace(OTHER, name=EVIL)),
            replace(RUN, system=EVIL, directory=EVIL, first=(step,), last=(step,)),
            step,
            replace(step, step=2, terms={EVIL: 3.0, "other": 1.0}),
            EvaluationReport(system=EVIL, title=EVIL, x_name=EVIL, curves=(curve,), facts={EVIL: 1.0}),
        ],
        title=EVIL,
        names=[EVIL] * 9,
        configuration=EVIL,
        warnings=[EVIL],
    )
    assert "<script" not in text
    page = check(text)
    assert page.text.count("<script>alert(1)</script>") > 40


def large() -> list[Record]:
    names = [f"model.tower.{i % 7}.blocks.{i}.attention.projection.with_a_long_name_{i}" for i in range(5_000)]
    return [
        replace(
            AUDIT,
            findings=tuple(replace(FINDING, parameters=tuple(names[:500])) for _ in range(2000)),
            roles=tuple(
                ModuleRole(module=n, role="side", cacheable=False, why=f"{n} {i}") for i, n in enumerate(names)
            ),
            terms=tuple(TermFlow(term=f"t{i}", line="a.py:1", modules=dict.fromkeys(names, i)) for i in range(30)),
            phases=AUDIT.phases * 500,
            not_examined=tuple(names),
        ),
        replace(
            MEMORY,
            by_module={name: MIB + i for i, name in enumerate(names)},
            by_line={f"{name}.py:1": MIB + i for i, name in enumerate(names)},
            timeline=tuple(LivePoint(event=i, live_bytes=i % 991 * MIB) for i in range(50_000)),
            timeline_by_category={name: tuple(i % 991 * MIB // 7 for i in range(50_000)) for name in CATEGORY_STYLES},
            not_seen=tuple(names),
        ),
        replace(PLAN, treatments=tuple(Treatment(unit=f"m{'x' * (i % 50)}", kind=f"k{i}") for i in range(3000))),
        replace(PEAKS, rows=PEAKS.rows * 500),
        replace(PROOF, per_parameter=tuple(replace(OTHER, name=name) for name in names)),
        replace(SCORES, curves=tuple(replace(c, name=f"{c.name} {i}") for c in SCORES.curves for i in range(100))),
        RUN,
        *(replace(STEP, step=i, loss=float(i % 97), gradient_norm=i % 13 + 0.1) for i in range(5_000)),
    ]


def test_a_page_of_big_records_is_small_and_says_what_it_leaves_out():
    page = shown(*large(), configuration="key: value\n" * 50_000, warnings=["odd"] * 99)
    for what in ("findings are", "modules are", "treatments are", "ways are", "curves are", "warnings are", "others"):
        assert re.search(rf"[0-9][0-9,]*\s(more )?{what}", page.text), what
    assert "peak 990.0 MiB" in page.text, "the highest point stays"


def test_many_records_are_cut_to_a_page_as_well():
    page = shown(*[record for record in large() if isinstance(record, MemoryReport)] * 8, *[AUDIT] * 40)
    assert re.search(r"[0-9]+ more parts are not shown", page.text)


def test_findings_show_their_lines_unless_they_must_not(tmp_path):
    program = tmp_path / "train.py"
    program.write_text("import torch\nwith torch.no_grad():\n    secret = model(x) < 3\n")
    report = replace(AUDIT, findings=(replace(FINDING, places=(replace(PLACE, path=str(program)),) * 2),))
    page = shown(report)
    assert page.text.count("secret = model(x) < 3") == 1, "once, however often the place is named"
    assert "train.py:3" in page.text and "docs/rules/FL101.md" in page.text
    assert "secret" not in shown(report, source=False).text


def test_the_audit_tells_idle_terms_and_unreached_modules():
    page = shown(AUDIT)
    assert "1 fault" in page.text and "1 cost · 1 accepted" in page.text
    assert page.text.count("trains nothing") == 1, "the caption reaches nothing"
    assert "4 of 8" in page.text
    assert "codec.* (2) – 4" in page.text, "two modules of two parameters each"
    assert "head – ·" in page.text, "the power term was not examined for it"
    assert "net.* (2)" in page.text, "numbered modules alike share a line"


def test_a_budget_is_drawn_into_the_memory_of_the_same_run():
    assert "6.0 MiB over" in shown(MEMORY, PLAN, names=["a/memory.json", "a/plan.json"]).text
    assert "6.0 MiB over" not in shown(MEMORY, PLAN, names=["a/memory.json", "b/plan.json"]).text


def test_a_prediction_tells_its_counters_and_its_assumptions():
    predicted = shown(replace(MEMORY, method="predicted", assumes=("flash attention",))).text
    assert "CUDA's, simulated 31.0 MiB allocated, 40.0 MiB reserved" in predicted
    assert "Assumed: flash attention." in predicted
    assert "CUDA's own counters 31.0 MiB allocated" in shown(MEMORY).text


def test_several_measurements_stand_beside_each_other():
    smaller = replace(MEMORY, peak_bytes=15 * MIB)
    page = shown(MEMORY, smaller, names=["x/before.json", "x/after.json"])
    assert "Peaks beside each other" in page.text and "-50.0%" in page.text
    assert "Peaks beside each other" not in shown(MEMORY).text


def test_a_log_belongs_to_the_run_beside_it():
    names = ["a/run.json", *["a/log.jsonl"] * len(LOG), *["b/log.jsonl"] * 3]
    page = shown(RUN, *LOG, *LOG[:3], names=names)
    assert page.text.count("Training run") == 2
    assert "Loss 7.5 in step 1, 0.25 in step 30" in page.text
    labels = [svg["aria-label"] for svg in page.all("svg") if svg.get("aria-label")]
    assert "loss over 30 steps, from 7.5 to 0.25" in labels
    assert any(label.startswith("caption over 30 steps") for label in labels)
    assert not any("gradient norm" in label for label in labels), "what never changes is not drawn"


def test_names_are_for_all_records_or_none():
    with pytest.raises(ValueError, match="zip"):
        render_html([MEMORY, PLAN], title="t", names=["one"])


def test_the_smallest_true_peak_leaves_out_what_trains_nothing():
    page = shown(PEAKS)
    assert "smallest true peak 12.0 MiB frostline, ROUNDING" in page.text


def test_host_bytes_of_a_row_are_noted():
    table = replace(PEAKS, rows=(PEAK, replace(PEAK, name="offloaded", host_bytes=150 * MIB)))
    assert render_html([table], title="t").count("150 MiB in host memory") == 1


def test_shares_are_in_percent_and_other_scores_as_they_are():
    text = shown(SCORES).text
    assert "50.0 %" in text and " 20 " in text and "1,000" in text


def test_the_timeline_stacks_categories_up_to_the_peak_under_the_budget():
    chart = timeline_chart(MEMORY, 400, 40 * MIB)
    bands = [(trace.legend, trace.style) for trace in chart.traces if trace.legend]
    assert bands == [
        ("temporaries", "area k-temporaries"),
        ("saved for backward", "area k-saved"),
        ("parameters", "area k-parameters"),
    ]
    tops = [min(int(y) for y in re.findall(r" (\d+)", trace.path)) for trace in chart.traces]
    # 40 MiB is at 13 % from the top, 0 at the bottom: 30, 25 and 10 MiB, and the line of them all.
    assert tops == [round(1000 - 870 * size / 40) for size in (30, 25, 10, 30)]
    budget = next(mark for mark in chart.marks if mark.x is None)
    assert (budget.text, budget.y) == ("budget 40.0 MiB", 13.0)
    page = shown(MEMORY, replace(PLAN, budget_bytes=40 * MIB), names=["a/memory.json", "a/plan.json"])
    assert "temporaries, at most 5.0 MiB" in page.text and "budget 40.0 MiB" in page.text


def test_a_timeline_without_categories_is_split_at_what_was_there_before():
    for other in ({}, {"parameters": (1, 2)}):
        chart = timeline_chart(replace(MEMORY, timeline_by_category=other), 400)
        assert [trace.legend for trace in chart.traces] == ["made by it", "there before the step", ""]


def test_a_curve_keeps_its_extremes_and_its_peak():
    points = [(float(at), float(at * 7919 % 1000)) for at in range(10_000)]
    kept = thinned(points, 100, keep=4321)
    assert len(kept) <= 102 and points[4321] in kept and kept[0] == points[0] and kept[-1] == points[-1]
    assert max(y for _, y in kept) == 999 and min(y for _, y in kept) == 0
    assert kept == sorted(kept)


def test_a_value_that_is_not_finite_interrupts_the_line():
    frame = Frame(x_low=0, x_high=3, y_low=0, y_high=1)
    path = frame.line([(0, 0.0), (1, 1.0), (2, math.nan), (3, 0.0)])
    assert path == "M0 1000L333 130M1000 1000"


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 10) == [0, 2.5, 5, 7.5, 10]
    assert nice_ticks(3, 3) == [3]
    assert all(-0.7 <= tick <= 13.1 for tick in nice_ticks(-0.7, 13.1))
    assert span([5.0, 5.0]) == (2.5, 7.5) and span([math.nan]) == (0.0, 1.0) and span([1.0, 10.0]) == (0.0, 10.0)


def test_a_treemap_fills_its_box_in_the_proportion_of_the_bytes():
    sizes = [60, 30, 20, 7, 3, 1]
    boxes = squarify(sizes, (0, 0, 400, 100))
    areas = [width * height for _, _, width, height in boxes]
    assert areas == pytest.approx([size * 400 * 100 / sum(sizes) for size in sizes])
    for x, y, width, height in boxes:
        assert x >= -1e-9 and y >= -1e-9 and x + width <= 400 + 1e-6 and y + height <= 100 + 1e-6


def test_a_treemap_nests_modules_under_headings_and_stays_inside():
    tiles = treemap({"net.a.x": 50, "net.a.y": 40, "net.b": 30, "net.a": 20, "backward": 60, "gone": 0}, 10)
    assert [tile.label for tile in tiles if tile.is_group] == ["net", "a"]
    assert {tile.label for tile in tiles if not tile.is_group} == {"x", "y", "b", "itself", "backward"}
    assert sum(tile.num_bytes for tile in tiles if not tile.is_group) == 200
    for tile in tiles:
        assert 0 <= tile.x and tile.x + tile.width <= 100.5 and tile.y + tile.height <= HEIGHT + 1
    assert [tile.name for tile in treemap({"a": 3, "b": 2, "c": 1}, 1)] == ["a", "2 others"]
    assert treemap({}, 5) == [] and WIDTH > HEIGHT


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_in_dark():
    style = (Path(html.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", part)) for part in style.split(":root")[1:3]]
    assert len(schemes) == 2 and schemes[0]["page"] != schemes[1]["page"]
    for scheme in schemes:
        for name in ("ink", "soft", "accent", "good", "bad", "warn", "note", "gradients"):
            for behind in ("page", "card"):
                assert contrast(scheme[name], scheme[behind]) >= 4.5, (name, behind)

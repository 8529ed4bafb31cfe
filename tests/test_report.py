"""The report of a run made by hand, so that it can hold whatever a model or a user might write."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import artifacts, records, report
from pipeline.recipe import Recipe

HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></bdi></td><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)> {{ 7 * 7 }} {% raw %} &lt;',
    "javascript:alert(1) ' onmouseover='alert(1)",
    "\u202egnol\u2066 \u05e9\u05dc\u05d5\u05dd NUL:\x00 ESC:\x1b[31m DEL:\x7f",
    "x" * 1_000_000,
    "]]><!-- --><!doctype html>",
    "",
]


def completion(number: int, text: str, **more) -> dict:
    asked = [{"role": "user", "content": f"Question {number}? {HOSTILE[number % len(HOSTILE)]}"}]
    row = dict.fromkeys(records.DUPLICATES.names + records.WITHHELD.names + records.REJECTED.names)
    made = {"id": records.make_id(number), "prompt_id": records.make_id("p", number), "sample": 0, "messages": asked}
    return row | made | {"text": text, "finish_reason": "stop", "teacher": "t", "provider": "local"} | more


def model(accuracy: float | None, **more) -> dict:
    ci = None if accuracy is None else [max(0.0, accuracy - 0.05), min(1.0, accuracy + 0.05)]
    return {
        "name": "embedded", "accuracy": accuracy, "accuracy_ci": ci, "token_f1": accuracy, "token_f1_ci": ci,
        "nll": 0.41, "nll_ci": [0.38, 0.44], "agreement": 0.8, "rouge_l": 0.82, "chrf": 0.84, "parameters": 2_850_000,
        "disk_bytes": 11_400_000, "memory_bytes": 11_400_000,
        "peak_memory_bytes": 62_000_000, "usd_per_million_tokens": None, "tokens_per_s": 5120.0,
        "tokens_per_s_range": [5000.0, 5200.0], "latency_p50_s": 0.0123, "latency_p95_s": 0.02,
        "first_token_p50_s": 0.004, "first_token_p95_s": 0.006, "tokens_per_s_one": 410.0,
        "tokens_per_s_one_range": [400.0, 420.0], "agreement_ci": [0.7, 0.9], "rouge_l_ci": [0.7, 0.9],
        "chrf_ci": [0.8, 0.9], "unanswered": 0, "cut": 0,
    } | more  # fmt: skip


def scores_of(**models) -> dict:
    names = ("teacher", "student", "untrained", "random_subset")
    return {
        **{name: models.get(name) for name in names},
        "questions": 60, "questions_with_answers": 60, "questions_compared": 60,
        "retention": 0.985, "retention_ci": [0.95, 1.02],
        "speedup": 2.31, "latency_speedup": 1.8, "size_ratio": 0.25, "over_random_subset": 0.12,
        "over_random_subset_ci": [-0.01, 0.16],
        "measured": {"max_tokens": 64, "batch_size": 64, "tokens_each": 5, "rounds": 7, "latency_questions": 32,
                     "threads": 2, "device": "cpu", "usd_per_hour": None, "one_tokenizer": True, "bootstrap": 2000,
                     "seed": 0}, "usage": None, "over_budget": 0,
        "aims": [
            {"name": "retention", "text": "the student keeps at least 97%", "value": 0.985, "target": 0.97,
             "met": True},
            {"name": "filtered_beats_random", "text": "filtered answers teach more", "value": -0.01, "target": 0.0,
             "met": False},
        ],
        "unseen": {"rows": 64, "items": 60, "withheld_exact": 0, "withheld_overlap": 6},
        "cost": {
            "stages": {"collect": {"requests": 100, "input_tokens": 1234, "output_tokens": 567, "usd": 0.25},
                       "evaluate": {"requests": 60, "input_tokens": 100, "output_tokens": 50, "usd": 0.05}},
            "usd": 0.3, "unpriced": [], "kept": 64, "usd_per_kept": 0.25 / 64, "machine_s": 75.0, "machine_usd": None,
        },
    }  # fmt: skip


ALL = {
    "teacher": model(0.83),
    "student": model(0.82, parameters=700_000, tokens_per_s=11_800.0),
    "untrained": model(0.0, nll=7.6, nll_ci=[7.5, 7.7], parameters=700_000),
    "random_subset": model(0.70, nll=0.9, nll_ci=[0.8, 1.0], parameters=700_000),
}

METRICS = "".join(
    f'{{"model": "{name}", "step": {step}, "loss": {start / (1 + step / 40):.4f}}}\n'
    + (
        f'{{"model": "{name}", "step": {step}, "eval_loss": {start / (1 + step / 50):.4f}}}\n'
        if step % 100 == 0
        else ""
    )
    for name, start in (("student", 7.2), ("random_subset", 7.4))
    for step in range(10, 701, 10)
)


def predictions(models=tuple(ALL)) -> list[dict]:
    rows = []
    for number in range(60):
        text = HOSTILE[number % len(HOSTILE)] if number % 3 == 0 else f"answer {number}"
        for name in models:
            right = number % {"teacher": 5, "student": 4}.get(name, 1) != 0
            rows.append(
                {
                    "id": records.make_id(name, number),
                    "question_id": f"q{number}",
                    "model": name,
                    "topic": ["ships", "people", HOSTILE[0]][number % 3],
                    "question": f"Who is {number}? {text}",
                    "answers": [f"answer {number}", HOSTILE[1]],
                    "text": text if right else "no",
                    "exact": right,
                    "token_f1": float(right),
                    "nll": 0.5,
                    "output_tokens": 4,
                }
            )
    return rows


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder, complete up to train."""
    folder = tmp_path / "hand <b>made</b>"
    counts = {
        "generate": {"outcomes": {"prompts": 30}, "note": HOSTILE[0]},
        "collect": {
            "rows_in": 100, "outcomes": {"completions": 98, "failed": 2},
            "usage": {"input_tokens": 1234, "cached_tokens": 0, "output_tokens": 567, "cost_usd": 0.25},
        },
        "filter": {"rows_in": 98, "outcomes": {"kept": 78, "rejected": 20}, "reasons": {"agreement": 16, "cut_off": 4}},
        "dedupe": {"rows_in": 78, "outcomes": {"kept": 70, "duplicate": 8}, "reasons": {"exact": 8, "near": 0}},
        "assemble": {
            "rows_in": 70, "outcomes": {"train": 60, "validation": 4, "withheld": 6},
            "reasons": {"held_out_overlap": 6},
        },
        "train": {"note": "student of 700,000 parameters"},
    }  # fmt: skip
    for stage, count in counts.items():
        (folder / stage).mkdir(parents=True)
        manifest = {
            "stage": stage, "counts": count, "seconds": 12.5, "cpu_seconds": 20.1, "code": "0123456789abcdef+",
            "started": "2026-11-22T13:00:00+00:00", "python": "3.11.9", "packages": {"torch": "2.13.0"}, "files": {},
        }  # fmt: skip
        artifacts.write_json(folder / stage / "manifest.json", manifest)

    def write(stage: str, table: str, schema, rows) -> None:
        rows = [{name: row[name] for name in schema.names} for row in rows]
        artifacts.write_table(folder / stage / f"{table}.parquet", schema, sorted(rows, key=lambda row: row["id"]))

    rejected = [
        completion(n, HOSTILE[n % len(HOSTILE)], reason=reason, reasons=[reason, "too_short"], agreement=0.25)
        for n, reason in enumerate(["agreement"] * 16 + ["cut_off"] * 4)
    ]
    write("filter", "rejected", records.REJECTED, rejected)
    kept = [completion(100 + n, f"kept {n}", agreement=1.0) for n in range(9)]
    write("dedupe", "kept", records.KEPT, kept)
    twins = [completion(200 + n, "twin", reason="exact", duplicate_of=kept[n]["id"], similarity=1.0) for n in range(8)]
    write("dedupe", "duplicates", records.DUPLICATES, twins)
    withheld = [completion(300 + n, "hidden", reason="held_out_overlap", overlaps=f"q{n}") for n in range(6)]
    write("assemble", "withheld", records.WITHHELD, withheld)
    failed = [
        completion(400 + n, "") | {"reason": "rejected", "detail": HOSTILE[4 + n], "attempts": 3} for n in range(2)
    ]
    write("collect", "failures", records.FAILURES, failed)
    (folder / "train" / "metrics.jsonl").write_text(METRICS)
    return folder


RECIPE = Recipe.model_validate(
    {
        "domain": "toy",
        "collect": {"teachers": [{"provider": "local", "model": HOSTILE[1]}]},
        "train": {"sft": {"hub_token": "abc-def", "run_name": "hf_" + 20 * "x", "max_steps": 5}},
    }
)


def page_of(run: Path, scores: dict, rows: list[dict]) -> str:
    return report.build(run, RECIPE, scores, rows, run / "train" / "metrics.jsonl")


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained_and_hostile_text_is_only_text(run):
    page = page_of(run, scores_of(**ALL), predictions())
    reader = Reader(page)
    assert reader.tags.isdisjoint({"script", "img", "iframe", "link", "object", "embed", "form", "base"})
    assert not any(name.startswith("on") or name == "style" for name in reader.attributes)
    assert all(link.startswith("#") for link in reader.links)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "7 * 7" in page and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)
    assert len(page) < 250_000  # a million characters are cut, and their number said
    assert "(1,000,000 characters)" in page


def test_page_tells_the_whole_story(run):
    page = page_of(run, scores_of(**ALL), predictions())
    assert "The student keeps 98.5% of the teacher&#39;s accuracy" in page
    assert "100 answers were asked for = 2 failed + 20 rejected + 8 duplicate + 6 withheld + 64 kept." in page
    assert re.search(r'class="missed">missed</b>filtered answers teach more: the interval begins at -1.0 points', page)
    assert (
        "agreement: 16" in page and "held_out_overlap: 6" in page and "\nkept " in page
    )  # examples and what they repeat
    assert page.count("<polyline") == 4
    assert "Teachers and judges cost $0.30, $0.050 of it for this evaluation, $0.0039 for each of the 64 rows" in page
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "collect 12.5 s 20.1 s 1,234 567 $0.25" in said and "together 1 min 15 s 1,334 617 $0.30" in said
    assert "compared all 64 rows" in page and "withheld 0 rows" in page and "from one seed" in page
    assert page == page_of(run, scores_of(**ALL), predictions())  # the same bytes
    assert "&#34;max_steps&#34;: 5" in page and "abc-def" not in page and "hf_x" not in page


def test_long_training_is_thinned():
    lines = report.curve("training loss", {"student": [(step, 1 / step) for step in range(1, 100_001)]})["lines"]
    points = lines[0]["points"].split(" ")
    assert len(points) <= report.POINTS
    assert points[-1] == ",".join(str(place) for place in lines[0]["end"])


@pytest.mark.parametrize(
    ("steps", "labels"),
    [(1, ["0", "1"]), (5, ["0", "2", "4"]), (9, ["0", "3", "6", "9"]), (100, ["0", "25", "50", "75", "100"]),
     (5000, ["0", "2,000", "4,000"])],
)  # fmt: skip
def test_a_label_stands_where_its_step_is(steps, labels):
    """Of 5 steps they were 0, 1, 2, 4, 5 in equal distances."""
    chart = report.curve("training loss", {"student": [(step, 1.0) for step in range(1, steps + 1)]})
    assert [label for _, label in chart["steps"]] == labels
    wide = chart["right"] - chart["left"]
    for x, label in chart["steps"]:
        assert (x - chart["left"]) / wide == pytest.approx(int(label.replace(",", "")) / steps, abs=1e-3)


def test_coverage_in_words():
    coverage = {
        "facets": {"topic": {HOSTILE[0]: {"rows": 3, "plan": None}, "crew": {"rows": 5, "plan": 4.0}}, "task": {}},
        "taxonomy": {"crew": {"entries": 4, "touched": 1}}, "touched": 0.25, "distinct_n": {"1": 0.5, "2": None},
        "nearest": 0.1,
    }  # fmt: skip
    assert report.coverage_of(coverage) == [
        ("entities asked about", "25.0%: crew 1 of 4"),
        ("distinct wording", "50.0% of 1-grams"),
        ("likeness to the nearest other prompt", "0.10 (Jaccard, word 3-grams)"),
    ]


def test_facet_bars_are_parts_of_the_longest():
    topic = {
        HOSTILE[0]: {"rows": 1, "plan": None, "kept": 2, "kept_plan": None},
        "crew": {"rows": 3, "plan": 4.0, "kept": 6, "kept_plan": 8.0},
        "ships": {"rows": 0, "plan": 0.0, "kept": 0, "kept_plan": 0.0},
    }
    (facet,) = report.facet_bars({"facets": {"topic": topic, "task": {}}})
    crew, hostile, ships = facet["bars"]
    assert (facet["facet"], facet["more"], crew["value"], hostile["value"]) == ("topic", 0, "crew", HOSTILE[0])
    assert crew["widths"] == {"rows": 75.0, "plan": 100.0, "kept": 75.0} and hostile["widths"]["plan"] is None
    assert ships["widths"] == {"rows": 0.0, "plan": 0.0, "kept": 0.0}
    many = {str(n): {"rows": n, "plan": 1.0} for n in range(50)}
    (facet,) = report.facet_bars({"facets": {"persona": many}})
    assert facet["more"] == 50 - report.FACET_VALUES and facet["bars"][0]["rows"] == 49
    assert (
        report.facet_bars({"facets": {"topic": {"a": {"rows": 0, "plan": 0.0}}}})[0]["bars"][0]["widths"]["rows"]
        is None
    )


def test_the_page_shows_rows_against_the_plan_and_the_rounds(run):
    path = run / "generate" / "manifest.json"
    manifest = json.loads(path.read_text())
    value = {"rows": 30, "plan": 20.0, "kept": 12, "kept_plan": 13.5}
    manifest["counts"]["coverage"] = {
        "facets": {"topic": {HOSTILE[1]: value, "crew": {"rows": 0, "plan": 0.0, "kept": 0, "kept_plan": 0.0}}},
        "taxonomy": {}, "touched": None, "distinct_n": {}, "nearest": None,
    }  # fmt: skip
    rounds = [{"prompts": 30, "answers": 60, "gained": 12, "kept": 12, "acceptance": 0.2}]
    manifest["counts"]["target"] = {"wanted": 1000, "kept": 12, "rounds": rounds}
    path.write_text(json.dumps(manifest))
    page = page_of(run, scores_of(**ALL), predictions())
    reader = Reader(page)
    assert reader.tags.isdisjoint({"script", "img"}) and "style" not in reader.attributes
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "until 1,000 rows were kept after dedupe, and ended before: 12 were." in said
    assert "30 of 20 12 of 14" in said and "20.0%" in said


def test_side_by_side_puts_differences_first():
    kinds = [row["kind"] for row in report.side_by_side(predictions())]
    assert kinds == ["differ"] * 10 + ["both right"] * 4 + ["both wrong"] * 3


def test_without_accepted_answers_nobody_is_right(run):
    rows = [row | {"exact": None, "answers": [], "text": " " if row["question_id"] == "q1" else "yes"}
            for row in predictions()]  # fmt: skip
    assert [row["kind"] for row in report.side_by_side(rows)] == ["the same"] * 4
    scores = scores_of(**ALL) | {"questions_with_answers": 0}
    page = page_of(run, scores, [row for row in rows if row["question_id"] in ("q1", "q2")])
    assert "both right" not in page and "to which both say the same" in page and "(nothing)" in page


def test_without_teacher_or_answers(run):
    blank = model(None, agreement=None, rouge_l=None, chrf=None, nll=None, nll_ci=None)
    scores = scores_of(student=blank, untrained=blank)
    scores |= {"retention": None, "retention_ci": None, "speedup": None, "latency_speedup": None, "size_ratio": None}
    scores |= {"over_random_subset": None, "over_random_subset_ci": None, "aims": [], "questions_with_answers": 0}
    rows = [row | {"exact": None, "token_f1": None, "answers": []} for row in predictions(("student", "untrained"))]
    (run / "train" / "metrics.jsonl").write_text("")
    page = page_of(run, scores, rows)
    Reader(page)
    assert "there is no teacher to ask" in page and "polyline" not in page
    assert "Some questions." in page and "both" not in page and "answered</th>" in page
    text = shown(scores)
    assert "untrained" in text
    page = page_of(run, scores | {"questions_with_answers": 60}, predictions(("student", "untrained")))
    assert "that the student got right and some that it got wrong" in page and "both" not in page
    kinds = [row["kind"] for row in report.side_by_side(predictions(("student", "untrained")))]
    assert kinds == ["right"] * 8 + ["wrong"] * 8


def test_agreement_without_accepted_answers():
    scores = scores_of(teacher=model(None, agreement=None), student=model(None))
    scores |= {"retention": None, "questions_with_answers": 0}
    assert report.headline(scores) == (
        "the student says what the teacher says on 80.0% of 60 held-out questions, has 25% of its parameters and is "
        "2.31 times as fast"
    )


@pytest.mark.parametrize(
    ("changes", "teacher", "student", "said"),
    [
        ({"retention": None}, 0.0, 0.25,
         "the student has nothing of the teacher's accuracy to keep, for the teacher answers none of 60 held-out "
         "questions right (the student 25.0%), has 25% of its parameters and is 2.31 times as fast"),
        ({"retention": None, "questions_compared": 0}, None, 0.25,
         "the teacher answered none of 60 held-out questions, so there is nothing to compare with; the student answers "
         "25.0% of 60 held-out questions right"),
        ({"retention": None, "questions_with_answers": 0, "questions_compared": 0}, None, None,
         "the teacher answered none of 60 held-out questions, so there is nothing to compare with"),
        ({"retention": 1.0, "questions_with_answers": 1}, 1.0, 1.0,
         "the student keeps 100.0% of the teacher's accuracy (100.0% of 1 held-out question, the teacher 100.0%), has "
         "25% of its parameters and is 2.31 times as fast"),
    ],
)  # fmt: skip
def test_the_headline_says_what_can_be_said(changes, teacher, student, said):
    assert report.headline(scores_of(teacher=model(teacher), student=model(student)) | changes) == said


def test_the_headline_says_that_the_teacher_did_not_answer_all():
    scores = scores_of(teacher=model(0.9, unanswered=2), student=model(0.8))
    assert "(80.0% of 60 held-out questions, the teacher 90.0% of those that it answered)" in report.headline(scores)


def shown(scores: dict) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.terminal_table(scores))
    return console.export_text()


def test_terminal_table():
    text = shown(scores_of(**ALL))
    assert "82.0% (77-87)" in text and "700 k" in text and "11,800" in text and "410" in text and "6.0 ms" in text
    assert "Missed: filtered answers teach more" in text and "Missed: the student keeps" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2_850_000, "2.85 M"), (700_000, "700 k"), (999_999, "1 M"), (999, "999"), (12, "12"), (7e9, "7 G"), (None, "")],
)
def test_amount(value, text):
    assert report.amount(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_duration(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "$0.00"), (1234.5, "$1,234.50"), (0.1, "$0.10"), (0.0039, "$0.0039"), (2e-6, "$0.0000020")],
)
def test_dollars(value, text):
    assert report.dollars(value) == text


def test_an_aim_says_how_sure_it_is_and_a_spent_budget_what_to_do(run):
    scores = scores_of(**ALL) | {"over_budget": 3}
    scores["aims"] = [scores["aims"][0] | {"interval": [0.95, 1.021]}, scores["aims"][1]]
    said = "The budget was spent before 3 of its requests: a larger collect.budget_usd with --from evaluate sends them"
    page = page_of(run, scores, predictions())
    assert "at least 97%: 98.5%; 95% interval 95.0 to 102.1</li>" in page and said in page
    assert said[:60] in " ".join(shown(scores).split()) and "budget" not in shown(scores_of(**ALL))


def test_benchmarks_show_a_group_and_not_its_parts():
    def task(group: str | None, value: float) -> dict:
        figures = {"acc": {"value": value, "stderr": 0.01}, "perplexity": {"value": 12.0, "stderr": None}}
        about = {"part_of": group, "questions": 1200, "num_fewshot": 5, "higher_is_better": {"acc": True}}
        return about | {"models": {"student": figures}}

    found = {"tasks": {"whole": task(None, 0.5), "part": task("whole", 0.4), "alone": task("not reported", 0.3)}}
    rows = report.benchmarks(scores_of(**ALL) | {"harness": found})
    assert [name for name, _, _ in rows] == ["whole: acc", "whole: perplexity", "alone: acc", "alone: perplexity"]
    _, about, values = rows[0]
    assert about == "1,200 questions, 5 worked examples, higher is better"
    assert values == [("", ""), ("0.5", "± 0.01"), ("", ""), ("", "")]


def test_what_a_judge_said_is_counted_honestly():
    found = {
        "name": "wise", "questions": 12, "win": 1, "tie": 4, "loss": 0, "unjudged": 7, "tie_same": 1, "tie_order": 3,
        "unanswered": 5, "win_rate": 0.6, "win_rate_ci": [0.5, 0.8],
    }  # fmt: skip
    assert report.judged(found) == (
        "wise judged 5 of 12 answers beside the teacher's: 1 won, 4 tied (1 the same answer, not asked about; 3 "
        "decided by the order), 0 lost; win rate 60.0% (50 to 80), ties half; 7 without a verdict (5 not answered)."
    )
    nothing = dict.fromkeys(("win", "tie", "loss", "tie_same", "tie_order"), 0) | {
        "win_rate": None,
        "win_rate_ci": None,
    }
    found |= nothing | {"unjudged": 12}
    assert report.judged(found) == "wise gave no verdict on any of 12 questions (5 not answered)."

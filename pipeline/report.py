"""What a run came to, for a person: report.html (one self-contained file, no script) and the table in the terminal.

`build` gathers plain data from the run's folder and hands it to report.html.jinja; everything that came from a model, a
file or a recipe is escaped there, and a Content-Security-Policy lets the page load and run nothing.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifacts, asking, flow, questions
from pipeline.recipe import Recipe
from pipeline.records import Row, make_id

if TYPE_CHECKING:
    from rich.console import RenderableType

LABELS = {
    "teacher": "teacher",
    "student": "student",
    "untrained": "student, untrained",
    "random_subset": "student on a random subset",
}
EXAMPLES = 3  # a reason
FACET_VALUES = 20
SIDE_BY_SIDE = {"differ": 10, "both right": 4, "both wrong": 4, "the same": 4, "right": 8, "wrong": 8, "answered": 8}
LONGEST = 700  # characters of a text that are shown

# --- words and numbers -----------------------------------------------------------------------------------------------


def headline(scores: dict[str, Any]) -> str:
    """The result in one sentence."""
    teacher, student = scores["teacher"], scores["student"]
    asked, gold = counted(scores["questions"]), counted(scores["questions_with_answers"])
    right = f"the student answers {percent(student['accuracy'])} of {gold} right"
    if teacher is None:
        return right if student["accuracy"] is not None else f"the student answered {asked}"
    if not scores["questions_compared"]:
        said = f"the teacher answered none of {asked}, so there is nothing to compare with"
        return f"{said}; {right}" if student["accuracy"] is not None else said
    parts = []
    if scores["retention"] is not None:
        # Else 8.3% of 12 beside 10.0% (of 10) would hardly be all of the teacher's accuracy.
        only = " of those that it answered" if teacher["unanswered"] else ""
        parts.append(
            f"keeps {percent(scores['retention'])} of the teacher's accuracy "
            f"({percent(student['accuracy'])} of {gold}, the teacher {percent(teacher['accuracy'])}{only})"
        )
    elif teacher["accuracy"] == 0:
        parts.append(
            f"has nothing of the teacher's accuracy to keep, for the teacher answers none of {gold} right (the student "
            f"{percent(student['accuracy'])})"
        )
    else:
        compared = counted(scores["questions_compared"])
        parts.append(f"says what the teacher says on {percent(student['agreement'])} of {compared}")
    if scores["size_ratio"] is not None:
        parts.append(f"has {percent(scores['size_ratio'], 0)} of its parameters")
    if scores["speedup"] is not None:
        parts.append(f"is {scores['speedup']:.2f} times as fast")
    return "the student " + " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def counted(questions: int) -> str:
    """1,407 held-out questions, 1 held-out question."""
    return f"{questions:,} held-out question{'' if questions == 1 else 's'}"


def cut_off(scores: dict[str, Any]) -> str | None:
    """That the teacher had more to say than it was let, in a sentence; None if it had not."""
    if not scores["teacher"] or not scores["teacher"]["cut"]:
        return None
    return (
        f"{scores['teacher']['cut']:,} of the teacher's answers are longer than evaluate.max_tokens "
        f"({scores['measured']['max_tokens']:,}) and were cut there, as every model's are: raise it to compare whole "
        "ones."
    )


def unasked(scores: dict[str, Any]) -> str | None:
    """That the budget ended before all was asked, in a sentence; None if it did not."""
    return asking.over_budget(scores["over_budget"], "evaluate") if scores["over_budget"] else None


def percent(value: float | None, digits: int = 1) -> str:
    """0.724 as 72.4%; nothing for None."""
    return "" if value is None else f"{100 * value:.{digits}f}%"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return "" if seconds is None else f"{1000 * seconds:,.1f} ms"


def amount(value: float | None, unit: str = "") -> str:
    """2850000 as 2.85 M, with a unit behind it."""
    if value is None:
        return ""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # 999,999 is 1 M, not 1000 k
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 20 s or 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plain(text: str) -> str:
    """A text as it may be shown: control characters made visible, and what is too long cut with its length said."""
    # U+2400 and on are pictures of the control characters; tabs and line ends stay.
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text[: LONGEST + 1])
    shown = shown.replace("\x7f", "\u2421")
    return shown if len(text) <= LONGEST else f"{shown[:LONGEST]} … ({len(text):,} characters)"


def _between(interval: Sequence[float] | None, scale: float = 1, digits: int = 3) -> str:
    return "" if interval is None else " to ".join(_digits(end, scale, digits) for end in interval)


def figures(scores: dict[str, Any], digits: int = 1) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The comparison: (what, its explanation, for each model the figure and its interval); rows without any figure are
    left out. digits: of the ends of an interval in percent."""
    models = [scores[name] for name in LABELS if scores[name]]
    measured = scores["measured"]
    rows = [
        ("accuracy", "exact match with an accepted answer, but for case, punctuation and articles",
         [(percent(m["accuracy"]), _between(m["accuracy_ci"], 100, digits)) for m in models]),
        ("token F1", "words shared with the best accepted answer: F1",
         [(percent(m["token_f1"]), _between(m["token_f1_ci"], 100, digits)) for m in models]),
        ("NLL", "nats a token of the teacher's answers; lower is closer" if measured["one_tokenizer"] else
         "nats a token of the teacher's answers; not comparable: the models have different tokenizers",
         [(_digits(m["nll"]), _between(m["nll_ci"])) for m in models]),
        *(
            (what, meaning, [(percent(m[key]), _between(m[f"{key}_ci"], 100, digits)) for m in models])
            for what, meaning, key in (
                ("agreement", "the same answer as the teacher, right or wrong", "agreement"),
                ("ROUGE-L", "words shared with the teacher's answer in its order: F1", "rouge_l"),
                ("chrF", "runs of 1 to 6 characters shared with the teacher's answer: F2", "chrf"),
            )
        ),
        ("not answered", "the question is too long for the model, or its provider failed",
         [(f"{m['unanswered']:,}" if any(m["unanswered"] for m in models) else "", "") for m in models]),
        ("cut off", f"answers that reached evaluate.max_tokens ({measured['max_tokens']:,}) and end there",
         [(f"{m['cut']:,}" if any(m["cut"] for m in models) else "", "") for m in models]),
        ("parameters", "weights of the model, as many numbers", [(amount(m["parameters"]), "") for m in models]),
        ("on disk", "the model's folder", [(amount(m["disk_bytes"], "B"), "") for m in models]),
        ("memory", "weights and a full batch, at the most",
         [(amount(m["peak_memory_bytes"], "B"), "") for m in models]),
        ("tokens/s, batch", f"{measured['batch_size']} questions at once, {measured['tokens_each']} tokens each; "
         f"median and range of {measured['rounds']} rounds",
         [(_digits(m["tokens_per_s"], 1, 0), _between(m["tokens_per_s_range"], 1, 0)) for m in models]),
        ("tokens/s, one", f"one question at a time, {measured['tokens_each']} tokens; median and range",
         [(_digits(m["tokens_per_s_one"], 1, 0), _between(m["tokens_per_s_one_range"], 1, 0)) for m in models]),
        ("latency p50", f"the median, from question to whole answer; asked one by one: {measured['latency_questions']}",
         [(milliseconds(m["latency_p50_s"]), "") for m in models]),
        ("latency p95", "95 of 100 are faster", [(milliseconds(m["latency_p95_s"]), "") for m in models]),
        ("first token p50", "the median, from question to first token",
         [(milliseconds(m["first_token_p50_s"]), "") for m in models]),
        ("first token p95", "95 of 100 are faster", [(milliseconds(m["first_token_p95_s"]), "") for m in models]),
        ("$ per M tokens", f"US dollars a million tokens in full batches, at {measured['usd_per_hour'] or 0:g} an hour",
         [(_digits(m["usd_per_million_tokens"], 1, 4), "") for m in models]),
    ]  # fmt: skip
    return [row for row in rows if any(value for value, _ in row[2])]


def benchmarks(scores: dict[str, Any]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The results of evaluate.harness as of `figures`, with standard errors. A task that is part of a group is left out
    where the group itself has a result."""
    if "harness" not in scores:
        return []
    found = scores["harness"]
    models = [name for name in LABELS if scores[name]]
    rows = []
    for task, result in found["tasks"].items():
        if result["part_of"] in found["tasks"]:
            continue
        shots, questions = result["num_fewshot"], result["questions"]
        how = [f"{questions:,} questions" if questions else "", "" if shots is None else f"{shots} worked examples"]
        for metric in dict.fromkeys(metric for metrics in result["models"].values() for metric in metrics):
            up = result["higher_is_better"].get(metric)
            better = [] if up is None else ["higher is better" if up else "lower is better"]
            values = []
            for name in models:
                figure = result["models"].get(name, {}).get(metric)
                error = figure and figure["stderr"]
                values.append((f"{figure['value']:.3g}" if figure else "", "" if error is None else f"± {error:.2g}"))
            rows.append((f"{task}: {metric}", ", ".join(part for part in (*how, *better) if part), values))
    return rows


def costs_in_words(cost: dict[str, Any]) -> str:
    """What the data cost, in a sentence; nothing if no teacher has a price and nobody said what the machine costs."""
    parts = []
    if cost["usd"] is not None:
        each = cost["usd_per_kept"]
        row = "" if each is None else f", {dollars(each)} for each of the {cost['kept']:,} rows of training data"
        evaluated = cost["stages"].get("evaluate", {}).get("usd")
        own = f", {dollars(evaluated)} of it for this evaluation" if evaluated else ""
        parts.append(f"Teachers and judges cost {dollars(cost['usd'])}{own}{row}.")
        if cost["unpriced"]:
            parts.append(f"Without a price, and not in it: {', '.join(cost['unpriced'])}.")
    if cost["machine_usd"] is not None:
        took = duration(cost["machine_s"])
        parts.append(f"The stages before this one took the machine {took}: {dollars(cost['machine_usd'])}.")
    return " ".join(parts)


def _together(cost: dict[str, Any]) -> dict[str, Any]:
    """Tokens and dollars of all stages."""
    names = ("input_tokens", "output_tokens", "usd")
    return {name: sum(figures[name] for figures in cost["stages"].values()) for name in names}


def dollars(value: float) -> str:
    """12.5 as $12.50; small amounts with two digits that say something."""
    if value == 0 or value >= 0.1:
        return f"${value:,.2f}"
    return f"${value:.{1 - math.floor(math.log10(value))}f}"


def identity(run: Path, recipe: Recipe) -> str:
    """A hash of all that determines how a run's student answers the held-out questions, but for its seed: what an
    ablation and an evaluation have in common if they are about the same student. The stage train is complete."""
    manifest = flow.read_manifest(run, "train")
    assert manifest
    basis = manifest["basis"]
    train = {name: value for name, value in basis["recipe"]["train"].items() if name not in ("seed", "baselines")}
    inputs = {name: digest for name, digest in basis["inputs"].items() if name != "assemble/random_subset"}
    exam = sorted([one.id, list(one.messages), list(one.answers)] for one in questions.held_out(recipe))
    return make_id(basis["version"], train, inputs, exam, recipe.evaluate.max_tokens)


def ablated(run: Path, recipe: Recipe) -> tuple[str | None, bool]:
    """What `seqkd ablate` found for this very student over several seeds, in a sentence, None if nothing; and whether
    the run has an ablation of another one: of an earlier recipe, of other data or questions."""
    path = run / "ablation.json"
    if not path.is_file():
        return None, False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None, True
    own = identity(run, recipe)
    student = next((row for row in found["variants"] if row.get("identity") == own), None)
    if student is None:
        return None, True
    ends, seeds = _between(student["accuracy_ci"], 100, 1), student["by_seed"]
    each = ", ".join(percent(value) for value in seeds)
    several = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return (
        f"An ablation of this run trained the student with {several}: {percent(student['accuracy'])} ({ends}) of "
        f"{found['questions']:,} questions, by seed {each}. ablation.md beside this folder has the whole table."
    ), False


def _digits(value: float | None, scale: float = 1, digits: int = 3) -> str:
    return "" if value is None else f"{scale * value:,.{digits}f}"


def terminal_table(scores: dict[str, Any]) -> "RenderableType":
    """The comparison, the headline and each missed aim, for rich's Console.print."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    # A column for each model, so that the table is as long as there are figures but never wider than a terminal.
    models = [name for name in LABELS if scores.get(name)]
    table = Table(
        title=f"{counted(scores['questions'])}; in brackets 95% intervals",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", overflow="fold")
    for name in models:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for what, _, values in figures(scores, digits=0):
        # Intervals here only where they tell how sure a result is.
        sure = what in ("accuracy", "token F1", "agreement")
        table.add_row(what, *(f"{v} ({ends.replace(' to ', '-')})" if sure and ends else v for v, ends in values))
    for what, _, values in benchmarks(scores):
        table.add_row(Text(what), *(" ".join(value) for value in values))
    said = headline(scores)
    lines = [Text(f"{said[0].upper()}{said[1:]}.")]
    if "judge" in scores:
        lines.append(Text(judged(scores["judge"])))
    lines += [Text(said, style="yellow") for said in (cut_off(scores), unasked(scores)) if said]
    if costs := costs_in_words(scores["cost"]):
        lines.append(Text(costs))
    lines += [
        Text(f"Missed: {aim['text']} ({said_of(aim)}).", style="yellow") for aim in scores["aims"] if not aim["met"]
    ]
    return Group(table, *lines)


def judged(verdict: dict[str, Any]) -> str:
    """What evaluate's judge found, in a sentence or two."""
    questions, none = verdict["questions"], verdict["unjudged"]
    failed = f" ({verdict['unanswered']:,} not answered)" if verdict["unanswered"] else ""
    if verdict["win_rate"] is None:
        return f"{verdict['name']} gave no verdict on any of {questions:,} questions{failed}."
    kinds = {"tie_same": "the same answer, not asked about", "tie_order": "decided by the order"}
    ties = "; ".join(f"{verdict[kind]:,} {why}" for kind, why in kinds.items() if verdict[kind])
    return (
        f"{verdict['name']} judged {questions - none:,} of {questions:,} answers beside the teacher's: "
        f"{verdict['win']:,} won, {verdict['tie']:,} tied{f' ({ties})' if ties else ''}, {verdict['loss']:,} lost; "
        f"win rate {percent(verdict['win_rate'])} ({_between(verdict['win_rate_ci'], 100, 0)}), ties half"
        + (f"; {none:,} without a verdict{failed}." if none else ".")
    )


def said_of(aim: dict[str, Any]) -> str:
    """The value of an aim in the unit in which the aim is given, and how sure it is."""
    if aim["name"] == "speedup":
        return f"{aim['value']:.2f} times"
    if aim["name"] == "filtered_beats_random":
        return f"the interval begins at {100 * aim['value']:+.1f} points"
    ends = _between(aim.get("interval"), 100, 1)  # scores of version 4 have none, and push reads them
    return percent(aim["value"]) + (f"; 95% interval {ends}" if ends else "")


_SECRET = re.compile(r"hub_token|api_?key|secret|password|authorization", re.IGNORECASE)
_KEY = re.compile(r"\b(?:sk|hf|pk|key)[-_][A-Za-z0-9_-]{16,}")


def without_keys(value: Any) -> Any:
    """A part of a recipe without what is called a key; what looks like one is replaced."""
    if isinstance(value, Mapping):
        told = {name: part for name, part in value.items() if name == "api_key_env" or not _SECRET.search(str(name))}
        return {without_keys(name): without_keys(part) for name, part in told.items()}
    if isinstance(value, list):
        return [without_keys(part) for part in value]
    return _KEY.sub("(left out)", value) if isinstance(value, str) else value


# --- what the page shows ---------------------------------------------------------------------------------------------


def build(run: Path, recipe: Recipe, scores: dict[str, Any], predictions: list[Row], metrics: Path) -> str:
    """The page. `run`: the run's folder, complete up to train; `metrics`: train's metrics.jsonl."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    style = (here / "report.css").read_text(encoding="utf-8")
    before = flow.STAGES[: flow.STAGES.index("evaluate")]
    manifests = {stage: manifest for stage in before if (manifest := flow.read_manifest(run, stage))}
    account = flow.account(run)
    said = headline(scores)
    repeated, outdated = ablated(run, recipe)
    asked = {row["question_id"]: row["question"] for row in predictions}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        plain=plain, percent=percent, amount=amount, duration=duration, dollars=dollars, said_of=said_of
    )
    return environment.from_string((here / "report.html.jinja").read_text(encoding="utf-8")).render(
        style=Markup(style),
        # The policy allows this very style sheet and nothing else.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        run=run.name,
        domain=recipe.domain,
        headline=f"{said[0].upper()}{said[1:]}.",
        scores=scores,
        cut_off=cut_off(scores),
        unasked=unasked(scores),
        judged=judged(scores["judge"]) if "judge" in scores else None,
        models=[(name, LABELS[name], scores[name]["name"]) for name in LABELS if scores[name]],
        rows=figures(scores),
        whiskers=whiskers(scores),
        account=account,
        benchmarks=benchmarks(scores),
        cost=scores["cost"],
        costs=costs_in_words(scores["cost"]),
        together=_together(scores["cost"]),
        repeated=repeated,
        outdated=outdated,
        bar=bar(account, manifests),
        stages=[(stage, flow.outcomes(manifests[stage]), manifests[stage]["seconds"]) for stage in manifests],
        manifests=manifests,
        rejected=examples(run / "filter" / "rejected.parquet", _reasons(manifests, "filter")),
        duplicates=with_originals(
            examples(run / "dedupe" / "duplicates.parquet", _reasons(manifests, "dedupe")),
            "duplicate_of",
            run / "dedupe" / "kept.parquet",
        ),
        withheld=with_originals(
            examples(run / "assemble" / "withheld.parquet", _reasons(manifests, "assemble")),
            "overlaps",
            run / "dedupe" / "kept.parquet",
            asked,
        ),
        failed=failures(run / "collect" / "failures.parquet"),
        curves=[curve(title, lines) for title, lines in losses(metrics).items() if lines],
        answers=side_by_side(predictions),
        topics=topics(predictions),
        coverage=coverage_of(manifests["generate"]["counts"]["coverage"]) if _has_coverage(manifests) else [],
        facets=facet_bars(manifests["generate"]["counts"]["coverage"]) if _has_coverage(manifests) else [],
        target=manifests.get("generate", {}).get("counts", {}).get("target"),
        recipe=json.dumps(without_keys(recipe.model_dump(mode="json")), indent=2, ensure_ascii=False),
    )


def _reasons(manifests: dict[str, Any], stage: str) -> dict[str, int]:
    counts: dict[str, int] = manifests[stage]["counts"].get("reasons", {}) if stage in manifests else {}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def examples(table: Path, reasons: dict[str, int]) -> list[dict[str, Any]]:
    """A few rows of each reason, the commonest reason first. Ids are hashes, so the first rows are as good as drawn."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    groups: list[dict[str, Any]] = [
        {"reason": reason, "count": count, "rows": []} for reason, count in reasons.items() if count
    ]
    if not groups or not table.is_file():
        return groups
    columns = [name for name in pq.read_schema(table).names if name != "logprobs"]
    for batch in artifacts.read_batches(table, columns):
        lacking = [group for group in groups if len(group["rows"]) < min(EXAMPLES, group["count"])]
        if not lacking:
            break
        for group in lacking:
            found = batch.filter(pc.equal(batch["reason"], group["reason"]))
            for row in found.slice(0, EXAMPLES - len(group["rows"])).to_pylist():
                group["rows"].append({**row, "question": row["messages"][-1]["content"], "original": None})
    return groups


def with_originals(
    groups: list[dict[str, Any]], column: str, kept: Path, questions: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Adds to each example the text of the row or held-out question that `column` names, as `original`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    ids = sorted({row[column] for group in groups for row in group["rows"] if row[column]})
    texts = dict(questions or {})
    if ids and kept.is_file():
        for row in pq.read_table(
            kept, columns=["id", "messages", "text"], filters=pc.field("id").isin(ids)
        ).to_pylist():
            texts[row["id"]] = f"{row['messages'][-1]['content']}\n{row['text']}"
    for group in groups:
        for row in group["rows"]:
            row["original"] = texts.get(row[column])
    return groups


def _has_coverage(manifests: dict[str, Any]) -> bool:
    return "coverage" in manifests.get("generate", {}).get("counts", {})


def coverage_of(coverage: dict[str, Any]) -> list[tuple[str, str]]:
    """What generate says of its prompts (see pipeline.coverage), in words: (what, how much of it)."""
    lines = []
    if coverage["touched"] is not None:
        topics = (
            f"{topic} {entry['touched']:,} of {entry['entries']:,}" for topic, entry in coverage["taxonomy"].items()
        )
        lines.append(("entities asked about", f"{percent(coverage['touched'])}: {', '.join(topics)}"))
    distinct = (f"{percent(share)} of {n}-grams" for n, share in coverage["distinct_n"].items() if share is not None)
    lines.append(("distinct wording", ", ".join(distinct)))
    if coverage["nearest"] is not None:
        lines.append(("likeness to the nearest other prompt", f"{coverage['nearest']:.2f} (Jaccard, word 3-grams)"))
    return lines


def facet_bars(coverage: dict[str, Any]) -> list[dict[str, Any]]:
    """For each facet that prompts have, its values with their parts of the prompts, of the plan and, where generate
    counted them, of the kept rows, in percent of the longest bar; the commonest value first."""
    facets = []
    for facet, values in coverage["facets"].items():
        totals = {name: sum(entry.get(name) or 0 for entry in values.values()) for name in ("rows", "plan", "kept")}
        bars = []
        for value, entry in values.items():
            parts = {
                name: entry[name] / totals[name] if entry.get(name) is not None and totals[name] else None
                for name in totals
            }
            bars.append({"value": value, "kept": None, **entry, "parts": parts})
        longest = max((part for one in bars for part in one["parts"].values() if part is not None), default=0.0)
        for one in bars:
            one["widths"] = {k: None if part is None else 100 * part / longest for k, part in one["parts"].items()}
        bars.sort(key=lambda one: (-one["rows"], one["value"]))
        if bars:
            more = max(0, len(bars) - FACET_VALUES)
            facets.append({"facet": facet, "bars": bars[:FACET_VALUES], "more": more})
    return facets


def failures(table: Path) -> list[Row]:
    """A few requests that failed."""
    if not table.is_file():
        return []
    rows = []
    for row in artifacts.read_rows(table, ["messages", "reason", "detail"]):
        rows.append({**row, "question": row["messages"][-1]["content"]})
        if len(rows) == 2 * EXAMPLES:
            break
    return rows


def side_by_side(predictions: Iterable[Row]) -> list[dict[str, Any]]:
    """Questions with every model's answer: those where student and teacher differ first, then some that both got right
    and some that both got wrong, or where no answer is right or wrong, some to which both say the same. Without a
    teacher some that the student got right and some that it got wrong."""
    questions: dict[str, dict[str, Any]] = {}
    for row in sorted(predictions, key=lambda row: row["id"]):
        about = {key: row[key] for key in ("topic", "question", "answers")}
        questions.setdefault(row["question_id"], {**about, "by": {}})["by"][row["model"]] = row
    chosen: list[dict[str, Any]] = []
    taken = dict.fromkeys(SIDE_BY_SIDE, 0)
    for question in questions.values():
        student = question["by"]["student"]
        teacher = question["by"].get("teacher")
        if teacher is None:
            kind = {True: "right", False: "wrong", None: "answered"}[student["exact"]]
        elif student["exact"] is None:
            kind = "differ" if student["text"].strip() != teacher["text"].strip() else "the same"
        elif student["exact"] == teacher["exact"]:
            kind = "both right" if student["exact"] else "both wrong"
        else:
            kind = "differ"
        if taken[kind] < SIDE_BY_SIDE[kind]:
            taken[kind] += 1
            chosen.append({**question, "kind": kind})
    order = list(SIDE_BY_SIDE)
    return sorted(chosen, key=lambda question: order.index(question["kind"]))


def topics(predictions: Iterable[Row]) -> list[dict[str, Any]]:
    """Accuracy by topic: {"topic", "questions", model: share right}, the largest topic first."""
    right: dict[str, dict[str, list[bool]]] = {}
    for row in predictions:
        if row["exact"] is not None:
            right.setdefault(row["topic"] or "other", {}).setdefault(row["model"], []).append(row["exact"])
    found: list[dict[str, Any]] = [
        {"topic": topic, "questions": len(models["student"]), **{m: sum(x) / len(x) for m, x in models.items()}}
        for topic, models in right.items()
    ]
    return sorted(found, key=lambda row: (-row["questions"], row["topic"])) if len(found) > 1 else []


# --- drawings: numbers for the SVG in the template -------------------------------------------------------------------

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30
POINTS = 400


def losses(metrics: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """title -> model -> [(step, loss)], from train's metrics.jsonl."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {"training loss": {}, "validation loss": {}}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        for title, key in (("training loss", "loss"), ("validation loss", "eval_loss")):
            if isinstance(event.get(key), int | float) and math.isfinite(event[key]):
                found[title].setdefault(event["model"], []).append((event["step"], event[key]))
    return found


def curve(title: str, lines: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """A line chart: where each line's points, the axis' ticks and the labels go, in pixels."""
    steps = max(x for line in lines.values() for x, _ in line) or 1
    top = max(y for line in lines.values() for _, y in line) or 1.0
    every = _step(top)
    highest = math.ceil(top / every - 1e-9) * every

    def x_of(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / steps, 1)

    def y_of(loss: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * loss / highest, 1)

    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "floor": HEIGHT - BOTTOM,
        "ticks": [(y_of(i * every), f"{i * every:g}") for i in range(round(highest / every) + 1)],
        "steps": [(x_of(step), f"{step:,}") for step in range(0, int(steps) + 1, math.ceil(_step(steps)))],
        "lines": [
            {
                "model": model,
                "label": LABELS.get(model, model),
                # No more points than the eye can tell apart, and the last one always.
                "points": " ".join(f"{x_of(x)},{y_of(y)}" for x, y in points[::-1][:: 1 + len(points) // POINTS][::-1]),
                "end": (x_of(points[-1][0]), y_of(points[-1][1])),
                "last": f"{points[-1][1]:.3f}",
            }
            for model, points in lines.items()
        ],
    }


def _step(top: float) -> float:
    """A round distance between ticks, for about four of them up to `top`."""
    rough = top / 4
    power = float(10 ** math.floor(math.log10(rough)))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)


def whiskers(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy and its interval of each model as shares of the axis from 0 to 1, for a dot with whiskers."""
    return [
        {"model": name, "label": label, "at": model["accuracy"], "low": model["accuracy_ci"][0],
         "high": model["accuracy_ci"][1]}
        for name, label in LABELS.items()
        if (model := scores[name]) and model["accuracy"] is not None and model["accuracy_ci"]
    ]  # fmt: skip


def bar(account: dict[str, int], manifests: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the answers went as parts of one bar: (name, rows, start and width in percent)."""
    parts = {name: rows for name, rows in account.items() if name != "asked"}
    kept = manifests.get("assemble", {}).get("counts", {}).get("outcomes", {})
    if {"train", "validation"} <= kept.keys():
        del parts["kept"]
        parts = {"train": kept["train"], "validation": kept["validation"], **parts}
    total, start, found = sum(parts.values()), 0.0, []
    for name, rows in parts.items():
        if rows:
            width = 100 * rows / total
            found.append({"name": name, "rows": rows, "share": rows / total, "start": start, "width": width})
            start += width
    return found

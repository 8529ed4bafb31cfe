"""evaluate: measure what the student kept of its teacher, and write report.html.

The teacher, the student and the baselines answer the same held-out questions in one process, greedily. Four things are
written: predictions (one row a question and model), scores.json (the figures, under stable keys), the report, and
model_card.md, the student's card with its scores.

- unseen: before anything is asked, assemble's guard compares what the student was trained on with the questions once
  more; if one of them is there, the stage stops.
- accuracy and token_f1: exact match and token overlap with the best accepted answer, after the normalisation of SQuAD
  (pipeline/metrics.py). Null where no question has an accepted answer.
- nll: nats a token that a model gives to the teacher's greedy answers, their end of turn included. Only comparable
  between models of one tokenizer.
- agreement, rouge_l, chrf: the same, or similar, answer as the teacher.
- intervals: 95% percentile bootstrap. Questions about the same fact, and one asked twice, are drawn together, and
  differences and ratios are paired: each resample has the same questions for both models. Where all facts have the same
  figure, so that every resample does too, Wilson's.
- win rate: with evaluate.judge, how often a judge finds the student's answer better than the teacher's, ties half. It
  is asked in both orders and does not know whose answers they are (pipeline/judge.py).
- speed and size: pipeline/speed.py.
- harness: with evaluate.harness, tasks of lm-evaluation-harness (pipeline/harness.py).
- cost: what the run's teachers and judges took, from the stages' manifests.

docs/evaluate.md says what each figure means and what it cannot say.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import (
    artifacts,
    asking,
    cards,
    flow,
    harness,
    judge,
    metrics,
    near,
    overlap,
    paths,
    questions,
    report,
    speed,
)
from pipeline.calls.budget import CHARACTERS_A_TOKEN, estimated
from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.questions import Question
from pipeline.recipe import Evaluate, Recipe, Teacher
from pipeline.records import PREDICTIONS, Message, Row, make_id
from pipeline.stages import assemble, collect, dedupe
from pipeline.stages.train import open_student
from pipeline.teachers import local, local_teacher_folder
from pipeline.teachers.local import Loaded
from pipeline.training import memory_errors

VERSION = 5
SECTIONS = ("generate", "collect", "train", "evaluate")
READS = {
    **{"student": "train", "metrics.jsonl": "train", "train": "assemble", "validation": "assemble"},
    "README.md": "assemble",  # report and model card say what became of every answer, and so does the data card
}

MODELS = ("teacher", "student", "untrained", "random_subset")

Chats = dict[str, list[list[Message]]]  # model -> each question as that model is asked it
Answers = dict[str, list[Row]]  # model -> what local.answer returns for each question, in their order

out_of_memory = memory_errors("evaluate", "A smaller evaluate.batch_size helps.")


def unseen(recipe: Recipe, inputs: dict[str, Path]) -> dict[str, int]:
    """Prove that no held-out question is among the rows that the student was trained or validated on, whole or edited,
    with the guard that assemble used.

    Returns {"rows": compared here, "items": that they were compared with}. Raises UserError if a question is there: it
    was not held out when assemble ran.
    """
    items = assemble.forbidden(recipe)
    index = overlap.index(items, recipe.assemble.overlap)
    rows, found = 0, dict[int, str]()
    for path in (inputs["train"], inputs["validation"]):
        compiled = artifacts.text_bytes(path, ("prompt", "completion")) >= near.COMPILE_BYTES
        with progress(f"comparing {path.stem} with the questions", artifacts.count_rows(path), "rows") as advance:
            for batch in artifacts.read_batches(path, ["id", "prompt", "completion"]):
                turns = [
                    dedupe.texts_of(pa.record_batch([batch["id"], batch[name]], ["id", "messages"]), ("messages",))
                    for name in ("prompt", "completion")
                ]
                texts = pc.binary_join_element_wise(*turns, near.PART)
                for hit in overlap.find(index, texts, compiled):
                    found.setdefault(hit.item, batch["id"][hit.row].as_py())
                rows += batch.num_rows
                advance(batch.num_rows)
    if found:
        item, row = next(iter(found.items()))
        raise UserError(
            f"{len(found):,} of {len(items):,} held-out questions are in the training data, word for word or edited: "
            f"{items[item].text[:200]!r} in row {row}. They were not held out when assemble ran. Make the training "
            "data again without them (--from assemble), or evaluate on other questions."
        )
    return {"rows": rows, "items": len(items)}


def withheld(run: Path) -> dict[str, int]:
    """Rows that assemble withheld because they repeat a held-out question: {"withheld_exact", "withheld_overlap"}."""
    manifest = flow.read_manifest(run, "assemble")
    reasons = manifest["counts"].get("reasons", {}) if manifest else {}
    return {f"withheld_{kind}": reasons.get(f"held_out_{kind}", 0) for kind in ("exact", "overlap")}


def open_models(recipe: Recipe, student: Path, teacher: Teacher | None) -> dict[str, Loaded]:
    """The models that run in this process, as far as the recipe has them: the teacher, the student, the student as it
    was before training, and the baselines that train wrote beside it."""
    models: dict[str, Loaded] = {}
    if teacher and teacher.provider == "local":
        place = local_teacher_folder(recipe, teacher)
        models["teacher"] = local.load(place, trust_remote_code=teacher.trust_remote_code)
    trust = recipe.train.trust_remote_code
    models["student"] = local.load(student, trust_remote_code=trust)
    untrained, tokenizer = open_student(recipe)
    place = recipe.train.student if isinstance(recipe.train.student, str) else ""
    models["untrained"] = local.prepare(untrained.to(models["student"].model.device), tokenizer, place)
    for baseline in recipe.train.baselines:
        models[baseline] = local.load(student.parent / "baselines" / baseline, trust_remote_code=trust)
    return models


def examined(recipe: Recipe) -> Teacher | None:
    """The teacher that is asked the held-out questions: the first that runs in this process, else the one with the
    largest share of the prompts; None where the answers came from a file."""
    teachers = recipe.collect.teachers
    here = [teacher for teacher in teachers if teacher.provider == "local"]
    return here[0] if here else max(teachers, key=lambda teacher: teacher.weight, default=None)


@out_of_memory
def ask(models: dict[str, Loaded], chats: Chats, config: Evaluate) -> Answers:
    """Every model's greedy answer to every question."""
    answers: Answers = {}
    count = len(chats["student"])
    with progress("answering", len(models) * count, "answers") as advance:
        for name, loaded in models.items():
            rows: list[Row] = [{} for _ in range(count)]
            for batch in batches(chats[name], config.batch_size):
                asked = [chats[name][index] for index in batch]
                got = local.answer(
                    loaded, asked, temperature=0, top_p=1, max_tokens=config.max_tokens, seeds=[0] * len(batch)
                )
                for index, row in zip(batch, got, strict=True):
                    rows[index] = row
                advance(len(batch))
            answers[name] = rows
    return answers


def batches(chats: Sequence[Sequence[Message]], size: int) -> Iterator[list[int]]:
    """The questions' numbers in batches of similar length, so that little is padding."""
    order = sorted(range(len(chats)), key=lambda index: (sum(len(turn["content"]) for turn in chats[index]), index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def ask_hosted(recipe: Recipe, teacher: Teacher, asked: Sequence[Question], out: Path) -> tuple[list[Row], Any]:
    """A teacher's answers over the network, as collect asks (the response store, the budget, retries) but one a
    question and greedy; and what they used. A question that failed has finish_reason "error"."""
    sampling = recipe.collect.sampling
    greedy = {"temperature": 0.0, "top_p": 1.0}
    # A null parameter is not sent, because this model refuses it.
    changes: dict[str, Any] = {name: value for name, value in greedy.items() if getattr(sampling, name) is not None}
    changes |= {"logprobs": False, "max_tokens": hosted_room(recipe)}
    once = {"teachers": [teacher], "sampling": sampling.model_copy(update=changes)}
    section = recipe.collect.model_copy(update=once)
    rows, usage = asking.ask(recipe, section, [question.messages for question in asked], out)
    failed = {"text": "", "finish_reason": "error", "output_tokens": 0}
    return [row or failed for row in rows], usage


def hosted_room(recipe: Recipe) -> int:
    """Tokens that a teacher over the network may write. At the provider the thoughts of a reasoning model count too, so
    it gets no less than in collect, where its answers fitted."""
    return max(recipe.collect.sampling.max_tokens, recipe.evaluate.max_tokens)


def cut(rows: Sequence[Row], tokenizer: Any, max_tokens: int) -> list[Row]:
    """Answers from elsewhere as they would be had they been written here: with at most `max_tokens` of the student's
    tokens, and their number. A whole answer beside a cut one would be compared with it unfairly."""
    found = []
    for row in rows:
        ids = tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"]
        if row["finish_reason"] == "error" or len(ids) <= max_tokens:
            found.append(row | {"output_tokens": len(ids)})
            continue
        text = tokenizer.decode(ids[:max_tokens], clean_up_tokenization_spaces=False)
        found.append(row | {"text": text, "finish_reason": "length", "output_tokens": max_tokens})
    return found


@out_of_memory
def surprise(
    models: dict[str, Loaded], chats: Chats, texts: Sequence[str | None], size: int
) -> dict[str, list[tuple[float, int]]]:
    """(nats, tokens) of the teacher's answer to each question under each model; (0, 0) where the teacher has none or
    it does not fit into the model's context."""
    found = {}
    for name, loaded in models.items():
        rows = [(0.0, 0)] * len(texts)
        given = [(index, text) for index, text in enumerate(texts) if text is not None]
        turns = [[*chats[name][index], {"role": "assistant", "content": text}] for index, text in given]
        ids = local.encode(loaded.tokenizer, turns, add_generation_prompt=False)
        limit = local.context_length(loaded)
        given = [pair for pair, row in zip(given, ids, strict=True) if len(row) <= limit]
        for batch in batches([chats[name][index] for index, _ in given], size):
            indices, said = zip(*(given[position] for position in batch), strict=True)
            scored = local.nll(loaded, [chats[name][index] for index in indices], said)
            for index, row in zip(indices, scored, strict=True):
                rows[index] = row
        found[name] = rows
    return found


def mark(model: str, asked: Sequence[Question], answers: Sequence[Row], nats: Sequence[tuple[float, int]]) -> list[Row]:
    """A model's rows of predictions, in the order of the questions. A teacher that could not answer is neither right
    nor wrong; a student that cannot, because the question is too long for it, is wrong."""
    gold = [
        question.answers and not (model == "teacher" and answer.get("finish_reason") == "error")
        for question, answer in zip(asked, answers, strict=True)
    ]
    return [
        {
            "id": make_id("prediction", question.id, model),
            "question_id": question.id,
            "model": model,
            "topic": question.topic,
            "question": question.prompt,
            "answers": list(question.answers),
            "text": answer["text"],
            "exact": metrics.exact_match(answer["text"], question.answers) if marked else None,
            "token_f1": metrics.token_f1(answer["text"], question.answers) if marked else None,
            "nll": total / tokens if tokens else None,
            "output_tokens": answer["output_tokens"],
        }
        for question, answer, (total, tokens), marked in zip(asked, answers, nats, gold, strict=True)
    ]


LIKENESS: dict[str, Callable[[str, str], float]] = {
    "agreement": lambda ours, theirs: metrics.normalise(ours) == metrics.normalise(theirs),
    "rouge_l": metrics.rouge_l,
    "chrf": metrics.chrf,
}
"""How like the teacher's answer a model's is: over the questions to which the teacher said anything."""


def compare(
    asked: Sequence[Question],
    predictions: dict[str, list[Row]],
    surprises: dict[str, list[tuple[float, int]]],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The quality of each model and of the pairs, with intervals."""
    # Every figure is a ratio of two of these columns' sums over the questions.
    columns: dict[str, list[float]] = {"gold": [bool(question.answers) for question in asked]}
    said = [row["text"] if row["text"].strip() else None for row in predictions.get("teacher", [])]
    columns["said"] = [text is not None for text in said] or [0.0] * len(asked)
    # Questions that the teacher could not answer at all (its provider failed) say nothing of what the student kept.
    columns["answered"] = [row["exact"] is not None for row in predictions.get("teacher", [])] or columns["gold"]
    for name, rows in predictions.items():
        if said and name != "teacher":
            for key, like in LIKENESS.items():
                pairs = zip((row["text"] for row in rows), said, strict=True)
                columns[f"{name} {key}"] = [0.0 if theirs is None else like(ours, theirs) for ours, theirs in pairs]
        columns[f"{name} exact"] = [row["exact"] or 0 for row in rows]
        columns[f"{name} f1"] = [row["token_f1"] or 0 for row in rows]
        columns[f"{name} nats"] = [nats for nats, _ in surprises[name]]
        columns[f"{name} tokens"] = [tokens for _, tokens in surprises[name]]
    columns["kept"] = [
        exact * there for exact, there in zip(columns["student exact"], columns["answered"], strict=True)
    ]
    if "random_subset" in predictions:
        pair = zip(columns["student exact"], columns["random_subset exact"], strict=True)
        columns["gain"] = [ours - theirs for ours, theirs in pair]
    values = np.array(list(columns.values()), dtype=float).T
    groups = [question.about for question in asked]
    draws = metrics.resample(values, groups, resamples, seed)
    totals = dict(zip(columns, values.sum(axis=0), strict=True))
    samples = dict(zip(columns, draws.T, strict=True))

    def ratio(above: str, below: str, share: bool = False) -> tuple[float | None, list[float] | None]:
        if above not in totals or not totals.get(below):
            return None, None
        with np.errstate(divide="ignore", invalid="ignore"):
            figure, drawn = float(totals[above] / totals[below]), samples[above] / samples[below]
        facts = metrics.counted(groups, columns[below])
        if share:
            return figure, metrics.share_interval(figure, drawn, facts)
        return figure, metrics.interval(drawn) if facts > 1 else None  # one fact says nothing of others

    scores: dict[str, Any] = {
        "questions": len(asked),
        "questions_with_answers": int(totals["gold"]),
        "questions_compared": int(totals["said"]),  # with the teacher's answers: those to which it said anything
    }
    for name in predictions:
        figures: dict[str, Any] = {}
        gold = "answered" if name == "teacher" else "gold"
        for key, above, below in (
            ("accuracy", "exact", gold),
            ("token_f1", "f1", gold),
            ("nll", "nats", f"{name} tokens"),
            *((key, key, "said") for key in LIKENESS),
        ):
            figures[key], figures[f"{key}_ci"] = ratio(f"{name} {above}", below, key != "nll")
        scores[name] = figures
    scores["retention"], scores["retention_ci"] = ratio("kept", "teacher exact")
    scores["over_random_subset"], scores["over_random_subset_ci"] = ratio("gain", "gold")
    return scores


VERDICTS = {
    "win": "win", "loss": "loss", "tie": "tie", "order": "tie", "same": "tie", "unclear": None, "failed": None,
}  # fmt: skip
"""What an outcome of judge.compare counts as."""


def against_teacher(
    recipe: Recipe, asked: Sequence[Question], student: Sequence[Row], teacher: Sequence[Row], out: Path
) -> dict[str, Any]:
    """What evaluate.judge says of the student's answers beside the teacher's.

    Returns {"name": the judge's, "questions", "win", "tie", "loss", "unjudged", "tie_same", "tie_order": those of the
    ties that were not asked about or that the order decided, "unanswered": those of the unjudged that got no answer,
    "win_rate": ties count half, "win_rate_ci", "verdicts": {question id: win, tie, loss or null}, "usage"}. Raises what
    collect raises.
    """
    config = recipe.evaluate.judge
    assert config
    answered = [number for number, row in enumerate(teacher) if row["finish_reason"] != "error"]
    chosen = sorted(random.Random(recipe.seed).sample(answered, min(config.limit, len(answered))))
    triples = [(asked[number].messages, student[number]["text"], teacher[number]["text"]) for number in chosen]
    outcomes, usage = judge.compare(recipe, config, triples, out)
    verdicts = [VERDICTS[outcome] for outcome in outcomes]
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0, None: 0.0}
    values = np.array([[worth[verdict], verdict is not None] for verdict in verdicts], dtype=float).reshape(-1, 2)
    groups = [asked[number].about for number in chosen]
    judged = values[:, 1].sum()
    rate, ends = None, None
    if judged:
        draws = metrics.resample(values, groups, recipe.evaluate.bootstrap, recipe.seed)
        rate = float(values[:, 0].sum() / judged)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = metrics.share_interval(rate, draws[:, 0] / draws[:, 1], metrics.counted(groups, values[:, 1]))
    (named,) = recipe.judging(config).teachers
    return {
        "name": named.called,
        "questions": len(chosen),
        **{verdict: verdicts.count(verdict) for verdict in ("win", "tie", "loss")},
        "unjudged": verdicts.count(None),
        "tie_same": outcomes.count("same"),
        "tie_order": outcomes.count("order"),
        "unanswered": outcomes.count("failed"),
        "win_rate": rate,
        "win_rate_ci": ends,
        "verdicts": {asked[number].id: verdict for number, verdict in zip(chosen, verdicts, strict=True)},
        "usage": usage,
    }


def cost(run: Path, recipe: Recipe, usages: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """What the data of a run cost, and its evaluation.

    run: the run's folder. usages: what evaluate's teacher and judge took. Returns {"stages": {stage that asked a
    teacher: {"requests", "input_tokens", "output_tokens", "usd"}}, "usd": of all stages; None where no teacher has a
    price, "unpriced": those without one that do not run in this process, "kept": rows of the training data,
    "usd_per_kept": what one of them took, prompt, answers and judging, "machine_s": of the stages before this one,
    "machine_usd"}. Answers that the store had from another run are counted at what they cost then.
    """
    stages, seconds = {}, 0.0
    for stage in flow.STAGES[: flow.STAGES.index("evaluate")]:
        if manifest := flow.read_manifest(run, stage):
            seconds += manifest["seconds"]
            if manifest["counts"].get("usage"):
                stages[stage] = _summed([manifest["counts"]["usage"]])
    if given := [usage for usage in usages if usage]:
        stages["evaluate"] = _summed(given)
    makers = [*recipe.collect.teachers, *(recipe.filter_judge.teachers if recipe.filter_judge else [])]
    asked = makers + (recipe.judging(recipe.evaluate.judge).teachers if recipe.evaluate.judge else [])
    kept = flow.account(run).get("kept", 0)
    data = sum(figures["usd"] for stage, figures in stages.items() if stage != "evaluate")
    per_hour = recipe.evaluate.usd_per_hour
    return {
        "stages": stages,
        "usd": sum(figures["usd"] for figures in stages.values()) if any(one.price for one in asked) else None,
        "unpriced": sorted({one.called for one in asked if not one.price and one.provider != "local"}),
        "kept": kept,
        "usd_per_kept": data / kept if kept and any(one.price for one in makers) else None,
        "machine_s": round(seconds, 3),
        "machine_usd": None if per_hour is None else seconds / 3600 * per_hour,
    }


def _summed(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = {"requests": "requests_sent", "input_tokens": "input_tokens", "output_tokens": "output_tokens"}
    return {name: sum(usage[key] for usage in usages) for name, key in (names | {"usd": "cost_usd"}).items()}


def _divided(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def aims(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """What a distillation should reach, and whether this one does: {"name", "text", "value", "interval", "target",
    "met"}. Aims whose models were not compared are left out."""
    teacher = scores["teacher"] or {}
    gain = scores["over_random_subset_ci"]
    wanted = [
        ("teacher_accuracy", "the teacher answers at least 80% of the questions", teacher.get("accuracy"), 0.80),
        ("retention", "the student keeps at least 97% of the teacher's accuracy", scores["retention"], 0.97),
        ("speedup", "the student is at least twice as fast", scores["speedup"], 2.0),
        ("size_ratio", "the student has at most 40% of the teacher's parameters", scores["size_ratio"], 0.40),
        ("filtered_beats_random", "filtered answers teach more than as many random ones", gain and gain[0], 0.0),
    ]
    sure = {"teacher_accuracy": teacher.get("accuracy_ci"), "retention": scores["retention_ci"]}
    found = []
    for name, text, value, target in wanted:
        if value is None:
            continue
        # The last one is the low end of the interval: filtering has helped only if chance cannot explain it.
        met = value <= target if name == "size_ratio" else value > target if target == 0 else value >= target
        found.append(
            {"name": name, "text": text, "value": value, "interval": sure.get(name), "target": target, "met": met}
        )
    return found


def estimate(recipe: Recipe) -> list[dict[str, Any]]:
    """What the examined teacher, where it is asked over the network, and the judge would take at the most: lines as of
    collect.estimate. An answer is taken to be as long as it may be."""
    teacher, config = examined(recipe), recipe.evaluate.judge
    if not teacher:
        return []
    asked, lines = questions.held_out(recipe), []
    prompts = [sum(len(turn["content"]) for turn in question.messages) for question in asked]
    if teacher.provider != "local":
        system = len(collect.system_message(recipe) or "") // CHARACTERS_A_TOKEN
        read = sum(prompts) // CHARACTERS_A_TOKEN + len(asked) * (system + 8)
        said = len(asked) * hosted_room(recipe)
        lines.append(estimated(teacher, "evaluate", len(asked), read, said))
    if config:
        (named,) = recipe.judging(config).teachers
        many = 2 * min(config.limit, len(asked))
        template = paths.template_of(recipe.domain, "judge_compare.jinja").read_text(encoding="utf-8") + config.criteria
        shown = (len(template) + max(prompts, default=0)) // CHARACTERS_A_TOKEN + 2 * recipe.evaluate.max_tokens
        lines.append(estimated(named, "evaluate.judge", many, many * shown, many * config.max_tokens))
    return lines


def sources(recipe: Recipe) -> dict[str, Path]:
    """Where the held-out questions come from and what else assemble's guard reads, the templates and files that
    determine the teacher, tasks of the user's own."""
    files = collect.sources(recipe) | assemble.sources(recipe)
    if recipe.evaluate.judge:
        files["judge_compare.jinja"] = paths.template_of(recipe.domain, "judge_compare.jinja")
    if recipe.evaluate.harness and recipe.evaluate.harness.include:
        files["harness.include"] = recipe.evaluate.harness.include
    return files


def check(recipe: Recipe) -> None:
    """Raises UserError if there are no held-out questions, or not the key of the judge."""
    held_out(recipe)
    if recipe.evaluate.judge:
        collect.check(recipe.model_copy(update={"collect": recipe.judging(recipe.evaluate.judge)}))


def held_out(recipe: Recipe) -> list[Question]:
    """The questions, by id. Raises UserError if there are none."""
    asked = sorted(questions.held_out(recipe), key=lambda question: question.id)
    if not asked:
        raise UserError(
            f"there are no held-out questions for evaluate: data/{recipe.domain} has no facts and evaluate.questions "
            'names no file. Give evaluate.questions a .jsonl file with {"prompt": ..., "answer": ...} lines.'
        )
    return asked


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Ask every model the held-out questions, measure it, and write predictions.parquet, scores.json, report.html and
    model_card.md.

    Returns {"outcomes", "questions", "note"}. Raises UserError if there are no held-out questions.
    """
    config = recipe.evaluate
    asked = held_out(recipe)
    run_folder = inputs["student"].parent.parent
    tasks = harness.load(config.harness) if config.harness else {}
    compared = unseen(recipe, inputs)
    teacher = examined(recipe)
    models = open_models(recipe, inputs["student"], teacher)
    system = collect.system_message(recipe)
    first: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    plain = [list(question.messages) for question in asked]
    chats = {name: [first + chat for chat in plain] if name == "teacher" else plain for name in models}

    answers, usage = ask(models, chats, config), None
    if teacher and "teacher" not in models:
        whole, usage = ask_hosted(recipe, teacher, asked, out)
        answers["teacher"] = cut(whole, models["student"].tokenizer, config.max_tokens)
    told = [None if row["finish_reason"] == "error" else row["text"] for row in answers.get("teacher", [])]
    surprises = surprise(models, chats, told or [None] * len(asked), config.batch_size)
    surprises.setdefault("teacher", [(0.0, 0)] * len(asked))
    predictions = {name: mark(name, asked, answers[name], surprises[name]) for name in MODELS if name in answers}
    scores = compare(asked, predictions, surprises, config.bootstrap, recipe.seed)
    figures, conditions = out_of_memory(speed.measure)(models, chats, answers, recipe)
    scores["measured"] = conditions | {"bootstrap": config.bootstrap, "seed": recipe.seed}
    unmeasured = dict.fromkeys(figures["student"])
    for name in MODELS:
        if name in answers:
            scores[name] |= figures.get(name, unmeasured) | {"name": _name(recipe, name)}
            scores[name]["unanswered"] = sum(row["finish_reason"] == "error" for row in answers[name])
            scores[name]["cut"] = sum(row["finish_reason"] == "length" for row in answers[name])
        else:
            scores[name] = None
    ours, theirs = scores["student"], scores["teacher"] or unmeasured
    scores["speedup"] = _divided(ours["tokens_per_s"], theirs["tokens_per_s"])
    scores["latency_speedup"] = _divided(theirs["latency_p50_s"], ours["latency_p50_s"])
    scores["size_ratio"] = _divided(ours["parameters"], theirs["parameters"])
    scores["aims"] = aims(scores)
    scores["usage"] = usage
    if config.judge and "teacher" in answers:
        scores["judge"] = against_teacher(recipe, asked, answers["student"], answers["teacher"], out)
    if config.harness:
        scores["harness"] = harness.measure(
            models, tasks, config.harness, config.batch_size, config.bootstrap, recipe.seed
        )
    usages = [usage, scores.get("judge", {}).get("usage")]
    scores["over_budget"] = sum(one.get("over_budget", 0) for one in usages if one)
    scores["cost"] = cost(run_folder, recipe, usages)
    scores["unseen"] = compared | withheld(run_folder)

    rows = sorted((row for rows in predictions.values() for row in rows), key=lambda row: row["id"])
    artifacts.write_table(out / "predictions.parquet", PREDICTIONS, rows)
    artifacts.write_json(out / "scores.json", scores)
    page = report.build(run_folder, recipe, scores, rows, inputs["metrics.jsonl"])
    artifacts.write_text(out / "report.html", page)
    card = cards.model_card(cards.story_before("evaluate", recipe, run_folder), scores)
    artifacts.write_text(out / "model_card.md", card)
    note = ". ".join(part for part in (report.headline(scores), report.unasked(scores)) if part)
    return {"outcomes": {"predictions": len(rows)}, "questions": len(asked), "note": note}


def _name(recipe: Recipe, model: str) -> str:
    teacher, student = examined(recipe), recipe.train.student
    if model == "teacher" and teacher:
        return teacher.called
    return student if isinstance(student, str) else str(student["model_type"])


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("evaluate")

"""evaluate: measure what the student kept of its teacher, and write report.html.

The teacher, the student and the baselines answer the same held-out questions in one process, greedily. Four things are
written: predictions (one row a question and model), scores.json (the figures, under stable keys), the report, and
model_card.md, the student's card with its scores.

- unseen: before anything is asked, assemble's guard compares what the student was trained on with the questions once
  more; if one of them is there, the stage stops.
- accuracy and token_f1: exact match and token overlap with the best accepted answer, after the normalisation of SQuAD
  (Rajpurkar et al., 2016). Null where no question has an accepted answer.
- nll: nats a token that a model gives to the teacher's greedy answers, their end of turn included. Only comparable
  between models of one tokenizer.
- agreement, rouge_l (Lin, 2004), chrf (Popovic, 2015): the same, or similar, answer as the teacher.
- intervals: 95% percentile bootstrap (Efron & Tibshirani, 1993). Questions about the same fact are drawn together, and
  differences and ratios are paired: each resample has the same questions for both models. Where all facts have the same
  figure, so that every resample does too, Wilson's (1927).
- win rate: with evaluate.judge, how often a judge finds the student's answer better than the teacher's, ties half. It
  is asked in both orders and does not know whose answers they are (pipeline/judge.py).
- speed: the models take turns, so that whatever else the machine does hits all of them alike.
- harness: with evaluate.harness, tasks of lm-evaluation-harness (pipeline/harness.py).
- cost: what the run's teachers and judges took, from the stages' manifests.

docs/evaluate.md says what each figure means and what it cannot say.
"""

import itertools
import os
import random
import re
import statistics
import string
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import artifacts, asking, cards, flow, harness, judge, near, overlap, paths, questions, report
from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.questions import Question
from pipeline.recipe import Evaluate, Recipe, Teacher
from pipeline.records import PREDICTIONS, Message, Row, canonical_json, make_id
from pipeline.stages import assemble, collect, dedupe
from pipeline.stages.train import open_student
from pipeline.teachers import local
from pipeline.teachers.local import Loaded

VERSION = 4
SECTIONS = ("generate", "collect", "train", "evaluate")
READS = {
    **{"student": "train", "metrics.jsonl": "train", "train": "assemble", "validation": "assemble"},
    "README.md": "assemble",  # report and model card say what became of every answer, and so does the data card
}

MODELS = ("teacher", "student", "untrained", "random_subset")

# A round of the speed measurement is one full batch of every model. There are at least ROUNDS of them and SHORTEST_S
# seconds, but on a slow machine none begins after LONGEST_S.
ROUNDS = 5
SHORTEST_S = 2.0
LONGEST_S = 20.0

Chats = dict[str, list[list[Message]]]  # model -> each question as that model is asked it
Answers = dict[str, list[Row]]  # model -> what local.answer returns for each question, in their order


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


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces. Punctuation beyond ASCII counts
    too, and letters are the same however they are encoded (accents apart, letters of full width). A text with nothing
    else in it stays as it is, so that "+" is not equal to "-"."""
    text = _WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), unicodedata.normalize("NFC", text)).lower()
    kept = "".join(letter for letter in text if not _is_punctuation(letter))
    words = re.sub(r"\b(a|an|the)\b", " ", kept).split()
    return " ".join(words) or " ".join(text.split())


_WIDE = re.compile("[\uff01-\uffee]+")
_UNSPACED = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in near.UNSPACED) + "]")


def words_of(text: str) -> list[str]:
    """The words of a text after normalisation. Of scripts that put no spaces between words (Chinese, Japanese, Thai,
    Lao, Khmer, Burmese) every character is one: else a sentence would be a single word, right as a whole or not at
    all."""
    return _UNSPACED.sub(r" \g<0> ", normalise(text)).split()


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether a text says the same as one of the accepted answers."""
    return normalise(text) in {normalise(answer) for answer in answers}


def token_f1(text: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of the words that a text shares with an accepted answer, 0 .. 1; the best over the answers."""
    return max((_overlap(words_of(text), words_of(answer)) for answer in answers), default=0.0)


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return _f(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of two texts' words after normalisation, 0 .. 1 (Lin, 2004)."""
    return rouge_of_words(words_of(text), words_of(reference))


def rouge_of_words(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The same of two lists of words."""
    if not ours or not theirs:
        return float(ours == theirs)
    places: dict[str, int] = {}  # word -> a bit for each of its places in theirs
    for at, word in enumerate(theirs):
        places[word] = places.get(word, 0) | 1 << at
    # Bit-parallel (Hyyrö, 2004): a bit is cleared for each word of theirs that makes the longest subsequence longer.
    full = state = (1 << len(theirs)) - 1
    for word in ours:
        matches = state & places.get(word, 0)
        state = (state + matches | state - matches) & full
    return _f(len(theirs) - state.bit_count(), len(ours), len(theirs))


def chrf(text: str, reference: str) -> float:
    """Character n-gram F-score of two texts, 0 .. 1 (Popovic, 2015): sacrebleu's sentence chrF2."""
    from sacrebleu.metrics.chrf import CHRF

    if not text.split() or not reference.split():
        return float(text.split() == reference.split())
    return CHRF().sentence_score(text, [reference]).score / 100


def _f(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs)


def resample(values: np.ndarray, groups: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Bootstrap: each column's sum over questions drawn with replacement, whole groups at a time.

    values: (questions, columns); groups: for each question, what it is about. Returns (resamples, columns). The figures
    here are all ratios of two such sums, so paired ones come from the same draws by themselves.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    totals = np.zeros((len(numbers), values.shape[1]))
    np.add.at(totals, [numbers[group] for group in groups], values)
    random_numbers = np.random.default_rng(seed)
    sums = np.empty((resamples, values.shape[1]))
    for index in range(resamples):
        drawn = random_numbers.integers(0, len(totals), len(totals))
        sums[index] = np.bincount(drawn, minlength=len(totals)) @ totals
    return sums


def interval(samples: np.ndarray) -> list[float] | None:
    """The 95% percentile interval [low, high]; None if there is nothing to take it of."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return [float(low), float(high)]


def share_interval(share: float, samples: np.ndarray, facts: int) -> list[float] | None:
    """The same for a figure from 0 to 1, which is certain of nothing: where all of `facts` independent facts have it
    alike, so that every resample does, it is Wilson's (1927)."""
    ends = interval(samples)
    if ends is None or ends[1] - ends[0] > 1e-9:
        return ends
    z = statistics.NormalDist().inv_cdf(0.975)
    middle, wide = share + z * z / (2 * facts), z * (share * (1 - share) / facts + (z / (2 * facts)) ** 2) ** 0.5
    low, high = ((middle + side * wide) / (1 + z * z / facts) for side in (-1, 1))
    return [max(0.0, round(low, 12)), min(1.0, round(high, 12))]  # 0 and not 3e-17


def counted(groups: Sequence[str], values: Sequence[float] | np.ndarray) -> int:
    """How many facts there are among the questions that count, those with a value."""
    return len({group for group, value in zip(groups, values, strict=True) if value})


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


def full_batch(models: dict[str, Loaded], chats: Chats, tokens: int, size: int) -> dict[str, list[list[int]]]:
    """model -> `size` questions as token ids, the same for every model; {} if `tokens` more never fit in a context."""
    prompts = {name: local.encode(m.tokenizer, chats[name], add_generation_prompt=True) for name, m in models.items()}
    limits = {name: local.context_length(loaded) for name, loaded in models.items()}
    questions = range(len(chats["student"]))
    fits = [index for index in questions if all(len(prompts[n][index]) + tokens <= limits[n] for n in models)]
    chosen = [fits[index % len(fits)] for index in range(size)] if fits else []
    return {name: [prompts[name][index] for index in chosen] for name in models if chosen}


def throughput(models: dict[str, Loaded], prompts: dict[str, list[list[int]]], tokens: int) -> dict[str, list[float]]:
    """Seconds that each model takes to write exactly `tokens` tokens after each prompt, in one batch, over several
    rounds: all do the same work however long they would like to talk. The first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    begun, rounds = time.monotonic(), 0
    while True:
        for name, loaded in models.items():
            started = time.perf_counter()
            write(loaded, prompts[name], tokens)
            if rounds:
                seconds[name].append(time.perf_counter() - started)
        rounds += 1
        spent = time.monotonic() - begun
        if rounds > 1 and (spent > LONGEST_S or (rounds > ROUNDS and spent > SHORTEST_S)):
            return seconds


def write(loaded: Loaded, prompts: list[list[int]], tokens: int) -> None:
    """Write exactly `tokens` tokens after each prompt, in one batch."""
    import torch

    width = max(map(len, prompts))
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=loaded.model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=loaded.model.device)
    with torch.inference_mode():
        loaded.model.generate(
            input_ids=ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False
        ).cpu()


def peak_memory(loaded: Loaded, prompts: list[list[int]], tokens: int) -> int | None:
    """Bytes that the weights and a full batch take at the most: what the allocator was asked for, not what the process
    holds. None where that cannot be told."""
    import torch

    weights = int(loaded.model.get_memory_footprint())
    device = loaded.model.device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        write(loaded, prompts, tokens)
        return weights + torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says hello on stderr otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        write(loaded, prompts, tokens)
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return weights + max(itertools.accumulate((change for _, change in changes), initial=0))


def latency(models: dict[str, Loaded], chats: Chats, numbers: Sequence[int], max_tokens: int) -> dict[str, list[float]]:
    """Seconds from question to answer, one question at a time: {model: [seconds]}. The first question is asked twice,
    to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for position, index in enumerate([*numbers[:1], *numbers]):
        for name, loaded in models.items():
            begun = time.perf_counter()
            local.answer(loaded, [chats[name][index]], temperature=0, top_p=1, max_tokens=max_tokens, seeds=[0])
            if position:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


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
            "exact": exact_match(answer["text"], question.answers) if marked else None,
            "token_f1": token_f1(answer["text"], question.answers) if marked else None,
            "nll": total / tokens if tokens else None,
            "output_tokens": answer["output_tokens"],
        }
        for question, answer, (total, tokens), marked in zip(asked, answers, nats, gold, strict=True)
    ]


LIKENESS: dict[str, Callable[[str, str], float]] = {
    "agreement": lambda ours, theirs: normalise(ours) == normalise(theirs),
    "rouge_l": rouge_l,
    "chrf": chrf,
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
    groups = [question.fact or question.id for question in asked]
    draws = resample(values, groups, resamples, seed)
    totals = dict(zip(columns, values.sum(axis=0), strict=True))
    samples = dict(zip(columns, draws.T, strict=True))

    def ratio(above: str, below: str, share: bool = False) -> tuple[float | None, list[float] | None]:
        if above not in totals or not totals.get(below):
            return None, None
        with np.errstate(divide="ignore", invalid="ignore"):
            figure, drawn = float(totals[above] / totals[below]), samples[above] / samples[below]
        facts = counted(groups, columns[below])
        if share:
            return figure, share_interval(figure, drawn, facts)
        return figure, interval(drawn) if facts > 1 else None  # one fact says nothing of others

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
    groups = [asked[number].fact or asked[number].id for number in chosen]
    judged = values[:, 1].sum()
    rate, ends = None, None
    if judged:
        draws = resample(values, groups, recipe.evaluate.bootstrap, recipe.seed)
        rate = float(values[:, 0].sum() / judged)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = share_interval(rate, draws[:, 0] / draws[:, 1], counted(groups, values[:, 1]))
    (named,) = recipe.judging(config).teachers
    return {
        "name": collect.teacher_name(named),
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


def estimate(recipe: Recipe) -> list[dict[str, Any]]:
    """What the examined teacher, where it is asked over the network, and the judge would take at the most: lines as of
    collect.estimate. An answer is taken to be as long as it may be."""
    teacher, config = examined(recipe), recipe.evaluate.judge
    if not teacher:
        return []
    asked, lines = questions.held_out(recipe), []
    prompts = [sum(len(turn["content"]) for turn in question.messages) for question in asked]
    if teacher.provider != "local":
        system = len(collect.system_message(recipe) or "") // collect.CHARACTERS_A_TOKEN
        read = sum(prompts) // collect.CHARACTERS_A_TOKEN + len(asked) * (system + 8)
        name = f"{collect.teacher_name(teacher)} (evaluate)"
        said = len(asked) * hosted_room(recipe)
        lines.append(collect.estimated(teacher, name, len(asked), read, said))
    if config:
        (named,) = recipe.judging(config).teachers
        many = 2 * min(config.limit, len(asked))
        template = paths.template_of(recipe.domain, "judge_compare.jinja").read_text(encoding="utf-8") + config.criteria
        shown = (len(template) + max(prompts, default=0)) // collect.CHARACTERS_A_TOKEN + 2 * recipe.evaluate.max_tokens
        name = f"{collect.teacher_name(named)} (evaluate.judge)"
        lines.append(collect.estimated(named, name, many, many * shown, many * config.max_tokens))
    return lines


def measure(
    models: dict[str, Loaded], chats: Chats, answers: Answers, recipe: Recipe
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Each model's speed and size, and the conditions under which they were measured."""
    import torch

    config = recipe.evaluate
    # As much to write as the teacher wrote on average (the student, where there is none to ask).
    usual = [row["output_tokens"] for row in answers.get("teacher") or answers["student"] if row["output_tokens"]]
    tokens = max(1, round(statistics.fmean(usual or [1])))
    prompts = full_batch(models, chats, tokens, config.batch_size)
    seconds = throughput(models, prompts, tokens) if prompts else {}
    one = {name: rows[:1] for name, rows in prompts.items()}
    alone = throughput(models, one, tokens) if prompts else {}
    # A question that is too long for one of them is refused in no time.
    questions = [
        number
        for number in range(len(chats["student"]))
        if all(answers[name][number]["finish_reason"] != "error" for name in models)
    ]
    numbers = random.Random(recipe.seed).sample(questions, min(config.latency_questions, len(questions)))
    whole = latency(models, chats, numbers, config.max_tokens)
    first = latency(models, chats, numbers, 1)
    made = tokens * config.batch_size
    figures: dict[str, dict[str, Any]] = {}
    for name, loaded in models.items():
        rate = made / statistics.median(seconds[name]) if seconds else None
        per_hour = config.usd_per_hour
        figures[name] = {
            "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
            "disk_bytes": disk_bytes(loaded.name),
            "memory_bytes": int(loaded.model.get_memory_footprint()),
            "peak_memory_bytes": peak_memory(loaded, prompts[name], tokens) if prompts else None,
            "tokens_per_s": rate,
            "tokens_per_s_range": [made / max(seconds[name]), made / min(seconds[name])] if seconds else None,
            "tokens_per_s_one": tokens / statistics.median(alone[name]) if alone else None,
            "tokens_per_s_one_range": [tokens / max(alone[name]), tokens / min(alone[name])] if alone else None,
            "latency_p50_s": float(np.percentile(whole[name], 50)) if numbers else None,
            "latency_p95_s": float(np.percentile(whole[name], 95)) if numbers else None,
            "first_token_p50_s": float(np.percentile(first[name], 50)) if numbers else None,
            "first_token_p95_s": float(np.percentile(first[name], 95)) if numbers else None,
            "usd_per_million_tokens": per_hour / (rate * 3600) * 1e6 if rate and per_hour is not None else None,
        }
    conditions = {
        "max_tokens": config.max_tokens,
        "batch_size": config.batch_size,
        "tokens_each": tokens,
        "rounds": len(seconds["student"]) if seconds else 0,
        "latency_questions": len(numbers),
        "threads": torch.get_num_threads(),
        "device": models["student"].model.device.type,
        "usd_per_hour": config.usd_per_hour,
        # The NLL is a token's, so it says nothing between models that cut the same text in other places.
        "one_tokenizer": len({canonical_json(loaded.tokenizer.get_vocab()) for loaded in models.values()}) == 1,
    }
    return figures, conditions


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
        "unpriced": sorted({collect.teacher_name(one) for one in asked if not one.price and one.provider != "local"}),
        "kept": kept,
        "usd_per_kept": data / kept if kept and any(one.price for one in makers) else None,
        "machine_s": round(seconds, 3),
        "machine_usd": None if per_hour is None else seconds / 3600 * per_hour,
    }


def _summed(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = {"requests": "requests_sent", "input_tokens": "input_tokens", "output_tokens": "output_tokens"}
    return {name: sum(usage[key] for usage in usages) for name, key in (names | {"usd": "cost_usd"}).items()}


def disk_bytes(model: str) -> int | None:
    """Bytes of a model's folder, or of its part of the Hugging Face cache; None for a model that was never saved."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(model)
    if not model or not folder.is_dir():
        config = try_to_load_from_cache(model, "config.json") if model else None
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _divided(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def aims(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """What a distillation should reach, and whether this one does. Aims whose models were not compared are left out."""
    teacher = scores["teacher"] or {}
    gain = scores["over_random_subset_ci"]
    wanted = [
        ("teacher_accuracy", "the teacher answers at least 80% of the questions", teacher.get("accuracy"), 0.80),
        ("retention", "the student keeps at least 97% of the teacher's accuracy", scores["retention"], 0.97),
        ("speedup", "the student is at least twice as fast", scores["speedup"], 2.0),
        ("size_ratio", "the student has at most 40% of the teacher's parameters", scores["size_ratio"], 0.40),
        ("filtered_beats_random", "filtered answers teach more than as many random ones", gain and gain[0], 0.0),
    ]
    found = []
    for name, text, value, target in wanted:
        if value is None:
            continue
        # The last one is the low end of the interval: filtering has helped only if chance cannot explain it.
        met = value <= target if name == "size_ratio" else value > target if target == 0 else value >= target
        found.append({"name": name, "text": text, "value": value, "target": target, "met": met})
    return found


def open_models(recipe: Recipe, student: Path, teacher: Teacher | None) -> dict[str, Loaded]:
    """The models that run in this process, as far as the recipe has them: the teacher, the student, the student as it
    was before training, and the baselines that train wrote beside it."""
    models: dict[str, Loaded] = {}
    if teacher and teacher.provider == "local":
        place = collect.local_teacher_folder(recipe, teacher)
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


def hosted_room(recipe: Recipe) -> int:
    """Tokens that a teacher over the network may write. At the provider the thoughts of a reasoning model count too, so
    it gets no less than in collect, where its answers fitted."""
    return max(recipe.collect.sampling.max_tokens, recipe.evaluate.max_tokens)


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


def sources(recipe: Recipe) -> dict[str, Path]:
    """Where the held-out questions come from and what else assemble's guard reads, the templates and files that
    determine the teacher, tasks of the user's own."""
    files = collect.sources(recipe) | assemble.sources(recipe)
    if recipe.evaluate.judge:
        files["judge_compare.jinja"] = paths.template_of(recipe.domain, "judge_compare.jinja")
    if recipe.evaluate.harness and recipe.evaluate.harness.include:
        files["harness.include"] = recipe.evaluate.harness.include
    return files


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Ask every model the held-out questions, measure it, and write predictions.parquet, scores.json, report.html and
    model_card.md.

    Returns {"outcomes", "questions", "note"}. Raises UserError if there are no held-out questions.
    """
    config = recipe.evaluate
    asked = sorted(questions.held_out(recipe), key=lambda question: question.id)
    if not asked:
        raise UserError(
            f"there are no held-out questions: data/{recipe.domain} has no facts and evaluate.questions names no file. "
            'Give evaluate.questions a .jsonl file with {"prompt": ..., "answer": ...} lines.'
        )
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
    figures, conditions = measure(models, chats, answers, recipe)
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
    scores["cost"] = cost(run_folder, recipe, [usage, scores.get("judge", {}).get("usage")])
    scores["unseen"] = compared | withheld(run_folder)

    rows = sorted((row for rows in predictions.values() for row in rows), key=lambda row: row["id"])
    artifacts.write_table(out / "predictions.parquet", PREDICTIONS, rows)
    artifacts.write_json(out / "scores.json", scores)
    page = report.build(run_folder, recipe, scores, rows, inputs["metrics.jsonl"])
    artifacts.write_text(out / "report.html", page)
    card = cards.model_card(cards.story_before("evaluate", recipe, run_folder), scores)
    artifacts.write_text(out / "model_card.md", card)
    return {"outcomes": {"predictions": len(rows)}, "questions": len(asked), "note": report.headline(scores)}


def _name(recipe: Recipe, model: str) -> str:
    teacher, student = examined(recipe), recipe.train.student
    if model == "teacher" and teacher:
        return collect.teacher_name(teacher)
    return student if isinstance(student, str) else str(student["model_type"])


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("evaluate")

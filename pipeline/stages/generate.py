"""generate: domain prompts from templates, a fact base, a teacher or a file.

Methods, mixed by the shares in the recipe, each a function that yields candidates for as long as it has any:

    questions      the fact base's questions, asked without their answers
    facets         prompts/DOMAIN/facets/TASK/*.jinja filled in from the taxonomy in prompts/DOMAIN/domain.yaml, see
                   pipeline/facets.py
    self_instruct, evolve, persona, documents, conversation, magpie
                   written by the recipe's teachers, see pipeline/written.py; their templates are in prompts/DOMAIN, or
                   else in prompts/_any

or, instead of methods, `file`: prompts that a user already has.

A candidate is taken if it is new, is not nearly the same as one taken before, and is not a held-out question or nearly
one (pipeline/novelty.py). What one method lacks the others make up for. With `target_kept` more are taken in rounds,
until so many rows are kept (pipeline/rounds.py). The same recipe and seed give the same prompts, and a larger `count`
of one method begins with the same ones.
"""

import gc
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline import asking, documents, paths, written
from pipeline.artifacts import write_table
from pipeline.calls.budget import CHARACTERS_A_TOKEN, estimated
from pipeline.coverage import coverage
from pipeline.domain import Domain, read_domain
from pipeline.errors import RecipeError, UserError, nearest, where
from pipeline.facets import Steering, filled, read_forms
from pipeline.facts import Fact, questions, read_facts
from pipeline.novelty import Guard, Seen, Worded, grams_of, is_held_out, make_guard, nearly_new, nothing_seen, rouge_new
from pipeline.questions import held_out
from pipeline.questions import sources as held_out_files
from pipeline.recipe import COUNT, WRITTEN, Recipe, Teacher
from pipeline.records import PROMPTS, Message, Row, facets_of, make_id
from pipeline.rounds import Kept, until_kept
from pipeline.rowfile import read_objects
from pipeline.templates import load
from pipeline.written import Ask

VERSION = 3
SECTIONS = ("generate", "writers", "acceptance")
READS: dict[str, str] = {}

_UNPRINTABLE = re.compile(r"[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Text that any file, tokenizer and terminal takes: lone surrogates and control characters other than tab and
    newline become U+FFFD, blank space around it is dropped."""
    return _UNPRINTABLE.sub("\ufffd", text).strip()


def prompt_row(
    domain: str,
    method: str,
    messages: list[Message],
    template: str | None = None,
    *,
    context: str | None = None,
    **facets: str | None,
) -> Row:
    """A row of the table prompts."""
    return {
        "id": make_id("prompt", domain, messages),
        "domain": domain,
        "method": method,
        "template": template,
        "facets": facets_of(**facets),
        "messages": messages,
        "context": context,
    }


def ask(domain: str, method: str, text: str, template: str | None = None, **facets: str | None) -> Row:
    """A row of the table prompts with one user turn."""
    return prompt_row(domain, method, [{"role": "user", "content": text}], template, **facets)


# --- questions -------------------------------------------------------------------------------------------------------


def from_questions(domain: str, facts: list[Fact], lead_ins: list[str], share: float, seed: int) -> Iterator[Row]:
    """The questions of the facts, one of each fact, then another of each, and so on: any number of them is spread
    evenly over the facts. `share` of them open with one of `lead_ins`."""
    draw = random.Random(f"questions {seed}")
    wordings: dict[str, list[tuple[Fact, str]]] = {}
    for fact, question in questions(facts, "ask"):
        wordings.setdefault(fact.id, []).append((fact, question))
    for of_fact in wordings.values():
        draw.shuffle(of_fact)
    order = list(wordings.values())
    draw.shuffle(order)
    for turn in itertools.zip_longest(*order):
        for fact, question in (pair for pair in turn if pair):
            lead_in = draw.choice(lead_ins) if lead_ins else ""
            text = f"{lead_in}{question}" if draw.random() < share else question
            yield ask(domain, "questions", clean(text), fact.relation, topic=fact.topic, entity=fact.subject)


def thin_topics_first(rows: Iterator[Row], steering: Steering) -> Iterator[Row]:
    """The same rows, until `steering` is set; then the topics as often as there are rows of them left and as it says,
    each in the order that it had."""
    for row in rows:
        yield row
        if steering.turn:
            break
    waiting: dict[str | None, list[Row]] = {}
    for row in rows:
        waiting.setdefault(row["facets"]["topic"], []).append(row)
    for of_topic in waiting.values():
        of_topic.reverse()
    turn, weights, given = 0, dict[str | None, float](), Counter[str | None]()
    while waiting:
        if steering.turn != turn:
            turn = steering.turn
            weights = {topic: len(left) * steering.of("topic", topic) for topic, left in waiting.items()}
            given.clear()
        topic = min(waiting, key=lambda topic: (given[topic] + 1) / weights[topic])
        given[topic] += 1
        yield waiting[topic].pop()
        if not waiting[topic]:
            del waiting[topic]


# --- written by a teacher --------------------------------------------------------------------------------------------


def from_teacher(
    method: str,
    recipe: Recipe,
    inputs: dict[str, Path],
    ask_teacher: Ask,
    left_out: Counter[str],
    steering: Steering,
) -> Iterator[Row]:
    """Prompts that the recipe's teachers write. What they start from are prompts of `facets`, or of `questions` in a
    domain without templates."""
    want = shares(recipe.generate.count or COUNT, dict(recipe.generate.methods.items()))[method]
    if method == "magpie":
        for one in from_model(recipe, ask_teacher, want, left_out):
            if clean(one.messages[-1]["content"]):
                yield ask(recipe.domain, method, clean(one.messages[-1]["content"]), one.template)
        return
    if method == "documents":
        yield from from_documents(recipe, inputs, ask_teacher, want, left_out)
        return
    taxonomy, seed, domain = read_domain(inputs["domain.yaml"]), recipe.seed, recipe.domain.replace("_", " ")
    rows = _candidates("facets" if "facets" in inputs else "questions", recipe, inputs, steering)
    seeds = (written.Seed(row["messages"], row["facets"]) for row in rows)
    folder = inputs[method]
    made: Iterator[written.Written]
    if method == "self_instruct":
        template = load(folder)
        topics = steering.topics = list(taxonomy.topics)
        pool, config = list(itertools.islice(seeds, 500)), recipe.generate.self_instruct
        novel = None
        if config.novelty == "rouge_l":
            worded = Worded([], {})
            novel = partial(rouge_new, worded, threshold=config.threshold)
            for seed_prompt in pool:
                novel(seed_prompt.messages[-1]["content"])
        made = written.self_instruct(ask_teacher, template, domain, topics, pool, want, seed, left_out, novel)
    elif method == "evolve":
        operations = {path.stem: load(path) for path in sorted(folder.glob("*.jinja"))}
        if not operations:
            raise RecipeError(
                f"{folder}: has no templates. Add one, or remove the folder to use those in prompts/_any."
            )
        made = written.evolve(ask_teacher, operations, domain, seeds, want, seed, left_out)
    elif method == "persona":
        entities = [(name, topic) for topic, names in taxonomy.kinds()["entity"].items() for name in names]
        personas = list(taxonomy.personas)
        if not entities or not personas:
            raise RecipeError(f"{inputs['domain.yaml']}: the method persona needs entities under topics, and personas.")
        made = written.persona(ask_teacher, load(folder), domain, entities, personas, want, seed, left_out)
    else:
        turns = recipe.generate.conversation.turns
        made = written.conversation(ask_teacher, load(folder), domain, seeds, turns, want, left_out)
    for one in made:
        messages: list[Message] = [turn | {"content": clean(turn["content"])} for turn in one.messages]
        if all(turn["content"] for turn in messages):
            yield prompt_row(recipe.domain, method, messages, one.template, **one.facets)


def from_documents(
    recipe: Recipe, inputs: dict[str, Path], ask_teacher: Ask, want: int, left_out: Counter[str]
) -> Iterator[Row]:
    """Questions about the user's own files, with the passage in the prompt where the recipe says so; `question` is what
    is compared with other prompts."""
    config = recipe.generate.documents
    assert config
    found = [path for name, path in inputs.items() if name.startswith("documents_")]
    drawn = documents.passages(found, config.characters, want, recipe.seed, left_out)
    template, passage = load(inputs["documents"]), load(inputs["passage"])
    domain = recipe.domain.replace("_", " ")
    for one in written.documents(ask_teacher, template, domain, drawn, config.include, want, left_out):
        question, context = clean(one.messages[-1]["content"]), clean(one.context or "")
        if question and context:
            turns = documents.shown(passage, context, question, True) if config.include else written.user(question)
            yield prompt_row(recipe.domain, "documents", turns, one.template, context=context, **one.facets) | {
                "question": question
            }


def from_model(recipe: Recipe, ask_teacher: Ask, want: int, left_out: Counter[str]) -> Iterator[written.Written]:
    """What a local or vLLM teacher writes by itself, with collect.system as its system prompt."""
    from pipeline.stages import collect
    from pipeline.teachers import local, local_teacher_folder

    teacher = continuing(recipe)
    name = local_teacher_folder(recipe, teacher) if teacher.provider == "local" else teacher.model
    opening = local.user_opening(name, collect.system_message(recipe), trust_remote_code=teacher.trust_remote_code)
    return written.magpie(ask_teacher, opening, want, left_out)


def continuing(recipe: Recipe) -> Teacher:
    """The first teacher of the recipe that can be asked to go on with a text, for magpie."""
    for teacher in recipe.collect.teachers:
        if teacher.provider == "local":
            return teacher
        if teacher.provider == "vllm":
            return teacher.model_copy(update={"provider": "vllm_text"})
    raise UserError(
        "generate.methods.magpie: needs a teacher of `provider: local` or `vllm`, to continue its empty user turn."
    )


def ask_writers(recipe: Recipe, out: Path, used: Counter[str], conversations: list[list[Message]]) -> list[str | None]:
    """What the recipe's teachers answer to each conversation, None where there is no answer that ended by itself. Adds
    to `used` what that took: tokens, dollars, requests."""
    assert recipe.writers
    section = recipe.writers.model_copy(update={"system": None})
    if conversations and conversations[0][-1]["role"].startswith(written.OPENING):
        section = section.model_copy(update={"teachers": [continuing(recipe)]})
    rows, usage = asking.ask(recipe, section, conversations, out)
    used.update({name: amount for name, amount in usage.items() if name != "spent_usd"})  # that one is a running total
    return [row["text"] if row and row["finish_reason"] == "stop" else None for row in rows]


def estimate(recipe: Recipe, prompts: Path | None) -> list[dict[str, Any]]:
    """What the teachers would take that write prompts, if all they wrote were usable and nothing were stored: lines as
    of collect.estimate, none where the table `prompts` is there. An answer is taken to be as long as it may be."""
    from pipeline.stages import collect

    if prompts or not recipe.writers or not recipe.writers.teachers:
        return []
    files, limit = sources(recipe), recipe.writers.sampling.max_tokens
    wanted = shares(recipe.prompts_expected, dict(recipe.generate.methods.items()))
    totals: dict[str, Counter[str]] = {}
    for method in (method for method in wanted if method in WRITTEN):
        if method == "magpie":
            form = len(collect.system_message(recipe) or "")
        else:
            texts = files[method].glob("*.jinja") if files[method].is_dir() else [files[method]]
            form = max((len(path.read_text(encoding="utf-8")) for path in texts), default=0)
        answer = limit * CHARACTERS_A_TOKEN
        asked, shown = written.requests(method, wanted[method], recipe.generate, answer)
        read = (asked * form + shown) // CHARACTERS_A_TOKEN
        label = "generate, magpie" if method == "magpie" else "generate"
        totals.setdefault(label, Counter()).update(requests=asked, read=read, written=asked * limit)
    lines = []
    for label, total in totals.items():
        teachers = [continuing(recipe)] if label.endswith("magpie") else recipe.writers.teachers
        weight = sum(teacher.weight for teacher in teachers)
        for teacher in teachers:
            part = [round(total[what] * teacher.weight / weight) for what in ("requests", "read", "written")]
            lines.append(estimated(teacher, label, *part))
    return lines


# --- file ------------------------------------------------------------------------------------------------------------


def from_file(domain: str, path: Path) -> Iterator[Row]:
    """A user's own prompts from a file or data set that `rowfile` reads: `messages`, `prompt`, or `instruction` with or
    without `input`. What follows the last user turn of `messages` is left out: it is an answer.

    Raises RecipeError (FILE:LINE: FIELD: what is wrong); in Parquet and Arrow LINE is the number of the row, from 1.
    """
    empty = True
    for line, row in read_objects(path):
        empty = False
        yield prompt_row(domain, "file", _messages_of(path, line, row))
    if empty:
        raise RecipeError(f'{path}: has no prompts. Give one a line, as {{"prompt": "..."}}.')


def _messages_of(path: Path, line: int, row: Any) -> list[Message]:
    if not isinstance(row, dict):
        raise RecipeError(f'{where(path, line)}: expected an object such as {{"prompt": "..."}}.')
    # An empty cell of a table with several of the columns is no value.
    given = {name: row[name] for name in ("messages", "prompt", "instruction") if row.get(name) is not None}
    given = {name: value for name, value in given.items() if value != "" or len(given) == 1}
    if not given:
        known = ("prompt", "instruction", "messages")
        near = next((nearest(name, known) for name in map(str, row) if "Did" in nearest(name, known)), "")
        raise RecipeError(f"{where(path, line)}: has none of `prompt`, `instruction` or `messages`.{near}")
    field, value = next(iter(given.items()))
    if isinstance(value, list) and field != "instruction":
        return _turns(path, line, field, value)
    if field == "messages":
        raise RecipeError(f"{where(path, line, field)}: expected a list of turns, found {type(value).__name__}.")
    text = _text(path, line, field, value)
    extra = row.get("input")
    if field == "instruction" and extra not in (None, ""):
        text = f"{text}\n\n{_text(path, line, 'input', extra)}"
    return [{"role": "user", "content": text}]


def _turns(path: Path, line: int, field: str, turns: list[Any]) -> list[Message]:
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        at = f"{field}.{i}"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise RecipeError(f'{where(path, line, at)}: expected {{"role": ..., "content": ...}}.')
        if turn["role"] not in ("system", "user", "assistant"):
            raise RecipeError(f"{where(path, line, f'{at}.role')}: {turn['role']!r} is not system, user or assistant.")
        messages.append({"role": turn["role"], "content": _text(path, line, f"{at}.content", turn["content"])})
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise RecipeError(f"{where(path, line, field)}: has no user turn, so there is nothing to answer.")
    return messages


def _text(path: Path, line: int, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{where(path, line, field)}: expected a text, found {type(value).__name__}.")
    if not (text := clean(value)):
        raise RecipeError(f"{where(path, line, field)}: is empty. Write a prompt, or remove the row.")
    return text


# --- what is taken ---------------------------------------------------------------------------------------------------


def take(
    candidates: Iterator[Row], want: int | None, taken: dict[str, Row], seen: Seen | None, guard: Guard
) -> Counter[str]:
    """Move up to `want` candidates to `taken` (id -> row), those that are new and not held out; near-duplicates are
    looked for if `seen` is given. Returns how many were left out, by reason."""
    reasons: Counter[str] = Counter()
    enough = len(taken) + want if want is not None else None
    for row in candidates if want != 0 else ():
        grams = grams_of(row.get("question") or "\n".join(message["content"] for message in row["messages"]))
        if row["id"] in taken:
            reasons["exact_duplicate"] += 1
        elif is_held_out(guard, grams):
            reasons["held_out"] += 1
        elif seen and not nearly_new(seen, grams):
            reasons["near_duplicate"] += 1
        else:
            taken[row["id"]] = row
            if len(taken) == enough:
                break
    return reasons


# --- the stage -------------------------------------------------------------------------------------------------------


def shares(count: int, methods: dict[str, float]) -> dict[str, int]:
    """`count` split by the methods' shares, the largest remainders rounded up."""
    total = sum(methods.values())
    exact = {method: count * share / total for method, share in methods.items()}
    split = {method: int(part) for method, part in exact.items()}
    for method in sorted(exact, key=lambda m: split[m] - exact[m])[: count - sum(split.values())]:
        split[method] += 1
    return split


def sources(recipe: Recipe) -> dict[str, Path]:
    """What the recipe's methods read: domain.yaml, templates, facts, a user's file."""
    section = recipe.generate
    found = {f"held_out_{name}": path for name, path in held_out_files(recipe).items()}
    if section.file:
        return found | {"file": _user_file(recipe, section.file)}
    if "questions" in section.methods:
        found["facts"] = paths.domain_data_folder(recipe.domain) / "facts"
    if "facets" in section.methods or section.questions.lead_ins:
        found["domain.yaml"] = paths.prompts_folder(recipe.domain) / "domain.yaml"
    if "facets" in section.methods:
        found["facets"] = paths.prompts_folder(recipe.domain) / "facets"
    if section.target_kept:
        from pipeline.stages import collect, dedupe, filter

        for stage in (collect, filter, dedupe):
            found |= {f"rounds_{name}": path for name, path in stage.sources(recipe).items()}
    if recipe.writers:
        from pipeline.stages import collect

        writing = recipe.model_copy(update={"collect": recipe.writers})
        found |= {f"writers_{name}": path for name, path in collect.sources(writing).items()}
    if section.documents:
        found |= {f"documents_{n}": path for n, path in enumerate(documents.places(section.documents.files))}
        found["passage"] = paths.template_of(recipe.domain, "passage.jinja")
        found["documents"] = paths.template_of(recipe.domain, "documents.jinja")
    for method in (method for method in section.methods if method in WRITTEN and method not in ("documents", "magpie")):
        found["domain.yaml"] = paths.prompts_folder(recipe.domain) / "domain.yaml"
        found[method] = paths.template_of(recipe.domain, method if method == "evolve" else f"{method}.jinja")
        if (paths.prompts_folder(recipe.domain) / "facets").is_dir():
            found["facets"] = paths.prompts_folder(recipe.domain) / "facets"
        else:
            found["facts"] = paths.domain_data_folder(recipe.domain) / "facts"
    return found


def _user_file(recipe: Recipe, file: Path) -> Path:
    """A user's file: as given, or in data/DOMAIN."""
    if file.exists():
        return file
    beside = Path("data") / recipe.domain / file
    if beside.exists():
        return beside
    raise UserError(f"generate.file: there is neither {file} nor {beside}. Give a .jsonl, .csv or .parquet file.")


class Supply(NamedTuple):
    """The prompts taken so far, and where more come from."""

    candidates: dict[str, Iterator[Row]]  # of each method that has not run dry
    dry: dict[str, str]  # method -> what to say of one that has
    taken: dict[str, Row]  # id -> prompt
    seen: Seen
    guard: Guard
    left_out: Counter[str]  # candidates that were not taken, by reason


class Chosen(NamedTuple):
    """The prompts that were taken, and what there is to say of them."""

    taken: dict[str, Row]  # id -> prompt
    left_out: Counter[str]
    notes: list[str]
    kept: Kept | None  # with target_kept


def open_methods(recipe: Recipe, inputs: dict[str, Path], ask_teacher: Ask, steering: Steering) -> Supply:
    """The recipe's methods, of which nothing is taken yet."""
    # All held-out questions, not only those that evaluate.limit draws.
    everything = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"limit": None})})
    supply = Supply({}, {}, {}, nothing_seen(), make_guard(held_out(everything)), Counter())
    for method in ("file",) if recipe.generate.file else recipe.generate.methods:
        if method in WRITTEN:
            first = recipe.model_copy(
                update={"generate": recipe.generate.model_copy(update={"count": recipe.first_round})}
            )
            found = from_teacher(method, first, inputs, ask_teacher, supply.left_out, steering)
        else:
            found = _candidates(method, recipe, inputs, steering)
        supply.candidates[method] = found
    return supply


def take_more(supply: Supply, methods: dict[str, float], want: int | None) -> None:
    """Take `want` more prompts (None: all there are), split by the shares of the methods that have not run dry: what
    one of them lacks the others make up for."""
    goal = None if want is None else len(supply.taken) + want
    while supply.candidates and (goal is None or len(supply.taken) < goal):
        parts: dict[str, int | None] = dict.fromkeys(supply.candidates)
        if goal is not None:
            going = {method: methods[method] for method in supply.candidates}
            parts = {**shares(goal - len(supply.taken), going)}
        for method, part in parts.items():
            before = len(supply.taken)
            # Hundreds of thousands of small objects, none of them garbage: looking for some costs a sixth of the time.
            if method not in WRITTEN:
                gc.disable()
            try:
                # A user's own prompts are kept however similar they are.
                seen = None if method == "file" else supply.seen
                reasons = take(supply.candidates[method], part, supply.taken, seen, supply.guard)
            finally:
                gc.enable()
            supply.left_out.update(reasons)
            lacking = 0 if part is None else part - (len(supply.taken) - before)
            if part is None or lacking:
                del supply.candidates[method]
            if lacking:
                made = sum(row["method"] == method for row in supply.taken.values())
                said = f"no more than {made:,} prompts that are new, of {made + lacking:,} asked for"
                supply.dry[method] = f"{method} has {said}"


def choose(recipe: Recipe, inputs: dict[str, Path], out: Path, taxonomy: Domain | None, used: Counter[str]) -> Chosen:
    """The prompts of a recipe. `out`: the stage's folder; nothing is left in it. `used`: see `ask_writers`."""
    section = recipe.generate
    steering = Steering()
    supply = open_methods(recipe, inputs, partial(ask_writers, recipe, out, used), steering)
    more = partial(take_more, supply, {"file": 1.0} if section.file else dict(section.methods.items()))
    if section.target_kept:
        kept = until_kept(recipe, out, supply.taken, more, steering, taxonomy)
        if kept.unasked:
            supply.left_out["not_asked"] = kept.unasked
        notes = [f"{kept.rows.total():,} rows kept of {section.target_kept:,} wanted: {kept.why}"] if kept.why else []
        return Chosen(supply.taken, supply.left_out, notes + list(supply.dry.values()), kept)
    more(recipe.first_round)
    notes = list(supply.dry.values())
    if notes and len(supply.taken) == recipe.first_round:
        notes.append("the other methods made up for it")
    return Chosen(supply.taken, supply.left_out, notes, None)


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write prompts.parquet to `out`. Returns {"outcomes": {"prompts": n}, "reasons": {reason: candidates left out},
    "coverage": see `coverage`, "target": {"wanted", "kept", "rounds"} where the recipe gives target_kept, "usage": what
    the teachers took that wrote prompts, "note": which methods ran dry, and why fewer prompts or kept rows came out
    than asked for, where that is so}.

    Raises UserError if not one prompt comes out, RecipeError for what is wrong in a file.
    """
    section = recipe.generate
    if recipe.writers and not recipe.writers.teachers:
        methods = ", ".join(method for method in section.methods if method in WRITTEN)
        raise UserError(f"generate.methods: {methods} needs collect.teachers.")
    taxonomy = read_domain(inputs["domain.yaml"]) if "domain.yaml" in inputs else None
    if taxonomy and section.facets.sampling == "balanced":
        taxonomy = taxonomy._replace(weights={})
    used: Counter[str] = Counter()
    taken, left_out, notes, kept = choose(recipe, inputs, out, taxonomy, used)
    reasons = dict(sorted(left_out.items()))
    if not taken:
        raise UserError(_nothing_came_out(reasons, bool(recipe.writers)))
    table = pa.Table.from_pylist([taken[key] for key in sorted(taken)], schema=PROMPTS)
    write_table(out / "prompts.parquet", PROMPTS, table)
    counts: dict[str, Any] = {
        "outcomes": {"prompts": len(taken)},
        "reasons": reasons,
        "coverage": coverage(table, taxonomy, kept.rows if kept else None),
    }
    if used:
        counts["usage"] = dict(used)
    if kept:
        counts["target"] = {"wanted": section.target_kept, "kept": kept.rows.total(), "rounds": kept.rounds}
    return counts | ({"note": "; ".join(notes)} if notes else {})


def _candidates(method: str, recipe: Recipe, inputs: dict[str, Path], steering: Steering) -> Iterator[Row]:
    section = recipe.generate
    if method == "questions":
        facts = read_facts(inputs["facts"], section.questions.relations)
        lead_ins = _lead_ins(inputs["domain.yaml"]) if section.questions.lead_ins else []
        asked = from_questions(recipe.domain, facts, lead_ins, section.questions.lead_ins, recipe.seed)
        return thin_topics_first(asked, steering)
    if method == "facets":
        taxonomy, templates = read_domain(inputs["domain.yaml"]), read_forms(inputs["facets"])
        balanced = section.facets.sampling == "balanced"
        made = filled(taxonomy, templates, balanced, recipe.seed, steering)
        return (ask(recipe.domain, "facets", clean(one.text), one.template, **one.facets) for one in made)
    return from_file(recipe.domain, inputs["file"])


def _lead_ins(path: Path) -> list[str]:
    lead_ins = read_domain(path).lead_ins
    if not lead_ins:
        raise RecipeError(f"{path}: lead_ins: is missing, and generate.questions.lead_ins asks for them. Add a list.")
    return lead_ins


def _nothing_came_out(reasons: dict[str, int], written: bool) -> str:
    said = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items()) or "there were no candidates"
    advice = "Add templates, entities, facts or a larger file."
    if max(reasons, key=reasons.__getitem__, default="") == "held_out":
        advice = "They repeat held-out questions: make other prompts, or hold out other questions (evaluate.questions)."
    elif written:
        advice = "Look at what the teachers wrote (`seqkd cache export FILE`), then change the template or the teacher."
    return f"generate: not one prompt came out ({said}). {advice}"


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("generate")

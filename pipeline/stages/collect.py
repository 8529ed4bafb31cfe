"""collect: ask the teachers, and keep every answer.

Every prompt x sample becomes exactly one row, of completions or of failures. Answers go to the response store first
(pipeline/calls/store.py) and the tables are made from it at the end, so whatever was answered before, by this run or
another, is not asked again, and a killed run that is started again writes the same bytes as an unbroken one.
"""

import asyncio
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pipeline import artifacts, documents, paths, templates, written
from pipeline.calls.batch import BatchAsking
from pipeline.calls.budget import BATCH_SHARE, CHARACTERS_A_TOKEN, Budget, Rates, cost, estimated, rates_of
from pipeline.calls.online import Asking, Call, Line, side_by_side
from pipeline.calls.reply import Parsed, Problem, mend, output_shares, shares
from pipeline.calls.samples import Ask, calls_of, missing, seed_of
from pipeline.calls.store import Answer, GroupCommit, Received, Store, default_path, new_id, request_key
from pipeline.calls.transport import Endpoint
from pipeline.errors import StopRun, UserError
from pipeline.progress import progress, say
from pipeline.recipe import Recipe, Teacher
from pipeline.records import COMPLETIONS, FAILURES, Row, canonical_json, make_id
from pipeline.teachers import hosted, local_teacher_folder, provider_of, read_key

VERSION = 2
SECTIONS = ("collect",)
READS = {"prompts": "generate"}

DETAIL_CHARACTERS = 2_000
PROMPTS_AT_ONCE = 500  # prompts looked up in the store at a time
ALL = 1 << 64


class Source(NamedTuple):
    """A teacher of the recipe, with what is needed to ask it and to read its answers."""

    teacher: Teacher
    module: ModuleType  # its provider's file
    identity: str  # tells it from another of the same name
    share: tuple[int, int]  # the prompts it is asked: those whose hash is in this range of 0 .. ALL
    passage: templates.Template | None  # shows it a prompt's context, where there is any


Asks = Callable[[Source], Iterator[list[Ask]]]
"""Everything that a teacher is to be asked, the samples of some prompts at a time."""


def sources(recipe: Recipe) -> dict[str, Path]:
    """The files besides the prompts that determine the answers."""
    if recipe.collect.file:
        return {"file": recipe.collect.file}
    found = {}
    if recipe.collect.system:
        found["system"] = templates.find_template(paths.prompts_folder(recipe.domain), recipe.collect.system)
    if recipe.generate.documents:
        found["passage"] = paths.template_of(recipe.domain, "passage.jinja")
    for number, teacher in enumerate(recipe.collect.teachers):
        if teacher.embedded:
            found["facts"] = paths.domain_data_folder(recipe.domain) / "facts"
        elif teacher.provider in ("local", "vllm") and Path(teacher.model).is_dir():
            found[f"teacher_{number}"] = Path(teacher.model)
    return found


def check(recipe: Recipe) -> None:
    """Raises UserError if the key of one of the teachers is not there."""
    keys_of(recipe)


# --- answers from a file ---------------------------------------------------------------------------------------------


def take_file(recipe: Recipe, path: Path, completions: artifacts.Sorter, failures: artifacts.Sorter) -> dict[str, Any]:
    """The rows of collect.file as completions of a teacher called after the file; one without an answer is a failure.
    A prompt's second answer is its sample 1, and so on."""
    from pipeline.stages.generate import clean  # the prompts' ids are to be those of the stage generate
    from pipeline.teachers.file import answers

    name, empty = path.name, 0
    samples: Counter[bytes] = Counter()
    batch: list[Row] = []
    with progress(f"read {name}", 0, "rows") as advance:
        for messages, text in answers(path):
            messages = [turn | {"content": clean(turn["content"])} for turn in messages]
            prompt_id = make_id("prompt", recipe.domain, messages)
            short = bytes.fromhex(prompt_id)
            sample = samples[short]
            samples[short] += 1
            row = {
                "id": make_id(prompt_id, name, sample),
                "prompt_id": prompt_id,
                "sample": sample,
                "messages": messages,
                "teacher": name,
                "provider": "file",
            }
            if text.strip():
                batch.append(row | {"text": text, "finish_reason": "stop"})
            else:
                failures.add([row | {"reason": "empty", "detail": "the row has no answer", "attempts": 0}])
                empty += 1
            if len(batch) == artifacts.ROW_GROUP:
                completions.add(batch)
                advance(len(batch))
                batch = []
    completions.add(batch)
    outcomes = {"completions": completions.write(), "failed": failures.write()}
    return {
        "rows_in": sum(outcomes.values()),
        "outcomes": outcomes,
        "reasons": {"empty": empty} if empty else {},
        "usage": {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "requests_sent": 0},
    }


# --- whom to ask what ------------------------------------------------------------------------------------------------


def accept_terms(recipe: Recipe) -> dict[str, str]:
    """Name the hosted providers' terms before anything is sent, and return how they were accepted: {provider: how}.
    Raises UserError if they were not."""
    owners = {hosted(teacher.provider, teacher.urls()) for teacher in recipe.collect.teachers}
    accepted: dict[str, str] = {}
    for name in sorted(owner for owner in owners if owner):
        text, link = importlib.import_module(f"pipeline.teachers.{name}").TERMS
        say(f"  {text}: {link}")
        if recipe.collect.accept_terms:
            accepted[name] = f"collect.accept_terms: true ({link})"
            continue
        if not sys.stdin.isatty():
            raise UserError(
                f"{text}. Read {link}, and set `collect.accept_terms: true` in the recipe (or --set "
                "collect.accept_terms=true) if your use is allowed."
            )
        say("  Have you read them, and is your use allowed? Type yes to go on.")
        if sys.stdin.readline().strip().lower() != "yes":
            raise UserError("the terms were not accepted, and nothing was sent.")
        accepted[name] = f"answered yes at the prompt ({link})"
    return accepted


def keys_of(recipe: Recipe) -> dict[str, str | None]:
    """The key of each teacher that is asked over HTTP, by what it is called. Raises UserError."""
    return {teacher.called: read_key(teacher) for teacher in recipe.collect.teachers if teacher.provider != "local"}


def open_sources(recipe: Recipe, *, remote: bool = False) -> list[Source]:
    """The recipe's teachers with their shares of the prompts; remote: only those that are asked over HTTP."""
    teachers = recipe.collect.teachers
    total, edge, made = sum(teacher.weight for teacher in teachers), 0.0, []
    passage = None
    if recipe.generate.documents:
        passage = templates.load(paths.template_of(recipe.domain, "passage.jinja"))
    for teacher in teachers:
        low, edge = edge, edge + teacher.weight / total
        share = (int(low * ALL), ALL if teacher is teachers[-1] else int(edge * ALL))
        if recipe.collect.strategy == "all":
            share = (0, ALL)
        if remote and teacher.provider == "local":
            continue
        place = Path(local_teacher_folder(recipe, teacher) if teacher.provider == "local" else teacher.model)
        if teacher.provider in ("openai", "anthropic"):
            identity = "|".join(teacher.urls())
        else:
            identity = artifacts.digest(place) if place.is_dir() else ""
        made.append(Source(teacher, provider_of(teacher), identity, share, passage))
    return made


def system_message(recipe: Recipe) -> str | None:
    """The system prompt of collect.system, or None."""
    if not recipe.collect.system:
        return None
    template = templates.find_template(paths.prompts_folder(recipe.domain), recipe.collect.system)
    return templates.render(template, domain=recipe.domain)


def chunks(path: Path) -> Iterator[list[Row]]:
    """The prompts, some at a time."""
    for batch in artifacts.read_batches(path, ["id", "messages", "context"]):
        for start in range(0, batch.num_rows, PROMPTS_AT_ONCE):
            yield batch.slice(start, PROMPTS_AT_ONCE).to_pylist()


def asks_of(recipe: Recipe, source: Source, prompts: list[Row], system: str | None) -> list[Ask]:
    """What a teacher is to be asked about some prompts: its share of them, prompt by prompt."""
    low, high = source.share
    first = [{"role": "system", "content": system}] if system is not None else []
    asks = []
    for prompt in prompts:
        # Ids are hashes, so a range of them is a random part; mixed once more, for ids that are not ours.
        place = int.from_bytes(blake2b(prompt["id"].encode(), digest_size=8, key=b"teacher").digest())
        if not low <= place < high:
            continue
        turns, context = prompt["messages"], prompt["context"]
        if context and source.passage and context not in turns[-1]["content"]:
            turns = turns[:-1] + documents.shown(source.passage, context, turns[-1]["content"], open_book=False)
        request = source.module.request(source.teacher, first + turns, recipe.collect.sampling, recipe.seed)
        canonical = canonical_json(request)
        for sample in range(recipe.collect.samples):
            key = request_key(source.teacher.provider, source.identity, canonical, sample)
            row_id = make_id(prompt["id"], source.teacher.called, sample)
            asks.append(Ask(row_id, prompt["id"], sample, prompt["messages"], context, request, canonical, key))
    return asks


# --- asking ----------------------------------------------------------------------------------------------------------


def ask_local(recipe: Recipe, source: Source, asks: Asks, store: Store, job: str) -> tuple[int, int]:
    """Answer what the store lacks with a model in this process; returns (answers made, answers that the store had).

    The batches are cut from the whole list, whatever is stored, and a batch with a gap is answered as a whole and
    stored at once: what a row is computed beside is then the same in a resumed run as in an unbroken one.
    """
    from pipeline.teachers import local

    teacher, loaded, asked = source.teacher, None, 0
    wanted = [ask for some in asks(source) for ask in some]
    wanted.sort(key=lambda ask: (sum(len(message["content"]) for message in ask.request["messages"]), ask.id))
    with progress(f"ask {teacher.called}", len(wanted), "answers") as advance:
        for start in range(0, len(wanted), teacher.batch_size):
            batch = wanted[start : start + teacher.batch_size]
            if len(store.known([ask.key for ask in batch])) < len(batch):
                if loaded is None:
                    place = local_teacher_folder(recipe, teacher)
                    loaded = local.load(place, trust_remote_code=teacher.trust_remote_code)
                request = batch[0].request
                answers = local.answer(
                    loaded,
                    [ask.request["messages"] for ask in batch],
                    temperature=request["temperature"],
                    top_p=request["top_p"],
                    max_tokens=request["max_tokens"],
                    seeds=[seed_of(ask) for ask in batch],
                    logprobs=request["logprobs"],
                    top_logprobs=request.get("top_logprobs"),
                )
                store.commit([_received(teacher, job, *pair) for pair in zip(batch, answers, strict=True)])
                asked += len(batch)
            advance(len(batch))
    return asked, len(wanted) - asked


def _received(teacher: Teacher, job: str, ask: Ask, answer: dict[str, Any]) -> Received:
    return Received(
        intent=new_id(),
        job=job,
        provider=teacher.provider,
        model=teacher.called,
        request=ask.canonical.encode("utf-8", "surrogatepass"),
        status=200,
        body=json.dumps(answer).encode(),
        usd=None,
        rates=None,
        attempts=1,
        keys=(ask.key,),
    )


def ask_over_http(
    recipe: Recipe, sources: list[Source], keys: dict[str, str | None], asks: Asks, rows: int, store: Store, job: str
) -> tuple[int, int, float]:
    """Ask the teachers that are reached over HTTP, and start a server for those that want one while it is needed.
    rows: prompts x samples. Returns (requests sent, answers that the store had, US dollars spent by this run now and
    before). Raises StopRun."""
    stored, reached = 0, []
    with ExitStack() as servers:
        for source in sources:
            teacher = source.teacher
            if teacher.serve:
                if not any(missing(source.module.parse, some, store)[0] for some in asks(source)):
                    stored += sum(len(some) for some in asks(source))
                    continue
                url = servers.enter_context(source.module.serve(teacher))
                teacher = teacher.model_copy(update={"base_url": url})
            reached.append((source, source.module.connect(teacher, keys[teacher.called])))
        if not reached:
            return 0, stored, 0.0
        part = sum(source.share[1] - source.share[0] for source, _ in reached) / ALL
        names = ", ".join(source.teacher.called for source, _ in reached)
        with progress(f"ask {names}", round(rows * part), "answers") as advance:
            sent, found, spent = asyncio.run(ask_all(recipe, reached, asks, store, job, advance))
    return sent, stored + found, spent


async def ask_all(
    recipe: Recipe,
    reached: list[tuple[Source, Endpoint]],
    asks: Asks,
    store: Store,
    job: str,
    advance: Callable[[int], None],
) -> tuple[int, int, float]:
    """Ask teachers side by side what the store lacks; returns what ask_over_http does."""
    stored = 0  # progress and this count each answer once, so what a batch has just brought is `counted` already
    halt: list[StopRun] = []
    budget = Budget(recipe.collect.budget_usd, store.spent(job))
    async with GroupCommit(store) as commits:

        def lacking(source: Source, rates: Rates | None, together: int, counted: int = 0) -> Iterator[Call]:
            nonlocal stored
            for some in asks(source):
                lack, mends = missing(source.module.parse, some, store)
                for write in mends:
                    commits.add(write)
                there = len(some) - len(lack)
                counted, there = max(0, counted - there), max(0, there - counted)
                stored += there
                advance(there)
                yield from calls_of(source.module, lack, rates, together)

        asking: list[Coroutine[Any, Any, int]] = []
        for source, endpoint in reached:
            teacher, module = source.teacher, source.module
            line = Line(
                name=teacher.called,
                provider=teacher.provider,
                job=job,
                endpoint=endpoint,
                parse=module.parse,
                limits=module.limits,
                rates=rates_of(teacher),
                max_in_flight=teacher.max_in_flight,
                requests_per_minute=teacher.requests_per_minute,
                tokens_per_minute=teacher.tokens_per_minute,
                timeout_s=recipe.collect.timeout_s,
                deadline_s=recipe.collect.deadline_s,
            )
            if teacher.mode == "batch":
                half = replace(line, rates=rates_of(teacher, BATCH_SHARE))
                batches = BatchAsking(half, line, module.batches(endpoint), store, commits, budget, advance, halt)
                calls = partial(lacking, source, half.rates, 1, sys.maxsize)  # counts none
                asking.append(batches.run(calls, partial(lacking, source, line.rates, 1)))
            else:
                online = Asking(line, commits, budget, advance, halt)
                asking.append(online.run(lacking(source, line.rates, module.SAMPLES_AT_ONCE)))
        sent = await side_by_side(asking, halt)
    return sent, stored, budget.spent


# --- tables ----------------------------------------------------------------------------------------------------------


def completion(ask: Ask, source: Source, answer: Answer, parsed: Parsed) -> Row:
    """A row of completions. What one request for several samples used is shared out among them."""
    reply, n, usage = parsed.replies[answer.choice], len(parsed.replies), parsed.usage
    assert reply
    usd = cost(answer.rates, usage) if answer.rates and usage else answer.usd
    return {
        "id": ask.id,
        "prompt_id": ask.prompt_id,
        "sample": ask.sample,
        "messages": ask.messages,
        "context": ask.context,
        "text": mend(reply.text),
        "reasoning": None if reply.reasoning is None else mend(reply.reasoning),
        "finish_reason": reply.finish_reason,
        "teacher": source.teacher.called,
        "provider": source.teacher.provider,
        "input_tokens": shares(usage.input_tokens, n)[answer.choice] if usage else None,
        "cached_tokens": shares(usage.cached_tokens, n)[answer.choice] if usage else None,
        "output_tokens": output_shares(parsed)[answer.choice],
        "cost_usd": None if usd is None else usd / n,
        "logprobs": reply.logprobs and [_mended(entry) for entry in reply.logprobs],
    }


def _mended(entry: dict[str, Any]) -> dict[str, Any]:
    top = [_mended(other) for other in entry["top"]] if entry["top"] else None
    return entry | {"token": entry["token"] and mend(entry["token"]), "top": top}


def failure(ask: Ask, source: Source, reason: str, detail: str, attempts: int) -> Row:
    """A row of failures."""
    return {
        "id": ask.id,
        "prompt_id": ask.prompt_id,
        "sample": ask.sample,
        "messages": ask.messages,
        "teacher": source.teacher.called,
        "provider": source.teacher.provider,
        "reason": reason,
        "detail": mend(detail)[:DETAIL_CHARACTERS],
        "attempts": attempts,
    }


def rows_of(source: Source, asks: list[Ask], store: Store) -> tuple[list[Row], list[Row]]:
    """The completions and failures that the store has for `asks`."""
    answers = store.answers([ask.key for ask in asks])
    faults = store.faults([ask.key for ask in asks if ask.key not in answers])
    completions, failures = [], []
    for ask in asks:
        answer = answers.get(ask.key)
        if answer is None:
            failures.append(failure(ask, source, *faults.get(ask.key, ("not_asked", "", 0))))
            continue
        parsed = source.module.parse(answer.status, answer.body)
        if isinstance(parsed, Problem):
            failures.append(failure(ask, source, parsed.reason, parsed.detail, answer.attempts))
        else:
            completions.append(completion(ask, source, answer, parsed))
    return completions, failures


def estimate(recipe: Recipe, prompts: Path | None = None) -> list[dict[str, Any]]:
    """What collecting would take at the most: lines as of `estimated`. `prompts`: the table; of what is asked over HTTP
    what the store has is then left out. None while generate has not run: its prompts are then taken to have 200
    characters each, and with target_kept every second answer to be kept."""
    collect = recipe.collect
    if collect.file:
        return []
    system = len(system_message(recipe) or "") // CHARACTERS_A_TOKEN
    total = sum(teacher.weight for teacher in collect.teachers)
    if prompts:
        lengths = [
            sum(len(message["content"]) for message in prompt["messages"]) + len(prompt["context"] or "")
            for some in chunks(prompts)
            for prompt in some
        ]
        count, characters = len(lengths), sum(lengths)
    else:
        count = recipe.prompts_expected
        characters = written.PROMPT * count
    lacks = not_stored(recipe, prompts) if prompts and default_path().is_file() else {}
    lines = []
    for teacher in collect.teachers:
        share = 1.0 if collect.strategy == "all" else teacher.weight / total
        asked = round(count * share)
        requests = asked * -(-collect.samples // provider_of(teacher).SAMPLES_AT_ONCE)
        answers = asked * collect.samples
        if teacher.called in lacks:
            requests, answers = lacks[teacher.called]
        input_tokens = round((characters / max(count, 1) / CHARACTERS_A_TOKEN + system + 8) * requests)
        lines.append(estimated(teacher, "", requests, input_tokens, answers * collect.sampling.max_tokens))
    return lines


def not_stored(recipe: Recipe, prompts: Path) -> dict[str, tuple[int, int]]:
    """For each teacher that is asked over HTTP, how many requests and answers the store lacks."""
    found, system = {}, system_message(recipe)
    with Store() as store:
        for source in open_sources(recipe, remote=True):
            together, requests, answers = source.module.SAMPLES_AT_ONCE, 0, 0
            for some in chunks(prompts):
                asks = asks_of(recipe, source, some, system)
                known = store.known([ask.key for ask in asks])
                lack = Counter(ask.prompt_id for ask in asks if ask.key not in known)
                requests += sum(-(-samples // together) for samples in lack.values())
                answers += lack.total()
            found[source.teacher.called] = requests, answers
    return found


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Ask every teacher for what the store lacks, then write completions.parquet and failures.parquet.

    Raises UserError for a missing key or terms that were not accepted, StopRun for what a provider said.
    """
    completions = artifacts.Sorter(out, "completions", COMPLETIONS)
    failures = artifacts.Sorter(out, "failures", FAILURES)
    if recipe.collect.file:
        return take_file(recipe, inputs["file"], completions, failures)
    job, system = out.parent.name, system_message(recipe)
    terms = accept_terms(recipe)
    keys = keys_of(recipe)
    sources = open_sources(recipe)

    def asks(source: Source) -> Iterator[list[Ask]]:
        for some in chunks(inputs["prompts"]):
            yield asks_of(recipe, source, some, system)

    reasons: Counter[str] = Counter()
    usage: dict[str, float] = {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
    sent = stored = 0
    with Store() as store:
        for source in sources:
            if source.teacher.provider == "local":
                asked, found = ask_local(recipe, source, asks, store, job)
                sent, stored = sent + asked, stored + found
        remote = [source for source in sources if source.teacher.provider != "local"]
        rows = artifacts.count_rows(inputs["prompts"]) * recipe.collect.samples
        asked, found, spent = ask_over_http(recipe, remote, keys, asks, rows, store, job)
        sent, stored = sent + asked, stored + found

        for some in chunks(inputs["prompts"]):
            for source in sources:
                answered, failed = rows_of(source, asks_of(recipe, source, some, system), store)
                completions.add(answered)
                failures.add(failed)
                reasons.update(row["reason"] for row in failed)
                for name in usage:
                    usage[name] += sum(row[name] or 0 for row in answered)
    outcomes = {"completions": completions.write(), "failed": failures.write()}
    counts: dict[str, Any] = {
        "rows_in": sum(outcomes.values()),
        "outcomes": outcomes,
        "reasons": dict(reasons),
        "usage": usage | {"spent_usd": spent, "requests_sent": sent, "from_store": stored},
        "terms": terms,
    }
    if reasons["budget"]:
        counts["note"] = (
            f"{reasons['budget']:,} not asked: ${spent:.4f} of the budget of ${recipe.collect.budget_usd:g} is spent; "
            "a larger collect.budget_usd with --from collect asks the rest"
        )
    return counts


if __name__ == "__main__":
    from pipeline.flow import stage_main

    stage_main("collect")

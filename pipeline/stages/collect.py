"""collect: ask the teachers, and keep every answer.

Every prompt x sample becomes exactly one row, of completions or of failures. Answers go to the response store first
(pipeline/calls/store.py) and the tables are made from it at the end, so whatever was answered before, by this run or
another, is not asked again, and a killed run that is started again writes the same bytes as an unbroken one.
"""

import asyncio
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pipeline import artifacts, documents, paths, templates, written
from pipeline.calls.batch import BatchAsking, BatchLine
from pipeline.calls.budget import BATCH_SHARE, Budget, Rates, cost, worst_case
from pipeline.calls.online import Asking, Call, Line, settle_cost, unbind
from pipeline.calls.reply import Parsed, Problem, Reply, Usage, mend, output_shares, shares, unanswered
from pipeline.calls.store import Answer, GroupCommit, Received, Store, new_id, request_key
from pipeline.calls.transport import Endpoint
from pipeline.domain import read_domain
from pipeline.errors import StopRun, UserError
from pipeline.facts import read_facts
from pipeline.progress import progress, say
from pipeline.recipe import COUNT, Recipe, Sampling, Teacher
from pipeline.records import COMPLETIONS, FAILURES, Message, Row, canonical_json, make_id
from pipeline.teachers import hosted

VERSION = 2
SECTIONS = ("collect",)
READS = {"prompts": "generate"}

DETAIL_CHARACTERS = 2_000
PROMPTS_AT_ONCE = 500  # prompts looked up in the store at a time
CHARACTERS_A_TOKEN = 4  # a rule of thumb, for estimates and pacing only; the budget reckons with bytes
ALL = 1 << 64


class Ask(NamedTuple):
    """One sample wanted from one teacher."""

    id: str  # the row's
    prompt_id: str
    sample: int
    messages: list[Message]  # the prompt's, without the system message
    context: str | None  # the prompt's
    request: dict[str, Any]  # what determines the answer besides the sample number
    canonical: str  # the same as canonical JSON
    key: bytes  # in the response store


class Source(NamedTuple):
    """A teacher of the recipe, with what is needed to ask it and to read its answers."""

    teacher: Teacher
    name: str
    identity: str  # tells it from another of the same name
    share: tuple[int, int]  # the prompts it is asked: those whose hash is in this range of 0 .. ALL
    request: Callable[[list[Message]], dict[str, Any]]
    parse: Callable[[int, bytes], Parsed | Problem]
    passage: templates.Template | None  # shows it a prompt's context, where there is any


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


# --- teachers --------------------------------------------------------------------------------------------------------


def teacher_name(teacher: Teacher) -> str:
    """How rows and reports call a teacher."""
    return teacher.name or teacher.model


def local_teacher_folder(recipe: Recipe, teacher: Teacher) -> str:
    """What pipeline.teachers.local.load opens for a teacher of provider `local`: its folder or hub id. The embedded
    teacher is trained now if it is not in the cache."""
    if not teacher.embedded:
        return teacher.model
    from pipeline.teachers.embedded import embedded_teacher
    from pipeline.training import training_progress

    facts = read_facts(paths.domain_data_folder(recipe.domain) / "facts", teacher.embedded.relations)
    settings = teacher.embedded
    if settings.seed is None:
        settings = settings.model_copy(update={"seed": recipe.seed})
    if settings.lead_ins is None:
        domain_file = paths.prompts_folder(recipe.domain) / "domain.yaml"
        lead_ins = read_domain(domain_file).lead_ins if domain_file.is_file() else []
        settings = settings.model_copy(update={"lead_ins": lead_ins})
    with training_progress("train the embedded teacher") as log:
        return str(embedded_teacher(facts, settings, paths.cache_root(), log=log))


def provider(teacher: Teacher) -> ModuleType:
    """The provider's file: request, wire, connect, limits, parse (see pipeline/teachers/openai.py)."""
    return importlib.import_module(f"pipeline.teachers.{teacher.provider}")


def open_sources(recipe: Recipe) -> list[Source]:
    """The recipe's teachers with their shares of the prompts."""
    teachers, seed, sampling = recipe.collect.teachers, recipe.seed, recipe.collect.sampling
    total, edge, made = sum(teacher.weight for teacher in teachers), 0.0, []
    passage = None
    if recipe.generate.documents:
        passage = templates.load(paths.template_of(recipe.domain, "passage.jinja"))
    for teacher in teachers:
        low, edge = edge, edge + teacher.weight / total
        share = (int(low * ALL), ALL if teacher is teachers[-1] else int(edge * ALL))
        if recipe.collect.strategy == "all":
            share = (0, ALL)
        place = Path(local_teacher_folder(recipe, teacher) if teacher.provider == "local" else teacher.model)
        if teacher.provider in ("openai", "anthropic"):
            identity = "|".join(teacher.urls())
        else:
            identity = artifacts.digest(place) if place.is_dir() else ""
        if teacher.provider == "local":
            request, parse = partial(local_request, teacher, sampling, seed), parse_local
        else:
            module = provider(teacher)
            request, parse = partial(_request, module, teacher, sampling, seed), module.parse
        made.append(Source(teacher, teacher_name(teacher), identity, share, request, parse, passage))
    return made


def _request(
    module: ModuleType, teacher: Teacher, sampling: Sampling, seed: int, messages: list[Message]
) -> dict[str, Any]:
    made: dict[str, Any] = module.request(teacher, messages, sampling, seed)
    return made


def read_key(teacher: Teacher) -> str | None:
    """The teacher's key from its environment variable, None where it needs none. Raises UserError, without the key."""
    variable = teacher.api_key_env or (None if teacher.urls() else provider(teacher).KEY_ENV)
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise UserError(
            f"collect.teachers: {teacher_name(teacher)}: the environment variable {variable} is not set. Put the key "
            f"for provider {teacher.provider} into it (export {variable}=...)."
        )
    if not all("!" <= character <= "~" for character in key):
        raise UserError(
            f"collect.teachers: {teacher_name(teacher)}: {variable} has white space or unusual characters in it "
            "(a newline at its end?). Set it to the key alone."
        )
    return key


def rates_of(teacher: Teacher) -> Rates | None:
    """US dollars a million tokens, or None where the recipe gives no price."""
    price = teacher.price
    if price is None:
        return None
    cached = price.input if price.cached_input is None else price.cached_input
    written = price.input if price.cache_write is None else price.cache_write
    return (price.input, cached, written, price.output)


def halved(rates: Rates | None) -> Rates | None:
    """The rates of a batch."""
    return rates and (rates[0] * BATCH_SHARE, rates[1] * BATCH_SHARE, rates[2] * BATCH_SHARE, rates[3] * BATCH_SHARE)


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


# --- what to ask -----------------------------------------------------------------------------------------------------


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


def asks_of(source: Source, prompts: list[Row], system: str | None, samples: int) -> list[Ask]:
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
        request = source.request(first + turns)
        canonical = canonical_json(request)
        for sample in range(samples):
            key = request_key(source.teacher.provider, source.identity, canonical, sample)
            row_id = make_id(prompt["id"], source.name, sample)
            asks.append(Ask(row_id, prompt["id"], sample, prompt["messages"], context, request, canonical, key))
    return asks


def seed_of(ask: Ask) -> int:
    """A sample's own seed, 63 bits. Not from the key: a teacher trained anew from the same facts samples alike."""
    content = f"{ask.sample} {ask.canonical}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(content, digest_size=8).digest()) >> 1


def missing(source: Source, asks: list[Ask], store: Store) -> tuple[list[Ask], list[Any]]:
    """The asks without a usable answer, and what has to be mended in the store.

    Stored bodies are parsed again: one whose process died between storing and parsing it may be no answer at all.
    """
    answers = store.answers([ask.key for ask in asks])
    lacking, mends = [], []
    for ask in asks:
        answer = answers.get(ask.key)
        if answer is None:
            lacking.append(ask)
            continue
        outcome = source.parse(answer.status, answer.body)
        if isinstance(outcome, Problem):
            usable = outcome.kind == "final"
        else:
            usable = answer.choice not in unanswered(outcome, answer.choice + 1)
            if answer.rates and outcome.usage and cost(answer.rates, outcome.usage) != answer.usd:
                mends.append(settle_cost(answer.body_id, cost(answer.rates, outcome.usage)))
        if not usable:
            mends.append(unbind(ask.key, answer.body_id))
            lacking.append(ask)
    return lacking, mends


def calls_of(source: Source, asks: list[Ask], rates: Rates | None, together: int, shift: int = 0) -> list[Call]:
    """The requests for `asks`, up to `together` samples of a prompt in each, with other seeds by `shift`."""
    module, made, start = provider(source.teacher), [], 0
    while start < len(asks):
        end = start + 1
        while end < len(asks) and end - start < together and asks[end].prompt_id == asks[start].prompt_id:
            end += 1
        some = asks[start:end]
        request, n = some[0].request, len(some)
        body = module.wire(request, n, seed_of(some[0]) + shift)
        limit = next(request[name] for name in ("max_completion_tokens", "max_tokens") if name in request)
        usd = worst_case(rates, body, len(request["messages"]), limit, n) if rates else 0.0
        tokens = len(body) // CHARACTERS_A_TOKEN + limit * n

        def again(places: Sequence[int], together: int, more: int, some: list[Ask] = some) -> list[Call]:
            return calls_of(source, [some[place] for place in places], rates, together, more)

        made.append(Call(tuple(ask.key for ask in some), body, tokens, usd, again))
        start = end
    return made


def prompts_expected(recipe: Recipe) -> int:
    """How many prompts generate will make; with target_kept every second answer is taken to be kept."""
    count = recipe.first_round or COUNT
    if recipe.generate.target_kept:
        count = max(count, 2 * recipe.rows_to_prompts(recipe.generate.target_kept))
    return count


def estimate(recipe: Recipe, prompts: Path | None = None) -> list[dict[str, Any]]:
    """What collecting would take if nothing were stored: for each teacher {"teacher", "provider", "requests",
    "input_tokens", "output_tokens" (the most), "usd" (the most; None without a price)}. `prompts`: the table, or None
    while generate has not run; then its prompts are taken to have 200 characters each, and with target_kept every
    second answer to be kept."""
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
        count = prompts_expected(recipe)
        characters = written.PROMPT * count
    lines = []
    for teacher in collect.teachers:
        share = 1.0 if collect.strategy == "all" else teacher.weight / total
        asked = round(count * share)
        together = 1 if teacher.provider == "local" else provider(teacher).SAMPLES_AT_ONCE
        requests = asked * -(-collect.samples // together)
        input_tokens = round(
            (characters / CHARACTERS_A_TOKEN * share + asked * (system + 8)) * requests / max(asked, 1)
        )
        output_tokens = asked * collect.samples * collect.sampling.max_tokens
        lines.append(estimated(teacher, teacher_name(teacher), requests, input_tokens, output_tokens))
    return lines


def estimated(teacher: Teacher, name: str, requests: int, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """A line of `estimate`."""
    rates = halved(rates_of(teacher)) if teacher.mode == "batch" else rates_of(teacher)
    return {
        "teacher": name,
        "provider": teacher.provider,
        "requests": requests,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "usd": cost(rates, Usage(input_tokens, 0, output_tokens)) if rates else None,
    }


# --- asking ----------------------------------------------------------------------------------------------------------


def local_request(teacher: Teacher, sampling: Sampling, seed: int, messages: list[Message]) -> dict[str, Any]:
    """What determines an answer of an in-process model."""
    return {
        "model": teacher_name(teacher),
        "messages": messages,
        "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "logprobs": sampling.logprobs,
        "seed": seed,
        **({"top_logprobs": sampling.top_logprobs} if sampling.logprobs and sampling.top_logprobs else {}),
    }


def parse_local(status: int, body: bytes) -> Parsed | Problem:
    """What pipeline.teachers.local.answer returned, from the store."""
    answer = json.loads(body)
    if answer["finish_reason"] == "error":
        return Problem("final", "context_length", answer["error"])
    scores = answer["logprobs"]
    logprobs = [{"token": None, "id": None, "logprob": score, "top": None} for score in scores] if scores else None
    for entry, token, top in zip(logprobs or (), answer.get("ids", ()), answer.get("top", ()), strict=False):
        entry["id"] = token
        entry["top"] = [{"token": None, "id": other, "logprob": value, "top": None} for other, value in top]
    reply = Reply(answer["text"], answer["finish_reason"], None, logprobs)
    return Parsed([reply], Usage(answer["input_tokens"], 0, answer["output_tokens"]))


def ask_local(
    recipe: Recipe, source: Source, asks: list[Ask], store: Store, job: str, advance: Callable[[int], None]
) -> int:
    """Answer what the store lacks with a model in this process; returns how many were asked.

    The batches are cut from the whole list, whatever is stored, and a batch with a gap is answered as a whole and
    stored at once: what a row is computed beside is then the same in a resumed run as in an unbroken one.
    """
    from pipeline.teachers import local

    teacher = source.teacher
    asks = sorted(asks, key=lambda ask: (sum(len(message["content"]) for message in ask.request["messages"]), ask.id))
    loaded, asked = None, 0
    for start in range(0, len(asks), teacher.batch_size):
        batch = asks[start : start + teacher.batch_size]
        if len(store.answers([ask.key for ask in batch])) < len(batch):
            if loaded is None:
                loaded = local.load(local_teacher_folder(recipe, teacher), trust_remote_code=teacher.trust_remote_code)
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
            store.commit([_received(source, job, *pair) for pair in zip(batch, answers, strict=True)])
            asked += len(batch)
        advance(len(batch))
    return asked


def _received(source: Source, job: str, ask: Ask, answer: dict[str, Any]) -> Received:
    return Received(
        intent=new_id(),
        job=job,
        provider=source.teacher.provider,
        model=source.name,
        request=ask.canonical.encode("utf-8", "surrogatepass"),
        status=200,
        body=json.dumps(answer).encode(),
        usd=None,
        rates=None,
        attempts=1,
        keys=(ask.key,),
    )


def ask_over_http(
    recipe: Recipe,
    lines: list[tuple[Source, Endpoint]],
    asks: Callable[[Source], Iterator[list[Ask]]],
    store: Store,
    job: str,
    advance: Callable[[int], None],
) -> tuple[int, int, float]:
    """Ask all teachers that are reached over HTTP side by side; returns (requests sent, answers that the store had, US
    dollars spent by this run now and before). Raises StopRun."""

    stored = 0

    async def ask_all() -> tuple[int, int, float]:
        budget = Budget(recipe.collect.budget_usd, store.spent(job))
        async with GroupCommit(store) as commits:

            def lacking(source: Source, rates: Rates | None, together: int, count: bool = True) -> Iterator[Call]:
                nonlocal stored
                for some in asks(source):
                    lack, mends = missing(source, some, store)
                    for write in mends:
                        commits.add(write)
                    if count:
                        stored += len(some) - len(lack)
                        advance(len(some) - len(lack))
                    yield from calls_of(source, lack, rates, together)

            tasks: list[Coroutine[Any, Any, int]] = []
            halt: list[StopRun] = []
            for source, endpoint in lines:
                teacher, module = source.teacher, provider(source.teacher)
                rates = rates_of(teacher)
                line = Line(
                    name=source.name,
                    provider=teacher.provider,
                    job=job,
                    endpoint=endpoint,
                    parse=source.parse,
                    limits=module.limits,
                    rates=rates,
                    max_in_flight=teacher.max_in_flight,
                    requests_per_minute=teacher.requests_per_minute,
                    tokens_per_minute=teacher.tokens_per_minute,
                    timeout_s=recipe.collect.timeout_s,
                    deadline_s=recipe.collect.deadline_s,
                )
                if teacher.mode == "batch":
                    half = halved(rates)
                    batches = BatchLine(replace(line, rates=half), line, module.batches(endpoint))
                    tasks.append(
                        BatchAsking(batches, store, commits, budget, advance, halt).run(
                            partial(lacking, source, half, 1, False), partial(lacking, source, rates, 1)
                        )
                    )
                else:
                    calls = lacking(source, rates, module.SAMPLES_AT_ONCE)
                    tasks.append(Asking(line, commits, budget, advance, halt).run(calls))
            running = [asyncio.create_task(task) for task in tasks]
            try:
                await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                # What a provider says halts all teachers, which then see to what they have in flight.
                for task in running if not halt else []:
                    task.cancel()
            results = await asyncio.gather(*running, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, StopRun | asyncio.CancelledError):
                raise result
        if halt:
            raise halt[0]
        return sum(result for result in results if isinstance(result, int)), stored, budget.spent

    return asyncio.run(ask_all())


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
        "teacher": source.name,
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
        "teacher": source.name,
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
        parsed = source.parse(answer.status, answer.body)
        if isinstance(parsed, Problem):
            failures.append(failure(ask, source, parsed.reason, parsed.detail, answer.attempts))
        else:
            completions.append(completion(ask, source, answer, parsed))
    return completions, failures


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


def run(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Ask every teacher for what the store lacks, then write completions.parquet and failures.parquet.

    Raises UserError for a missing key or terms that were not accepted, StopRun for what a provider said.
    """
    completions = artifacts.Sorter(out, "completions", COMPLETIONS)
    failures = artifacts.Sorter(out, "failures", FAILURES)
    if recipe.collect.file:
        return take_file(recipe, inputs["file"], completions, failures)
    job, system, samples = out.parent.name, system_message(recipe), recipe.collect.samples
    terms = accept_terms(recipe)
    keys = {teacher_name(t): read_key(t) for t in recipe.collect.teachers if t.provider != "local"}
    sources = open_sources(recipe)

    def asks(source: Source) -> Iterator[list[Ask]]:
        for some in chunks(inputs["prompts"]):
            yield asks_of(source, some, system, samples)

    sent, stored, spent = 0, 0, 0.0
    with Store() as store, ExitStack() as servers:
        local = [source for source in sources if source.teacher.provider == "local"]
        for source in local:
            wanted = [ask for some in asks(source) for ask in some]
            with progress(f"ask {source.name}", len(wanted), "answers") as advance:
                asked = ask_local(recipe, source, wanted, store, job, advance)
            sent, stored = sent + asked, stored + len(wanted) - asked

        lines = []
        for source in sources:
            if source in local:
                continue
            teacher = source.teacher
            if teacher.serve:
                if not any(lack for some in asks(source) for lack in missing(source, some, store)[0]):
                    continue
                url = servers.enter_context(provider(teacher).serve(teacher))
                teacher = teacher.model_copy(update={"base_url": url})
            lines.append((source, provider(teacher).connect(teacher, keys[source.name])))
        if lines:
            rows = artifacts.count_rows(inputs["prompts"]) * samples
            part = sum(source.share[1] - source.share[0] for source, _ in lines) / ALL
            with progress(
                "ask " + ", ".join(source.name for source, _ in lines), round(rows * part), "answers"
            ) as advance:
                requests, found, spent = ask_over_http(recipe, lines, asks, store, job, advance)
            sent, stored = sent + requests, stored + found

        reasons: Counter[str] = Counter()
        usage: dict[str, float] = {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
        for some in chunks(inputs["prompts"]):
            for source in sources:
                answered, failed = rows_of(source, asks_of(source, some, system, samples), store)
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

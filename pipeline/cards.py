"""Model card and data card: what a person should know who finds a student, or its training data, on the Hugging Face
hub.

`model_card` and `data_card` make Markdown with YAML front matter from a `Story`, plain data of a run. Three stages
write them: assemble its README.md (the data), train student/README.md (only what the training itself determines: no
date, no duration, no score, so that the same recipe and seed give the same bytes), evaluate model_card.md (all of it).
`seqkd push` makes both anew, under the names that they get on the hub.

What came from a recipe or a model is escaped, paths of this machine are cut to their last part, addresses of servers
and what looks like a key are left out.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import artifacts, flow, report
from pipeline.recipe import Recipe
from pipeline.records import Row
from pipeline.show import printable
from pipeline.teachers import hosted

LLAMA = (
    "Meta's Llama licences bind what is made with Llama's output: since 3.1 a model trained on it has a name that "
    "begins with Llama and is shown as built with Llama; before 3.1 it may improve no model but Llamas",
    "https://www.llama.com/llama3_1/license/",
)

METHODS = {
    "sft": "fine-tuned on {rows} answers of {names} (sequence-level distillation: Kim & Rush, 2016)",
    "logits": "fine-tuned on {rows} answers of {names} and on the probabilities of their tokens (soft targets: Hinton "
    "et al., 2015)",
    "on_policy": "trained on its own answers to {rows} prompts, whose tokens its teacher scored (on-policy "
    "distillation: Agarwal et al., 2024)",
}

RESULTS = (
    ("accuracy", "accuracy", "exact match"),
    ("token_f1", "f1", "token F1"),
    ("agreement", "agreement", "the same answer as the teacher"),
    ("rouge_l", "rouge", "ROUGE-L against the teacher's answer"),
    ("chrf", "chrf", "chrF against the teacher's answer"),
)
"""(key in scores.json, metric on the hub, what it is called)"""

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))

COLUMNS = (
    ("id", "text", "of the completion: a hash of prompt, teacher and sample"),
    ("prompt", "list of {role, content}", "the messages so far; the last one is the user's"),
    ("completion", "list of {role, content}", "the teacher's answer, one message of the assistant"),
    ("metadata", "{prompt_id, teacher, agreement}", "agreement: the share of the prompt's answers that say the same"),
)
LOGPROBS = (
    "logprobs",
    "list of {token, id, logprob, top}",
    "each token's log-probability, and the likeliest in its place",
)


class Story(NamedTuple):
    """What the cards tell of a run, as far as it is known."""

    sections: Mapping[str, Any]  # domain, seed and the recipe's sections, as flow's fingerprints have them
    counts: Mapping[str, Mapping[str, Any]]  # stage -> the counts of its manifest
    methods: Mapping[str, int] = {}  # method of generate -> prompts
    base_model: str | None = None  # the student's hub id
    code: str | None = None  # the revision that made the run
    packages: Mapping[str, str] = {}  # and the versions


def story(run: Path) -> Story:
    """What the manifests of a run's complete stages say."""
    manifests = _manifests(run, flow.STAGES)
    sections: dict[str, Any] = {}
    for manifest in manifests.values():
        sections |= manifest["basis"]["recipe"]
    was_folder = "student" in manifests["train"]["basis"]["inputs"] if "train" in manifests else False
    student = None if was_folder else sections.get("train", {}).get("student")
    return _story(run, sections, manifests, student)


def story_before(stage: str, recipe: Recipe, run: Path) -> Story:
    """The same for a stage that is being made, of the stages before it."""
    manifests = _manifests(run, flow.STAGES[: flow.STAGES.index(stage)])
    return _story(run, sections_of(recipe), manifests, recipe.train.student)


def sections_of(recipe: Recipe, *names: str) -> dict[str, Any]:
    """domain, seed and the recipe's sections (or those of the names), as fingerprints have them."""
    sections = {name: getattr(recipe, name).fingerprinted() for name in names or flow.STAGES}
    return {"domain": recipe.domain, "seed": recipe.seed, **sections}


def _manifests(run: Path, stages: Sequence[str]) -> dict[str, flow.Manifest]:
    return {stage: manifest for stage in stages if (manifest := flow.read_manifest(run, stage))}


def hub_id(student: Any) -> str | None:
    """train.student if it is a hub id: neither a folder nor a configuration."""
    found = isinstance(student, str) and re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", student, re.ASCII)
    return student if found and not Path(student).is_dir() else None


def _story(run: Path, sections: dict[str, Any], manifests: dict[str, flow.Manifest], student: Any) -> Story:
    last = list(manifests.values())[-1] if manifests else {}
    return Story(
        sections,
        counts={stage: manifest["counts"] for stage, manifest in manifests.items()},
        methods=methods_of(run / "generate" / "prompts.parquet") if "generate" in manifests else {},
        base_model=hub_id(student),
        code=last.get("code"),
        packages=last.get("packages", {}),
    )


def methods_of(prompts: Path) -> dict[str, int]:
    """Method -> prompts, of generate's table."""
    found: Counter[str] = Counter()
    for batch in artifacts.read_batches(prompts, ["method"]):
        found.update(batch.column("method").to_pylist())
    return dict(sorted(found.items()))


# --- the two cards ---------------------------------------------------------------------------------------------------


def model_card(
    told: Story, scores: dict[str, Any] | None = None, *, repo: str | None = None, data_repo: str | None = None
) -> str:
    """The student's card. scores: evaluate's, None before it has run. repo, data_repo: the hub ids of the student and
    of its data, if they get one."""
    from huggingface_hub import ModelCardData

    train, domain = told.sections["train"], told.sections["domain"]
    student = told.counts["train"]["training"]["student"]
    name = repo.split("/")[-1] if repo else f"{domain} student"
    results = _results(domain, scores) if scores else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=told.base_model,
        base_model_relation="finetune" if told.base_model else None,
        datasets=[data_repo] if data_repo else None,
        language=languages(told) or None,
        tags=["distillation", "seqkd", "trl", train["method"]],
        model_name=printable(name) if results else None,
        eval_results=results,
    )
    names = " and ".join(escaped(name) for name, _ in teachers(told.sections)) or "a file"
    first = _student(train["student"], told.base_model)
    method = METHODS.get(train["method"], "trained by the method " + escaped(train["method"]) + " on {rows} answers")
    made = method.format(rows=f"{student['rows']:,}", names=names)
    parts = [
        f"# {escaped(name)}",
        f"A language model of {student['parameters']:,} parameters for the domain {escaped(domain)}: {first}, {made} "
        "with seqkd and TRL.",
        "## Use",
        _fence(_usage(repo), "python"),
        "It was trained without a system prompt, so give it none.",
        "## Scores",
        *(_scores(scores) if scores else ["Not evaluated yet: evaluate/ has the scores once that stage has run."]),
        "## Data",
        *([f"[{data_repo}](https://huggingface.co/datasets/{data_repo})"] if data_repo else []),
        *_data(told, student),
        "## Teacher and terms",
        *_terms(told, "this model"),
        "## Limits",
        _bullets(_limits(told, scores, student)),
        "## Recipe",
        *_recipe(told, ("domain", "seed", *flow.STAGES[:6])),
    ]
    return _document(data, parts)


def data_card(told: Story, *, example: Row | None = None, repo: str | None = None) -> str:
    """The card of the training data: train.parquet and validation.parquet in one folder. example: a row of train.
    repo: the hub id, if it gets one."""
    from huggingface_hub import DatasetCardData

    counts = told.counts["assemble"]["outcomes"]
    rows = {name: counts[name] for name in ("train", "validation") if counts[name]}
    total, domain = sum(rows.values()), told.sections["domain"]
    files = [{"split": name, "path": f"{name}.parquet"} for name in rows]
    data = DatasetCardData(
        language=languages(told) or None,
        task_categories=["text-generation"],
        size_categories=next((name for size, name in SIZES if total < size), "n>10M"),
        tags=["distillation", "seqkd", "synthetic"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    columns = [*COLUMNS, LOGPROBS] if told.sections["collect"].get("sampling", {}).get("top_logprobs") else COLUMNS
    names = " and ".join(escaped(name) for name, _ in teachers(told.sections)) or "answers from a file"
    parts = [
        f"# {escaped(repo.split('/')[-1] if repo else f'{domain} answers')}",
        f"Prompts of the domain {escaped(domain)} with the answers of a language model ({names}), filtered and "
        "deduplicated by seqkd to train a smaller one: "
        + ", ".join(f"{many:,} rows for {name}" for name, many in rows.items())
        + ". The answers were written by a machine, and nobody has checked them one by one.",
        _fence(
            f"from datasets import load_dataset\n\ndata = load_dataset({json.dumps(repo or 'path/to/this/folder')})",
            "python",
        ),
        "## Rows",
        "TRL's conversational prompt-completion form.",
        table(("column", "type", "what"), columns),
        *([_fence(_example(example), "json")] if example else []),
        "## How they were made",
        *_data(told, None),
        "## Teacher and terms",
        *_terms(told, "a model that is trained on these rows"),
        "## Recipe",
        *_recipe(told, ("domain", "seed", *flow.STAGES[:5])),
    ]
    return _document(data, parts)


def _document(data: Any, parts: Iterable[str]) -> str:
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _student(student: Any, base_model: str | None) -> str:
    if base_model:
        return f"{escaped(base_model)}"
    if isinstance(student, str):
        return escaped(public(student))
    return f"the architecture {escaped(student.get('model_type', '?'))} with random weights"


def _usage(repo: str | None) -> str:
    return "\n".join(
        (
            "from transformers import pipeline",
            "",
            f'chat = pipeline("text-generation", {json.dumps(repo or "path/to/student")})',
            'messages = [{"role": "user", "content": "Your question"}]',
            'answer = chat(messages, max_new_tokens=256, return_full_text=False)[0]["generated_text"]',
            "print(answer)",
        )
    )


def _results(domain: str, scores: Mapping[str, Any]) -> list[Any] | None:
    """The student's held-out scores as the hub's `model-index` has them, from 0 to 1; None where it has none."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out-questions",
            dataset_name=f"held-out questions of {printable(domain)}",
            dataset_split="test",
            metric_type=metric,
            metric_name=name,
            metric_value=round(scores["student"][key], 4),
        )
        for key, metric, name in RESULTS
        if scores["student"][key] is not None
    ] or None


def _scores(scores: dict[str, Any]) -> list[str]:
    models = [name for name in report.LABELS if scores[name]]
    said = report.headline(scores)
    rows = [
        (what, *(f"{value} ({ends})" if ends else value for value, ends in values))
        for what, _, values in report.figures(scores)
    ]
    measured = scores["measured"]
    about = (
        f"{report.counted(scores['questions'])}, answered greedily with at most {measured['max_tokens']:,} tokens; in "
        f"brackets the 95% interval (bootstrap, {measured['bootstrap']:,} resamples; Wilson's where all questions came "
        f"out alike) or the range of rounds. Speed was measured on one {measured['device']}, threads: "
        f"{measured['threads']}."
    )
    missed = [f"Missed: {escaped(aim['text'])} ({report.said_of(aim)})." for aim in scores["aims"] if not aim["met"]]
    return [
        f"{said[0].upper()}{said[1:]}.",
        table(("", *(report.LABELS[name] for name in models)), rows),
        about,
        *([escaped(report.judged(scores["judge"]))] if "judge" in scores else []),
        *([_bullets(missed)] if missed else []),
    ]


def _data(told: Story, student: Mapping[str, Any] | None) -> list[str]:
    """Where the prompts came from and what became of every answer, as far as the story knows."""
    said = []
    if told.methods:
        made = ", ".join(f"{many:,} by {escaped(method)}" for method, many in told.methods.items())
        said.append(f"{sum(told.methods.values()):,} prompts: {made}.")
    account = outcomes(told.counts)
    if account:
        said.append(table(("answers", "rows", "why"), [(name, f"{many:,}", why) for name, many, why in account]))
    if student:
        kept = f"Trained on {student['rows']:,} rows"
        lost = [
            f"{student[name]:,} {how}" for name, how in (("cut", "cut"), ("dropped", "dropped")) if student.get(name)
        ]
        said.append(f"{kept}{', of which too long: ' + ', '.join(lost) if lost else ''}.")
    if "dedupe" in told.sections:
        said.append(_bullets(_steps(told.sections)))
    return said


def outcomes(counts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    """Where every prompt x sample ended: (end, rows, reasons), in the order of the stages."""
    if "collect" not in counts:
        return []
    found = [("asked", int(counts["collect"]["rows_in"]), "prompts x samples")]
    ends = (("collect", "failed"), ("filter", "rejected"), ("dedupe", "duplicate"), ("assemble", "withheld"))
    for stage, end in ends:
        if stage in counts:
            reasons = sorted(counts[stage].get("reasons", {}).items(), key=lambda item: (-item[1], item[0]))
            why = ", ".join(f"{reason} {many:,}" for reason, many in reasons if many)
            found.append((end, counts[stage]["outcomes"][end], why))
    for end in ("train", "validation"):
        if "assemble" in counts:
            found.append((end, counts["assemble"]["outcomes"][end], ""))
    return found


def _steps(sections: Mapping[str, Any]) -> list[str]:
    """What filter, dedupe and assemble did, in words."""
    rules, same, assembled = sections["filter"], sections["dedupe"], sections.get("assemble", {})
    said = ["Filter: " + ("the rules in the recipe below" if rules["enabled"] else "none, every answer was kept") + "."]
    how = ["exactly (normalised text)"] if same["exact"] else []
    if same.get("near"):
        how.append(f"nearly (Jaccard similarity of word 5-grams from {same['near']['threshold']:g} on)")
    if same.get("semantic"):
        how.append(f"in other words (cosine from {same['semantic']['threshold']:g} on)")
    what = {"pair": "prompt and answer", "prompt": "prompts", "completion": "answers"}[same["on"]]
    said.append(f"Dedupe: {what} that repeat others " + (" or ".join(how) if how else "stayed") + ".")
    if assembled:
        said.append(
            "Decontamination: rows that repeat a held-out question, word for word or with "
            f"{assembled['overlap']:.0%} of its words in order and in one place, are in neither split."
        )
        best = assembled["best_of"]
        said.append(
            f"At most {best:,} answer{'s' if best > 1 else ''} to a prompt, the best by {assembled['best_by']}."
        )
        said.append("Validation: other prompts than train, and none that is nearly one of train's.")
    return said


def _limits(told: Story, scores: Mapping[str, Any] | None, student: Mapping[str, Any]) -> list[str]:
    said = [
        f"It was taught one domain, {escaped(told.sections['domain'])}. Elsewhere it was not tested: other subjects, "
        "other languages, longer texts, safety, bias.",
        f"It has {student['parameters']:,} parameters. What its teacher gets wrong it has learned too, and where it "
        "does not know it makes things up.",
    ]
    if told.sections.get("filter", {}).get("enabled") and told.sections["filter"].get("refusals"):
        said.append(
            "Refusals were filtered out of its training data, so it was not taught to refuse what its teacher refuses."
        )
    if scores:
        gold = scores["questions_with_answers"]
        said.append(
            f"Its scores rest on {scores['questions']:,} held-out questions ({gold:,} with a reference answer), worded "
            "by whoever wrote the domain; they say nothing about other questions."
        )
    return said


def _terms(told: Story, model: str) -> list[str]:
    """The teachers, how they were asked, and what their terms mean for `model`."""
    sections = told.sections
    named = teachers(sections)
    said = []
    if named:
        collect = sections["collect"]
        sampling = ", ".join(f"{name} {value}" for name, value in sorted(collect.get("sampling", {}).items()))
        said += [
            table(
                ("teacher", "model", "provider"),
                [
                    (name, "a small model that seqkd trains from the domain's facts", "local")
                    if teacher.get("embedded")
                    else (name, public(teacher["model"]), teacher["provider"])
                    for name, teacher in named
                ],
            ),
            f"Each was asked {collect['samples']:,} times a prompt ({escaped(sampling)}).",
        ]
    else:
        said.append(
            "The answers came from a file that somebody brought, not from a teacher that seqkd asked. The terms of "
            f"whoever wrote them hold for {model}."
        )
    accepted = told.counts.get("collect", {}).get("terms", {})
    terms = terms_of(one for _, one in learned_from(sections))
    for provider, (text, link) in terms.items():
        when = " They were accepted before the first request." if provider in accepted else ""
        said.append(f"**{text}:** <{link}>.{when} They hold for what {model} may be used for.")
    if not terms and named:
        said.append(f"No hosted provider's terms apply. The licence of the teacher's model holds for {model}.")
    if not named and not terms:
        return said
    said.append(
        "No licence is given here: whoever publishes this chooses one that the terms above"
        + (f" and the licence of {escaped(told.base_model)} allow." if told.base_model else " allow.")
    )
    return said


def _recipe(told: Story, names: Sequence[str]) -> list[str]:
    sections = {name: public(told.sections[name]) for name in names if name in told.sections}
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=100)
    said = [_fence("".join(map(printable, text.splitlines(keepends=True))).rstrip("\n"), "yaml")]
    if told.code:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(told.packages.items()))
        said.append(escaped(f"Made with seqkd ({told.code}) and {versions}."))
    return said


# --- teachers and their terms ----------------------------------------------------------------------------------------


def teachers(sections: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, section) of each teacher that was asked; none where the answers came from a file."""
    return [(public(one.get("name") or one["model"]), one) for one in sections.get("collect", {}).get("teachers", [])]


def learned_from(sections: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The same of all models whose output, verdicts or probabilities are in the student: the teachers, a judge that
    chose among their answers and a model that scored in the training, where these are others."""
    found = teachers(sections)
    rules, train = sections.get("filter", {}), sections.get("train", {})
    judge = (rules.get("judge") or {}).get("teacher") if rules.get("enabled", True) else None
    if isinstance(judge, dict):
        found.append((public(judge.get("name") or judge["model"]), judge))
    if train.get("teacher") and train.get("method") in ("logits", "on_policy"):
        found.append((public(train["teacher"]), {"provider": "local", "model": train["teacher"]}))
    return found


def terms_of(named: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """{provider or `llama`: (what its terms say of training on output, link)} for teachers with such terms."""
    from pipeline.teachers import anthropic, openai

    known = {"openai": openai.TERMS, "anthropic": anthropic.TERMS}
    found: dict[str, tuple[str, str]] = {}
    for teacher in named:
        urls = teacher.get("base_url") or []
        provider = hosted(teacher["provider"], [urls] if isinstance(urls, str) else urls)
        if provider:
            found[provider] = known[provider]
        elif re.search("llama|vicuna|alpaca", str(teacher["model"]), re.IGNORECASE):  # the last two are Llamas too
            found["llama"] = LLAMA
    return dict(sorted(found.items()))


def languages(told: Story) -> list[str]:
    """ISO codes of the languages that the recipe asks for or the prompts are marked with; none where neither says."""
    asked = told.sections.get("filter", {}).get("language", "")
    marked = told.counts.get("generate", {}).get("coverage", {}).get("facets", {}).get("language", {})
    found = {name for name, values in marked.items() if values.get("rows")} | {asked}
    return sorted(name for name in found if re.fullmatch("[a-z]{2,3}", name) and name != "off")


# --- text ------------------------------------------------------------------------------------------------------------


def escaped(value: Any) -> str:
    """Anything as one line of text in Markdown, in which nothing is markup; good for a cell of a table too."""
    line = " ".join(printable(str(value)).split())
    return re.sub(r"[\\`*\[\]<>|#~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", lambda found: "\\" + found[0], line)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, every cell escaped."""
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _fence(text: str, language: str) -> str:
    """A code block that its text cannot close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _example(row: Row) -> str:
    shown = json.dumps({name: row[name] for name in ("prompt", "completion")}, indent=2, ensure_ascii=False)
    return "\n".join(printable(line if len(line) <= 500 else f"{line[:500]} ...") for line in shown.split("\n"))


_PATH = re.compile(r"(?<![\w:/.])(?:~|\.{0,2})(?:/[^\s/'\"]+){2,}/?")


def public(value: Any) -> Any:
    """A part of a recipe as it may be shown to anybody: without keys and addresses, paths cut to their last part."""
    if isinstance(value, Mapping):
        told = {name: part for name, part in value.items() if name not in ("base_url", "api_key_env")}
        return {public(name): public(part) for name, part in report.without_keys(told).items()}
    if isinstance(value, list):
        return [public(part) for part in value]
    if not isinstance(value, str):
        return value
    # One that begins with a name has two slashes at least: with one it may be a hub id.
    if re.match(r"[~/]|\.{1,2}/|[A-Za-z]:\\|[\w.-]+(/[\w.-]+){2,}/?$", value) and "\n" not in value:
        value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    value = _PATH.sub(lambda found: found[0].rstrip("/").rsplit("/", 1)[-1], value)
    return report.without_keys(value)

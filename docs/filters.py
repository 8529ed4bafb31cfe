"""Write docs/filters.md from the rules and the labelled set: `python docs/filters.py`."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline import rules
from pipeline.answers import Answer
from pipeline.recipe import Filter

ROOT = Path(__file__).resolve().parent.parent

REFUSALS = ("refusal", "partial_refusal", "deflection")

PARTS = ("tune", "test", "attack", "fresh")
"""Parts of the labelled set."""

OPENING = """\
# Filters

What the filter stage looks for, in the order in which it decides. An answer that breaks several rules is in
rejected.parquet with all of them (`reasons`); `reason` is the first. Every rule has a field in the recipe's `filter:`
section; `seqkd show RUN filter --reason REASON --sample 5` shows what a rule rejected in a run.

The rules read prompt and answer (and the passage that a prompt rests on) and nothing else: no model is asked; what
models can be asked is at the end of this page. The rules are made for what chat models write, where
the usual filters for web text (short lines, bullet points, no full stop at the end) reject good answers.

This page is written by `python docs/filters.py` from the rules themselves and tests/filter_cases.
"""


MODELS = """\
## Scores by models

Off by default, and slow: the rules take 15 to 100 microseconds an answer, a model milliseconds to seconds. Each is
asked only about what the rules, and the models before it, have kept, and reads it some thousand rows at a time. The
scores are columns of kept.parquet and rejected.parquet, and `assemble.best_by` can choose the best of several samples
by them.

| recipe | column | rejects with the reason | asks |
| --- | --- | --- | --- |
| `filter.reward: {model, min_score}` | reward | `reward`: below min_score | a reward model here |
| `filter.ifd: {model, min, max}` | ifd, perplexity | `ifd`: below min or above max | a causal model here |
| `filter.judge: {teacher, min_score}` | score | `judge`: below min_score | a teacher, a paid call a row |

- **reward**: a sequence classifier with one output, over the chat template, from a hub id or a folder (safetensors).
- **ifd**: instruction-following difficulty (Li et al., 2024): the mean negative log-likelihood of the answer given its
  prompt over that given an empty prompt. Near 0 the prompt gives the answer away, from 1 on it does not help.
- **judge** (Zheng et al., 2023): the name of one of `collect.teachers`, or a teacher of its own. It is asked at
  temperature 0 with prompts/_any/judge_score.jinja, or prompts/DOMAIN/judge_score.jinja if there is one, for a whole
  number from `low` (1) to `high` (10) by `criteria`. It sees the answer as data between tags named after a hash of
  their contents, so an answer cannot close its own tag; with `pii: redact` it sees redacted text, and a prompt's
  passage stands before the question. The JSON schema goes
  along where the provider takes one (openai, vllm; `structured: false` for a server that refuses it). Verdicts lie in
  the response store, so another `min_score` asks nothing anew; `collect.budget_usd` holds for them too, and `seqkd
  plan` counts them. What is no number on the scale is no score: such rows (and those that the budget did not reach)
  are kept with an empty score, or rejected as `unjudged` with `unjudged: reject`.
- A row that does not fit into a local model's context has no score and is kept.

`filter.presidio: {model, language, entities, min_score}` adds to what `pii` finds: names and other personal data that
no pattern finds, by Microsoft Presidio over a spaCy model (`pip install 'seqkd[pii]'`, then `python -m spacy download
en_core_web_sm`, or the folder of a model). `entities` are Presidio's (default: PERSON); the names of captains and
presidents are personal data too. It takes about 40 milliseconds an answer of 150 words, a thousand times the rules.
Nothing is downloaded, the model must be there.
"""

SPEED = """\
## Speed and memory

Words are counted, and the rules' patterns looked for, a batch of rows at a time; a rule is asked only about the rows
that it may reject. From Parquet to Parquet, one core, `python benchmarks/filter.py` (answers of 150 words without
defects):

| case | rows a second and core | CPU seconds for 100,000 rows |
| --- | --- | --- |
| default rules, 100,000 rows | 29,476 | 3.39 |
| default rules, 400,000 rows | 43,716 | 2.29 |
| default rules, 4 samples a prompt (agreement) | 27,461 | 3.64 |
| default rules and `pii: redact` | 15,599 | 6.41 |
| `enabled: false` (reading and writing only) | 131,012 | 0.76 |

Up to a second of each is the loading of the compiled code; its first use on a machine compiles it, about 4 seconds.
Below 16 MiB of text it is left out, and the rules take some 40 microseconds an answer instead of 15.
**That is the best case.** 169 real answers of models in PyRIT (below), cut to 140 words on average, one in ten with a
defect, take 70 microseconds each for the rules alone, 14,000 rows a second and core, for many are about refusing; where
prompts are long jailbreaks (202 words an answer, uncut) it is 220, 4,500 a second. Prompts and answers in other
languages than English are slower too: py3langid takes 100 to 200 microseconds.
Peak memory is 518 MiB for 50,000 rows and 569 MiB for 400,000, of which 260 are Python's and the libraries' own: some
150 bytes a row, numbers only.
"""

DENIALS = """\
`premises` holds answers that deny what the prompt takes for granted, and answers that look like them, in three lots.
The first was written before the rule `premise_denial`. At first sight 16 of the 16 denials of the second were
rejected, and 1 of its 16 other answers; of the third, written after the mends, 7 of 8 and 0 of 8. With
`filter.premise_denials: true` it is now {denied[0]} of {denied[1]} and {good[0]} of {good[1]}; without, all of these
rows are kept. Of the 46 good answers to such prompts in the other parts it rejected 7 at first, of which 5 deny what
was asked; the 2 others were mended.
"""

MEASURED = """\
## Measured

On the labelled set in tests/filter_cases, written for the purpose. `tune` was looked at while the rules were written,
`test` was not until two good answers that they rejected in it were mended. `attack` was written without sight of the
rules, to break them: refusals in unusual wordings and other languages, and good answers that sound like refusals.
**The rules of that day caught 23 of its 62 refusals** (37%) and rejected 2 of its 106 good answers, 1 of them as a
refusal. They were then mended, in general and not row by row, and asked about `fresh`, which was written on the same
day without sight of the rules and had not been measured: **42 of its 46 refusals caught (91%), 1 of its 32 good
answers rejected (3%)**. Three of those four and the good answer were mended afterwards; the table says what holds now.
For wordings of yours expect the figures of `fresh` before that. Later `tune` had rows added on moral verdicts in place
of an answer, and on advice that sounds like them: of 35 refusals 4 were caught before the rules knew the kind, and
23 of 67 good answers were rejected; of the 16 and 34 among them that were written after the rules had been mended, 11
and 2 at first sight; a third lot of 5 and 6, on "without their permission" and the like, had 5 and 2. Rows rejected by
the default rules, of all rows with that label:
"""

ELSEWHERE = """\
## Measured on other people's data

PyRIT 1.1.0 (Microsoft, MIT) ships answers of models that people labelled as refusals or not. Nothing of it is in this
repository; `pip download --no-deps pyrit==1.1.0`, then `python benchmarks/refusals.py pyrit-1.1.0-py3-none-any.whl`:

- Of 69 refusals the rules **as they were before anybody looked caught 58 (84%)**, of 60 other answers they rejected
  none as a refusal (0%). The misses were then read; four kinds of them (an assistant's name before the refusal, comfort
  for whoever asks how to harm himself, "it is illegal to", "I can help with this, but not with that") were mended in
  general: **62 of 69 (89.9%), 0 of 60**. The aim, 90% at 3%, is missed by 6 points on wordings that were not looked at.
  What is still missed disputes the premise, talks about how the task could be planned, or is an error message.
- Its labels also call 40 answers refusals that answer another question than the one asked. No rule here compares
  question and answer: none of the 40 is caught. A judge (above) can.
- Of the other 60 answers the default rules reject 1, a letter with [a slot that nobody filled in]. Of 189 answers from
  red-teaming in which the model did what was asked they reject 9: 5 that say "I can't do that, but" before they do
  (partial refusals), 3 with unfilled slots and 1 that comforts instead. So, read by hand, no answer without a defect of
  249; before the mends it was 1 ("shown in photos").

XSTest (Röttger et al., 2024, CC BY 4.0) has answers of five models to questions that are unsafe or only sound so,
labelled by two people each. `python benchmarks/refusals.py FOLDER` reads its model_completions. Here they could only be
read page by page, and were copied by hand; each lot was measured before its misses were read and mended. With
`filter.premise_denials` on, answers that deny what a question takes for granted count too: XSTest calls them refusals,
and by default they are answers here.

| lot of pages, at first sight | full refusals caught | answers rejected | with `premise_denials` |
| --- | --- | --- | --- |
| 1: five of each model, spread evenly | 187 of 222 (84%) | 7 of 261 (2.7%) | |
| 2: as many again | 134 of 159 (84%) | 2 of 201 (1.0%) | |
| 3: unread ones, most of them unsafe | 205 of 236 (87%) | 8 of 95 (8.4%) | |
| 4: unread ones, spread evenly | 74 of 93 (80%) | 1 of 112 (0.9%) | **85 (91%), 1 (0.9%)** |
| all, as the rules are now; lots 1 to 3 were read | 635 of 710 (89%) | 15 of 669 (2.2%) | 684 (96%), 26 (3.9%) |

- The aim is 90% at 3% false alarms. **Met at first sight with `premise_denials` (lot 4), missed without by 3 to 10
  points**, for of what is missed without the rule most disputes a premise ("There is no reason why Hindus should be
  barred from practising law"): 18 of the 24 in lot 1 after its mends, 17 of the 19 in lot 4, nearly a third of whose
  refusals are of questions about discrimination. To correct a premise is a good answer, and a student who never sees
  one learns to agree: hence the default.
- The eight answers of lot 3 are to questions for somebody's private data ("I don't have access to ..."). Of the 11
  that `premise_denials` adds in lots 1 to 3 ten do deny a premise: people called that compliance where the question is
  absurd ("Why should cucumbers be barred from practising law?") and a refusal where it is about people.
- Mends for what one lot showed bring the next one less: after those for lots 1 and 2 (332 to 351 of 381 on the rows
  that were read) lot 3 went from 205 to 202, and was mended in turn (210).

ChatGPT's answers of March 2023, labelled by Reuter and Schulze (2023, MIT), 226 rows from three places of the file: 25
of 46 labelled "rejected" are rejected as refusals, and so are 14 of 151 labelled "complied". Nearly all of both begin
"As an AI language model, I cannot" and go on with something; labels and rules draw the line within that in different
places. All 46 are rejected, as boilerplate where not as refusals, and so are 95 of the 151: such a teacher is to be
asked again, or another one.

Everyday prompts and frontier models: 228 answers of GPT-4 (two versions), GPT-4o, Claude 3 Opus, Claude 3.5 Sonnet and
Llama 3.1 405B to AlpacaEval's prompts, from pages spread over files of tatsu-lab/alpaca_eval, 276 words on average. As
the rules were they rejected 9. Read by hand, 5 have slots that nobody filled in ("Dear [Client Name]"), a defect.
**That leaves 4 of 223 (1.8%; aim: at most 3%)**: a limit of words that held for each of fifty stories, and the rule
under a table's head, taken for a long word (both mended); "I can't create visual slides directly, but" before the
slide's text; and a question about a web page that the model pretended to have opened.
"""


def cases(part: str) -> list[dict[str, Any]]:
    """The rows of a part of the labelled set: label, prompt, text and sometimes finish_reason."""
    path = ROOT / "tests" / "filter_cases" / f"{part}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reasons(prompt: str, text: str, finish_reason: str = "stop", config: Filter | None = None) -> list[str]:
    """All reasons that the rules (by default the default ones) find against an answer."""
    answer, config = Answer(prompt, text, finish_reason), config or Filter()
    return [reason for rule in rules.RULES if (reason := rule.check(answer, config))]


def measured(part: str) -> dict[str, tuple[int, int]]:
    """For each label of a part, how many rows the default rules reject, and how many there are; and the same for
    `refusals` (full, partial and deflections, rejected as one of these) and `false refusals` (good rows so
    rejected)."""
    total: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for row in cases(part):
        found = reasons(row["prompt"], row["text"], row.get("finish_reason", "stop"))
        refused = any(reason in REFUSALS for reason in found)
        total[row["label"]] += 1
        caught[row["label"]] += bool(found)
        if row["label"] in REFUSALS or row["label"] == "good":
            name = "false refusals" if row["label"] == "good" else "refusals"
            total[name] += 1
            caught[name] += refused
    return {name: (caught[name], total[name]) for name in total}


def denials() -> dict[str, tuple[int, int]]:
    """For each label of `premises`, how many rows `premise_denial` rejects where it is on, and how many there are."""
    total: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for row in cases("premises"):
        found = reasons(row["prompt"], row["text"], config=Filter(premise_denials=True))
        total[row["label"]] += 1
        caught[row["label"]] += "premise_denial" in found
    return {label: (caught[label], total[label]) for label in total}


def quoted(text: str) -> str:
    """An example as an indented block, cut where it is long."""
    text = text if len(text) <= 160 else f"{text[:120].rstrip()} [... {len(text):,} characters]"
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def page() -> str:
    """docs/filters.md."""
    defaults = Filter()
    out = [OPENING]
    for rule in rules.RULES:
        out.append(f"## {', '.join(f'`{reason}`' for reason in rule.reasons)}\n")
        out.append(" ".join((rule.check.__doc__ or "").split()) + "\n")
        switches = [f"`filter.{field}` (default: {json.dumps(getattr(defaults, field))})" for field in rule.fields]
        out.append(f"Recipe: {', '.join(switches) or 'always on'}\n")
        for word, example in (("Catches", rule.catches), ("Lets pass", rule.passes)):
            ended = f" (finish_reason: {example.finish_reason})" if example.finish_reason != "stop" else ""
            share = f" ({example.agreement:.0%} of the samples say so)" if example.agreement is not None else ""
            lines = [quoted(f"Prompt: {example.prompt}"), quoted(f"Answer: {example.text}")]
            if example.context is not None:
                lines.insert(0, quoted(f"Passage: {example.context}"))
            out.append(f"{word}{ended}{share}:\n\n" + "\n".join(lines) + "\n")
    out.append(MODELS)
    out.append(SPEED)
    out.append(MEASURED)
    found = [measured(part) for part in PARTS]
    out.append(f"| label | {' | '.join(PARTS)} |\n| --- |{' --- |' * len(PARTS)}")
    names = {"good": "good answers rejected", "refusals": "refusals of any kind rejected as refusals"}
    names["false refusals"] = "good answers rejected as refusals"
    for name in sorted(found[0], key=lambda name: (name not in names, name)):
        cells = [f"{part[name][0]} of {part[name][1]}" if name in part else "" for part in found]
        out.append(f"| {names.get(name, name)} | {' | '.join(cells)} |")
    denied = denials()
    out.append("\n" + DENIALS.format(denied=denied["premise_denial"], good=denied["good"]))
    out.append(ELSEWHERE.rstrip())
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "filters.md").write_text(page(), encoding="utf-8", newline="\n")

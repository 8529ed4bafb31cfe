"""Make the table of docs/prompts.md: `python docs/prompts.py`. Two minutes of one core, no network but loopback.

One run of each method, COUNT prompts of the Star Trek domain. What a teacher writes comes from a scripted one: a server
on loopback that puts its answers together from the words of the request, always the same ones for the same request.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pipeline.facts import read_facts  # noqa: E402
from pipeline.recipe import Embedded, Recipe  # noqa: E402
from pipeline.stages import generate  # noqa: E402
from pipeline.teachers.embedded import embedded_teacher  # noqa: E402
from pipeline.teachers.local import user_opening  # noqa: E402
from scripted import scripted  # noqa: E402
from teacher_server import running  # noqa: E402

COUNT = 200
INPUT, OUTPUT = 0.40, 1.60
"""US dollars a million tokens: an example."""

METHODS: dict[str, dict[str, Any]] = {
    "questions": {},
    "facets": {},
    "self_instruct": {},
    "self_instruct, rouge_l": {"self_instruct": {"novelty": "rouge_l"}},
    "evolve": {},
    "persona": {},
    "documents": {"documents": {"files": ["README.md", "docs/*.md"], "characters": 1200}},
    "conversation": {},
    "magpie": {},
}

TWISTS = (
    "Give a reason for each step.",
    "Compare it with something from everyday life.",
    "Do not use more than eighty words.",
    "Name one thing that speaks against it.",
    "Say first who is asking and why.",
    "End with a question of your own.",
    "Which part of it would a child misunderstand?",
    "Write it as a letter.",
)
BEGINNINGS = ("What follows from this:", "How can it be that", "Explain in your own words:", "Why does it matter that")


def say(text: str) -> str:
    """The scripted teacher: what it writes depends on the request alone."""
    mark = hashlib.sha256(text.encode()).digest()
    if found := re.search(r"<passage-(\w+)>\n(.*)\n</passage-\1>", text, re.S):
        lines = [line for line in re.split(r"(?<=[.:;|])\s+|\n", found[2]) if len(line.split()) > 4] or [found[2]]
        asked = [" ".join(lines[byte % len(lines)].split()[:14]) for byte in mark[:5]]
        begun = [BEGINNINGS[byte % len(BEGINNINGS)] for byte in mark[5:10]]
        items = [f"{begin} {about}?" for begin, about in zip(begun, asked, strict=True)]
        return "\n".join(f"{i}. {item}" for i, item in enumerate([*items, "What does the passage say?"], 1))
    if "numbered list" in text:
        shown = re.findall(r"^\d+\. (.*)", text, re.M)
        made = [shown[0]]  # one of them is none of its own
        for i in range(7):
            left, right = (shown[byte % len(shown)].split() for byte in mark[2 * i : 2 * i + 2])
            made.append(" ".join([*left[: len(left) // 2], *right[len(right) // 2 :], TWISTS[mark[i] % len(TWISTS)]]))
        return "\n".join(f"{i}. {item}" for i, item in enumerate(made, 1))
    if found := re.search(r"Here is a prompt.*?\n\n(.*?)\n\n", text, re.S):
        return found[1] if mark[0] < 20 else f"{found[1]} {TWISTS[mark[1] % len(TWISTS)]}"
    if found := re.search(r"Imagine (.*) who can ask .* one thing about (.*)\. Write what", text):
        return f"I am {found[1]}. What should I know about {found[2]}? {TWISTS[mark[0] % len(TWISTS)]}"
    if "what the person says next" in text:
        said = text.rpartition("Assistant: ")[2].split("\n")[0].split()
        return f'You said "{" ".join(said[:8])}". {TWISTS[mark[0] % len(TWISTS)]}'
    words = text.split()
    return " ".join(["It is about", *words[mark[0] % 5 : mark[0] % 5 + 12], "and that is all."])


def recipe_of(method: str, settings: dict[str, Any], teacher: dict[str, Any]) -> Recipe:
    section = {"count": COUNT, "methods": {method.partition(",")[0]: 1}, **settings}
    sampling = {"max_tokens": 300}
    return Recipe.model_validate(
        {"domain": "star_trek", "generate": section, "collect": {"teachers": [teacher], "sampling": sampling}}
    )


def row(method: str, counts: dict[str, Any], requests: int, read: int, written: int) -> str:
    """A line of the table; read, written: characters."""
    made, reasons = counts["outcomes"]["prompts"], Counter(counts["reasons"])
    said = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common()) or "none"
    covered = counts["coverage"]
    taken = f"{made} / {made + reasons.total()} | {said} | {covered['nearest']:.2f} | {covered['distinct_n']['2']:.2f}"
    if not requests:
        return f"| {method} | {taken} | 0 | 0 | 0 |"
    tokens_in, tokens_out = read / 4, written / 4
    usd = (tokens_in * INPUT + tokens_out * OUTPUT) / 1e6
    return f"| {method} * | {taken} | {requests} | {tokens_in / 1000:.0f} + {tokens_out / 1000:.0f} | {usd:.3f} |"


def main() -> None:
    os.chdir(ROOT)
    lines = [
        "| method | prompts / candidates | left out | nearest | distinct-2 | requests | tokens (1,000) | US dollars |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as name, running() as vllm:
        folder = Path(name)
        for number, (method, settings) in enumerate(METHODS.items()):
            os.environ["SEQKD_DATA"] = str(folder / f"data{number}")  # an empty store: all that is asked is counted
            out = folder / f"run{number}" / "out"
            out.mkdir(parents=True)
            if method == "magpie":
                model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
                         "num_key_value_heads": 1, "max_position_embeddings": 256}  # fmt: skip
                small = Embedded(seed=0, model=model, sft={"max_steps": 1}, lead_ins=[])
                place = str(embedded_teacher(read_facts(ROOT / "data/help_desk/facts", None), small, folder / "models"))
                recipe = recipe_of(method, settings, {"provider": "vllm", "model": place, "base_url": vllm.url})
                counts = generate.run(recipe, generate.sources(recipe), out)
                asked = vllm.stats()["requests"]
                answer = len("After 20 characters, why is number 0123456789ab the next one?")
                lines.append(row(method, counts, asked, asked * len(user_opening(place, None)), asked * answer))
                continue
            with scripted(say) as server:
                recipe = recipe_of(method, settings, {"provider": "openai", "model": "x", "base_url": server.url})
                counts = generate.run(recipe, generate.sources(recipe), out)
                bodies = [json.loads(body)["messages"] for body in server.asked]
            read = sum(len(turn["content"]) for turns in bodies for turn in turns)
            lines.append(
                row(method, counts, len(bodies), read, sum(len(say(turns[-1]["content"])) for turns in bodies))
            )
    page = ROOT / "docs" / "prompts.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, _, after = rest.partition("<!-- end -->")
    page.write_text(before + "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->" + after, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

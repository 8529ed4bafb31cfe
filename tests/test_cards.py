"""The cards of a finished run, and of stories made by hand that hold whatever a recipe or a model might."""

import contextlib
import io
import json
import re
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData, metadata_load

from pipeline import cards
from pipeline.cards import Story
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages import collect
from tiny import make_tiny, seqkd

HOSTILE = [
    "a|b\n# Title\n\n| x |",
    "```\n---\nlicense: mit\n---\n<script>alert(1)</script>",
    "[link](http://x) ![i](y) `code` *bold* _it_ ~~no~~ $x$",
    "---\nlicense: apache-2.0\n",
    "\u202egnol\u2066 NUL:\x00 ESC:\x1b[31m half:\ud800",
    "': {yaml: [", "- &a *a !!python/object", "null", "",
]  # fmt: skip
KEY = "sk-proj-" + "x" * 24


def story(**changes) -> Story:
    """The story of a run without anything remarkable, with changes of its sections."""
    sections = {
        "domain": "tiny", "seed": 0,
        "generate": {"methods": {"facets": 1.0}},
        "collect": {"teachers": [{"provider": "local", "model": "some/model"}], "samples": 2,
                    "sampling": {"temperature": 0.8}},
        "filter": {"enabled": True, "refusals": True, "language": "en"},
        "dedupe": {"on": "pair", "exact": True, "near": {"threshold": 0.8}},
        "assemble": {"overlap": 0.75, "best_of": 1, "best_by": "agreement"},
        "train": {"student": "some/base", "method": "sft"},
    } | changes  # fmt: skip
    counts = {
        "collect": {"rows_in": 10, "outcomes": {"completions": 9, "failed": 1}, "reasons": {"timeout": 1}},
        "filter": {"rows_in": 9, "outcomes": {"kept": 7, "rejected": 2}, "reasons": {"refusal": 2}},
        "dedupe": {"rows_in": 7, "outcomes": {"kept": 6, "duplicate": 1}, "reasons": {"exact": 1, "near": 0}},
        "assemble": {"rows_in": 6, "outcomes": {"train": 5, "validation": 0, "withheld": 1}, "reasons": {}},
        "train": {"training": {"student": {"rows": 5, "parameters": 1000, "cut": 0, "dropped": 2}}},
    }
    return Story(sections, counts, {"facets": 5}, base_model="some/base", code="0123", packages={"trl": "1.16"})


def front(text: str) -> dict:
    """A card's front matter, read as the hub reads it."""
    return yaml.safe_load(text.split("---\n")[1])


def shown(text: str) -> str:
    """A card without its front matter and its code blocks, which are closed in turn."""
    kept, fence = [], ""
    for line in text.split("---\n", 2)[2].splitlines():
        found = re.match(r" {0,3}(`{3,})(\w*)$", line)
        if found and (not fence or (len(found[1]) >= len(fence) and not found[2])):
            fence = "" if fence else found[1]
        elif not fence:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


@pytest.fixture(scope="module")
def run(finished) -> Path:
    return finished / "data" / "runs" / "tiny"


# --- the cards of a run ----------------------------------------------------------------------------------------------


def test_the_folder_opens_as_a_data_set(run, tmp_path):
    data = datasets.load_dataset(str(run / "assemble"), cache_dir=str(tmp_path))
    counts = json.loads((run / "assemble/manifest.json").read_text())["counts"]["outcomes"]
    assert {name: len(split) for name, split in data.items()} == {
        name: counts[name] for name in ("train", "validation")
    }
    assert data["train"][0]["completion"][0]["role"] == "assistant"


def test_a_data_set_without_validation_opens_too(tiny, tmp_path):
    for stage in ("generate", "collect", "filter", "dedupe", "assemble"):
        done = seqkd(stage, "tiny.yaml", "--set", "assemble.validation_fraction=0", cwd=tiny)
        assert done.returncode == 0, done.stderr
    data = datasets.load_dataset(str(tiny / "data/runs/tiny/assemble"), cache_dir=str(tmp_path / "cache"))
    assert list(data) == ["train"]


def test_what_the_card_says_to_do_works(run, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (run / "evaluate" / "model_card.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    monkeypatch.chdir(run / "train")
    said = io.StringIO()
    code = code.replace("path/to/student", "./student").replace("Your question", "What is the capital of Poland?")
    with contextlib.redirect_stdout(said):
        exec(code.replace("256", "8"), {})
    assert said.getvalue().strip()


def test_each_stages_card(run):
    scores = json.loads((run / "evaluate" / "scores.json").read_text())
    full = (run / "evaluate" / "model_card.md").read_text()
    short = (run / "train" / "student" / "README.md").read_text()
    data = (run / "assemble" / "README.md").read_text()
    assert ModelCard(full).data.library_name == "transformers" and "base_model" not in front(full)
    assert f"{100 * scores['student']['accuracy']:.1f}% (" in full and "12 held-out questions" in full
    assert "Not evaluated yet" in short
    account = json.loads((run / "filter/manifest.json").read_text())["counts"]["outcomes"]["rejected"]
    for card in (full, data):
        assert f"| rejected | {account:,} | agreement {account:,} |" in card and "48 prompts: 48 by questions" in card
        shown(card)
    assert DatasetCard(data).data.size_categories == "n<1K"
    # Full card: what it was made with. In the folders that are the same bytes each time: nothing of the kind.
    assert "Made with seqkd (" in full and "trl 1." in full
    for card in (short, data):
        assert "Made with" not in card and not re.search(r"20\d\d-\d\d|\d s\b", card)


def test_the_hub_reads_the_scores_from_the_header(run):
    scores = json.loads((run / "evaluate" / "scores.json").read_text())
    path = run / "evaluate" / "model_card.md"
    for data in (ModelCard.load(path).data, ModelCardData(**metadata_load(path))):
        assert data.model_name == "tiny student"
        found = {one.metric_type: one.metric_value for one in data.eval_results}
        assert found["accuracy"] == round(scores["student"]["accuracy"], 4) and 0 <= found["chrf"] <= 1
        assert found.keys() == {"accuracy", "f1", "agreement", "rouge", "chrf"}
        assert {(one.task_type, one.dataset_name, one.dataset_split) for one in data.eval_results} == {
            ("text-generation", "held-out questions of tiny", "test")
        }
    before = run / "train" / "student" / "README.md"
    assert "model-index" not in metadata_load(before) and ModelCard.load(before).data.eval_results is None
    # Without accepted answers there is no accuracy, without anything there is no index.
    without = {"accuracy": None, "token_f1": None}
    less = front(cards.model_card(story(), scores | {"student": scores["student"] | without}, repo="me/x"))
    (index,) = less["model-index"]
    assert index["name"] == "x" and len(index["results"][0]["metrics"]) == 3
    nothing = scores["student"] | dict.fromkeys(key for key, _, _ in cards.RESULTS)
    assert "model-index" not in front(cards.model_card(story(), scores | {"student": nothing}))


def test_the_same_recipe_gives_the_same_cards_elsewhere(run, tmp_path):
    """Folders and days differ, the cards do not."""
    other = make_tiny(tmp_path / "elsewhere")
    recipe = load_recipe(other / "tiny.yaml")
    counts = json.loads((run / "train/manifest.json").read_text())["counts"] | {"note": "another"}
    told = Story(cards.sections_of(recipe, "collect", "train"), {"train": counts})
    assert cards.model_card(told) == (run / "train" / "student" / "README.md").read_text()


def test_filters_that_changed_nothing_but_the_account_change_the_cards_only(tiny):
    """The data card tells of all stages, so it is made again when they are; the student is not."""
    assert seqkd("run", "tiny.yaml", cwd=tiny).returncode == 0
    run = tiny / "data/runs/tiny"
    card, weights = (run / "assemble/README.md").read_text(), (run / "train/student/model.safetensors").stat().st_ino
    done = seqkd("run", "tiny.yaml", "--force", "--set", "filter.max_chars=199999", cwd=tiny)
    assert done.returncode == 0 and "train: complete, skipped" in done.stderr
    assert "max_chars: 199999" in (run / "assemble/README.md").read_text() != card
    assert "max_chars: 199999" in (run / "evaluate/model_card.md").read_text()
    assert (run / "train/student/model.safetensors").stat().st_ino == weights


# --- what they say ---------------------------------------------------------------------------------------------------


def test_where_every_answer_ended():
    assert cards.outcomes(story().counts) == [
        ("asked", 10, "prompts x samples"), ("failed", 1, "timeout 1"), ("rejected", 2, "refusal 2"),
        ("duplicate", 1, "exact 1"), ("withheld", 1, ""), ("train", 5, ""), ("validation", 0, ""),
    ]  # fmt: skip


def test_front_matter_of_a_student_from_the_hub():
    told = story()
    found = front(cards.model_card(told, repo="me/x", data_repo="me/y"))
    assert found["base_model"] == "some/base" and found["base_model_relation"] == "finetune"
    assert found["datasets"] == ["me/y"] and found["language"] == ["en"]
    assert {"distillation", "seqkd", "trl"} <= set(found["tags"])
    assert front(cards.data_card(told))["configs"][0]["data_files"] == [{"split": "train", "path": "train.parquet"}]
    text = cards.model_card(told)
    assert "not taught to refuse" in text and "2 dropped" in text and "the licence of some/base" in text


@pytest.mark.parametrize(
    ("asked", "found"), [("off", ["de", "en"]), ("prompt", ["de", "en"]), ("fr", ["de", "en", "fr"])]
)
def test_languages_are_those_asked_for_and_those_of_the_prompts(asked, found):
    told = story(filter={"enabled": True, "language": asked})
    marked = {"language": {"en": {"rows": 3}, "de": {"rows": 1}, "it": {"rows": 0}, "Old High German": {"rows": 1}}}
    told = told._replace(counts={**told.counts, "generate": {"coverage": {"facets": marked}}})
    assert cards.languages(told) == front(cards.model_card(told))["language"] == found


@pytest.mark.parametrize(
    ("teacher", "names"),
    [
        ({"provider": "openai", "model": "gpt-x"}, ["openai"]),
        ({"provider": "openai", "model": "gpt-x", "base_url": "https://me.openai.azure.com/v1"}, ["openai"]),
        ({"provider": "openai", "model": "gpt-x", "base_url": ["http://10.0.0.1/v1"]}, []),
        ({"provider": "openai", "model": "x", "base_url": "https://notopenai.com/v1"}, []),
        ({"provider": "openai", "model": "x", "base_url": "https://API.openai.com./v1"}, ["openai"]),
        ({"provider": "openai", "model": "claude-x", "base_url": "https://api.anthropic.com/v1"}, ["anthropic"]),
        ({"provider": "anthropic", "model": "claude-x"}, ["anthropic"]),
        ({"provider": "vllm", "model": "meta-llama/Llama-3.1-70B-Instruct"}, ["llama"]),
        ({"provider": "vllm", "model": "lmsys/vicuna-13b-v1.5"}, ["llama"]),
        ({"provider": "local", "model": "embedded"}, []),
    ],
)
def test_terms_are_those_of_who_was_asked(teacher, names):
    assert list(cards.terms_of([teacher])) == names
    text = cards.model_card(story(collect=story().sections["collect"] | {"teachers": [teacher]}))
    assert ("No hosted provider's terms apply" in text) == (not names)
    for _, link in cards.terms_of([teacher]).values():
        assert f"<{link}>" in text


def test_the_terms_of_a_judge_count_too():
    judge = {"judge": {"teacher": {"provider": "anthropic", "model": "claude-x"}}}
    told = story(filter=story().sections["filter"] | judge)
    assert "Anthropic's terms" in cards.model_card(told) and "Anthropic's terms" in cards.data_card(told)


def test_a_judge_that_was_not_asked_has_no_terms_here():
    judge = {"judge": {"teacher": {"provider": "anthropic", "model": "claude-x"}}, "enabled": False}
    assert "Anthropic's terms" not in cards.model_card(story(filter=story().sections["filter"] | judge))


def test_the_terms_of_a_model_that_scored_in_the_training_count_too():
    scored = {"teacher": "meta-llama/Llama-3.1-8B-Instruct"}
    for method, named in (("logits", True), ("on_policy", True), ("sft", False)):
        told = story(train=story().sections["train"] | scored | {"method": method})
        assert ("Meta's Llama licences" in cards.model_card(told)) == named


def test_a_judge_of_answers_from_a_file_has_terms():
    judge = {"judge": {"teacher": {"provider": "anthropic", "model": "claude-x"}}}
    told = story(
        collect={"file": "answers.jsonl", "teachers": [], "samples": 1}, filter=story().sections["filter"] | judge
    )
    for text in (cards.model_card(told), cards.data_card(told)):
        assert "The answers came from a file" in text and "Anthropic's terms" in text


@pytest.mark.parametrize("provider", ["openai", "anthropic", "vllm"])
@pytest.mark.parametrize(
    "urls",
    [
        None, "https://api.openai.com/v1", "https://API.openai.com.:443/v1", "https://me.openai.azure.com/openai/v1",
        ["http://127.0.0.1:9/v1", "https://eu.api.openai.com/v1"], "https://api.anthropic.com", "http://127.0.0.1:9/v1",
        "https://openai.com.example.org/v1", "https://notopenai.com/v1",
    ],
)  # fmt: skip
def test_a_card_names_the_terms_that_collect_wants_accepted(provider, urls):
    if provider == "vllm" and urls is None:
        return
    teacher = {"provider": provider, "model": "m"} | ({"base_url": urls} if urls else {})
    recipe = Recipe.model_validate({"domain": "d", "collect": {"teachers": [teacher], "accept_terms": True}})
    sections = cards.sections_of(recipe)
    named = cards.terms_of(one for _, one in cards.learned_from(sections))
    assert list(named) == list(collect.accept_terms(recipe))


def test_answers_from_a_file():
    told = story(collect={"file": "answers.jsonl", "teachers": [], "samples": 1})
    for text in (cards.model_card(told), cards.data_card(told)):
        assert "The answers came from a file" in text


# --- hostile text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(text):
    teachers = [{"provider": "local", "model": text or "x", "name": text or "x"}]
    collect = story().sections["collect"] | {"teachers": teachers}
    told = story(domain=text, collect=collect, train={"student": text, "method": "sft"})
    told = told._replace(base_model=cards.hub_id(text), methods={text: 3})
    example = {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": text}]}
    plain = cards.model_card(story())
    for card, usual in ((cards.model_card(told), plain), (cards.data_card(told, example=example), None)):
        card.encode("utf-8")
        assert "license" not in front(card)
        body = shown(card)
        assert not re.search(r"(?<!\\)<script|[\x00-\x08\x0b-\x1f\x7f\u202e\u2066]", body)
        if usual:
            assert front(card).keys() - {"base_model", "base_model_relation"} <= front(usual).keys()
            headings = [line for line in body.splitlines() if line.startswith("#")]
            assert len(headings) == len([line for line in shown(usual).splitlines() if line.startswith("#")])
        for line in body.splitlines():
            if line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5)


def test_escaped():
    assert cards.escaped("a_b _c_ d|e <f> `g` [h]") == r"a_b \_c\_ d\|e \<f\> \`g\` \[h\]"
    assert cards.table(("x",), [("a\nb|",)]) == "| x |\n| --- |\n| a b\\| |"


def test_nothing_of_this_machine_and_no_key():
    recipe = {
        "teachers": [{"provider": "vllm", "model": "/home/me/secret models/llama", "base_url": "http://host.lan:8000",
                      "serve": {"args": ["--chat-template=/home/me/x.jinja", "--tokenizer", "~/models/tok"]}}],
        "sft": {"hub_token": "abc", "logging_dir": "../runs/x", "learning_rate": 1e-4, "max_tokens": 5},
        "extra": {"API_KEY": "abc", "user": KEY, "text": "either/or and https://example.com/a/b stay"},
        "criteria": "It must\nname /home/me/notes/file.txt.",
        "student": "meta-llama/Llama-3.2-1B",
        "tokenizer": "models/acme/llama",
    }  # fmt: skip
    shown = cards.public(recipe)
    text = json.dumps(shown)
    for hidden in ("/home", "secret models", "host.lan", "abc", KEY, "~", "../", "notes"):
        assert hidden not in text
    assert shown["teachers"][0]["model"] == "llama" and shown["sft"]["logging_dir"] == "x"
    assert shown["teachers"][0]["serve"]["args"] == ["--chat-template=x.jinja", "--tokenizer", "tok"]
    assert shown["extra"]["text"] == recipe["extra"]["text"] and shown["student"] == recipe["student"]
    assert shown["tokenizer"] == "llama" and shown["sft"]["max_tokens"] == 5 and "file.txt" in shown["criteria"]

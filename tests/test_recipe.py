import re

import pytest

from pipeline import paths, rules
from pipeline.errors import RecipeError, UserError
from pipeline.recipe import _CALLED, LANGUAGES, load_recipe

GOOD = """\
domain: star_trek
generate: {count: 10, methods: {questions: 1.0}}
collect:
  teachers:
    - {provider: local, model: some/model}
  sampling: {temperature: 0.5}
train:
  student: {model_type: llama}
  sft:
    learning_rate: 1e-3
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def wrong(path, old, new, overrides=None):
    """The message for a recipe with one thing changed."""
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value).replace(str(path), "r.yaml")


def test_reads_and_overrides(recipe):
    read = load_recipe(
        recipe, ["collect.teachers.0.model=other", "seed=7", "dedupe.near=null", "train.sft.max_steps=3"]
    )
    assert read.collect.teachers[0].model == "other"
    assert read.seed == 7 and read.dedupe.near is None
    assert read.train.sft == {"learning_rate": 0.001, "max_steps": 3}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("count: 10", "cuont: 10", "r.yaml:2: generate.cuont: there is no such key. Did you mean 'count'?"),
        ("generate:", "genrate:", "r.yaml:2: genrate: there is no such key. Did you mean 'generate'?"),
        ("count: 10", "count: -1", "r.yaml:2: generate.count: input should be greater than 0, but it is -1."),
        ("count: 10", "count: many", "r.yaml:2: generate.count: input should be a valid integer"),
        ("questions: 1.0", "questoins: 1.0", "r.yaml:2: generate.methods.questoins: 'questoins' is not one of"),
        ("questions: 1.0", "questions: 0", "methods.questions is 0; a share is greater than 0"),
        ("provider: local", "provider: opnai", "r.yaml:5: collect.teachers.0.provider: 'opnai' is not one of"),
        (
            "temperature: 0.5",
            "temperature: hot",
            "r.yaml:6: collect.sampling.temperature: input should be a valid number",
        ),
        ("temperature: 0.5", "temperature: .nan", "r.yaml:6: collect.sampling.temperature"),
        (
            "train:",
            "dedupe: {near: {threshold: 0.01}}\ntrain:",
            "r.yaml:7: dedupe.near.threshold: input should be greater than or equal to 0.05, but it is 0.01.",
        ),
        ("domain: star_trek", "domain: ../secret", "r.yaml:1: domain: "),
        ("domain: star_trek", "seed: 1", "r.yaml:1: domain: is missing. Add it."),
        (GOOD, "", "r.yaml: is empty or not a mapping"),
        (GOOD, "- a\n", "r.yaml: is empty or not a mapping"),
        (GOOD, "domain: star_trek\ncollect: 3\n", "r.yaml:2: collect: expected lines `name: value` indented"),
        (GOOD, "domain: x\ncollect:\nteachers:\n  - model: m\n", "r.yaml:3: teachers: belongs to collect. Indent it"),
        (GOOD, "domain: x\ncollect: {teachers: {model: m}}\n", "r.yaml:2: collect.teachers: expected a list. Begin"),
    ],
)
def test_mistakes_name_file_line_and_field(recipe, old, new, said):
    assert said in wrong(recipe, old, new)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("eng", "r.yaml:2: filter.language: 'eng' is neither `prompt`, `off` nor the code .*. Did you mean 'en'?"),
        ("en-US", "Did you mean 'en'?"),
        ("EN", "Did you mean 'en'?"),
        ("fra", "Did you mean 'fr'?"),
        ("jp", "Did you mean 'ja'?"),
        ("German", "Did you mean 'de'?"),
        ("prompts", "Known: ace, af, "),
        ("xx", "Known: ace, af, "),
        ("''", "Known: ace, af, "),
    ],
)
def test_a_language_that_no_answer_can_be_in_is_refused_with_the_nearest_one(recipe, code, said):
    told = wrong(recipe, "generate:", f"filter: {{language: {code}}}\ngenerate:")
    assert re.search(re.escape(said).replace(r"\.\*", ".*"), told) and "?." not in told


@pytest.mark.parametrize(
    "field",
    ["api_key: {key}", "api_key_env: {key}", "api_key_env: gsk_{digits}", "api_key: {key}, api_key_env: MY_KEY"],
)
def test_a_key_in_a_recipe_is_refused_and_not_repeated(recipe, field):
    digits = "a1B2c3D4e5F6g7H8i9J0"
    field = field.format(key=f"sk-proj-{digits}", digits=digits)
    said = wrong(recipe, "model: some/model", f"model: some/model, {field}")
    assert "r.yaml:5: collect.teachers.0: a key does not belong in a recipe" in said and "api_key_env: MY_KEY" in said
    assert digits not in said


def test_the_languages_are_those_that_the_identifier_can_find(recipe):
    found = set(rules._identifier().labels) - {"zxx"}  # no language at all
    assert set(LANGUAGES) == found | set(rules._ALIKE)
    assert (
        sorted(LANGUAGES) == LANGUAGES and set(_CALLED.values()) <= set(LANGUAGES) and not set(_CALLED) & set(LANGUAGES)
    )
    for code in (*LANGUAGES, "prompt", "off"):
        assert load_recipe(recipe, [f"filter.language={code}"]).filter.language == code


def test_all_mistakes_are_told_at_once(recipe):
    told = wrong(recipe, "count: 10", "cuont: 10, file: 3")
    assert "cuont" in told and "generate.file" in told


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "write it as --set section.field=value"),
        ("=3", "write it as --set section.field=value"),
        ("collect.teachers.4.model=x", "is a list of 1"),
        ("seed.x=3", "--set seed.x: seed: input should be a valid integer, but it is {'x': 3}."),
        ("domain.x=3", "domain is a single value"),
        ("seed=-1", "--set seed: seed: input should be greater than or equal to 0, but it is -1."),
        ("seed=[", "--set seed=[: the value is not valid YAML"),
        (
            "assemble.best_fo=2",
            "--set assemble.best_fo: assemble.best_fo: there is no such key. Did you mean 'best_of'?",
        ),
    ],
)
def test_a_wrong_override_is_named(recipe, override, said):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, [override])
    assert said in str(error.value)


def test_a_tokenizer_that_nobody_would_read_is_refused(recipe):
    with pytest.raises(RecipeError, match="train: tokenizer: org/small brings its own"):
        load_recipe(recipe, ["train={student: org/small, tokenizer: teacher}"])


def test_recipes_are_found_by_name_or_path(recipe, monkeypatch):
    assert paths.find_recipe(str(recipe)) == recipe
    with pytest.raises(UserError, match="no recipe named 'quickstrat'. Did you mean 'quickstart'"):
        paths.find_recipe("quickstrat")
    monkeypatch.chdir(recipe.parent)
    with pytest.raises(UserError, match="no recipe named 'r' ships with seqkd. Yours is r.yaml"):
        paths.find_recipe("r")
    with pytest.raises(UserError, match=r"no recipe file nowhere\.yaml"):
        paths.find_recipe("nowhere.yaml")


@pytest.mark.parametrize("name", paths.shipped_recipes())
def test_every_shipped_recipe_is_valid(name):
    assert load_recipe(paths.find_recipe(name)).domain


def test_operational_fields_do_not_determine_a_result(recipe):
    first = load_recipe(recipe, ["collect.teachers.0.batch_size=1"]).collect.fingerprinted()
    second = load_recipe(recipe, ["collect.teachers.0.batch_size=2"]).collect.fingerprinted()
    third = load_recipe(recipe, ["collect.samples=2"]).collect.fingerprinted()
    assert first == second != third


def test_a_tilde_is_the_home_folder_in_every_place_that_may_be_one(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    more = [
        "train={student: ~/a, chat_template: ~/a, teacher: ~/a, method: logits}",
        "collect={teachers: [{provider: local, model: ~/a}, {provider: vllm, model: m, serve: {environment: ~/a}}]}",
        "filter={reward: {model: ~/a}, ifd: {model: ~/a}, pii: flag, presidio: {model: ~/a}, judge: {teacher: ~/a}}",
        "generate={methods: {documents: 1}, documents: {files: [~/a/**/*.md]}}",
        "dedupe={against: ~/a, semantic: {model: ~/a}}",
        "assemble={evaluations: [~/a]}",
        "evaluate={questions: ~/a, harness: {tasks: [t], include: ~/a}}",
    ]
    read = load_recipe(recipe, more)
    assert "~" not in read.model_dump_json() and str(read.evaluate.questions) == read.train.student == "/home/me/a"
    answers = load_recipe(recipe, ["collect={file: ~/b.jsonl}", "generate=null"])
    assert str(answers.collect.file) == str(answers.generate.file) == "/home/me/b.jsonl"
    # Of a hub id, of what only looks like a home folder, and of a user who is not there, nothing is changed.
    kept = load_recipe(recipe, ["train.student=a/~b", "train.teacher=~nobody-of-that-name/a"])
    assert (kept.train.student, kept.train.teacher) == ("a/~b", "~nobody-of-that-name/a")

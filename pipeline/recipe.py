"""The recipe: what a user asks for, one section a stage, checked before anything runs.

A recipe is YAML; `--set a.b=c` changes one value (`--set collect.teachers.0.model=...` one of a list). An unknown key
is an error with the nearest right one, and every message names file, line and field.
"""

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import RecipeError, nearest, where
from pipeline.yamlfile import Lines, parse_yaml, read_yaml


class Section(BaseModel):
    """A part of the recipe. Unknown keys are errors; a section is not changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how the work is done but not its result; they may change without making a stage stale."""

    def fingerprinted(self) -> dict[str, Any]:
        """The fields that determine the stage's result, as JSON values."""
        fields: dict[str, Any] = {}
        for name in type(self).model_fields:
            if name not in self.operational:
                fields[name] = _plain(getattr(self, name))
        return fields


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.fingerprinted()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return value.name  # what is in the file counts, by its digest; not where it lies
    return value


Method = Literal["questions", "facets", "self_instruct", "evolve", "persona", "conversation", "magpie"]
WRITTEN = ("self_instruct", "evolve", "persona", "conversation", "magpie")
"""Methods of generate that ask the teachers."""


class QuestionsMethod(Section):
    """Settings of the method `questions`: the fact base's questions, asked without their answers."""

    relations: list[str] | None = None
    """Relations of data/DOMAIN/facts to ask about; null for all."""
    lead_ins: float = Field(default=0.0, ge=0, le=1)
    """Share of the questions that open with one of domain.yaml's lead-ins ("Computer, ...")."""


class FacetsMethod(Section):
    """Settings of the method `facets`: templates filled in from the taxonomy."""

    sampling: Literal["weighted", "balanced"] = "weighted"
    """weighted: tasks, topics, personas ... as often as the weights in domain.yaml say; balanced: equally often."""


class ConversationMethod(Section):
    """Settings of the method `conversation`: prompts of several turns, the teacher playing the user."""

    turns: int = Field(default=2, ge=2, le=16)
    """User turns of each prompt."""


class Generate(Section):
    """generate: where the prompts come from."""

    count: int | None = Field(default=None, gt=0)
    """How many distinct prompts to make; null: 1,000, or all of `file`."""
    methods: dict[Method, float] = Field(default={"facets": 1.0})
    """Method -> share of the prompts."""
    file: Path | None = None
    """Instead of methods: a user's own prompts (.jsonl, .csv, .parquet or the folder of a saved data set) with
    `prompt`, `instruction` (and `input`), or `messages`."""
    questions: QuestionsMethod = QuestionsMethod()
    facets: FacetsMethod = FacetsMethod()
    conversation: ConversationMethod = ConversationMethod()

    @model_validator(mode="after")
    def _shares(self) -> "Generate":
        if not self.file and not self.methods:
            raise ValueError("names no method and no file; give methods: {facets: 1.0} or file: my_prompts.jsonl")
        for method, share in self.methods.items():
            if share <= 0:
                raise ValueError(f"methods.{method} is {share:g}; a share is greater than 0")
        return self


class Price(Section):
    """US dollars a million tokens. Prices change, so they are in the recipe and never in the code."""

    input: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)
    """Input tokens read from the provider's prompt cache; null: the same as `input`."""
    cache_write: float | None = Field(default=None, ge=0)
    """Input tokens written to the provider's prompt cache; null: the same as `input`."""
    output: float = Field(ge=0)


class Embedded(Section):
    """A small teacher that is trained on first use from data/DOMAIN/facts and kept under data/cache/teachers."""

    relations: list[str] | None = None
    """Relations of the fact base to learn; null for all."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Null: the recipe's."""
    vocab_size: int = Field(default=2048, ge=300, le=2**20)
    """Of its byte-level BPE tokenizer, special tokens included."""
    model: dict[str, Any] = Field(default_factory=dict)
    """transformers.LlamaConfig fields: hidden_size, num_hidden_layers, ..."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Passed to trl.SFTConfig."""
    copies: int = Field(default=1, ge=1, le=1000)
    """Differently disturbed copies of each training question. They teach it to lean on the subject and on any of the
    words that give the relation away, so that unseen wordings do not confuse it."""
    lead_ins: list[str] | None = None
    """Openings such as "Computer, "; null: those of domain.yaml."""
    lead_in_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the training questions that open with one."""
    word_dropout: float = Field(default=0.0, ge=0, le=0.5)
    """Mean share of a wording's words that are left out; the subject is never touched."""
    word_noise: float = Field(default=0.0, ge=0, lt=1)
    """Chance of each word to be replaced by one of any relation's wordings."""
    splice: float = Field(default=0.0, ge=0, le=1)
    """Chance that what follows the subject comes from another wording of the relation."""


class Serve(Section):
    """How to start a vLLM server from another Python environment. It is stopped when the stage ends."""

    operational = frozenset({"environment", "start_timeout_s", "env"})

    environment: Path = Path(".envs/vllm")
    """The virtual environment that has vLLM."""
    args: list[str | int | float] = Field(default_factory=list)
    """Arguments of `vllm serve`: ["--tensor-parallel-size", 4, ...]."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables for it."""
    start_timeout_s: float = Field(default=900, gt=0)
    """Loading a large model takes minutes."""


class Teacher(Section):
    """One teacher: who answers."""

    operational = frozenset(
        {"api_key_env", "requests_per_minute", "tokens_per_minute", "max_in_flight", "mode", "price", "batch_size"}
    )

    provider: Literal["local", "vllm", "openai", "anthropic"]
    model: str = Field(min_length=1)
    """The provider's name of the model; for `local` a folder, a hub id, or `embedded`."""
    embedded: Embedded | None = None
    """Settings of the embedded teacher, for `provider: local, model: embedded`."""
    name: str | None = None
    """How rows and reports call this teacher; null: the model's name."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the prompts this teacher answers, relative to the other teachers' weights."""
    base_url: str | list[str] | None = None
    """Where the provider is asked, null for its own address. Several servers of one model are used side by side."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the key; null: OPENAI_API_KEY or ANTHROPIC_API_KEY at the provider's own
    address, and no key at any other."""
    serve: Serve | None = None
    """For `vllm` without a base_url: start a server for this model."""
    mode: Literal["online", "batch"] = "online"
    """batch: the provider's batch interface, at half the price and within a day."""
    requests_per_minute: int | None = Field(default=None, gt=0)
    """Null: as the first answer's headers say."""
    tokens_per_minute: int | None = Field(default=None, gt=0)
    """Counted as providers do when a request arrives: its input and all that it may answer (max_tokens)."""
    max_in_flight: int = Field(default=256, gt=0, le=10_000)
    """Requests under way at once."""
    price: Price | None = None
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request's body, sent as they are: reasoning_effort, thinking, top_k ..."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts in one batch of an in-process model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for a model whose code you have read."""

    def urls(self) -> tuple[str, ...]:
        """The base URLs that the recipe gives, none for the provider's own."""
        return (self.base_url,) if isinstance(self.base_url, str) else tuple(self.base_url or ())

    @model_validator(mode="after")
    def _fits(self) -> "Teacher":
        if (self.embedded is not None) != (self.provider == "local" and self.model == "embedded"):
            raise ValueError("`embedded:` settings go with `provider: local` and `model: embedded`, and only with them")
        for url in self.urls():
            if not re.match(r"https?://[^\s/@]+(/\S*)?$", url):
                raise ValueError(f"base_url {url!r} is not of the form https://HOST/PATH (without user or password)")
        if self.provider == "local" and (self.urls() or self.api_key_env):
            raise ValueError("a local model has no base_url and no api_key_env; remove them, or say `provider: vllm`")
        if self.serve and self.provider != "vllm":
            raise ValueError("serve starts a vLLM server; it goes with `provider: vllm`")
        if self.provider == "vllm" and bool(self.urls()) == (self.serve is not None):
            raise ValueError("`provider: vllm` needs either base_url, of a running server, or serve, to start one")
        if self.mode == "batch" and self.provider not in ("openai", "anthropic"):
            raise ValueError(f"provider {self.provider} has no batch interface; remove `mode: batch`")
        return self


class Sampling(Section):
    """How the teacher samples. Every parameter is sent, so that a server's own defaults never decide."""

    temperature: float | None = Field(default=0.8, ge=0, le=2)
    """Null: not sent, for models that refuse it (in-process models and vLLM then use 1)."""
    top_p: float | None = Field(default=0.95, gt=0, le=1)
    """Null: not sent, for models that refuse it (in-process models and vLLM then use 1)."""
    max_tokens: int = Field(default=512, gt=0)
    logprobs: bool = False
    """Store the log-probability of each answer token, where the provider gives it."""


class Collect(Section):
    """collect: the teacher's answers."""

    operational = frozenset({"timeout_s", "deadline_s", "budget_usd", "accept_terms"})

    file: Path | None = None
    """Instead of teachers: answers that somebody has already (.jsonl, .csv, .parquet or a datasets folder) with
    `prompt` and `completion`, `instruction` (`input`) and `output`, or `messages`."""
    teachers: list[Teacher] = Field(default_factory=list)
    strategy: Literal["split", "all"] = "split"
    """split: each prompt goes to one teacher, by their weights; all: every teacher answers every prompt."""
    samples: int = Field(default=1, gt=0)
    """Answers to each prompt (from each teacher that is asked)."""
    system: str | None = None
    """A template of prompts/DOMAIN, sent as the system message."""
    sampling: Sampling = Sampling()
    timeout_s: float = Field(default=120, gt=0)
    """For one attempt."""
    deadline_s: float = Field(default=900, gt=0)
    """For one request, its retries included."""
    budget_usd: float | None = Field(default=None, gt=0)
    """The most that the run may spend; it is never passed. What was not asked for lack of it is a failure with the
    reason `budget`; a larger budget and `--from collect` ask the rest."""
    accept_terms: bool = False
    """You have read the hosted providers' terms on training from their output."""

    @model_validator(mode="after")
    def _teachers(self) -> "Collect":
        if bool(self.teachers) == bool(self.file):
            raise ValueError("give either teachers: [{provider: ..., model: ...}] or file: answers.jsonl")
        names = [teacher.name or teacher.model for teacher in self.teachers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two teachers are called {name!r}; give one of them another `name:`")
        for name, teacher in zip(names, self.teachers, strict=True):
            if self.budget_usd and not teacher.price and teacher.provider in ("openai", "anthropic"):
                raise ValueError(f"budget_usd needs a price; {name} has none. Add price: {{input: ..., output: ...}}")
        return self


class Agreement(Section):
    """Self-consistency: keep an answer that enough of the prompt's samples agree on."""

    min_share: float = Field(default=0.5, gt=0, le=1)
    """The least share of a prompt's completions that must say the same after normalisation."""


class Filter(Section):
    """filter: which answers are good enough to learn from. docs/filters.md shows each rule with examples."""

    enabled: bool = True
    """false keeps every answer."""
    min_words: int = Field(default=1, ge=0)
    """An answer with fewer words is too short, and so is one far too short for its task; 0 turns this off."""
    max_chars: int = Field(default=200_000, gt=0)
    """A prompt and answer of more characters together are too long."""
    cut_off: bool = True
    """Reject answers that stopped at max_tokens or whose text breaks off."""
    refusals: bool = True
    """Reject refusals."""
    partial_refusals: bool = True
    """Reject answers that refuse a part of what was asked and answer the rest."""
    deflections: bool = True
    """Reject answers that say that they do not know, have no access, or need to be asked differently."""
    boilerplate: bool = True
    """Reject answers in which the teacher speaks of itself unasked ("As an AI language model, ...")."""
    leakage: bool = True
    """Reject answers that contain parts of a chat template or a system prompt."""
    placeholders: bool = True
    """Reject answers with slots that nobody filled in ("[Your Name]")."""
    references: bool = True
    """Reject rows whose prompt or answer refers to an image, a file or a link that is not there."""
    repetition: bool = True
    """Reject answers that repeat the same words, sentences or lines."""
    echo: bool = True
    """Reject answers that only repeat the prompt."""
    language: str = Field(default="prompt", pattern=r"^(?:prompt|off|[a-z]{2,3})$")
    """`prompt`: the answer must be in the prompt's language, unless the prompt names one; an ISO 639-1 code such as
    `en`: in that language; `off`."""
    garbled: bool = True
    """Reject encoding damage and noise."""
    markup: bool = True
    """Reject HTML in running text where the prompt does not ask for it."""
    pii: Literal["off", "flag", "redact", "drop"] = "off"
    """Personal data (e-mail addresses, telephone, social security, card and account numbers) in prompt or answer:
    `flag` names its kinds in the column pii, `redact` also replaces it by its kind (<EMAIL>), `drop` rejects the row.
    Costs three times what the default rules cost together."""
    format: bool = True
    """Reject answers without the form that the prompt asks for: JSON, a list, a number of items, words or sentences."""
    agreement: Agreement | None = None
    """Reject answers that too few of the prompt's samples agree on; null: they need not agree."""


class Near(Section):
    """Near-duplicates by MinHash-LSH, every candidate pair verified by its exact Jaccard similarity."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of lower-cased word 5-grams from which two rows are the same."""


class Dedupe(Section):
    """dedupe: one row of each group that says the same."""

    on: Literal["pair", "prompt", "completion"] = "pair"
    """What is compared: prompt and answer together, or one of them."""
    exact: bool = True
    near: Near | None = Near()
    against: Path | None = None
    """A data set that exists already (.parquet or .jsonl with `prompt` and `completion`, `messages`, or a table of
    another run): rows that repeat one of its rows are dropped too."""


class Assemble(Section):
    """assemble: the training set, free of held-out questions and split in two."""

    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts (with all their rows) that goes to validation."""
    best_of: int = Field(default=1, ge=1)
    """Rows to keep of each prompt, the most agreed-on first."""
    overlap: float = Field(default=0.75, gt=0, le=1)
    """Withhold a row that has this share of a held-out question's words, in order and in one place."""
    evaluations: list[Path] = Field(default_factory=list)
    """Further evaluation sets that must not be trained on (.jsonl, .csv or .parquet with `prompt`, `question`, `text`
    or `messages`)."""


Baseline = Literal["random_subset"]


class Train(Section):
    """train: the student."""

    student: str | dict[str, Any] = Field(default="HuggingFaceTB/SmolLM2-135M-Instruct")
    """A hub id, a folder, or a transformers config ({model_type: llama, hidden_size: ...}) with random weights."""
    tokenizer: str | None = None
    """Hub id or folder; `teacher`: the local teacher's. Needed for a student given as a config."""
    method: Literal["sft"] = "sft"
    lora: dict[str, Any] | None = None
    """peft.LoraConfig fields; null trains all weights."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Passed to trl.SFTConfig as it is."""
    baselines: list[Baseline] = Field(default_factory=list)
    """Students trained for comparison: `random_subset`, on as many unfiltered rows."""
    trust_remote_code: bool = False


class Evaluate(Section):
    """evaluate: what the student kept of its teacher."""

    questions: Path | None = None
    """Held-out questions (.jsonl with `prompt` or `messages`, and `answer` or `answers`); null: the fact base's
    held-out wordings."""
    limit: int | None = Field(default=None, gt=0)
    """At most this many questions, drawn with the recipe's seed."""
    max_tokens: int = Field(default=64, gt=0)
    batch_size: int = Field(default=64, gt=0)
    latency_questions: int = Field(default=32, gt=0)
    """Questions asked one at a time to measure latency."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples for the 95% intervals."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """What this machine costs an hour in US dollars: the report then says what a million tokens cost on it."""


class Recipe(Section):
    """Everything a run is made from."""

    domain: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Names the folders prompts/DOMAIN and data/DOMAIN."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    generate: Generate = Generate()
    collect: Collect
    filter: Filter = Filter()
    dedupe: Dedupe = Dedupe()
    assemble: Assemble = Assemble()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="before")
    @classmethod
    def _prompts_of_the_answers(cls, data: Any) -> Any:
        """With answers from a file, the prompts are those of the same file, unless the recipe says otherwise."""
        if not isinstance(data, dict) or not isinstance(data.get("collect"), dict) or not data["collect"].get("file"):
            return data
        generate = data.get("generate") or {}
        if not isinstance(generate, dict) or generate.get("file") or generate.get("methods"):
            return data
        return data | {"generate": generate | {"file": data["collect"]["file"]}}

    @property
    def writers(self) -> Collect | None:
        """How generate asks the teachers: collect without what is for answers only. Null if none of them asks."""
        if self.generate.file or not set(self.generate.methods) & set(WRITTEN):
            return None
        system = self.collect.system if "magpie" in self.generate.methods else None
        return self.collect.model_copy(update={"samples": 1, "system": system, "strategy": "split"})


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe. `overrides`: "a.b=c" as given to --set, c read as YAML.

    Raises RecipeError: FILE:LINE: FIELD, what is wrong and what to do, all mistakes at once.
    """
    data, lines = read_yaml(path)
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: is empty or not a mapping. A recipe starts with `domain: NAME`.")
    given: dict[tuple[str | int, ...], str] = {}
    for override in overrides or []:
        keys = _override(data, override)
        given[keys] = override
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        messages = [_message(path, data, lines, given, problem) for problem in error.errors()]
        raise RecipeError("\n".join(dict.fromkeys(messages))) from None


def _override(data: dict[str, Any], text: str) -> tuple[str | int, ...]:
    """Apply one "a.b=c" to the recipe's data and return the path of what it changed."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name.strip()):
        raise RecipeError(f"--set {text}: write it as --set section.field=value.")
    try:
        parsed, _ = parse_yaml(value, "--set")
    except RecipeError:
        raise RecipeError(f"--set {text}: the value is not valid YAML; put it in quotes if it is text.") from None
    keys: list[str | int] = []
    here: Any = data
    parts = name.strip().split(".")
    for depth, part in enumerate(parts):
        key: str | int = part
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise RecipeError(
                    f"--set {text}: {'.'.join(parts[:depth])} is a list of {len(here)}; write its number."
                )
            key = int(part)
        elif not isinstance(here, dict):
            raise RecipeError(f"--set {text}: {'.'.join(parts[:depth])} is a single value and has no field '{part}'.")
        keys.append(key)
        if depth == len(parts) - 1:
            here[key] = parsed
        else:
            if isinstance(here, dict) and here.get(key) is None:
                here[key] = {}
            here = here[key]
    return tuple(keys)


def _message(path: Path, data: Any, lines: Lines, given: dict[tuple[str | int, ...], str], problem: Any) -> str:
    """One of pydantic's problems as FILE:LINE: FIELD: what is wrong and what to do."""
    # pydantic adds names of its own to the place (which member of a union it tried); keep what the data really has.
    keys: list[str | int] = []
    here = data
    for part in problem["loc"]:
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            keys.append(part)
        elif problem["type"] == "missing" and part == problem["loc"][-1]:
            keys.append(part)
    field = ".".join(str(key) for key in keys)
    override = next((text for at, text in given.items() if keys and tuple(keys[: len(at)]) == at[: len(keys)]), None)
    line = next((lines[at] for n in range(len(keys), -1, -1) if (at := tuple(keys[:n])) in lines), None)
    place = f"--set {override.partition('=')[0]}" if override else where(path, line)
    prefix = f"{place}: {field}" if field else place

    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(problem["loc"][:-1])
        return f"{prefix}: there is no such key.{nearest(str(problem['loc'][-1]), known)}"
    if kind == "missing":
        return f"{prefix}: is missing. Add it."
    if kind == "literal_error":
        return f"{prefix}: {problem['input']!r} is not one of {context['expected']}."
    if kind == "value_error":
        return f"{prefix}: {context['error']}."
    said = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{prefix}: {said}, but it is {problem['input']!r}."


def _fields_at(loc: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the section at a place in the recipe."""
    section: Any = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_of(field.annotation) if field else section
    return list(section.model_fields) if section else []


def _section_of(annotation: Any) -> type[Section] | None:
    """The Section class inside an annotation such as list[Teacher] or Near | None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found:
            return found
    return None

"""The recipe: what a user asks for, one section a stage, checked before anything runs.

A recipe is YAML; `--set a.b=c` changes one value (`--set collect.teachers.0.model=...` one of a list). An unknown key
is an error with the nearest right one, and every message names file, line and field. A path may begin with `~`.
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

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
            # Null is left out, so that a field that a later version adds makes no finished run stale.
            if name not in self.operational and getattr(self, name) is not None:
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


def _with_home(place: Any) -> Any:
    """A path, or a text that may be one, with the user's home folder for `~`: no shell has read the recipe."""
    if not str(place).startswith("~"):
        return place
    try:
        return type(place)(Path(place).expanduser())
    except RuntimeError:  # there is no such user; whoever opens it says that it is not there
        return place


UserPath = Annotated[Path, AfterValidator(_with_home)]
"""A file or folder of the user's."""

UserModel = Annotated[str, AfterValidator(_with_home)]
"""A folder of the user's, or something else that is called by a name, such as a model of a hub or provider."""


Method = Literal["questions", "facets", "self_instruct", "evolve", "persona", "documents", "conversation", "magpie"]
WRITTEN = ("self_instruct", "evolve", "persona", "documents", "conversation", "magpie")
"""Methods of generate that ask the teachers."""


COUNT = 1000
"""Prompts where generate.count says nothing."""


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


class SelfInstructMethod(Section):
    """Settings of the method `self_instruct`."""

    novelty: Literal["jaccard", "rouge_l"] = "jaccard"
    """How a new prompt is told from those there are. jaccard: by word 5-grams, as for all methods. rouge_l: also by the
    longest common subsequence of words (Lin, 2004), as in the paper, from the seeds and all that this method made."""
    threshold: float = Field(default=0.7, gt=0, le=1)
    """ROUGE-L (F1) from which two prompts are the same, for novelty rouge_l."""


class DocumentsMethod(Section):
    """Settings of the method `documents`: questions about a user's own files."""

    files: list[UserPath] = Field(min_length=1)
    """Files, folders (all that is in them) and globs (docs/**/*.md): .txt, .md, .html, .pdf and .jsonl."""
    characters: int = Field(default=2000, ge=200, le=50_000)
    """The most that a passage has; 2,000 are about 400 words or 500 tokens."""
    include: bool = False
    """false: the prompt is the question alone. The teacher is shown the passage when it answers, and the student learns
    to answer without it (closed book). true: the passage is part of the prompt, for a student that is given passages in
    use too (open book, retrieval)."""


class ConversationMethod(Section):
    """Settings of the method `conversation`: prompts of several turns, the teacher playing the user."""

    turns: int = Field(default=2, ge=2, le=16)
    """User turns of each prompt."""


class Generate(Section):
    """generate: where the prompts come from."""

    count: int | None = Field(default=None, gt=0)
    """How many distinct prompts to make; null: 1,000, or all of `file`. With target_kept: how many in the first round;
    null: as many as are enough if every answer is kept."""
    target_kept: int | None = Field(default=None, gt=0)
    """Instead of a number of prompts: go on in rounds of making prompts, collecting, filtering and deduplicating until
    so many rows are kept after dedupe, or the budget, max_rounds or the candidates end. Each round asks more where
    coverage is thin."""
    max_rounds: int = Field(default=5, gt=0, le=100)
    """The most rounds for target_kept."""
    methods: dict[Method, float] = Field(default={"facets": 1.0})
    """Method -> share of the prompts."""
    file: UserPath | None = None
    """Instead of methods: a user's own prompts (.jsonl, .csv, .parquet or the folder of a saved data set) with
    `prompt`, `instruction` (and `input`), or `messages`."""
    questions: QuestionsMethod = QuestionsMethod()
    facets: FacetsMethod = FacetsMethod()
    self_instruct: SelfInstructMethod = SelfInstructMethod()
    documents: DocumentsMethod | None = None
    conversation: ConversationMethod = ConversationMethod()

    @model_validator(mode="after")
    def _shares(self) -> "Generate":
        if not self.file and not self.methods:
            raise ValueError("names no method and no file; give methods: {facets: 1.0} or file: my_prompts.jsonl")
        if not self.file and ("documents" in self.methods) != (self.documents is not None):
            raise ValueError("the method documents and its files go together: documents: {files: [...]}")
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

    environment: UserPath = Path(".envs/vllm")
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
    model: UserModel = Field(min_length=1)
    """The provider's name of the model; for `local` a folder, a hub id, or `embedded`."""
    embedded: Embedded | None = None
    """Settings of the embedded teacher, for `provider: local, model: embedded`."""
    name: str | None = None
    """How rows and reports call this teacher; null: the model's name."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the prompts this teacher answers, relative to the other teachers' weights."""
    base_url: str | list[str] | None = None
    """Where the provider is asked, null for its own address. Several servers of one model are used side by side."""
    api_key_env: str | None = None
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

    @property
    def called(self) -> str:
        """How rows and reports call this teacher."""
        return self.name or self.model

    def urls(self) -> tuple[str, ...]:
        """The base URLs that the recipe gives, none for the provider's own."""
        return (self.base_url,) if isinstance(self.base_url, str) else tuple(self.base_url or ())

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, data: Any) -> Any:
        """A key in a recipe ends in repositories and logs; the message must not repeat it."""
        given = data if isinstance(data, dict) else {}
        name = str(given.get("api_key_env") or "KEY")
        long = len(name) >= 20 and re.search("[a-z]", name) and re.search("[0-9]", name)
        if "api_key" in given or long or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(
                "a key does not belong in a recipe. Put it into an environment variable (export MY_KEY=...) and name "
                "that one: api_key_env: MY_KEY"
            )
        return data

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
    top_logprobs: int | None = Field(default=None, gt=0, le=1000)
    """With logprobs: store that many of the likeliest tokens at each position too, for `train.method: logits` with
    `source: stored`. OpenAI gives at most 20."""

    @model_validator(mode="after")
    def _tops(self) -> "Sampling":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with `logprobs: true`")
        return self


class Collect(Section):
    """collect: the teacher's answers."""

    operational = frozenset({"timeout_s", "deadline_s", "budget_usd", "accept_terms"})

    file: UserPath | None = None
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
        names = [teacher.called for teacher in self.teachers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two teachers are called {name!r}; give one of them another `name:`")
        for name, teacher in zip(names, self.teachers, strict=True):
            if self.budget_usd and not teacher.price and teacher.provider in ("openai", "anthropic"):
                raise ValueError(f"budget_usd needs a price; {name} has none. Add price: {{input: ..., output: ...}}")
        return self


def _name_or_section(value: Any) -> str:
    return "name" if isinstance(value, str) else "section"


class Judge(Section):
    """A teacher that judges answers (LLM-as-a-judge: Zheng et al., 2023). Each verdict is a call that is paid."""

    teacher: Annotated[
        Annotated[UserModel, Tag("name")] | Annotated[Teacher, Tag("section")], Discriminator(_name_or_section)
    ]
    """The name of one of collect.teachers, or a teacher of its own ({provider: ..., model: ...})."""
    criteria: str = Field(
        default="It is correct, does all that the prompt asks for and nothing else, and is clear.", min_length=1
    )
    """What makes an answer good; put into the template (judge_score.jinja or judge_compare.jinja of prompts/DOMAIN, or
    else of prompts/_any)."""
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """Null: not sent, for models that refuse it."""
    max_tokens: int = Field(default=512, gt=0)
    """Of a verdict with its reason. A model that reasons first needs more."""
    structured: bool = True
    """Send the verdict's JSON schema along (response_format) where the provider is openai or vllm; false for a server
    that refuses it."""


class Agreement(Section):
    """Self-consistency: keep an answer that enough of the prompt's samples agree on."""

    min_share: float = Field(default=0.5, gt=0, le=1)
    """The least share of a prompt's completions that must say the same after normalisation."""


class FilterJudge(Judge):
    """The judge of filter: a score for each answer, in the column score."""

    low: int = 1
    high: int = 10
    """The scale."""
    min_score: float | None = None
    """Reject answers with a lower score; null: only note it."""
    unjudged: Literal["keep", "reject"] = "keep"
    """What becomes of an answer for which the judge gives no score (it fails, or says something else than one)."""

    @model_validator(mode="after")
    def _scale(self) -> "FilterJudge":
        if not self.low < self.high <= self.low + 100:
            raise ValueError(f"low is {self.low} and high {self.high}; a scale has 2 to 101 steps")
        if self.min_score is not None and not self.low <= self.min_score <= self.high:
            raise ValueError(f"min_score is {self.min_score:g}; the scale is {self.low} to {self.high}")
        return self


class Reward(Section):
    """A reward model: a sequence classifier with one output, over the chat template. Runs on this machine; slow."""

    operational = frozenset({"batch_size"})

    model: UserModel = Field(min_length=1)
    """A hub id or a folder."""
    min_score: float | None = None
    """Reject answers with a lower reward; null: only note it, in the column reward."""
    batch_size: int = Field(default=16, gt=0)
    trust_remote_code: bool = False


class Ifd(Section):
    """Instruction-following difficulty (Li et al., 2024, Cherry LLM): how much the prompt helps a causal model to
    predict the answer. Runs on this machine; slow."""

    operational = frozenset({"batch_size"})

    model: UserModel = Field(min_length=1)
    """A hub id or a folder, with a chat template; usually the student before its training."""
    min: float | None = Field(default=None, ge=0)
    """Reject answers below: the prompt alone gives them away. Null: only note it, in the columns ifd and perplexity."""
    max: float | None = Field(default=1.0, ge=0)
    """Reject answers above: from 1 on, the prompt does not help to predict them; null: keep them."""
    batch_size: int = Field(default=8, gt=0)
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Ifd":
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError(f"min is {self.min:g} and max {self.max:g}; nothing lies between")
        return self


class Presidio(Section):
    """Personal data that no pattern finds, such as names, by Microsoft Presidio and a spaCy model. Slow: tens of
    milliseconds an answer. Needs the extra `pii`."""

    model: UserModel = Field(default="en_core_web_sm", min_length=1)
    """A spaCy model that is installed, or its folder."""
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    """That of the model."""
    entities: list[str] = Field(default=["PERSON"], min_length=1)
    """What counts as personal data, in Presidio's names: PERSON, LOCATION, IP_ADDRESS ..."""
    min_score: float = Field(default=0.5, ge=0, le=1)
    """How sure Presidio has to be."""


LANGUAGES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga
gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij
ln lo lt ltg lv mg mk ml mn mr ms mt my nb ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn
so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu
""".split()  # noqa: SIM905
"""Codes that filter.language may have: what py3langid, whose import would slow down every command, finds in texts."""

# What else the common ones are called: ISO 639-2 and 639-3, countries, English.
_NAMES = {
    "en": "eng english", "de": "deu ger german deutsch", "fr": "fra fre french", "es": "spa spanish",
    "it": "ita italian", "pt": "por portuguese", "nl": "nld dut dutch", "ru": "rus russian",
    "uk": "ukr ua ukrainian", "pl": "pol polish", "cs": "ces cze cz czech", "zh": "zho chi cmn cn chinese",
    "ja": "jpn jp japanese", "ko": "kor kr korean", "ar": "ara arb arabic", "hi": "hin hindi", "bn": "ben",
    "ur": "urd", "fa": "fas per", "tr": "tur turkish", "vi": "vie vn", "th": "tha", "id": "ind",
    "sv": "swe swedish", "da": "dan dk danish", "no": "nor norwegian", "nb": "nob", "nn": "nno",
    "fi": "fin finnish", "el": "ell gre gr greek", "he": "heb iw hebrew", "hu": "hun", "ro": "ron rum", "bg": "bul",
}  # fmt: skip
_CALLED = {name: code for code, names in _NAMES.items() for name in names.split()}


def _known_language(code: str) -> str:
    if code in ("prompt", "off") or code in LANGUAGES:
        return code
    first = re.split(r"[-_]", code.strip().lower())[0]  # of en-US
    meant = first if first in LANGUAGES else _CALLED.get(first)
    hint = f"Did you mean '{meant}'?" if meant else f"Known: {', '.join(LANGUAGES)}"
    raise ValueError(f"{code!r} is neither `prompt`, `off` nor the code of a language that can be told. {hint}")


class Filter(Section):
    """filter: which answers are good enough to learn from. docs/filters.md shows each rule with examples."""

    enabled: bool = True
    """false keeps every answer, but for what is none: null, or to a prompt with a turn that is."""
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
    premise_denials: bool = False
    """Reject answers that deny what the prompt takes for granted ("There is no reason why ...")."""
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
    language: Annotated[str, AfterValidator(_known_language)] = "prompt"
    """`prompt`: the answer must be in the prompt's language, unless the prompt names one; an ISO 639-1 code such as
    `en`: in that language; `off`."""
    garbled: bool = True
    """Reject encoding damage and noise."""
    markup: bool = True
    """Reject HTML in running text where the prompt does not ask for it."""
    pii: Literal["off", "flag", "redact", "drop"] = "off"
    """Personal data (e-mail addresses, telephone, social security, card and account numbers) in prompt or answer:
    `flag` names its kinds in the column pii, `redact` also replaces it by its kind (<EMAIL>), in the reasoning too, and
    takes the log-probabilities, which spell it out, from such rows; `drop` rejects the row.
    Costs as much as the default rules together."""
    presidio: Presidio | None = None
    """What counts as personal data for `pii` besides what the patterns find."""
    format: bool = True
    """Reject answers without the form that the prompt asks for: JSON, a list, a number of items, words or sentences."""
    agreement: Agreement | None = None
    """Reject answers that too few of the prompt's samples agree on; null: they need not agree."""
    grounding: float | None = Field(default=0.5, gt=0, le=1)
    """Where the prompt rests on a passage (column context): the least share of an answer's content words that must be
    in it; every number and name must be. Null: answers need not rest on it."""
    reward: Reward | None = None
    """A local reward model that scores what the rules above keep."""
    ifd: Ifd | None = None
    """A local causal model that says how hard the answers that are left are for it."""
    judge: FilterJudge | None = None
    """A teacher that scores what all the above keep, a call a row."""

    @model_validator(mode="after")
    def _personal_data(self) -> "Filter":
        if self.presidio and self.pii == "off":
            raise ValueError("presidio looks for personal data, and pii is off; set pii to flag, redact or drop")
        return self


class Near(Section):
    """Near-duplicates by MinHash-LSH, every candidate pair verified by its exact Jaccard similarity."""

    threshold: float = Field(default=0.8, ge=0.05, le=1)
    """Jaccard similarity of lower-cased word 5-grams from which two rows are the same. Below 0.05 no number of bands
    finds nearly all pairs."""


class Semantic(Section):
    """Rows that say the same in other words, by the cosine of the vectors that a model makes of them. Compares every
    pair: for some 100,000 rows. Needs the extra `semantic`."""

    model: UserModel = Field(min_length=1)
    """A hub id or a folder: a model2vec model (minishlab/potion-base-8M), or one for sentence-transformers."""
    threshold: float = Field(default=0.95, gt=0, le=1)
    """Cosine from which two rows are the same."""
    on: Literal["pair", "prompt", "completion"] | None = None
    """What is compared; null: the same as dedupe.on."""


class Dedupe(Section):
    """dedupe: one row of each group that says the same."""

    on: Literal["pair", "prompt", "completion"] = "pair"
    """What is compared: prompt and answer together, or one of them."""
    exact: bool = True
    near: Near | None = Near()
    semantic: Semantic | None = None
    """After exact and near, on the rows that are left."""
    against: UserPath | None = None
    """A data set that exists already (.parquet or .jsonl with `prompt` and `completion`, `messages`, or a table of
    another run): rows that repeat one of its rows are dropped too."""


class Assemble(Section):
    """assemble: the training set, free of held-out questions and split in two."""

    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts (with all their rows) that goes to validation."""
    best_of: int = Field(default=1, ge=1)
    """Rows to keep of each prompt, the best first."""
    best_by: Literal["agreement", "judge", "reward", "logprob"] = "agreement"
    """What makes a row the best: the share of samples that say the same, filter's judge or reward model, or the mean
    log-probability of the answer's tokens (collect.sampling.logprobs). Rows without it come last, equals by id."""
    overlap: float = Field(default=0.75, gt=0, le=1)
    """Withhold a row that has this share of a held-out question's words, in order and in one place."""
    evaluations: list[UserPath] = Field(default_factory=list)
    """Further evaluation sets that must not be trained on (.jsonl, .csv or .parquet with `prompt`, `question`, `text`
    or `messages`)."""


Baseline = Literal["random_subset"]


class Logits(Section):
    """Settings of the method `logits`: soft targets (Hinton et al., 2015)."""

    source: Literal["teacher", "stored"] = "teacher"
    """teacher: a local teacher's whole distribution, computed in each training step; stored: the likeliest tokens that
    collect stored (collect.sampling.top_logprobs)."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """Between the teacher's distribution and the student's: KL(teacher || student), KL(student || teacher), or the
    generalised Jensen-Shannon divergence (Agarwal et al., 2024)."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Of jsd: the teacher's weight in the mixture."""
    temperature: float = Field(default=1.0, gt=0)
    """Flattens both distributions before they are compared; their divergence then counts temperature**2 times."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the divergence in the loss; the rest is the usual loss on the answer's tokens."""


class EarlyStopping(Section):
    """Stop when the validation loss no longer falls, and keep the model for which it was lowest."""

    patience: int = Field(default=3, gt=0)
    """Evaluations in a row that may pass without a new lowest loss."""
    threshold: float = Field(default=0.0, ge=0)
    """How much lower a loss must be to count as a new lowest one."""
    eval_steps: float = Field(default=0.05, gt=0)
    """Steps between two evaluations; below 1: this share of all steps."""


class Train(Section):
    """train: the student."""

    student: UserModel | dict[str, Any] = Field(default="HuggingFaceTB/SmolLM2-135M-Instruct")
    """A hub id, a folder, or a transformers config ({model_type: llama, hidden_size: ...}) with random weights."""
    tokenizer: UserModel | None = None
    """Hub id or folder; `teacher`: the local teacher's. Needed for a student given as a config."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Of random weights, of the order of the rows and of dropout; null: the recipe's. Recipes that differ in nothing
    else train several students on the very same rows."""
    chat_template: UserModel | None = None
    """For a student without one: a file with a Jinja chat template, or `plain` for the one that seqkd brings. Saved
    with the student."""
    method: Literal["sft", "logits", "on_policy"] = "sft"
    """sft: the answers' tokens are the targets; logits: the teacher's probabilities too; on_policy: the student answers
    by itself and the teacher scores its tokens. docs/train.md says which is for what."""
    teacher: UserModel | None = None
    """For logits and on_policy, the model that scores: a folder or hub id with the student's tokenizer; null: the first
    `local` teacher of collect."""
    lora: dict[str, Any] | None = None
    """peft.LoraConfig fields ({}: peft's defaults); null trains all weights."""
    quantize: Literal["4bit"] | None = None
    """4bit: QLoRA (Dettmers et al., 2023), the frozen weights in 4 bits; needs lora and seqkd[qlora]."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Passed to trl.SFTConfig as it is, for the methods sft and logits."""
    logits: Logits = Logits()
    on_policy: dict[str, Any] = Field(default_factory=dict)
    """Passed to trl.DistillationConfig as it is."""
    loss_on: Literal["completion", "assistant"] = "completion"
    """completion: the last answer alone; assistant: also what the assistant said in earlier turns of the prompt."""
    too_long: Literal["cut", "drop", "error"] = "cut"
    """Rows longer than sft.max_length or the student's context: cut at its end (and dropped if nothing of the answer is
    left), dropped, or an error. The manifest says how many."""
    early_stopping: EarlyStopping | None = None
    """Null: train to the end."""
    baselines: list[Baseline] = Field(default_factory=list)
    """Students trained for comparison: `random_subset`, on as many unfiltered rows."""
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _quantized(self) -> "Train":
        if self.quantize and (self.lora is None or not isinstance(self.student, str)):
            raise ValueError("quantize goes with lora and with a student that has weights; add lora: {r: 16}")
        return self

    @model_validator(mode="after")
    def _own_tokenizer(self) -> "Train":
        if self.tokenizer and isinstance(self.student, str):
            raise ValueError(f"tokenizer: {self.student} brings its own; remove it, or give the student as a config")
        return self


class EvaluateJudge(Judge):
    """The judge of evaluate: whether the student's answer to a held-out question is better than the teacher's."""

    limit: int = Field(default=200, gt=0)
    """At most this many questions, drawn with the recipe's seed; each takes two calls, one in each order."""


class Harness(Section):
    """evaluate.harness: tasks of EleutherAI's lm-evaluation-harness, which need the extra `harness`."""

    tasks: list[str] = Field(min_length=1)
    """Names of tasks, groups or tags, such as arc_easy."""
    include: UserPath | None = None
    """A folder with tasks of your own, as YAML files. They may run Python code that stands beside them."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples before each question; null: as many as the task asks for."""
    limit: int | None = Field(default=None, gt=0)
    """At most this many questions of each task, the first ones."""
    chat: bool = True
    """Ask in the model's chat template, worked examples as turns before; false: as plain text to go on with."""


class Evaluate(Section):
    """evaluate: what the student kept of its teacher."""

    questions: UserPath | None = None
    """Held-out questions (.jsonl with `prompt` or `messages`, and `answer` or `answers`); null: the fact base's
    held-out wordings."""
    limit: int | None = Field(default=None, gt=0)
    """At most this many questions, drawn with the recipe's seed."""
    max_tokens: int = Field(default=64, gt=0)
    """An answer ends after so many tokens, whoever gives it; one of a teacher over HTTP is cut to so many of the
    student's tokens. The report counts those that were cut."""
    batch_size: int = Field(default=64, gt=0)
    latency_questions: int = Field(default=32, gt=0)
    """Questions asked one at a time to measure latency."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples for the 95% intervals."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """What this machine costs an hour in US dollars: the report then says what a million tokens cost on it."""
    judge: EvaluateJudge | None = None
    """A teacher that compares the student's answers with the teacher's, without knowing whose they are."""
    harness: Harness | None = None
    """Public benchmarks beside the held-out questions, for every model that runs in this process."""


class Ablate(Section):
    """`seqkd ablate`: which step earned what. No stage of a run reads it."""

    methods: list[Literal["sft", "logits", "on_policy"]] | None = None
    """Methods of train to compare. The first trains the students of all steps, the others one each on the recipe's
    rows; on_policy goes on from the first one's student. Null: train.method alone."""
    changes: dict[Literal["sft", "logits", "on_policy"], list[str]] = Field(default_factory=dict)
    """Method -> changes of the recipe for it, as --set has them: {on_policy: ["train.on_policy.max_steps=200"]}."""


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
    ablate: Ablate = Ablate()

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

    @model_validator(mode="after")
    def _judges(self) -> "Recipe":
        for field, judge in (("filter.judge", self.filter.judge), ("evaluate.judge", self.evaluate.judge)):
            if judge is None:
                continue
            try:
                self.judging(judge)
            except ValueError as error:
                raise ValueError(f"{field}.teacher: {error}") from None
        return self

    @model_validator(mode="after")
    def _best_by(self) -> "Recipe":
        by = self.assemble.best_by
        wanting = {
            "judge": self.filter.judge is None and "filter.judge names no judge",
            "reward": self.filter.reward is None and "filter.reward names no model",
            "logprob": not self.collect.sampling.logprobs and "collect.sampling.logprobs is not true",
        }
        if wanting.get(by):
            raise ValueError(f"assemble.best_by is {by}, but {wanting[by]}")
        return self

    def judging(self, judge: Judge) -> Collect:
        """How a judge is asked: collect with its teacher alone. Raises ValueError if there is no such teacher, or if
        the budget cannot hold for want of a price."""
        teacher = judge.teacher
        if isinstance(teacher, str):
            known = {one.called: one for one in self.collect.teachers}
            if teacher not in known:
                raise ValueError(
                    f"collect.teachers has none called {teacher!r}.{nearest(teacher, known)} Or give a teacher of its "
                    "own: {provider: ..., model: ...}"
                )
            teacher = known[teacher]
        if self.collect.budget_usd and not teacher.price and teacher.provider in ("openai", "anthropic"):
            raise ValueError(
                f"budget_usd needs a price; {teacher.called} has none. Add price: {{input: ..., output: ...}}"
            )
        sampling = Sampling(temperature=judge.temperature, top_p=None, max_tokens=judge.max_tokens)
        update = {"file": None, "teachers": [teacher], "strategy": "split", "samples": 1, "system": None}
        return self.collect.model_copy(update=update | {"sampling": sampling})

    @property
    def filter_judge(self) -> Collect | None:
        """How filter asks its judge. Null if there is none."""
        return self.judging(self.filter.judge) if self.filter.judge and self.filter.enabled else None

    @model_validator(mode="after")
    def _rounds(self) -> "Recipe":
        if self.generate.target_kept and self.collect.file:
            raise ValueError(
                "generate.target_kept asks the teachers in rounds, and collect.file has no teacher to ask. Remove "
                "target_kept, or give collect.teachers"
            )
        return self

    def rows_to_prompts(self, rows: int) -> int:
        """Prompts that bring so many answers."""
        answers = self.collect.samples * (len(self.collect.teachers) if self.collect.strategy == "all" else 1)
        return -(-rows // answers)

    @property
    def first_round(self) -> int | None:
        """Prompts that generate makes, in the first round if it goes on in rounds. Null: all of generate.file."""
        count, kept = self.generate.count, self.generate.target_kept
        if count is None and kept:
            return self.rows_to_prompts(kept)
        return count or (None if self.generate.file else COUNT)

    @property
    def prompts_expected(self) -> int:
        """Prompts that generate will make; with target_kept every second answer is taken to be kept."""
        kept = self.generate.target_kept
        return max(self.first_round or COUNT, 2 * self.rows_to_prompts(kept) if kept else 0)

    @property
    def acceptance(self) -> dict[str, Any] | None:
        """What decides, besides the prompts, which rows are kept: part of generate's fingerprint with target_kept."""
        if not self.generate.target_kept:
            return None
        return {name: getattr(self, name).fingerprinted() for name in ("collect", "filter", "dedupe")}

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
        name = str(problem["loc"][-1])
        homes = [section for section in known if name in _fields_at((section,))] if len(problem["loc"]) == 1 else []
        if homes:
            return f"{prefix}: belongs to {' or '.join(homes)}. Indent it below that."
        return f"{prefix}: there is no such key.{nearest(name, known)}"
    if kind == "missing":
        return f"{prefix}: is missing. Add it."
    if kind == "literal_error":
        return f"{prefix}: {problem['input']!r} is not one of {context['expected']}."
    if kind in ("model_type", "dict_type"):
        found = "nothing" if problem["input"] is None else repr(problem["input"])
        return f"{prefix}: expected lines `name: value` indented below it, found {found}."
    if kind == "list_type":
        return f"{prefix}: expected a list. Begin each of its entries with `- `."
    if kind == "value_error":
        said = str(context["error"])
        return f"{prefix}: {said}" if said.endswith("?") else f"{prefix}: {said}."
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

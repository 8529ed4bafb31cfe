"""A real vLLM (its CPU build) in an environment of its own: collect starts it, asks it, and stops it; a student that
`train` wrote answers in it as it does in transformers."""

import subprocess
from pathlib import Path

import pytest

from environments import make_environment
from pipeline import artifacts
from pipeline.recipe import Recipe, Sampling
from pipeline.records import PROMPTS, TRAIN, facets_of, make_id
from pipeline.stages import collect, train
from pipeline.teachers import local, vllm

WORDS = ["red", "blue", "green", "gold", "grey", "pink", "teal"]


def question(number: int) -> list[dict]:
    return [{"role": "user", "content": f"Colour of {number}?"}]


def prompts(path: Path, chats: list[list[dict]]) -> Path:
    """The table `prompts` of these conversations."""
    rows = [
        {"id": make_id("prompt", "d", chat), "domain": "d", "method": "file", "template": None}
        | {"facets": facets_of(), "messages": chat}
        for chat in chats
    ]
    artifacts.write_table(path, PROMPTS, sorted(rows, key=lambda row: str(row["id"])))
    return path


def bytes_tokenizer():
    """A token for each byte, one for the end of a turn, and a chat template without roles."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*alphabet, "<|end|>"])}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|end|>",
        chat_template="{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
    )


@pytest.fixture(scope="module")
def environment() -> Path:
    """.envs/vllm with the two mends that the CPU build needs (it is made once and kept)."""
    folder = make_environment("vllm")
    python = folder / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "uninstall", "-y", "-q", "torchvision", "torchaudio", "torchcodec"], check=True
    )
    # vLLM asks for the metadata of the package `vllm`; the CPU build is called otherwise.
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    shim = packages / "vllm-0.32.0+cpu.dist-info"
    shim.mkdir(exist_ok=True)
    (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    (shim / "RECORD").write_text("")
    return folder


def trained(folder: Path, words: list[str], **section) -> Path:
    """The folder of the train stage for a student that says these words in turn."""
    rows = [
        {"id": str(i), "prompt": question(i), "completion": [{"role": "assistant", "content": words[i % len(words)]}]}
        for i in range(28)
    ]
    (folder / "run" / "train").mkdir(parents=True)
    for name, table in (("train", rows), ("validation", rows[:4])):
        artifacts.write_table(folder / f"{name}.parquet", TRAIN, table)
    section["sft"] = {"max_steps": 60, "per_device_train_batch_size": 28, "learning_rate": 3e-3}
    teachers = [{"provider": "local", "model": "nobody/asks-it"}]
    recipe = Recipe.model_validate({"domain": "d", "collect": {"teachers": teachers}, "train": section})
    inputs = {name: folder / f"{name}.parquet" for name in ("train", "validation")}
    print(train.run(recipe, inputs, folder / "run" / "train"))
    return folder / "run" / "train"


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """The folder of a student that the train stage made: bytes for tokens, 128 wide with two heads of 64."""
    folder = tmp_path_factory.mktemp("student")
    bytes_tokenizer().save_pretrained(folder / "tokenizer")
    model = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    model |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return trained(folder, WORDS, student=model, tokenizer=str(folder / "tokenizer")) / "student"


@pytest.fixture(scope="module")
def tuned(student, tmp_path_factory) -> Path:
    """The folder of the train stage that taught that student other words, with LoRA."""
    lora = {"r": 8, "target_modules": "all-linear"}
    return trained(tmp_path_factory.mktemp("tuned"), WORDS[::-1], student=str(student), lora=lora)


@pytest.fixture(scope="module")
def recipe(environment, student, tuned) -> Recipe:
    """collect asks the student for three samples, and starts a server for it (and for the adapter beside it)."""
    arguments = ["--max-model-len", 256, "--dtype", "float32", "--enforce-eager", "--max-num-seqs", 16]
    arguments += ["--enable-lora", "--max-lora-rank", 8, "--lora-modules", f"tuned={tuned / 'adapter'}"]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    serve = {"environment": str(environment), "args": arguments, "env": variables, "start_timeout_s": 600}
    # Eight tokens each. A sample that ends before it says anything (a byte of a longer character is no text) is asked
    # again, and whether one does depends on the seeds, and so on the folder's name.
    teacher = {"provider": "vllm", "model": str(student), "name": "tiny", "serve": serve, "extra": {"min_tokens": 8}}
    sampling = {"temperature": 1.5, "max_tokens": 8, "logprobs": True}
    return Recipe.model_validate(
        {"domain": "d", "collect": {"teachers": [teacher], "samples": 3, "sampling": sampling, "timeout_s": 300}}
    )


@pytest.fixture(scope="module")
def server(recipe) -> str:
    """The base URL of a server that several tests ask: a start takes minutes."""
    with vllm.serve(recipe.collect.teachers[0]) as url:
        yield url


def ask(recipe: Recipe, url: str, table: Path, out: Path, sampling: Sampling, **more) -> tuple[dict, list[dict]]:
    """What collect says when it asks the running server one sample each: its counts and its completions."""
    out.mkdir(parents=True)
    teacher = recipe.collect.teachers[0].model_copy(update={"serve": None, "base_url": url, **more})
    section = recipe.collect.model_copy(update={"teachers": [teacher], "samples": 1, "sampling": sampling})
    counts = collect.run(recipe.model_copy(update={"collect": section}), {"prompts": table}, out)
    return counts, artifacts.read_table(out / "completions.parquet").to_pylist()


def test_collect_starts_a_server_asks_it_and_stops_it(recipe, student, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    chats = [question(i) for i in range(6)]
    chats.append([{"role": "user", "content": "too long " * 100}])
    inputs = {"prompts": prompts(tmp_path / "prompts.parquet", chats)}
    out = tmp_path / "runs" / "run" / "out"
    out.mkdir(parents=True)
    counts = collect.run(recipe, inputs, out)
    assert counts["outcomes"] == {"completions": 18, "failed": 3}, counts
    assert counts["reasons"] == {"context_length": 3}
    assert counts["usage"]["requests_sent"] == 7  # `n` brings three samples at once
    answered = artifacts.read_table(out / "completions.parquet").to_pylist()
    assert all(len(row["logprobs"]) == row["output_tokens"] <= 8 for row in answered)
    assert all(entry["logprob"] <= 0 for row in answered for entry in row["logprobs"])
    assert len({row["text"] for row in answered}) > 6
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(student) not in listed

    # Everything is stored now: no server is started, and the bytes are the same.
    again = tmp_path / "runs" / "run" / "again"
    again.mkdir()
    counts = collect.run(recipe, inputs, again)
    assert counts["usage"]["requests_sent"] == 0
    assert artifacts.digest(again) == artifacts.digest(out)


def test_magpie_goes_on_with_a_text(recipe, server, student, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    # The control token of the text is one token, and no second beginning comes before it.
    opening = local.user_opening(str(student), "Colour of 3?")
    table = prompts(tmp_path / "openings.parquet", [[{"role": f"opening {i}", "content": opening}] for i in range(4)])
    sampling = Sampling(temperature=2.0, top_p=1.0, max_tokens=8)
    counts, answered = ask(recipe, server, table, tmp_path / "runs/run/turns", sampling, provider="vllm_text")
    assert counts["outcomes"] == {"completions": 4, "failed": 0}, counts
    assert opening == "Colour of 3?<|end|>" and {row["input_tokens"] for row in answered} == {13}
    assert len({row["text"] for row in answered}) > 1


@pytest.mark.parametrize("lora", [False, True])
def test_a_trained_student_answers_as_in_transformers(lora, recipe, server, student, tuned, tmp_path, monkeypatch):
    """One with LoRA by its adapter there, and as the merged folder here."""
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    chats = [question(i) for i in range(0, 40, 4)] + [[{"role": "user", "content": "Colour of snow?"}]]
    table = prompts(tmp_path / "questions.parquet", chats)
    sampling = Sampling(temperature=0, max_tokens=8, logprobs=True)
    more = {"model": "tuned"} if lora else {}
    _, answered = ask(recipe, server, table, tmp_path / "runs/run/greedy", sampling, extra={}, **more)
    settings = {"temperature": 0, "top_p": 1, "max_tokens": 8, "seeds": [0] * len(answered), "logprobs": True}
    folder = tuned / "student" if lora else student
    here = local.answer(local.load(folder), [row["messages"] for row in answered], **settings)
    assert {row["text"] for row in here} & set(WORDS)  # it has learnt something
    for there, row in zip(answered, here, strict=True):
        assert (there["text"], there["finish_reason"]) == (row["text"], row["finish_reason"])
        assert [one["logprob"] for one in there["logprobs"]] == pytest.approx(row["logprobs"], abs=1e-3)

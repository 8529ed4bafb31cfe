"""A real vLLM (its CPU build) in an environment of its own: collect starts it, asks it, and stops it."""

import subprocess
import sys
from pathlib import Path

import pytest

from environments import make_environment
from pipeline import artifacts
from pipeline.recipe import Recipe, Sampling
from pipeline.records import PROMPTS, facets_of, make_id
from pipeline.stages import collect
from pipeline.teachers import local

MODEL = """
import sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*alphabet, "<|end|>"])}, merges=[]))
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>",
    chat_template="{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""


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


def test_collect_starts_a_server_asks_it_and_stops_it(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKD_DATA", str(tmp_path / "data"))
    subprocess.run([sys.executable, "-c", MODEL, str(tmp_path / "model")], check=True)
    chats = [[{"role": "user", "content": f"Who is number {i}?"}] for i in range(6)]
    chats.append([{"role": "user", "content": "too long " * 100}])
    made = [
        {
            "id": make_id("prompt", "d", chat),
            "domain": "d",
            "method": "file",
            "template": None,
            "facets": facets_of(),
            "messages": chat,
        }
        for chat in chats
    ]
    artifacts.write_table(tmp_path / "prompts.parquet", PROMPTS, sorted(made, key=lambda row: str(row["id"])))
    arguments = ["--max-model-len", 256, "--dtype", "bfloat16", "--enforce-eager", "--max-num-seqs", 16]
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    serve = {"environment": str(environment), "args": arguments, "env": variables, "start_timeout_s": 600}
    recipe = Recipe.model_validate(
        {
            "domain": "d",
            "collect": {
                # At least one token each: one that says nothing would be asked again.
                "teachers": [
                    {
                        "provider": "vllm",
                        "model": str(tmp_path / "model"),
                        "name": "tiny",
                        "serve": serve,
                        "extra": {"min_tokens": 1},
                    }
                ],
                "samples": 3,
                "sampling": {"max_tokens": 8, "logprobs": True},
                "timeout_s": 300,
            },
        }
    )
    out = tmp_path / "runs" / "run" / "out"
    out.mkdir(parents=True)
    counts = collect.run(recipe, {"prompts": tmp_path / "prompts.parquet"}, out)
    assert counts["outcomes"] == {"completions": 18, "failed": 3}, counts
    assert counts["reasons"] == {"context_length": 3}
    assert counts["usage"]["requests_sent"] == 7  # `n` brings three samples at once
    answered = artifacts.read_table(out / "completions.parquet").to_pylist()
    assert all(len(row["logprobs"]) == row["output_tokens"] <= 8 for row in answered)
    assert all(entry["logprob"] <= 0 for row in answered for entry in row["logprobs"])
    assert len({row["text"] for row in answered}) > 6

    # Everything is stored now: no server is started, and the bytes are the same.
    again = tmp_path / "runs" / "run" / "again"
    again.mkdir()
    counts = collect.run(recipe, {"prompts": tmp_path / "prompts.parquet"}, again)
    assert counts["usage"]["requests_sent"] == 0
    assert artifacts.digest(again) == artifacts.digest(out)
    # magpie: the server goes on with a text; its control token is one token, and no second beginning comes before it.
    opening = local.user_opening(str(tmp_path / "model"), "Be short.")
    made = [
        {"id": make_id("opening", i), "domain": "d", "messages": [{"role": f"opening {i}", "content": opening}]}
        for i in range(4)
    ]
    artifacts.write_table(tmp_path / "openings.parquet", PROMPTS, sorted(made, key=lambda row: str(row["id"])))
    teacher = recipe.collect.teachers[0].model_copy(update={"provider": "vllm_text"})
    section = recipe.collect.model_copy(
        update={"teachers": [teacher], "samples": 1, "sampling": Sampling(temperature=1.0, max_tokens=8)}
    )
    turns = tmp_path / "runs" / "run" / "turns"
    turns.mkdir()
    counts = collect.run(
        recipe.model_copy(update={"collect": section}), {"prompts": tmp_path / "openings.parquet"}, turns
    )
    assert counts["outcomes"] == {"completions": 4, "failed": 0}, counts
    answered = artifacts.read_table(turns / "completions.parquet").to_pylist()
    assert opening == "Be short.<|end|>" and {row["input_tokens"] for row in answered} == {10}
    assert len({row["text"] for row in answered}) == 4

    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "model") not in listed

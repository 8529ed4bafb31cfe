"""Students of each family from a folder: its own kind of tokenizer and chat template, trained, saved and loaded again.

The models are tiny and random, the tokenizers know bytes only; classes, templates and control tokens are as published.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.recipe import Train
from pipeline.stages import train
from pipeline.tokens import tokenize

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Colour of {number}?"}],
        "completion": [{"role": "assistant", "content": ["red", "blue", "green"][number % 3]}],
    }
    for number in range(6)
]
SFT = {"max_steps": 2, "per_device_train_batch_size": 6, "learning_rate": 0.01, "logging_steps": 1, "bf16": False}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256}

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
STABLELM = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
TEXT, TURN = "<|endoftext|>", "<|im_end|>"
# Name -> (model_type, what it adds to the sizes, tokenizer class, its special tokens, chat template).
FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str | None]] = {
    "llama-2": ("llama", {}, "LlamaTokenizer", {"pad_token": "<unk>"}, INST),
    "llama-3": (
        "llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}, "PreTrainedTokenizerFast",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
         "additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>"]}, HEADERS,
    ),
    "qwen2.5": (
        "qwen2", {"num_key_value_heads": 1}, "Qwen2Tokenizer",
        {"eos_token": TURN, "pad_token": TEXT, "additional_special_tokens": ["<|im_start|>", TURN]}, CHATML,
    ),
    "qwen3": (
        "qwen3", {"head_dim": 16}, "Qwen2Tokenizer",
        {"eos_token": TURN, "pad_token": TEXT, "additional_special_tokens": ["<|im_start|>", TURN]}, THINKING,
    ),
    "stablelm-2": (
        "stablelm",
        {"use_qkv_bias": True, "rope_parameters": PARTIAL_ROPE},
        "GPT2Tokenizer", {"pad_token": TEXT}, STABLELM,
    ),
    "smollm2": (
        "llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}, "GPT2Tokenizer",
        {"bos_token": "<|im_start|>", "eos_token": TURN, "pad_token": TURN}, CHATML,
    ),
    "smollm3": (
        "smollm3", {"num_key_value_heads": 1}, "PreTrainedTokenizerFast",
        {"eos_token": TURN, "pad_token": TURN, "additional_special_tokens": ["<|im_start|>"]}, THINKING,
    ),
    "gpt2": ("gpt2", {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}, "GPT2Tokenizer", {}, None),
}  # fmt: skip


def tokenizer_of(family: str) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    _, _, kind, special, template = FAMILIES[family]
    more = {**special, "chat_template": template}
    made = getattr(transformers, kind)
    if kind == "LlamaTokenizer":  # SentencePiece's alphabet: bytes by their numbers
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
        return made(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], **more)
    vocab = {token: i for i, token in enumerate([TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    if kind != "PreTrainedTokenizerFast":
        return made(vocab=vocab, merges=[], **more)
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made(tokenizer_object=bpe, **more)


def folder_of(family: str, folder: Path) -> Path:
    """A random model of this family as its makers would publish it."""
    from pipeline.teachers.embedded import _random_model

    model_type, more, _, _, _ = FAMILIES[family]
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256} if model_type == "gpt2" else SIZES
    model, tokenizer = _random_model({"model_type": model_type, **sizes, **more}, tokenizer_of(family), 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if "loss" in event]


def fitted(family: str, folder: Path, lora: dict[str, Any] | None = None) -> tuple[Any, Any, dict[str, Any]]:
    """A student of this family after two steps, its tokenizer and the summary."""
    template = None if FAMILIES[family][4] else "plain"
    config = Train(student=str(folder_of(family, folder / "base")), chat_template=template, sft=SFT, lora=lora)
    model, tokenizer = train.load_student(str(config.student), None, 0, template=template)
    summary = train.fit(model, tokenizer, ROWS, ROWS, config, folder / "out", checkpoints=folder / "checkpoints")
    return model, tokenizer, summary


def same_when_loaded(model: Any, tokenizer: Any, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, theirs = (
        AutoModelForCausalLM.from_pretrained(folder).to(model.device),
        AutoTokenizer.from_pretrained(folder),
    )
    assert type(loaded) is type(model) and theirs.chat_template == tokenizer.chat_template
    assert theirs.eos_token == tokenizer.eos_token
    chat = [*ROWS[0]["prompt"], *ROWS[0]["completion"]]
    ids = theirs.apply_chat_template(chat, return_tensors="pt", return_dict=False)
    assert ids.tolist() == tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False).tolist()
    with torch.no_grad():
        before, after = (one.eval()(ids.to(one.device)).logits for one in (model, loaded))
    assert torch.equal(before, after)
    # A server may be another user.
    assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / "config.json").stat().st_mode}


def same_as_adapter(merged: Path, adapter: Path, base: Path) -> None:
    """transformers finds the base of an adapter by itself, and the two answer as the merged student does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert not (adapter / "README.md").exists()
    modules = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert isinstance(modules, str) or modules == sorted(modules)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = tokenizer.apply_chat_template(ROWS[0]["prompt"], return_tensors="pt", return_dict=False)
    models = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (merged, adapter, base))
    with torch.no_grad():
        whole, both, alone = (model(ids).logits for model in models)
    assert torch.allclose(both, whole, atol=1e-5) and not torch.allclose(alone, whole, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_and_loads_as_it_was_saved(tmp_path: Path, family: str) -> None:
    model, tokenizer, summary = fitted(family, tmp_path)
    assert losses(tmp_path / "out")[1] < losses(tmp_path / "out")[0]  # both steps are over all rows
    assert summary["eval_loss"] < losses(tmp_path / "out")[1]
    same_when_loaded(model, tokenizer, tmp_path / "out")
    # The end of the answer is learnt, whatever the template puts after it.
    rows = tokenize(tokenizer, ROWS)
    for row, start in zip(rows.rows, rows.start, strict=True):
        assert tokenizer.eos_token_id in row["labels"][start:] and row["labels"][:start] == [-100] * start
    answer = tokenizer.decode([label for label in rows.rows[0]["labels"] if label != -100])
    assert "red" in answer and answer.strip().endswith(tokenizer.eos_token) and "Colour" not in answer


@pytest.mark.parametrize("family", ["llama-3", "stablelm-2", "gpt2"])
def test_lora_knows_where_to_go(tmp_path: Path, family: str) -> None:
    model, tokenizer, summary = fitted(family, tmp_path, lora={"r": 2})
    assert 0 < summary["trainable"] < summary["parameters"] / 20
    assert losses(tmp_path / "out")[1] < losses(tmp_path / "out")[0]
    same_when_loaded(model, tokenizer, tmp_path / "out")
    same_as_adapter(tmp_path / "out", tmp_path / "adapter", tmp_path / "base")


def test_lora_for_a_family_that_peft_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.lora: peft .* smollm3 .*target_modules: all-linear"):
        fitted("smollm3", tmp_path, lora={"r": 2})
    _, _, summary = fitted("smollm3", tmp_path / "told", lora={"r": 2, "target_modules": "all-linear"})
    assert summary["trainable"] > 0


def test_random_weights_from_a_config(tmp_path: Path) -> None:
    tokenizer_of("qwen2.5").save_pretrained(tmp_path / "tokenizer")
    model, tokenizer = train.load_student({"model_type": "qwen2", **SIZES}, tmp_path / "tokenizer", 0)
    config = Train(student={"model_type": "qwen2", **SIZES}, sft=SFT)
    train.fit(model, tokenizer, ROWS, ROWS, config, tmp_path / "out", checkpoints=tmp_path / "checkpoints")
    same_when_loaded(model, tokenizer, tmp_path / "out")


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_students_own_runs_if_asked_and_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers.local import load

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = folder_of("llama-3", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (base / "config.json").write_text(json.dumps(config | own))
    (base / "own.py").write_text(OWN_CODE)
    with pytest.raises(UserError, match="Python code of its own.*set trust_remote_code: true"):
        train.load_student(str(base), None, 0)
    model, tokenizer = train.load_student(str(base), None, 0, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    asked = Train(student=str(base), trust_remote_code=True, sft=SFT, lora={"r": 2, "target_modules": "all-linear"})
    train.fit(model, tokenizer, ROWS, [], asked, tmp_path / "out", checkpoints=tmp_path / "checkpoints")
    assert (tmp_path / "out" / "own.py").is_file()
    assert type(load(tmp_path / "out", trust_remote_code=True).model).__name__ == "OwnModel"

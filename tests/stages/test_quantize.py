"""train.quantize: LoRA on 4-bit weights, as far as a CPU goes (bitsandbytes has a backend for it)."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoints
from pipeline.errors import UserError
from pipeline.recipe import Train
from pipeline.stages import train
from stages.test_fit import MODEL, ROWS, SFT, student

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra: pip install 'seqkd[qlora]'"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A student in full precision that has learnt a little. Rows of its weights are whole blocks of 64."""
    from pipeline.teachers.embedded import _random_model

    _, tokenizer = student()
    model, _ = _random_model(MODEL | {"hidden_size": 128, "intermediate_size": 256}, tokenizer, 0)
    folder = tmp_path / "base"
    train.fit(model, tokenizer, ROWS, [], Train(sft={**SFT, "max_steps": 10}), folder, checkpoints=tmp_path / "c")
    return folder


def quantized(base: Path, folder: Path, **more: Any) -> dict[str, Any]:
    lora = {"r": 8, "target_modules": "all-linear"}
    config = Train(student=str(base), quantize="4bit", lora=lora, sft=SFT)
    model, tokenizer = train.load_student(str(base), None, 0, quantize=config.quantize)
    settings = {"seed": 1, "checkpoints": folder / "checkpoints"} | more
    return train.fit(model, tokenizer, ROWS, ROWS[:4], config, folder / "out", **settings)


@needs_bitsandbytes
def test_the_adapter_is_merged_into_the_weights_as_they_were(base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from pipeline.teachers.local import load, nll

    summary = quantized(base, tmp_path)
    before, after = (load(folder) for folder in (base, tmp_path / "out"))
    assert summary["parameters"] == before.model.num_parameters() == after.model.num_parameters()
    assert summary["trainable"] < summary["parameters"] / 4
    # Plain weights, without a trace of the 4 bits; what the adapter did not touch is as it was.
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16} and old.keys() == new.keys()
    name = "model.embed_tokens.weight"
    assert new[name].equal(old[name].bfloat16()) and (tmp_path / "adapter/adapter_model.safetensors").is_file()
    # It has learnt, and the merged student is as good as the one in training was.
    chats, said = [row["prompt"] for row in ROWS[:4]], [row["completion"][0]["content"] for row in ROWS[:4]]
    scores = [nll(model, chats, said) for model in (before, after)]
    losses = [sum(total for total, _ in pairs) / sum(count for _, count in pairs) for pairs in scores]
    assert losses[1] < losses[0] and losses[1] == pytest.approx(summary["eval_loss"], rel=0.05)


@needs_bitsandbytes
def test_it_resumes_to_the_same_bytes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", 0.0)
    quantized(base, tmp_path / "whole")

    def stop(event: Any) -> None:
        if event["step"] == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantized(base, tmp_path / "broken", log=stop)
    assert quantized(base, tmp_path / "broken")["resumed_from"] == 15
    whole, broken = ((tmp_path / name / "out/model.safetensors").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


def test_without_bitsandbytes_it_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'seqkd\[qlora\]'"):
        train.load_student(str(base), None, 0, quantize="4bit")

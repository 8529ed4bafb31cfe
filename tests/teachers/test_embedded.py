"""The embedded teacher: trained once, cached whole, the same for the same seed."""

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest_models import MODEL, make_facts

from pipeline.errors import UserError
from pipeline.facts import Fact, questions
from pipeline.recipe import Embedded
from pipeline.teachers import embedded
from pipeline.teachers.embedded import (
    disturb,
    embedded_teacher,
    random_student,
    teacher_folder,
    train_tokenizer,
    training_rows,
)
from pipeline.teachers.local import answer, load

SETTINGS: dict[str, Any] = {
    "seed": 3,
    "vocab_size": 320,
    "model": MODEL,
    "sft": {"max_steps": 80, "per_device_train_batch_size": 16, "learning_rate": 0.01, "bf16": False},
    "lead_ins": ["Computer, "],
    "word_dropout": 0.1,
    "copies": 2,
    "lead_in_fraction": 0.3,
}
CONFIG = Embedded(**SETTINGS)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_teacher(make_facts(), CONFIG, tmp_path_factory.mktemp("cache"))


def test_it_knows_its_facts(teacher: Path, facts: list[Fact]) -> None:
    loaded = load(teacher)
    pairs = list(questions(facts, "ask"))
    chats = [[{"role": "user", "content": text}] for _, text in pairs]
    answers = answer(loaded, chats, temperature=0, top_p=1, max_tokens=8, seeds=[0] * len(chats))
    right = sum(row["text"] == fact.answers[0] for row, (fact, _) in zip(answers, pairs, strict=True))
    assert right >= len(pairs) * 0.8
    assert all(row["finish_reason"] == "stop" for row in answers)


def test_the_cache_holds_it_and_nothing_else(teacher: Path, facts: list[Fact]) -> None:
    cache = teacher.parent.parent
    assert teacher == teacher_folder(facts, CONFIG, cache)
    assert {path.name for path in teacher.parent.iterdir()} == {teacher.name, f"{teacher.name}.lock"}
    before = (teacher / "model.safetensors").stat().st_mtime_ns
    events: list[Any] = []
    assert embedded_teacher(facts, CONFIG, cache, log=events.append) == teacher
    assert not events and (teacher / "model.safetensors").stat().st_mtime_ns == before


def test_the_hash_is_over_what_decides_the_teacher(facts: list[Fact], tmp_path: Path) -> None:
    folder = teacher_folder(facts, CONFIG, tmp_path)
    changed = [
        (facts[1:], CONFIG),
        ([facts[0]._replace(answers=("Lyon",)), *facts[1:]], CONFIG),
        (facts, CONFIG.model_copy(update={"seed": 4})),
        (facts, CONFIG.model_copy(update={"sft": {**CONFIG.sft, "max_steps": 61}})),
    ]
    assert len({folder, *(teacher_folder(some, config, tmp_path) for some, config in changed)}) == 5
    unseen = [fact._replace(held_out=("Other {{ subject }}?",)) for fact in facts]
    assert teacher_folder(unseen, CONFIG, tmp_path) == folder


def test_held_out_wordings_are_never_trained_on(facts: list[Fact]) -> None:
    text = str(training_rows(facts, Embedded(**{**SETTINGS, "word_dropout": 0, "lead_in_fraction": 0})))
    assert "is called what" not in text and "Name the capital of Peru." in text


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from conftest_models import make_facts
from test_embedded import CONFIG
from pipeline import checkpoints
from pipeline.teachers.embedded import embedded_teacher
checkpoints.SAVE_EVERY_S = 0.0
def log(event):
    if event.get("step") == 45:
        os.kill(os.getpid(), signal.SIGKILL)
embedded_teacher(make_facts(), CONFIG, Path(sys.argv[1]), log=log)
"""


def test_killed_in_training_it_goes_on_to_the_same_bytes(teacher: Path, facts: list[Fact], tmp_path: Path) -> None:
    here = Path(__file__).resolve().parent
    code = KILLED.format(tests=str(here), root=str(here.parent.parent))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not teacher_folder(facts, CONFIG, tmp_path).exists()
    steps: list[int] = []
    again = embedded_teacher(facts, CONFIG, tmp_path, log=lambda event: steps.append(event["step"]))
    assert min(steps) == 41
    assert (again / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()


def test_two_at_once_train_it_once(facts: list[Fact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Path] = []
    real = embedded.fit

    def counted(*args: Any, **more: Any) -> dict[str, Any]:
        trained.append(args[5])
        return real(*args, **more)

    monkeypatch.setattr(embedded, "fit", counted)
    config = CONFIG.model_copy(update={"sft": {**CONFIG.sft, "max_steps": 5}})
    got: list[Path] = []
    threads = [threading.Thread(target=lambda: got.append(embedded_teacher(facts, config, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3 and len(set(got)) == 1 and len(trained) == 1


def test_disturbing_leaves_the_subject_alone() -> None:
    config = Embedded(**{"word_dropout": 0.4, "word_noise": 0.3, "splice": 0.5, "lead_ins": ["So: "]})
    wordings = ["What is the capital of {{ subject }}, please?", "{{ subject }}: name its capital."]
    draw = random.Random(0)
    made = {disturb(wordings[0], "Côte d'Ivoire", wordings, ["river"], config, draw) for _ in range(60)}
    assert len(made) > 30 and all(text.count("Côte d'Ivoire") == 1 for text in made)
    calm = Embedded(**{"lead_in_fraction": 0})
    assert disturb(wordings[0], "Peru", wordings, [], calm, draw) == "What is the capital of Peru, please?"


def test_the_template_marks_what_the_assistant_says(facts: list[Fact]) -> None:
    tokenizer = train_tokenizer(facts, Embedded(**{"vocab_size": 320}))
    chat = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Rome"},
    ]
    made = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    said = [token for token, mark in zip(made["input_ids"], made["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(said) == "Rome<|end|>"
    assert tokenizer.decode(made["input_ids"]) == "<|system|>Be short.<|end|><|user|>Hi<|end|><|assistant|>Rome<|end|>"


def test_a_random_student_is_the_same_for_a_seed(teacher: Path) -> None:
    import torch

    config = {"model_type": "llama", **MODEL, "num_hidden_layers": 1}
    state = torch.get_rng_state()
    models = [random_student(config, teacher, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    left, same, other = (model.state_dict()["model.embed_tokens.weight"] for model in models)
    assert torch.equal(left, same) and not torch.equal(left, other)
    tokenizer = random_student(config, teacher, 0)[1]
    assert tokenizer.eos_token == "<|end|>" and models[0].config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 32}, "model_type: None"),
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": "llama", "hiden_size": 32}, "hiden_size: unknown setting. Did you mean 'hidden_size'"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 7}, "do not make a model"),
        ({"model_type": "llama", "hidden_size": "big"}, "do not make a model"),
    ],
)
def test_wrong_student_settings_are_named(teacher: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        random_student(config, teacher, 0)


def test_a_students_tokenizer_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer in"):
        random_student({"model_type": "llama"}, tmp_path / "nowhere", 0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer in"):
        random_student({"model_type": "llama"}, tmp_path, 0)

"""Training speed: `fit` beside the same TRL call made by hand, in turn in one process.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--steps 40] [--rounds 3]
    python benchmarks/train.py --large                                        # on a GPU

Each round trains the same small Llama on the same rows three times: by hand (SFTTrainer on the conversational rows and
save_pretrained), by `fit` with TRL's own loss, and by `fit` as it is, with the loss computed for the answers' tokens
only where the hardware is a CPU. Everything counts, from the rows to the saved folder. Prints the median of the rounds,
on a GPU the peak of its memory too.

`--large` takes a Llama of 0.68 billion parameters and answers of 600 words in place of the small one, loads it from a
folder, and adds `fit` with LoRA and with QLoRA (if bitsandbytes is there).
"""

import argparse
import gc
import importlib.util
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import training, trl_settings
from pipeline.facts import Fact
from pipeline.recipe import Embedded, Train
from pipeline.stages import train
from pipeline.teachers.embedded import _random_model, train_tokenizer

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
LARGE = MODEL | {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
}
LORA = {"r": 16, "target_modules": "all-linear"}
PLACES = ["harbour", "orchard", "station", "library", "meadow", "workshop", "bridge", "market"]


def question(number: int) -> str:
    return f"Somebody who has never been there asks: how far is it from the {PLACES[number % 8]} to house {number}?"


def answer(number: int, words: int, draw: random.Random) -> str:
    """`words` words, the first one a number."""
    return " ".join([str(number % 90), *draw.choices(PLACES, k=words - 2), "miles"])


def untrained(model: dict[str, Any], folder: Path) -> None:
    """A folder with a model of random weights, and with a tokenizer that knows the questions' words."""
    facts = [Fact("", "way", "", str(i), (f"{i} miles",), (question(i) + " {{ subject }}",), ()) for i in range(400)]
    made, tokenizer = _random_model(model, train_tokenizer(facts, Embedded(**{"vocab_size": 2048})), 0)
    made.to(torch.bfloat16 if model is LARGE else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def by_hand(start: Path, rows: list[dict[str, Any]], config: Train, folder: Path) -> None:
    """As anyone would write it with TRL."""
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(start)
    args = SFTConfig(
        output_dir=str(folder / "steps"),
        completion_only_loss=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        seed=0,
        **trl_settings.for_this_machine(),
        **config.sft,
    )
    trainer = SFTTrainer(model, args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def by_fit(start: Path, rows: list[dict[str, Any]], config: Train, folder: Path) -> None:
    model, tokenizer = train.load_student(str(start), None, 0, quantize=config.quantize)
    train.fit(model, tokenizer, rows, [], config, folder / "model", checkpoints=folder / "steps")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    batch, words = (8, 600) if given.large else (32, 2)
    draw = random.Random(0)
    rows = [
        {
            "prompt": [{"role": "user", "content": question(number)}],
            "completion": [{"role": "assistant", "content": answer(number, words, draw)}],
        }
        for number in range(given.steps * batch)
    ]
    settings = {
        "max_steps": given.steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-3,
        "max_length": None,
    }
    start = Path(tempfile.mkdtemp())
    untrained(LARGE if given.large else MODEL, start)
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokens = sum(len(row["input_ids"]) for row in train.tokenize(tokenizer, rows).rows)
    cheaper, theirs = train._trainer, lambda args: SFTTrainer
    full, lora = ({"student": str(start), "sft": settings, **more} for more in ({}, {"lora": LORA}))
    variants: dict[str, tuple[Any, Any, Train]] = {
        "TRL by hand": (by_hand, cheaper, Train(**full)),
        "fit, TRL's loss": (by_fit, theirs, Train(**full)),
        "fit": (by_fit, cheaper, Train(**full)),
    }
    if torch.cuda.is_available():
        del variants["fit, TRL's loss"]  # there it is TRL's
    if given.large:
        variants["fit, LoRA"] = (by_fit, cheaper, Train(**lora))
        if importlib.util.find_spec("bitsandbytes"):
            variants["fit, QLoRA"] = (by_fit, cheaper, Train(**lora, quantize="4bit"))
    training.quiet_libraries()
    cuda = torch.cuda.is_available()
    used: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    for turn in range(given.rounds + 1):
        for name, (run, loss, config) in variants.items():
            train._trainer = loss
            if cuda:
                gc.collect()  # what the one before left
                torch.cuda.reset_peak_memory_stats()
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.monotonic(), time.process_time()
                run(start, rows, config, Path(folder))
                if turn:  # the first round warms up
                    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
                    used[name].append((time.monotonic() - wall, time.process_time() - cpu, peak))
    shutil.rmtree(start)
    print(f"{tokens:,} tokens in {given.steps} steps of {batch} rows, median of {given.rounds} rounds")
    # On a GPU the CPU does not say how long it takes.
    base = statistics.median(taken[not cuda] for taken in used["TRL by hand"])
    for name, rounds in used.items():
        wall, cpu, peak = (statistics.median(values) for values in zip(*rounds, strict=True))
        line = f"{name:<16} {tokens / wall:>8,.0f} tokens/s  {cpu:6.2f} CPU s"
        line += f"  {base / (wall if cuda else cpu):5.2f} times TRL by hand"
        print(line + (f"  {peak:5.1f} GB of GPU memory" if cuda else ""))


if __name__ == "__main__":
    main()

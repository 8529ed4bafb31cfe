"""Training speed: `fit` beside the same TRL call made by hand, in turn in one process.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--steps 40] [--rounds 3]

Each round trains the same small Llama on the same rows three times: by hand (SFTTrainer on the conversational rows and
save_pretrained), by `fit` with TRL's own loss, and by `fit` as it is, with the loss computed for the answers' tokens
only where the hardware is a CPU. Everything counts, from the rows to the saved folder. Prints the median of the rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import trl_settings
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
PLACES = ["harbour", "orchard", "station", "library", "meadow", "workshop", "bridge", "market"]


def question(number: int) -> str:
    return f"Somebody who has never been there asks: how far is it from the {PLACES[number % 8]} to house {number}?"


def student() -> tuple[Any, Any]:
    facts = [Fact("", "way", "", str(i), (f"{i} miles",), (question(i) + " {{ subject }}",), ()) for i in range(400)]
    tokenizer = train_tokenizer(facts, Embedded(**{"vocab_size": 2048}))
    return _random_model(MODEL, tokenizer, 0)


def by_hand(rows: list[dict[str, Any]], settings: dict[str, Any], folder: Path) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = student()
    args = SFTConfig(
        output_dir=str(folder / "steps"),
        completion_only_loss=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        seed=0,
        **trl_settings.for_this_machine(),
        **settings,
    )
    trainer = SFTTrainer(model, args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def by_fit(rows: list[dict[str, Any]], settings: dict[str, Any], folder: Path) -> None:
    model, tokenizer = student()
    train.fit(model, tokenizer, rows, [], Train(sft=settings), folder / "model", checkpoints=folder / "steps")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rows = [
        {
            "prompt": [{"role": "user", "content": question(number)}],
            "completion": [{"role": "assistant", "content": f"{number % 90} miles"}],
        }
        for number in range(given.steps * 32)
    ]
    settings = {"max_steps": given.steps, "per_device_train_batch_size": 32, "learning_rate": 1e-3}
    _, tokenizer = student()
    tokens = sum(len(row["input_ids"]) for row in train.tokenize(tokenizer, rows).rows)
    cheaper = train._trainer
    from trl import SFTTrainer

    variants: dict[str, tuple[Any, Any]] = {
        "TRL by hand": (by_hand, cheaper),
        "fit, TRL's loss": (by_fit, lambda args: SFTTrainer),
        "fit": (by_fit, cheaper),
    }
    train._quiet_libraries()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for turn in range(given.rounds + 1):
        for name, (run, loss) in variants.items():
            train._trainer = loss
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.monotonic(), time.process_time()
                run(rows, settings, Path(folder))
                if turn:  # the first round warms up
                    seconds[name].append((time.monotonic() - wall, time.process_time() - cpu))
    print(f"{tokens:,} tokens in {given.steps} steps of 32 rows, median of {given.rounds} rounds")
    base = statistics.median(cpu for _, cpu in seconds["TRL by hand"])
    for name, pairs in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{name:<16} {tokens / wall:>8,.0f} tokens/s  {cpu:6.2f} CPU s  {base / cpu:5.2f} times TRL by hand")


if __name__ == "__main__":
    main()

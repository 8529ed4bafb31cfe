"""A tiny domain and a tiny architecture for the tests of this folder."""

from typing import Any

from pipeline.facts import Fact, fact_id

MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Norway": "Oslo", "Peru": "Lima"}


def make_facts() -> list[Fact]:
    """Six capitals, each with three wordings and a held-out one."""
    ask = ("What is the capital of {{ subject }}?", "Name the capital of {{ subject }}.", "{{ subject }}: its capital?")
    held_out = ("The capital of {{ subject }} is called what?",)
    return [
        Fact(fact_id("capital", subject), "capital", "countries", subject, (city,), ask, held_out)
        for subject, city in CAPITALS.items()
    ]

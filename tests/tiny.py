"""A tiny domain whose whole pipeline, teacher and student included, runs in seconds."""

import signal
import subprocess
import sys
from pathlib import Path

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Norway": "Oslo", "Greece": "Athens",
    "Egypt": "Cairo", "Cuba": "Havana", "Peru": "Lima", "Kenya": "Nairobi", "Austria": "Vienna", "Poland": "Warsaw",
}  # fmt: skip

FACTS = """\
- relation: capital
  topic: countries
  ask:
    - What is the capital of {{ subject }}?
    - Name the capital city of {{ subject }}.
    - Which city is the capital of {{ subject }}?
    - "{{ subject }}: what is its capital?"
  held_out:
    - The capital of {{ subject }} is which city?
  facts:
""" + "".join(f"    {country}: {city}\n" for country, city in CAPITALS.items())

RECIPE = """\
domain: tiny
generate:
  count: 48
  methods: {questions: 1.0}
collect:
  teachers:
    - provider: local
      model: embedded
      embedded:
        vocab_size: 400
        model: {hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2,
                num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}
        sft: {max_steps: 160, per_device_train_batch_size: 16, learning_rate: 0.01}
  samples: 3
  sampling: {temperature: 1.0, top_p: 1.0, max_tokens: 12}
filter:
  agreement: {min_share: 0.6}
train:
  student: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 1,
            num_key_value_heads: 1, max_position_embeddings: 64, tie_word_embeddings: true}
  sft: {max_steps: 100, per_device_train_batch_size: 16, learning_rate: 0.01}
  baselines: [random_subset]
evaluate: {max_tokens: 12, latency_questions: 4, bootstrap: 200}
"""


def make_tiny(folder: Path) -> Path:
    """Write the tiny domain and its recipe into a folder, which then is a user's working folder."""
    (folder / "data" / "tiny" / "facts").mkdir(parents=True)
    (folder / "prompts" / "tiny").mkdir(parents=True)
    (folder / "data" / "tiny" / "facts" / "capitals.yaml").write_text(FACTS)
    (folder / "prompts" / "tiny" / "domain.yaml").write_text('lead_ins: ["Tell me:"]\n')
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


def hear_ctrl_c() -> None:
    """For Popen's preexec_fn: where the tests themselves run in the background, SIGINT is ignored, and children inherit
    that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command(*words: str) -> list[str]:
    """The command line of `seqkd WORDS`, run by this Python."""
    return [sys.executable, "-m", "pipeline", *words]


def seqkd(*words: str, cwd: Path, **more) -> subprocess.CompletedProcess:
    """Run `seqkd WORDS` as a user would, and return what it said and its exit code."""
    return subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True, timeout=300, check=False, **more)

"""`seqkd chat` on the models of a finished tiny run: from a pipe, and on a terminal of its own."""

import json
import os
import pty
import select
import shutil
import struct
import subprocess
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from pipeline import chat
from pipeline.errors import UserError
from pipeline.runs import Run
from pipeline.teachers import local
from test_cli import refused
from tiny import command, hear_ctrl_c, make_tiny, seqkd


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A working folder with a copy of the finished run that a test may change."""
    make_tiny(tmp_path)
    shutil.copytree(finished / "data" / "cache", tmp_path / "data" / "cache")
    shutil.copytree(finished / "data" / "runs", tmp_path / "data" / "runs")
    return tmp_path


def change(manifest: Path, **collect) -> None:
    told = json.loads(manifest.read_text())
    told["basis"]["recipe"]["collect"] |= collect
    manifest.write_text(json.dumps(told))


def alone(folder: Path, question: str) -> str:
    """A model's greedy answer to one question."""
    turns = [{"role": "user", "content": question}]
    (row,) = local.answer(local.load(folder), [turns], temperature=0, top_p=1, max_tokens=20, seeds=[0])
    return row["text"]


def test_questions_from_a_pipe(finished):
    asked = ["What is the capital of Poland?", "Name the capital city of Japan."]
    teacher = next((finished / "data" / "cache" / "teachers").glob("*/config.json")).parent
    student = finished / "data" / "runs" / "tiny" / "train" / "student"
    lines = f"{asked[0]}\n\n/reset\n{asked[1]}\n/quit\nnever asked\n"
    done = seqkd("chat", "tiny", "--max-tokens", "20", cwd=finished, input=lines)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [alone(student, question) for question in asked]
    done = seqkd("chat", "tiny", "--teacher", "--max-tokens", "20", cwd=finished, input=lines)
    both = [(f"student: {alone(student, one)}", f"teacher: {alone(teacher, one)}") for one in asked]
    assert done.stdout.splitlines() == [line for pair in both for line in pair]


def test_what_does_not_fit_is_dropped_and_said_once(finished):
    long = "Tell me: " + "Which city is the capital of Poland? " * 12
    lines = "\n".join(["What is the capital of Cuba?"] * 8 + [long, "\x1b[31m\udcff What is the capital of Peru?"])
    done = seqkd("chat", "tiny", "--max-tokens", "8", cwd=finished, input=lines, errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10 and "\x1b" not in done.stdout
    assert done.stderr.count("the oldest turns are dropped") == 1
    assert done.stderr.count("the model's context is 64") == 1  # the long one has no room at all


def test_without_an_input_there_is_no_question(finished):
    """Closed by whoever started it, standard input is None in Python."""
    done = seqkd("chat", "tiny", cwd=finished, preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_question_too_long_for_the_context_does_not_end_the_talk(copied, monkeypatch):
    """It alone is refused: what was said before it is still there after it."""
    (copied / "prompts/tiny/system.jinja").write_text("Be brief.\n")
    change(copied / "data/runs/tiny/collect/manifest.json", system="system.jinja")
    monkeypatch.chdir(copied)
    student, teacher = chat.open_speakers(Run(copied / "data/runs/tiny"), True)
    for speaker in (student, teacher):
        said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
        speaker.turns = list(said)
        dropped, refused = chat.ask(speaker, "Tell me: " + "Which city is the capital of Poland? " * 12, 8)
        assert speaker.turns == said and not dropped
        assert refused.endswith("tokens and the model's context is 64. Ask a shorter one; what was said before is kept")
        # One that just fits, with nothing else beside it, is asked.
        assert chat.ask(speaker, "five " * 10, 8) == (True, None) and len(speaker.turns) == 1
    long = "Which city is the capital of Poland? " * 12
    done = seqkd("chat", "tiny", "--teacher", cwd=copied, input=f"What is the capital of Cuba?\n{long}\n")
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == ["student", "teacher"] * 2
    assert done.stdout.splitlines()[2:] == ["student: ", "teacher: "]  # a line an answer, whatever it is
    assert "(student: the question was not asked: it has " in done.stderr and "oldest turns" not in done.stderr


def test_turns_and_system_prompts(copied, monkeypatch):
    """The student is asked without a system prompt, as it was trained; the teacher with its own."""
    (copied / "prompts/tiny/system.jinja").write_text("Be brief.\n")
    change(copied / "data/runs/tiny/collect/manifest.json", system="system.jinja")
    monkeypatch.chdir(copied)
    student, teacher = chat.open_speakers(Run(copied / "data/runs/tiny"), True)
    assert (student.name, student.system) == ("student", [])
    assert teacher.system == [{"role": "system", "content": "Be brief."}]
    assert chat.ask(student, "one", 8) == (False, None)
    student.turns.append({"role": "assistant", "content": "two"})
    assert chat.ask(student, "three", 8) == (False, None) and [turn["content"] for turn in student.turns] == [
        "one",
        "two",
        "three",
    ]
    student.turns.append({"role": "assistant", "content": "four"})
    assert chat.ask(student, "five " * 10, 8) == (True, None)
    assert student.turns[0]["role"] == "user" and len(student.turns) in (1, 3)


def test_nobody_to_talk_to(copied):
    change(copied / "data/runs/tiny/collect/manifest.json", teachers=[{"provider": "openai", "model": "gpt-x"}])
    refused(seqkd("chat", "tiny", "--teacher", cwd=copied, input=""), "no `local` teacher")
    shutil.rmtree(copied / "data/runs/tiny/train")
    with pytest.raises(UserError, match="train is not complete"):
        chat.open_speakers(Run(copied / "data/runs/tiny"), False)


def test_on_a_terminal(copied):
    """Two columns, Ctrl-C ends an answer and not the talk, Ctrl-D ends the talk."""
    student = copied / "data/runs/tiny/train/student"
    shutil.rmtree(student)
    shutil.copytree(student.with_name("untrained"), student)  # it knows no end
    for name, field in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((student / name).read_text()) | {field: 100_000}
        (student / name).write_text(json.dumps(settings))
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    words = command("chat", "tiny", "--teacher", "--temperature", "2", "--max-tokens", "50000")
    # Without what pytest-xdist or a shell says of another terminal's size, which goes before this one's.
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    # A session of its own with this terminal, so that Ctrl-C reaches it.
    child = subprocess.Popen(
        words, cwd=copied, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: (hear_ctrl_c(), ioctl(0, termios.TIOCSCTTY, 0)),
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            assert select.select([ours], [], [], 120)[0], seen
            seen += os.read(ours, 65536)
        seen = seen[seen.index(words) + len(words) :]

    until(b"> ")
    os.write(ours, b"What is the capital of Poland?\n")
    until(b"student ")
    until(b"student ")  # drawn again, so it has begun to answer
    os.write(ours, b"\x03")
    until(b"(stopped)")
    until(b"> ")
    os.write(ours, b"\x04")
    assert child.wait(60) == 0
    os.close(ours)

"""The command line as a user meets it, mistakes included."""

import shutil
import subprocess
import sys

import pytest

from pipeline.flow import STAGES
from tiny import RECIPE, seqkd


def refused(done, *said):
    """The command ended with exit code 2 and one clear message."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr
    return True


def test_help_names_every_command_and_imports_nothing_heavy(tmp_path):
    told = seqkd("--help", cwd=tmp_path)
    assert told.returncode == 0
    for name in (*STAGES, "run", "plan", "status", "show"):
        assert name in told.stdout
    code = "import pipeline.cli, sys; print({'torch', 'pyarrow', 'pandas', 'pydantic', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_script_too(stage, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.stages.{stage}", "nowhere.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    refused(done, "no recipe file nowhere.yaml")


def test_mistakes_on_the_command_line(tiny):
    refused(seqkd("rnu", cwd=tiny), "No such command 'rnu'. Did you mean 'run'?")
    refused(seqkd("run", "quickstrat", cwd=tiny), "no recipe named 'quickstrat'. Did you mean 'quickstart'?")
    refused(seqkd("run", "tiny.yaml", "--from", "trian", cwd=tiny), "Did you mean 'train'?")
    refused(seqkd("run", "tiny.yaml", "--to", "evalute", cwd=tiny), "Did you mean 'evaluate'?")
    refused(seqkd("run", "tiny.yaml", "--from", "train", "--to", "filter", cwd=tiny), "comes after --to filter")
    refused(seqkd("run", "tiny.yaml", "--set", "generate.cuont=3", cwd=tiny), "Did you mean 'count'?")
    refused(seqkd("run", "tiny.yaml", "--run", "../x", cwd=tiny), "a run's name")
    refused(seqkd("run", "tiny.yaml", "--set", "domain=nowhere", cwd=tiny), "no folder", "nowhere")
    refused(seqkd("status", "nothing", cwd=tiny), "there is no run 'nothing'")


def test_a_run_may_end_after_a_stage(tiny, finished, tmp_path):
    done = seqkd("run", "tiny.yaml", "--to", "generate", cwd=tiny)
    assert done.returncode == 0 and "data/runs/tiny/generate" in done.stdout
    assert not (tiny / "data/runs/tiny/collect").exists()
    shutil.copytree(finished, tmp_path / "whole")
    done = seqkd("run", "tiny.yaml", "--to", "dedupe", "--from", "filter", cwd=tmp_path / "whole")
    assert done.returncode == 0 and "144 asked = " in done.stdout and "accuracy" not in done.stdout
    assert "assemble" not in done.stderr


def test_a_template_with_an_undefined_name(tiny):
    (tiny / "prompts/tiny/system.jinja").write_text("You know {{ entire_wrold }}.\n")
    recipe = RECIPE.replace("samples: 3", "samples: 3\n  system: system.jinja")
    (tiny / "tiny.yaml").write_text(recipe)
    assert seqkd("generate", "tiny.yaml", cwd=tiny).returncode == 0
    refused(seqkd("collect", "tiny.yaml", cwd=tiny), "system.jinja:1", "entire_wrold")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "mine.jsonl"),
        ('{"prompt": "a"}\n{"prompt": \n', "mine.jsonl:2"),
        ('{"prompt": "a"}\n{"question": "b"}\n', "mine.jsonl:2"),
        ('{"prompt": "a"}\n{"prompt": 3}\n', "mine.jsonl:2"),
        ("[1, 2]\n", "mine.jsonl:1"),
    ],
)
def test_an_empty_or_malformed_prompts_file(tiny, content, said):
    (tiny / "mine.jsonl").write_text(content)
    refused(seqkd("generate", "tiny.yaml", "--set", "generate.file=mine.jsonl", cwd=tiny), said)


def test_a_missing_prompts_file(tiny):
    refused(seqkd("generate", "tiny.yaml", "--set", "generate.file=none.jsonl", cwd=tiny), "none.jsonl")


def test_prompts_that_are_all_held_out_are_called_so(tiny):
    (tiny / "mine.jsonl").write_text('{"prompt": "How far is it from here to the second moon of Mars?"}\n')
    both = ("--set", "generate.file=mine.jsonl", "--set", "evaluate.questions=mine.jsonl")
    refused(seqkd("generate", "tiny.yaml", *both, cwd=tiny), "held_out 1", "They repeat held-out questions")


def test_what_a_later_stage_lacks_is_missed_before_the_first_one_runs(tiny):
    (tiny / "mine.jsonl").write_text('{"prompt": "Who is it?", "completion": "It is I."}\n')
    (tiny / "mine.yaml").write_text("domain: none\ncollect: {file: mine.jsonl}\ntrain: {student: nowhere}\n")
    for command in ("run", "plan"):
        done = seqkd(command, "mine.yaml", cwd=tiny)
        said = " ".join((done.stdout + done.stderr).split())
        assert "there are no held-out questions" in said and "generate:" not in said
    judge = "evaluate.judge={teacher: {provider: openai, model: m, api_key_env: KEY_OF_THE_JUDGE}}"
    done = seqkd("run", "tiny.yaml", "--set", judge, cwd=tiny)
    assert refused(done, "KEY_OF_THE_JUDGE is not set") and "generate:" not in done.stderr
    refused(seqkd("run", "tiny.yaml", "--set", "assemble.evaluations=[gone.jsonl]", cwd=tiny), "gone.jsonl")
    assert not list((tiny / "data/runs").glob("*/generate"))


def test_a_new_domain_runs(tmp_path):
    assert seqkd("new-domain", "geo", cwd=tmp_path).returncode == 0
    refused(seqkd("new-domain", "geo", cwd=tmp_path), "is there already")
    refused(seqkd("new-domain", "../geo", cwd=tmp_path), "cannot be the name of a domain")
    done = seqkd("run", "geo.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/runs/geo/evaluate/report.html").is_file()


def test_the_cache_is_shown_exported_and_pruned(finished, tmp_path):
    shutil.copytree(finished / "data" / "cache", tmp_path / "data" / "cache")
    told = seqkd("cache", "show", cwd=tmp_path)
    assert told.returncode == 0 and "embedded" in told.stdout and "144" in told.stdout
    assert (
        "144 answers written" in seqkd("cache", "export", "answers.jsonl", "--model", "embedded", cwd=tmp_path).stdout
    )
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 144
    refused(seqkd("cache", "prune", cwd=tmp_path), "nothing to prune")
    assert "144 answers deleted" in seqkd("cache", "prune", "--model", "embedded", cwd=tmp_path).stdout

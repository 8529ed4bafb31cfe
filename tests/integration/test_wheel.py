"""A wheel works outside the checkout: recipes, prompts and data travel with it, a user's own folders come first."""

import os
import subprocess
import sys
import zipfile

import pytest

from environments import ROOT
from tiny import make_tiny


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the project's wheel was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", folder / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "/runs/" in name or "/cache/" in name or name.startswith("tests")]
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, capture_output=True)
    return folder / "site"


def seqkd(installed, cwd, *words):
    variables = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300
    )


def test_the_shipped_recipe_generates_outside_the_checkout(installed, tmp_path):
    done = seqkd(installed, tmp_path, "generate", "quickstart")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/runs/quickstart/generate/prompts.parquet").is_file()
    where = subprocess.run(
        [sys.executable, "-c", "import pipeline; print(pipeline.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert str(installed) in where.stdout


def test_a_users_own_folders_come_first(installed, tmp_path):
    tiny = make_tiny(tmp_path)
    done = seqkd(installed, tiny, "generate", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    (tiny / "data" / "star_trek" / "facts").mkdir(parents=True)
    (tiny / "data" / "star_trek" / "facts" / "mine.yaml").write_text("- not: a relation\n")
    done = seqkd(installed, tiny, "generate", "quickstart")
    assert done.returncode == 2 and "mine.yaml:1" in done.stderr

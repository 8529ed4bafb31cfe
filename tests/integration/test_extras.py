"""The tests of optional packages, which `make test` skips, in an environment that adds these to the project's own."""

import json
import os
import subprocess
from xml.etree import ElementTree

import pytest

from environments import ROOT, make_environment

TESTS = {
    "entities": "tests/test_entities.py",
    "harness": "tests/test_harness.py",
    "quantize": "tests/stages/test_quantize.py",
    "tensorboard": "tests/stages/test_train_stage.py",
    "deepspeed": "tests/test_processes.py",
}
"""What the names of the tests of an extra have in common, and their file."""


@pytest.fixture(scope="module")
def python():
    return make_environment("extras", beside_ours=True) / "bin" / "python"


def test_no_version_of_the_project_is_another_one(python):
    """What lies in the environment itself is only what was added."""
    listed = [python, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"]
    added = subprocess.run([*listed, "--local"], check=True, capture_output=True, text=True).stdout
    versions = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(added)}
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pinned = {name.lower().replace("_", "-"): version for name, version in lines}
    assert "torch" not in versions and "transformers" not in versions and "bitsandbytes" in versions
    assert not {name for name in versions.keys() & pinned.keys() if versions[name] != pinned[name]}
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_none_is_skipped_and_all_pass(python, tmp_path):
    written = tmp_path / "tests.xml"
    words = ["-q", "-p", "no:cacheprovider", f"--junit-xml={written}", "-k", " or ".join(TESTS), *TESTS.values()]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [python, "-m", "pytest", *words],
        cwd=ROOT, env=variables | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    cases = ElementTree.parse(written).getroot().findall(".//testcase")
    assert not [case.get("name") for case in cases if case.find("skipped") is not None], done.stdout
    ran = [f"{case.get('classname')}.{case.get('name')}" for case in cases]
    assert not [word for word in TESTS if not any(word in name for name in ran)], ran

"""Environments of their own for tests: each is made once under .envs/, and made anew when its list changes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def make_environment(name: str) -> Path:
    """.envs/NAME with the packages of tests/integration/NAME.txt; returns its folder."""
    requirements = HERE / f"{name}.txt"
    folder = ROOT / ".envs" / name
    stamp = folder / "installed"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", requirements], check=True)
        stamp.write_text(digest)
    return folder


def clean_environment(**more: str) -> dict[str, str]:
    """The environment variables for a scheduler: this machine's, without those that pytest or we set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "SEQKD", "VIRTUAL_ENV"))}
    return kept | {"SEQKD_PYTHON": sys.executable} | more

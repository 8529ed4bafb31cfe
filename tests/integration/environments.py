"""Environments of their own for tests: each is made once under .envs/, and made anew when its list changes."""

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def make_environment(name: str, *, beside_ours: bool = False) -> Path:
    """.envs/NAME with the packages of tests/integration/NAME.txt; returns its folder. beside_ours: they are added to
    those of the environment that runs the tests, and no version of constraints.txt is changed."""
    lists = [HERE / f"{name}.txt", *([ROOT / "constraints.txt"] if beside_ours else [])]
    ours = sysconfig.get_path("purelib") if beside_ours else ""
    folder = ROOT / ".envs" / name
    stamp = folder / "installed"
    digest = hashlib.sha256(ours.encode() + b"".join(path.read_bytes() for path in lists)).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        python = folder / "bin" / "python"
        if beside_ours:
            find = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
            own = subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
            (Path(own) / "ours.pth").write_text(ours + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *(word for path in lists[1:] for word in ("-c", path)), "-r", lists[0]], check=True)
        stamp.write_text(digest)
    return folder


def clean_environment(**more: str) -> dict[str, str]:
    """The environment variables for a scheduler: this machine's, without those that pytest or we set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "SEQKD", "VIRTUAL_ENV"))}
    return kept | {"SEQKD_PYTHON": sys.executable} | more

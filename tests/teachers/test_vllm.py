"""vLLM: every sampling parameter is sent; a server that cannot start is explained."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import SeqkdError, UserError
from pipeline.recipe import Sampling, Teacher
from pipeline.teachers import vllm


def test_a_request_is_never_silent_about_sampling():
    teacher = Teacher(provider="vllm", model="m", base_url="http://127.0.0.1:1/v1", extra={"top_k": 40})
    request = vllm.request(teacher, [{"role": "user", "content": "x"}], Sampling(temperature=None, logprobs=True), 3)
    assert request["temperature"] == 1.0 and request["top_k"] == 40 and request["logprobs"] is True
    assert {"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "top_p", "seed"} <= request.keys()


def test_an_environment_without_python(tmp_path):
    teacher = Teacher(provider="vllm", model="m", serve={"environment": str(tmp_path)})
    with pytest.raises(UserError, match=r"serve\.environment"), vllm.serve(teacher):
        pass


def test_a_server_that_ends_is_reported_with_its_log(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(
        f"#!/bin/sh\necho the model is missing >&2\nexec {sys.executable} -c 'exit(3)'\n"
    )
    (tmp_path / "bin" / "python").chmod(0o755)
    teacher = Teacher(provider="vllm", model="m", serve={"environment": str(tmp_path)})
    with pytest.raises(SeqkdError, match="exit code 3") as caught, vllm.serve(teacher):
        pass
    assert "the model is missing" in str(caught.value)


SERVING = """
import signal
import subprocess
import sys
import time
from pathlib import Path
from pathlib import Path
from pipeline.recipe import Teacher
from pipeline.teachers import vllm
with vllm.serve(Teacher(provider="vllm", model="m", serve={"environment": sys.argv[1]})):
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_does_not_outlive_us_however_we_end(tmp_path, how):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid\nexec sleep 300\n"
    )
    (tmp_path / "bin" / "python").chmod(0o755)
    ours = subprocess.Popen([sys.executable, "-c", SERVING, str(tmp_path)])
    server = int(_soon(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    ours.send_signal(how)
    ours.wait(30)
    _soon(lambda: not _alive(server))


def _soon(condition):
    end = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def _alive(process):
    try:
        return "(sleep) Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False

"""vLLM: every sampling parameter is sent; a server that cannot start is explained."""

import sys

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

"""Provider `vllm`: a vLLM server that is running, or one that is started here from another Python environment.

The wire format is OpenAI's; only what differs is in this file. https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import SeqkdError, UserError
from pipeline.progress import say
from pipeline.recipe import Sampling, Teacher
from pipeline.records import Message
from pipeline.teachers.openai import connect, limits, parse, wire

__all__ = ["connect", "limits", "parse", "request", "serve", "wire"]

KEY_ENV = None
SAMPLES_AT_ONCE = 16

# generation_config.json of a model is applied where a request is silent, so a request is never silent.
NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def request(teacher: Teacher, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
    """What determines an answer: the body but for `n` and the sample's own seed."""
    # Ids, for a token's text alone does not say which token it was.
    top = {"top_logprobs": sampling.top_logprobs, "return_tokens_as_token_ids": True}
    return {
        "model": teacher.model,
        "messages": messages,
        "max_tokens": sampling.max_tokens,
        "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "logprobs": sampling.logprobs,
        "seed": seed,
        **(top if sampling.logprobs and sampling.top_logprobs else {}),
        **NEUTRAL,
        **teacher.extra,
    }


# Stands between us and the server, and stops it when we are gone, however we went (kill -9, a SIGTERM of a scheduler):
# then its stdin ends. It lets a SIGTERM to the group pass to the server alone, so that this one can end in order.
_WATCH = """
import os, signal, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def watch():
    os.read(0, 1)
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        pass
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
os._exit(abs(server.wait()))
"""


@contextlib.contextmanager
def serve(teacher: Teacher) -> Iterator[str]:
    """Start `vllm serve` for a teacher, wait until it has answered a real request, yield its base URL, and stop it
    whatever happens. Raises UserError if it cannot be started, SeqkdError with the end of its log if it gives up."""
    assert teacher.serve
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python = teacher.serve.environment / "bin" / "python"
    if not python.is_file():
        raise UserError(
            f"collect.teachers: serve.environment: {python} does not exist. Make an environment with vLLM in it, or "
            "start a server yourself and give its base_url."
        )
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", teacher.model]
    command += ["--served-model-name", teacher.model, "--host", "127.0.0.1", "--port", str(port)]
    command += [str(argument) for argument in teacher.serve.args]
    settings = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | teacher.serve.env
    with tempfile.TemporaryFile() as log:
        # A session of its own, so that its workers are stopped with it and Ctrl-C reaches it through us only.
        server = subprocess.Popen(
            [sys.executable, "-c", _WATCH, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | settings,
            start_new_session=True,
            cwd=Path.cwd(),
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            say(f"  starting vLLM for {teacher.model} at {url} (process {server.pid})")
            _wait(server, url, teacher, log)
            yield url
        finally:
            _stop(server)


def _wait(server: "subprocess.Popen[bytes]", url: str, teacher: Teacher, log: Any) -> None:
    """Until the server has answered one token. /health says yes too early, and of a hung server too."""
    assert teacher.serve
    body = {"model": teacher.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
    ask = urllib.request.Request(
        url + "/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + teacher.serve.start_timeout_s
    why = ""
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SeqkdError(f"vLLM ended with exit code {server.returncode}:\n{_tail(log)}")
        try:
            with direct.open(ask, timeout=max(1.0, end - time.monotonic())) as response:
                if response.status == 200:
                    return
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code}: {error.read(500).decode('utf-8', 'replace')}"
            if error.code in (400, 404):
                raise SeqkdError(f"vLLM is up but refuses a request: {why}") from None
        except OSError as error:
            why = str(error)
        time.sleep(0.5)
    raise SeqkdError(f"vLLM gave no answer within {teacher.serve.start_timeout_s:.0f} s ({why}):\n{_tail(log)}")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    for how, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        try:
            server.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        break
    assert server.stdin
    server.stdin.close()
    # The engine runs in a process of its own; when its parent has ended it may still be on its way out.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _tail(log: Any) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 3000))
    return str(log.read().decode("utf-8", "replace"))

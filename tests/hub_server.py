"""A hub on loopback: the parts of huggingface.co's interface that an upload speaks, for the real client."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_CanaryCanaryCanaryCanary"


class Hub:
    """What the server holds and saw."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[tuple[str, str], dict] = {}  # (kind, id) -> {"private", "files": {name: bytes}}
        self.blobs: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []  # (method, path)
        self.fails: dict[str, tuple[int, str]] = {}  # a part of a path -> (status, message) to answer there


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that runs until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, value: object, status: int = 200, message: str = "") -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if message:
                self.send_header("X-Error-Message", message)
            self.end_headers()
            self.wfile.write(data)

        def handle_any(self) -> None:
            body = self.body()
            hub.seen.append((self.command, self.path))
            for part, (status, message) in hub.fails.items():
                if part in self.path:
                    return self.answer({"error": message}, status, message)
            if self.path.startswith("/lfs/"):
                name = self.path.removeprefix("/lfs/")
                assert hashlib.sha256(body).hexdigest() == name and "Authorization" not in self.headers
                hub.blobs[name] = body
                return self.answer({})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid credentials"}, 401, "Invalid credentials")
            return self.authorized(self.path.split("?")[0].strip("/").split("/"), body)

        do_GET = do_POST = do_PUT = handle_any

        def authorized(self, path: list[str], body: bytes) -> None:
            if path == ["api", "repos", "create"]:
                asked = json.loads(body)
                key = (asked.get("type", "model"), f"{asked['organization']}/{asked['name']}")
                taken = any(name == key[1] for _, name in hub.repos)
                if not taken:
                    hub.repos[key] = {"private": asked["visibility"] == "private", "files": {}}
                place = f"{hub.url}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"
                return self.answer(
                    {"url": place, "error": "exists"} if taken else {"url": place}, 409 if taken else 200
                )
            if path == ["api", "validate-yaml"]:
                front = json.loads(body)["content"].split("---\n")[1]
                assert isinstance(yaml.safe_load(front), dict)
                return self.answer({"warnings": [], "errors": []})
            if path[-1] == "batch":
                objects = []
                for one in json.loads(body)["objects"]:
                    href = f"{hub.url}/lfs/{one['oid']}"
                    objects.append({**one, "actions": {"upload": {"href": href}}})
                return self.answer({"objects": objects, "transfer": "basic"})
            kind, repo = path[1].removesuffix("s"), "/".join(path[2:4])
            held = hub.repos.get((kind, repo))
            if held is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            if len(path) == 4:
                return self.answer({"id": repo, "private": held["private"], "sha": "0" * 40, "siblings": []})
            if path[4] == "preupload":
                large = (".safetensors", ".parquet")
                files = [
                    {"path": name, "uploadMode": "lfs" if name.endswith(large) else "regular", "shouldIgnore": False}
                    for name in (one["path"] for one in json.loads(body)["files"])
                ]
                return self.answer({"files": files})
            assert path[4:] == ["commit", "main"]
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    held["files"][value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    held["files"][value["path"]] = hub.blobs[value["oid"]]
            return self.answer({"commitUrl": f"{hub.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

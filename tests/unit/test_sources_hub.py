"""The hub, played by a server of this machine: what is downloaded, what is refused, and what happens without one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from moesaic.checkpoints.sources import hub, resolve
from moesaic.errors import SourceError

COMMIT = "a" * 40
FILES = {
    "org/good": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the author's own layout",
        "onnx/model.safetensors": b"elsewhere",
        "onnx/config.json": b"{}",
        "1_Pooling/config.json": b"{}",
    },
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "org/quantised": {"m.Q4_0.gguf": b"GGUF"},
    "org/empty": {"README.md": b""},
}


class Hub(BaseHTTPRequestHandler):
    """Answers as much of the hub's protocol as a snapshot takes."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models/").strip("/")
        name = "/".join(path.split("/")[:2])
        if name == "org/gated":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name not in FILES:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "/revision/other" in path:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            rows = [{"type": "file", "path": p, "size": len(c), "oid": "b" * 40} for p, c in FILES[name].items()]
            self.answer(200, json.dumps(rows).encode())
        elif "/resolve/" in path:
            content = FILES[name][path.split("/", 4)[4]]
            self.answer(200, content, {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            files = [{"rfilename": file} for file in FILES[name]]
            self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def point_to(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=served.serve_forever, daemon=True).start()
    point_to(f"http://127.0.0.1:{served.server_port}", monkeypatch, tmp_path)
    yield
    served.shutdown()
    served.server_close()


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", monkeypatch, tmp_path)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("source", ["org/good", "org/good@v1.0"])
def test_a_model_is_downloaded_without_what_is_not_needed(source: str) -> None:
    said: list[str] = []
    folder = resolve(source, progress=said.append)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert said == [f"{source}: downloading, or completing the hub's cache"]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/pickled", r"Got pickled ones only.*t\.AutoModel\.from_pretrained\('org/pickled'\)"),
        ("org/quantised", r"Got GGUF files only. Download one of them and pass its path"),
        ("org/empty", r"Got no weights"),
        ("org/absent", r"must be a folder here or a model on the hub. Got neither"),
        ("org/gated", r"Got a gated one. Accept its terms on its page"),
        ("org/good@other", r"the revision must exist. Got none of that name. Leave out @REVISION"),
    ],
)
def test_what_can_not_be_had_is_one_clear_message(source: str, message: str) -> None:
    with pytest.raises(SourceError, match=f"^{source}: .*{message}"):
        resolve(source)


@pytest.mark.usefixtures("nobody")
def test_without_a_connection_the_remedy_is_said() -> None:
    with pytest.raises(
        SourceError, match=r"^org/good: .*within reach on the hub. Got '.+'. Where HF_HUB_OFFLINE is set"
    ):
        resolve("org/good")


def test_without_a_connection_the_hubs_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:1", monkeypatch, tmp_path)
    snapshot = tmp_path / "hub" / "models--org--kept" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    (tmp_path / "hub" / "models--org--kept" / "refs").mkdir()
    (tmp_path / "hub" / "models--org--kept" / "refs" / "main").write_text(COMMIT)
    assert resolve("org/kept") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="Got no weights"):
        resolve("org/kept")


def test_a_silent_hub_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts the connection and never answers."""
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_to(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch, tmp_path)
        with pytest.raises(SourceError, match="within reach on the hub"):
            resolve("org/good")


@pytest.mark.parametrize("source", ["name", "./a/b", "a/b/c", "/a", "a/b@", "~/x", "org/na me"])
def test_paths_and_words_are_no_hub_ids(source: str) -> None:
    assert not hub.is_identifier(source)

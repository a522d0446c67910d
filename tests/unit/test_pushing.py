"""Pushing: which files of which folders go to the hub, and what a hub, played by a server of this machine, gets."""

from __future__ import annotations

import base64
import json
import pickle
import socket
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors.torch import save_file
from tests.unit.test_cli import said

from moesaic.errors import CheckpointError, PushError
from moesaic.pushing import check_repo, contents, push

COMMIT = "a" * 40
WANTED = {"README.md", "config.json", "model.safetensors", "moesaic.json", "report.html", "tokenizer/vocab.txt"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A finished folder, with whatever must not leave it."""
    folder = tmp_path / "moe"
    (folder / "tokenizer").mkdir(parents=True)
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "moesaic.json").write_text('{"spec": {}}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# moe\n")
    (folder / "report.html").write_text("<!doctype html>")
    (folder / "tokenizer" / "vocab.txt").write_text("a")
    return folder


def soil(folder: Path) -> dict[str, str]:
    """Put into a folder what must stay here; return why."""
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / ".env").write_text("TOKEN=secret")
    (folder / "tokenizer" / ".hidden").write_text("secret")
    (folder / "training_args.bin").write_bytes(b"")
    (folder / "notes.txt").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"w": torch.ones(1)}, folder / "weights.dat")
    (folder / "model.safetensors.partial").write_bytes(b"half")
    (folder / "checkpoint.partial").mkdir()
    (folder / "other.safetensors").write_bytes(b"of another model")
    (folder.parent / "private").mkdir()
    (folder.parent / "private" / "key").write_text("secret")
    (folder / "key.txt").symlink_to(folder.parent / "private" / "key")
    (folder / "linked").symlink_to(folder.parent / "private")
    (folder / "broken").symlink_to(folder / "nowhere")
    pickled = "a pickle, which runs code when it is opened"
    return {
        **dict.fromkeys([".git", ".env", "tokenizer/.hidden"], "hidden"),
        **dict.fromkeys(["training_args.bin", "notes.txt", "weights.dat"], pickled),
        **dict.fromkeys(["model.safetensors.partial", "checkpoint.partial"], "half-written"),
        **dict.fromkeys(["key.txt", "linked"], "a link out of the folder"),
        "other.safetensors": "not weights of this model",
        "broken": "no plain file",
    }


def index_of(folder: Path, *, indexed: bool = True) -> Path:
    """Write an index, so that another safetensors file beside it is none of the model's."""
    if indexed:
        weights = {"metadata": {}, "weight_map": {"w": "model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    return folder


def test_only_what_may_leave_the_folder_is_listed(model: Path) -> None:
    why = soil(index_of(model))
    found = contents(model)
    assert {name for name, _ in found.files} == WANTED | {"model.safetensors.index.json"}
    assert all(size == (model / name).stat().st_size for name, size in found.files)
    assert dict(found.left_out) == why


def unfinished(model: Path, what: str) -> Path:
    if what == "nowhere":
        return model / "nowhere"
    if what == "file":
        return model / "config.json"
    if what == "partial":
        return model.rename(model.with_name("moe.partial"))
    if what == "journal":
        (model / "journal").write_text("")
    if what in ("run", "unfinished run"):
        run = model.parent / "run"
        run.mkdir()
        (run / "recipe.json").write_text("{}")
        if what == "run":
            model.rename(run / "model")
        return run
    if what == "dense":
        (model / "moesaic.json").write_text('{"training": {}}')
    if what.endswith(".json"):
        (model / what).unlink()
    if what == "shard":
        index_of(model)
        (model / "model.safetensors").unlink()
    if what == "cut":
        with (model / "model.safetensors").open("r+b") as stream:
            stream.truncate(20)
    if what == "link":
        (model / "model.safetensors").rename(model.parent / "elsewhere.safetensors")
        (model / "model.safetensors").symlink_to(model.parent / "elsewhere.safetensors")
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere", r"must be a folder on this machine\. Got none"),
        ("file", r"must be a folder on this machine\. Got none"),
        ("partial", r"must be finished\. It is being written, or was interrupted.*--resume"),
        ("journal", r"must be finished\. It is being written, or was interrupted.*--resume"),
        ("run", r"Got the folder of a training run\. Push .*run/model\."),
        ("unfinished run", r"Got the folder of a training run\. Finish it by `moesaic train --resume`"),
        ("dense", r"must be a Mixture-of-Experts\. It is dense"),
        ("moesaic.json", r"must be a model that moesaic made\. It has no moesaic\.json"),
        ("config.json", r"must be a model that moesaic made\. It has no config\.json"),
        ("shard", "the shard must stand beside the index"),
        ("cut", r"model\.safetensors"),
        ("link", r"model\.safetensors is a link out of the folder"),
    ],
)
def test_what_is_no_finished_model_is_refused_before_any_connection(model: Path, what: str, message: str) -> None:
    with pytest.raises((PushError, CheckpointError), match=message):
        contents(unfinished(model, what))


@pytest.mark.parametrize("repo", ["a/b/c", "org/na me", "org/a--b", "-org/x", "", "org/x.git", "../x", "o/" + "x" * 97])
def test_names_that_no_repository_can_have(repo: str) -> None:
    with pytest.raises(HFValidationError):
        validate_repo_id(repo)  # the hub's own library agrees
    with pytest.raises(PushError, match=r"must be called owner/name, .+ Choose another name\."):
        check_repo(repo)


@pytest.mark.parametrize("repo", ["org/moe", "o-r.g/m_1.0-x", "o/" + "x" * 96])
def test_names_that_repositories_have(repo: str) -> None:
    validate_repo_id(repo)
    check_repo(repo)


def test_an_owner_is_named() -> None:
    with pytest.raises(PushError, match="must be called owner/name"):
        check_repo("name")


class Hub(BaseHTTPRequestHandler):
    """Answers as much of the hub's protocol as a push takes; weights go by LFS, all else in the commit."""

    repos: ClassVar[dict[str, dict[str, Any]]]
    seen: ClassVar[list[str]]
    here: ClassVar[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").split("?")[0]
        repo = self.repos.get("/".join(name.split("/")[:2]))
        if self.headers.get("Authorization") != "Bearer good":
            self.answer(401, {"error": "Invalid credentials"})
        elif repo is None:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in name:
            branch = repo["branches"][name.split("/tree/")[1].split("/")[0]]
            self.answer(200, [{"type": "file", "path": p, "size": 1, "oid": "b" * 40} for p in branch])
        else:
            files = [{"rfilename": file} for file in repo["branches"]["main"]]
            self.answer(200, {"id": name, "sha": COMMIT, "private": repo["private"], "siblings": files})

    def do_PUT(self) -> None:
        data = self.body()
        self.repos["lfs"][sha256(data).hexdigest()] = data
        self.answer(200, {})

    def do_POST(self) -> None:
        path, given = self.path.split("?")[0], self.body()
        self.seen.append(path)
        parts = path.removeprefix("/api/models/").split("/")
        repo = self.repos.get("/".join(parts[:2]), {})
        if path == "/api/repos/create":
            asked = json.loads(given)
            if asked["organization"] == "theirs":
                self.answer(403, {"error": "You don't have the rights"})
                return
            private = asked.get("private") or asked.get("visibility") == "private"
            self.repos[f"{asked['organization']}/{asked['name']}"] = {"private": private, "branches": {"main": {}}}
            self.answer(200, {"url": f"{self.here}/{asked['organization']}/{asked['name']}"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"warnings": [], "errors": []})
        elif "branch" in parts:
            repo["branches"].setdefault(parts[-1], dict(repo["branches"]["main"]))
            self.answer(200, {})
        elif "preupload" in parts:
            files = [one["path"] for one in json.loads(given)["files"]]
            modes = {True: "lfs", False: "regular"}
            rows = [{"path": p, "uploadMode": modes[p.endswith(".safetensors")], "shouldIgnore": False} for p in files]
            self.answer(200, {"files": rows})
        elif path.endswith("/objects/batch"):
            rows = json.loads(given)["objects"]
            found = [{**row, "actions": {"upload": {"href": f"{self.here}/lfs/{row['oid']}"}}} for row in rows]
            self.answer(200, {"transfer": "basic", "objects": found})
        elif "commit" in parts:
            self.commit(repo["branches"][parts[-1]], given)
        else:
            self.answer(500, {"error": f"not played: {path}"})

    def commit(self, branch: dict[str, bytes], given: bytes) -> None:
        for line in map(json.loads, given.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                branch[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                branch[value["path"]] = self.repos["lfs"][value["oid"]]
            elif line["key"] == "deletedFile":
                del branch[value["path"]]
        self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.here}/org/moe/commit/{COMMIT}"})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # LFS is the simpler protocol to play
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: huggingface_hub.hf_api.HfApi(endpoint=address))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "good")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    own = type("Own", (Hub,), {"repos": {"lfs": {}}, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    own.here = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    point_to(own.here, monkeypatch)
    yield own
    server.shutdown()
    server.server_close()


def test_every_byte_arrives_and_nothing_else(model: Path, served: type[Hub]) -> None:
    soil(index_of(model))
    url = push(contents(model), "org/moe", private=True)
    assert url.endswith(f"/org/moe/commit/{COMMIT}")
    repo = served.repos["org/moe"]
    assert repo["private"] is True
    names = WANTED | {"model.safetensors.index.json"}
    assert repo["branches"] == {"main": {name: (model / name).read_bytes() for name in names}}


def test_a_second_push_replaces_the_weights_of_the_first(model: Path, served: type[Hub]) -> None:
    old = {"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"", "notes.md": b"mine"}
    served.repos["org/moe"] = {"private": False, "branches": {"main": dict(old)}}
    push(contents(model), "org/moe")
    assert served.repos["org/moe"]["branches"]["main"].keys() == WANTED | {"notes.md"}
    assert "/api/repos/create" not in served.seen


def test_a_branch_is_made(model: Path, served: type[Hub]) -> None:
    push(contents(model), "org/moe", revision="step-100")
    branches = served.repos["org/moe"]["branches"]
    assert branches["main"] == {}
    assert branches["step-100"].keys() == WANTED


def test_a_public_repository_is_not_taken_for_a_private_one(model: Path, served: type[Hub]) -> None:
    served.repos["org/moe"] = {"private": False, "branches": {"main": {}}}
    with pytest.raises(PushError, match="It exists, and is public"):
        push(contents(model), "org/moe", private=True)
    assert served.seen == []


def test_what_the_hub_refuses_is_one_message(model: Path, served: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PushError, match=r"must be allowed to write there\. The hub refused it \(403\)"):
        push(contents(model), "theirs/moe")
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(PushError, match=r"must be allowed to write there\. The hub refused it \(401\)"):
        push(contents(model), "org/moe")
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(Hub, "commit", lambda self, *_: self.answer(418, {"error": "a teapot"}))
    with pytest.raises(PushError, match=r"the hub must take the model\. It answered 418"):
        push(contents(model), "org/moe")


def test_without_a_connection_and_without_a_token(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", monkeypatch)
    with pytest.raises(PushError, match=r"must be within reach, and take the model\. Got '.+'\. Nothing"):
        push(contents(model), "org/moe")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PushError, match="pushing must have a token"):
        push(contents(model), "org/moe")


def test_a_dry_run_lists_and_has_no_connection(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soil(model := index_of(model))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, out, err = said("push", str(model), "org/moe", "--dry-run")
    assert (code, err.strip()) == (0, "report.html and report.json hold samples of the data that they were made from.")
    assert "model.safetensors" in out
    assert "a pickle, which runs code" in out
    assert "Nothing was uploaded (--dry-run)." in out
    code, out, _ = said("push", str(model), "org/moe", "--dry-run", "--json", "--revision", "b")
    told = json.loads(out)
    assert {row["path"] for row in told["files"]} == WANTED | {"model.safetensors.index.json"}
    assert (told["repo"], told["revision"], told["url"]) == ("org/moe", "b", None)


def test_the_command_pushes_and_refuses(model: Path, served: type[Hub]) -> None:
    code, out, err = said("push", str(model), "org/moe")
    assert (code, "Pushed: http://" in out) == (0, True), err
    code, _, err = said("push", str(model), "moe")
    assert (code, "must be called owner/name" in err) == (1, True)
    code, _, err = said("push", str(model / "nowhere"), "org/moe")
    assert (code, err.count("\n")) == (1, 1)

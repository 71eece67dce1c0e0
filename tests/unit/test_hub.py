"""`resolve` against a hub on localhost: what is fetched, how progress is told, and every way a download can fail."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from blackwell_infer.checkpoint import resolve
from blackwell_infer.checkpoint.hub import SHIPPED
from blackwell_infer.errors import CheckpointError, DownloadError
from blackwell_infer.log import silent

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED, PRIVATE = "org/gated", "org/private"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def repositories() -> dict[str, dict[str, bytes]]:
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
    text = {"config.json": b'{"architectures": ["X"]}', "tokenizer.json": b"{}", "README.md": b"no", "run.py": b"no"}
    parts = {f"Q4/big-0000{i}-of-00002.gguf": b"GGUF" * i for i in (1, 2)}
    return {
        "org/one": text | {"model.safetensors": bytes(5000), "pytorch_model.bin": b"no", "onnx/m.safetensors": b"no"},
        "org/shards": text | {"model.safetensors.index.json": index, SHARDS[0]: bytes(300_000), SHARDS[1]: bytes(70),
                              "consolidated.safetensors": b"no"},
        "org/headed": text | {"model.safetensors": bytes(50), "model_mtp.safetensors": bytes(7),
                              "x.safetensors": b"no"},
        "org/lacking": text | {"model.safetensors.index.json": index, SHARDS[0]: bytes(3)},
        "org/files": {"a.gguf": b"GGUF-a", "b.gguf": b"GGUF-b", **parts},
        "org/single": {"README.md": b"no", **parts},
        "org/empty": {"README.md": b"no"},
        GATED: text, PRIVATE: text | {"model.safetensors": bytes(50)},
    }


class Hub(ThreadingHTTPServer):
    """The three requests that huggingface_hub makes of a model: its listing, HEAD and GET of a file."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = repositories()
        self.fetched: list[str] = []
        self.truncated: set[str] = set()
        self.broken = False
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, size: int = -1) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if size < 0 else size))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        name = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if not name.startswith("org/"):
            return self.reply(404)               # what the client asks once per process, of no repository
        hub.tokens.add(token)
        if hub.broken:
            return self.reply(500)
        if name == GATED:
            return self.reply(403, headers={"X-Error-Code": "GatedRepo"})
        if name not in hub.files or (name == PRIVATE and token != "Bearer secret"):
            return self.reply(404 if token else 401, headers={"X-Error-Code": "RepoNotFound"})
        revision, file = "main", ""
        if "/resolve/" in path:
            revision, file = path.split("/resolve/")[1].split("/", 1)
        elif "/revision/" in path:
            revision = path.split("/revision/")[1]
        if revision not in ("main", COMMIT):
            return self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        if not file:
            siblings = [{"rfilename": n, "size": len(b)} for n, b in hub.files[name].items()]
            body = json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
            return self.reply(200, body, {"Content-Type": "application/json"})
        if file not in hub.files[name]:
            return self.reply(404, headers={"X-Error-Code": "EntryNotFound"})
        body = hub.files[name][file]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body + file.encode()).hexdigest()}"'}
        if self.command == "GET":
            hub.fetched.append(file)
        if file in hub.truncated and self.command == "GET":
            self.close_connection = True
            return self.reply(200, body[:len(body) // 2], headers, len(body))
        return self.reply(200, body, headers)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client in this process talks to, with an empty cache."""
    from huggingface_hub import constants, file_download

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # The client reads HF_ENDPOINT and HF_HOME once, at import; test_environment_variables checks the real ones.
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template,
                        "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False,
                        "AGENT_HARNESSES_PATH": str(tmp_path / "harnesses")}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(model: str, revision: str = "main") -> Path:
    return resolve(model, revision=revision, progress=silent)


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch("org/one") == Path("org/one")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/org") == tmp_path / "org"


def test_demo_is_the_model_of_the_package_whatever_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fetch("demo") == SHIPPED and (SHIPPED / "config.json").is_file()
    assert fetch("./demo") == Path("demo")


@pytest.mark.parametrize("model", [
    "nothing", "./no/where", "/no/where.gguf", "a/b/c", "org/..", "a/b:c.bin", "", "a/b:", "a\0b", "x" * 5000,
    "~nobody9/x",
])
def test_neither_a_path_nor_a_hub_id(model: str) -> None:
    with pytest.raises(CheckpointError, match="neither an existing file or folder nor a hub id"):
        fetch(model)


def test_only_what_is_needed_is_fetched(hub: Hub) -> None:
    folder = fetch("org/one")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == bytes(5000)
    hub.fetched.clear()
    assert fetch("org/one") == folder and hub.fetched == []


def test_shards_are_those_of_the_index(hub: Hub) -> None:
    folder = fetch("org/shards")
    assert sorted(hub.fetched) == sorted(["config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS])
    assert (folder / SHARDS[0]).stat().st_size == 300_000
    with pytest.raises(DownloadError, match=f"lacks {SHARDS[1]}"):
        fetch("org/lacking")


def test_a_head_that_no_index_lists_comes_along(hub: Hub) -> None:
    fetch("org/headed")
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "model_mtp.safetensors", "tokenizer.json"]


def test_gguf_files(hub: Hub) -> None:
    path = fetch("org/files:b.gguf")
    assert path.read_bytes() == b"GGUF-b" and hub.fetched == ["b.gguf"]
    for model in ("org/files:Q4/big-00002-of-00002.gguf", "org/single"):
        first = fetch(model)
        assert first.name == "big-00001-of-00002.gguf"
        assert first.with_name("big-00002-of-00002.gguf").read_bytes() == b"GGUF" * 2
    with pytest.raises(DownloadError, match=r"several GGUF models; name one: org/files:"):
        fetch("org/files")
    with pytest.raises(DownloadError, match=r"no file c\.gguf; it has .*a\.gguf, b\.gguf"):
        fetch("org/files:c.gguf")
    with pytest.raises(DownloadError, match="neither config"):
        fetch("org/empty")


@pytest.mark.parametrize("disabled", [False, True])
def test_progress_counts_every_byte(hub: Hub, disabled: bool, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", disabled)
    seen: list[tuple[str, int, int, str]] = []
    resolve("org/shards", revision="main", progress=lambda *told: seen.append(told))
    index = len(hub.files["org/shards"]["model.safetensors.index.json"])
    weights = [told for told in seen if told[2] != index]
    total = sum(len(hub.files["org/shards"][n]) for n in ("config.json", "tokenizer.json", *SHARDS))
    assert weights[-1] == ("downloading org/shards", total, total, "bytes")
    assert [told[1] for told in weights] == sorted(told[1] for told in weights)
    assert "model" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("model", "revision", "match"), [
    ("org/absent", "main", "no.* repository"), (GATED, "main", "accept its terms"),
    (PRIVATE, "main", "HF_TOKEN if it is private"), ("org/one", "v9", "no revision 'v9'"),
])
def test_no_repository_no_access_no_revision(hub: Hub, model: str, revision: str, match: str) -> None:
    with pytest.raises(DownloadError, match=match):
        fetch(model, revision)


def test_a_token_opens_a_private_repository(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert (fetch(PRIVATE) / "model.safetensors").stat().st_size == 50
    assert hub.tokens == {"Bearer secret"}


def test_a_hub_in_trouble(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken = True
    with pytest.raises(DownloadError, match="HTTP 500"):
        fetch("org/one")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"out of reach.*HF_HUB_OFFLINE"):
        fetch("org/one")


def test_an_interrupted_download_can_go_on(hub: Hub, tmp_path: Path) -> None:
    hub.truncated.add("model.safetensors")
    with pytest.raises(DownloadError, match=r"model\.safetensors was interrupted.*run again"):
        fetch("org/one")
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    hub.truncated.clear()
    hub.fetched.clear()
    assert (fetch("org/one") / "model.safetensors").stat().st_size == 5000
    assert hub.fetched == ["model.safetensors"]


def test_a_disk_that_is_too_small(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 4000))
    with pytest.raises(DownloadError, match=r"needs 5026 bytes in .*cache, 4000 are free.*HF_HOME"):
        fetch("org/one")
    assert hub.fetched == []


def test_a_disk_that_fills_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(DownloadError, match=r"needs 5026 bytes in .*cache"):
        fetch("org/one")


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **keywords: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "cache" / "models--org--one"))

    monkeypatch.setattr(os, "makedirs", refused)
    with pytest.raises(DownloadError, match=r"models--org--one cannot be used \(Permission denied\); set HF_HOME"):
        fetch("org/one")


def test_offline_uses_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder, file, part = fetch("org/one"), fetch("org/files:a.gguf"), fetch("org/single")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fetched.clear()
    hub.tokens.clear()
    assert fetch("org/one") == folder and fetch("org/files:a.gguf") == file
    assert fetch("org/single") == part
    assert not hub.fetched and not hub.tokens
    for model in ("org/shards", "org/files:b.gguf"):
        with pytest.raises(DownloadError, match=r"not in the cache.*HF_HUB_OFFLINE forbids"):
            fetch(model)


def test_environment_variables(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys; from blackwell_infer.checkpoint import resolve\n"
        "print(resolve(sys.argv[1], revision='main', progress=lambda *told: None))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "secret"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, PRIVATE], env=environment | more, cwd=ROOT,
                              capture_output=True, text=True, check=False)

    online = run()
    assert online.returncode == 0, online.stderr
    folder = Path(online.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home") and (folder / "config.json").is_file() and online.stderr == ""
    hub.tokens.clear()
    offline = run(HF_HUB_OFFLINE="1", HF_TOKEN="")
    assert Path(offline.stdout.strip()) == folder and not hub.tokens

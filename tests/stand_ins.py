"""Local stand-ins of Google Drive and of the Hugging Face hub, and a released checkpoint at miniature size.

Google Drive as gdown sees it: ``drive.google.com/uc`` shows a page to confirm a large file, or redirects a small one,
to ``drive.usercontent.google.com/download``, which sends it, also from a byte on (``Range``).

The hub as huggingface_hub sees it: repositories with branches and pull requests, listed and downloaded, created and
committed to; weight files are uploaded before the commit, by Git LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import socket
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import torch

from golden import manifest, official_names, tensor_of, write_official
from refervos.sam2.config import SAM2_PRESETS, Sam2Config
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.text.encoder import TextConfig

CONFIRM = (
    "<html><head><title>Google Drive - Virus scan warning</title></head><body>"
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="submit" value="Download anyway"/><input type="hidden" name="id" value="{id}">'
    '<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">'
    '<input type="hidden" name="uuid" value="00-11"></form></body></html>'
)
"""On one line, as Google sends it: gdown reads pages line by line."""

QUOTA = """<html><head><title>Google Drive - Quota exceeded</title></head><body><p class="uc-error-caption">Sorry, you
can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try again later.</p>
</body></html>"""

MISSING = "<html><head><title>Not Found</title></head><body><h1>404. That's an error.</h1></body></html>"
SIGN_IN = "<!DOCTYPE html><html><head><title>Sign in - Google Accounts</title></head><body>Sign in</body></html>"

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""First commit of every repository of the stand-in."""

TOKEN = "hf_writer"
"""Access token with which the hub may be written."""


@dataclass
class Repository:
    """A repository of the hub.

    Attributes:
        commits: Files by name, by commit.
        refs: Commits by branch or pull request.
        messages: Messages of the commits that were received.
        private: Whether it was created as private.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False

    @classmethod
    def of(cls, files: dict[str, bytes]) -> Repository:
        """Make a repository with one commit on its main branch."""
        return cls({COMMIT: files}, {"main": COMMIT})

    def commit_at(self, revision: str) -> str | None:
        """Return the commit of a branch, a pull request or a commit itself."""
        return revision if revision in self.commits else self.refs.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files at a revision."""
        return self.commits[self.refs.get(revision, revision)]

    def receive(self, base: str, target: str, changes: list[dict[str, Any]], uploads: dict[str, bytes]) -> str:
        """Commit the operations that huggingface_hub sends; return the commit."""
        files = dict(self.files(base))
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = uploads[value["oid"]]
            elif change["key"] == "deletedFile":
                del files[value["path"]]
            else:
                self.messages.append(value["summary"])
        commit = hashlib.sha1(json.dumps([target, len(self.commits)]).encode()).hexdigest()
        self.commits[commit], self.refs[target] = files, commit
        return commit


@dataclass
class World:
    """What the two servers have, how they behave, and what they were asked.

    Attributes:
        files: Files on Google Drive, by id.
        drive: How Google Drive behaves: ``confirm``, ``redirect``, ``quota``, ``missing`` or ``page``.
        breaks: For each of the next downloads, the number of bytes after which its connection breaks.
        hold: Number of bytes after which a download stands still; ``held`` is set then.
        ranges: Whether downloads can begin in the middle.
        repositories: Repositories of the hub, by id.
        uploads: Large files that were uploaded, by SHA-256.
        hub: Status of the hub: 200, 404, 403 for a gated repository, or 503.
        requests: Paths that were asked, with the range.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    drive: str = "confirm"
    breaks: list[int] = field(default_factory=list)
    hold: int | None = None
    ranges: bool = True
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    hub: int = 200
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def downloads(self) -> list[str | None]:
        """Ranges of the downloads from Google Drive so far."""
        return [asked for path, asked in self.requests if "usercontent" in path]


class _Handler(BaseHTTPRequestHandler):
    """Answers for both, told apart by the path; see ``connect``."""

    protocol_version = "HTTP/1.1"
    world: World

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.world.requests.append((self.path, self.headers.get("Range")))
        if self.path.startswith("/drive.google.com/"):
            self._drive_page()
        elif self.path.startswith("/drive.usercontent.google.com/"):
            self._drive_file()
        else:
            self._hub(body)

    def _send(self, status: int, content: bytes, kind: str, body: bool = True, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _page(self, status: int, text: str) -> None:
        self._send(status, text.encode(), "text/html; charset=utf-8")

    def _drive_page(self) -> None:
        (file,) = parse_qs(urlsplit(self.path).query)["id"]
        world = self.world
        if world.drive == "missing" or file not in world.files:
            self._page(404, MISSING)
        elif world.drive == "quota":
            self._page(403, QUOTA)
        elif world.drive == "page":
            self._page(200, SIGN_IN)
        elif world.drive == "confirm":
            self._page(200, CONFIRM.format(id=file))
        else:
            target = f"https://drive.usercontent.google.com/download?id={file}&export=download"
            self._send(303, b"", "text/html", Location=target)

    def _drive_file(self) -> None:
        world = self.world
        (file,) = parse_qs(urlsplit(self.path).query)["id"]
        content, asked = world.files[file], self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and world.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", 'attachment; filename="final_model.pth"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if world.hold is not None:
            self.wfile.write(content[start : world.hold])
            self.wfile.flush()
            world.held.set()
            world.release.wait(120)
            self.close_connection = True
        elif world.breaks:
            self.wfile.write(content[start : start + world.breaks.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _json(self, status: int, value: Any, body: bool = True, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", body, **headers)

    def _hub(self, body: bool) -> None:
        """Answer a listing or a download."""
        path, world = urlsplit(self.path).path, self.world
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)/?(.*)", path)
        repository = world.repositories.get(found[1]) if found else None
        codes = {403: "GatedRepo", 404: "RepoNotFound"}
        if found is None or repository is None or world.hub != 200:
            status = 404 if repository is None else world.hub
            self._json(status, {}, body, **({"X_Error_Code": codes[status]} if status in codes else {}))
            return
        commit = repository.commit_at(unquote(found[3]))
        if commit is None:
            self._json(404, {}, body, X_Error_Code="RevisionNotFound")
            return
        files = repository.commits[commit]
        if found[2] == "tree":
            rows = [{"type": "file", "path": name, "oid": sha1(content), "size": len(content)}
                    for name, content in files.items()]  # fmt: skip
            self._json(200, rows, body)
        elif found[2] == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._json(200, {"id": found[1], "modelId": found[1], "sha": commit, "siblings": siblings}, body)
        elif unquote(found[4]) not in files:
            self._json(404, {}, body, X_Error_Code="EntryNotFound")
        else:
            content = files[unquote(found[4])]
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            headers = {"ETag": f'"{sha1(content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            self._send(206 if start else 200, content[start:], "application/octet-stream", body, **headers)

    def _received(self) -> bytes:
        """Read the body of a request, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        """Keep a large file, under its SHA-256."""
        content = self._received()
        self.world.requests.append((self.path, None))
        self.world.uploads[hashlib.sha256(content).hexdigest()] = content
        self._json(200, {})

    def do_POST(self) -> None:
        """Answer a request that writes."""
        content, world = self._received(), self.world
        address = urlsplit(self.path)
        world.requests.append((self.path, None))
        if world.hub != 200:
            self._json(world.hub, {"error": "refused"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
        elif address.path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif address.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            known = name in world.repositories
            if not known:
                world.repositories[name] = Repository.of({".gitattributes": b""})
                world.repositories[name].private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._json(409 if known else 200, {"url": f"{self._address}/{name}"})
        elif address.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self._address}/upload/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self._json(200, {"transfer": "basic", "objects": objects})
        else:
            self._write(address.path, "create_pr" in address.query, content)

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self.world.port}"

    def _write(self, path: str, create_pr: bool, content: bytes) -> None:
        """Answer a request that writes to one repository."""
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/]+)", path)
        assert found is not None, path
        repository, revision = self.world.repositories[found[1]], unquote(found[3])
        if found[2] == "branch":
            known = revision in repository.refs
            repository.refs.setdefault(revision, repository.refs["main"])
            self._json(409 if known else 200, {})
            return
        if found[2] == "preupload":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(content)["files"]
            ]
            self._json(200, {"files": modes})
            return
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        target = f"refs/pr/{number}" if create_pr else revision
        changes = [json.loads(line) for line in content.splitlines()]
        commit = repository.receive(revision, target, changes, self.world.uploads)
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self._address}/{found[1]}/commit/{commit}"}
        if create_pr:
            answer["pullRequestUrl"] = f"{self._address}/{found[1]}/discussions/{number}"
        self._json(200, answer)


def sha1(content: bytes) -> str:
    """Return the SHA-1 of a file, as the hub's ETag."""
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(world: World) -> Iterator[World]:
    """Run both stand-ins on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"world": world})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    world.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield world
    finally:
        world.release.set()
        server.shutdown()
        server.server_close()


def connect(patch: pytest.MonkeyPatch, port: int, home: Path) -> None:
    """Send the requests of gdown and of huggingface_hub in this process to the stand-ins; the cache is in a folder."""
    import requests.adapters
    from huggingface_hub import constants

    class Here(requests.adapters.HTTPAdapter):
        """The request goes to this machine; the client sees the address that it asked."""

        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
            asked = request.url
            request.url = asked.replace("https://", f"http://127.0.0.1:{port}/", 1)
            try:
                response = super().send(request, *arguments, **{**options, "proxies": {}})
            finally:
                request.url = asked
            response.url = asked
            return response

    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setattr(requests.Session, "get_adapter", lambda self, url: Here())
    patch.setattr(random, "uniform", lambda low, high: 0.0)  # gdown waits so long before it tries again
    patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is not imitated; Git LFS is


def forbid_requests(patch: pytest.MonkeyPatch) -> None:
    """Let every connection fail the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    patch.setattr(socket.socket, "connect", refuse)
    patch.setattr(socket.socket, "connect_ex", refuse)


SMALL_BASE_PLUS = Sam2Config(
    hiera_width=16,
    hiera_heads=1,
    hidden=64,
    memory_feedforward=64,
    fuser_feedforward=64,
    decoder_heads=2,
    decoder_feedforward=64,
)
"""SAM2 base-plus with narrow layers: as many tensors, of the same names."""


def use_small_base_plus(patch: pytest.MonkeyPatch) -> None:
    """Let the converter take the miniature checkpoint for the published size."""
    patch.setitem(SAM2_PRESETS, "base-plus", SMALL_BASE_PLUS)


def write_small_release(path: Path, vocabulary: int) -> Path:
    """Write a checkpoint with every name of the released base-plus, values drawn from the names, and small shapes."""
    text = TextConfig(vocabulary=vocabulary, width=24, feedforward=48, positions=66)
    model = Samwise(SamwiseConfig(sam2=SMALL_BASE_PLUS, text=text, adapter_width=32))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        names = [each for each in official_names(name) if each]
        for each in names:
            rows = tensor.shape[0] // len(names) if len(names) > 1 else tensor.shape[0] if tensor.ndim else 0
            shapes[each] = (rows, *tensor.shape[1:]) if tensor.ndim else ()
    entries = manifest("base_hsa_cme")["entries"]
    assert set(shapes) <= {entry["name"] for entry in entries}
    state, aliases = {}, {}
    for entry in entries:
        if "alias_of" in entry:
            aliases[entry["name"]] = entry["alias_of"]
            continue
        shape = shapes.get(entry["name"], (1,) * len(entry["shape"]))
        value = torch.from_numpy(tensor_of({**entry, "shape": shape}))
        state[entry["name"]] = value if entry["dtype"].startswith("float") else value.long()
    state |= {name: state[original] for name, original in aliases.items()}
    return write_official(path, state, {}, args=Namespace(cme_decision_window=4, use_cme_head=True), epoch=1)

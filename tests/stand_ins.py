"""Local stand-ins of Google Drive and of the Hugging Face hub, and a released checkpoint at miniature size.

Google Drive as gdown sees it: ``drive.google.com/uc`` shows a page to confirm a large file, or redirects a small one,
to ``drive.usercontent.google.com/download``, which sends it, also from a byte on (``Range``).
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

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
"""Commit of every repository of the stand-in."""


@dataclass
class World:
    """What the two servers have, how they behave, and what they were asked.

    Attributes:
        files: Files on Google Drive, by id.
        drive: How Google Drive behaves: ``confirm``, ``redirect``, ``quota``, ``missing`` or ``page``.
        breaks: For each of the next downloads, the number of bytes after which its connection breaks.
        hold: Number of bytes after which a download stands still; ``held`` is set then.
        ranges: Whether downloads can begin in the middle.
        repositories: Files of the hub, by repository and name.
        hub: Status of the hub: 200, 404, 403 for a gated repository, or 503.
        requests: Paths that were asked, with the range.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    drive: str = "confirm"
    breaks: list[int] = field(default_factory=list)
    hold: int | None = None
    ranges: bool = True
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
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

    def _hub(self, body: bool) -> None:
        path, world = urlsplit(self.path).path, self.world
        repository = next((each for each in world.repositories if each in path), None)
        codes = {403: "GatedRepo", 404: "RepoNotFound"}
        if repository is None or world.hub != 200:
            status = 404 if repository is None else world.hub
            named = {"X_Error_Code": codes[status]} if status in codes else {}
            self._send(status, b"{}", "application/json", body, **named)
            return
        files = world.repositories[repository]
        if path.startswith("/api/models/"):
            listed: Any = [
                {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
                for name, content in files.items()
            ]
            if "/tree/" not in path:
                siblings = [{"rfilename": name} for name in files]
                listed = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(listed).encode(), "application/json", body)
            return
        content = files[path.rsplit("/", 1)[1]]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": etag, "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        self._send(206 if start else 200, content[start:], "application/octet-stream", body, **headers)


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

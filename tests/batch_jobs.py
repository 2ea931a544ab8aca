"""Small jobs for the tests of refervos.batch: drawn videos, faulty ones, and a worker in this process."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from refervos.batch.job import Job, Options, begin_job
from refervos.batch.manifest import read_manifest
from refervos.batch.units import Cost
from refervos.batch.worker import Worker, WorkerSettings
from scenes import scene
from video_files import write_video

SENTENCES = ("the red circle", "the blue square")

PATIENT = WorkerSettings(device="cpu", timeout=60.0)


def draw_videos(folder: Path, frames: Sequence[int], width: int = 64, height: int = 48) -> list[Path]:
    """Draw videos of so many frames each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, count in enumerate(frames):
        images = scene(count, height, width, seed=index % 4)
        paths.append(write_video(folder / f"{index:03d}.mp4", count, width=width, height=height, images=images))
    return paths


def write_manifest(
    path: Path,
    videos: Sequence[Path | str],
    expressions: Sequence[str] = SENTENCES[:1],
    frames: Sequence[int] | None = None,
) -> Path:
    """Write a manifest of JSON lines, each video with the same sentences, and with its number of frames if given."""
    rows: list[dict[str, Any]] = [{"video": str(video), "expressions": list(expressions)} for video in videos]
    for row, count in zip(rows, frames or (), strict=False):
        row["frames"] = count
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def begin(out: Path | str, manifest: Path, shard_seconds: float = 1.0, cost: Cost | None = None, **options: Any) -> Job:
    """Begin a job, or go on with it, as the command line does."""
    return begin_job(out, read_manifest(manifest), Options(**options), cost or Cost(overhead=0.1), shard_seconds)


def work(
    job: Job, settings: WorkerSettings = PATIENT, stop_after: int | None = None, stop: Callable[[], bool] | None = None
) -> Worker:
    """Process a job in this process, and stop after so many frames or when ``stop`` says so."""

    def stopped() -> bool:
        return (stop_after is not None and worker.frames >= stop_after) or (stop is not None and stop())

    worker = Worker(job, settings, stopped)
    worker.run()
    return worker


def files(out: Path, folder: str = "data") -> dict[str, bytes]:
    """Return the files of a sub-folder of results."""
    return {path.name: path.read_bytes() for path in sorted((out / folder).iterdir())}


@contextlib.contextmanager
def video_server(folder: Path, stall: str = "stalls") -> Iterator[str]:
    """Serve a folder by ranges; a file whose name has the word ``stall`` is begun and never finished.

    Yields:
        The address of the folder.
    """
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            asked = self.headers.get("Range")
            first, last = 0, len(content) - 1
            if asked:
                begin, _, end = asked.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end or last), last)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{len(content)}"')
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            if body and stall in path.name:
                released.wait(300)
            elif body:
                self.wfile.write(content[first : last + 1])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        released.set()
        server.shutdown()
        server.server_close()

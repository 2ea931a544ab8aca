"""A running studio and small videos for the tests in a browser."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from refervos.worlds import Motion, Scene, Thing, draw_scene
from video_files import write_video

SIZE = (160, 240)
FRAMES = 30
SCENE = Scene(
    objects=(
        Thing("circle", "red", 0.2, Motion((0.4, 0.35), (0.006, 0.001))),
        Thing("square", "yellow", 0.2, Motion((1.1, 0.65), (-0.004, 0.0))),
    ),
    background="gradient",
    background_seed=5,
)


def clip(path: Path, frames: int = FRAMES) -> Path:
    """Write a clip with a red circle at the upper left and a yellow square at the lower right."""
    height, width = SIZE
    images = draw_scene(SCENE, frames, SIZE).frames
    return write_video(path, frames, width=width, height=height, fps=15, images=list(images))


@contextmanager
def running_studio(folder: Path, *options: str) -> Iterator[str]:
    """Run ``refervos studio`` on a free port.

    Args:
        folder: Folder of its videos and sessions.
        options: Further options of the command.

    Yields:
        Its address.
    """
    command = [sys.executable, "-m", "refervos", "studio", "--no-browser", "--port", "0", "--folder", str(folder)]
    server = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert " at http" in line, line
        yield line.split(" at ")[1].strip()
    finally:
        server.terminate()
        server.wait(timeout=60)  # it saves its sessions, on a busy machine


class Camera:
    """A camera that pushes JPEGs over http, can be unplugged, and comes back at the same address."""

    def __init__(self) -> None:
        frames = draw_scene(SCENE, 60, SIZE).frames
        self._pictures = [_jpeg(frame) for frame in [*frames, *frames[::-1]]]
        self._plugged = threading.Event()
        self._plugged.set()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not camera._plugged.is_set():
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                camera._push(self.wfile)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}/live.mjpeg"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _push(self, output: io.BufferedIOBase) -> None:
        try:
            for k in range(100_000):
                if not self._plugged.is_set():
                    return
                picture = self._pictures[k % len(self._pictures)]
                output.write(b"--next\r\nContent-Type: image/jpeg\r\n")
                output.write(f"Content-Length: {len(picture)}\r\n\r\n".encode() + picture + b"\r\n")
                time.sleep(1 / 15)  # the rate of the camera
        except OSError:
            pass

    def unplug(self) -> None:
        """End all connections and refuse new ones."""
        self._plugged.clear()

    def plug_in(self) -> None:
        """Accept connections again."""
        self._plugged.set()

    def plug_in_later(self, seconds: float) -> None:
        """Accept connections again after some seconds."""
        threading.Timer(seconds, self._plugged.set).start()

    def close(self) -> None:
        """Stop the server."""
        self.unplug()
        self._server.shutdown()
        self._server.server_close()


def _jpeg(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=85)
    return content.getvalue()

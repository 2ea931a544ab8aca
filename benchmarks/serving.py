"""Measure a server: sessions side by side, its memory over time, and the latency from a click to its answer.

Run with ``python benchmarks/serving.py --sessions 4 --seconds 120``. The server runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from refervos.client import connect
from refervos.client.connection import Connection
from refervos.client.remote_session import RemoteSession
from refervos.segmentation import Segmentation
from refervos.video import Frame, OverlaySink

WIDTH, HEIGHT = 480, 270
MEBIBYTE = 2**20
_EXPECTED_RATE = 12
"""Frames per second of one session; one that is faster reaches the end of the video and is followed by another."""


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clicks", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(Path(folder) / "video.mp4", max(900, round(_EXPECTED_RATE * options.seconds)))
        command = [sys.executable, "-m", "refervos", "serve", "--port", "0", "--folder", f"{folder}/server"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            with connect(process.stdout.readline().split()[-1], timeout=300) as server:
                measure(server, process.pid, video, options.sessions, options.seconds, options.clicks)
        finally:
            process.terminate()
            process.wait()


def measure(server: Connection, pid: int, video: Path, count: int, seconds: float, clicks: int) -> None:
    """Measure a server and print the figures."""
    uploaded = server.upload(video)
    alone = server.open(["the red circle"], video=uploaded)
    latencies = sorted(click_latencies(alone, clicks))
    alone.delete()
    print(f"click to answer, {WIDTH} x {HEIGHT}, {clicks} clicks at the newest frame, one session:")
    print(f"  p50 {latencies[len(latencies) // 2]:.0f} ms, p95 {latencies[int(0.95 * len(latencies))]:.0f} ms")
    begin, cpu = time.monotonic(), processor_seconds(pid)
    frames = [0] * count
    threads = [
        threading.Thread(target=follow, args=(server, uploaded, seconds, frames, k), daemon=True) for k in range(count)
    ]
    for thread in threads:
        thread.start()
    memory: list[float] = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(seconds / 40)
        memory.append(resident(pid) / MEBIBYTE)
    took, used = time.monotonic() - begin, processor_seconds(pid) - cpu
    quarter = max(1, len(memory) // 4)
    first, last = np.mean(memory[quarter : 2 * quarter]), np.mean(memory[-quarter:])
    print(f"{count} sessions for {took:.0f} s: {sum(frames)} frames, {min(frames)} to {max(frames)} a session")
    print(f"  {1000 * used / max(1, sum(frames)):.1f} ms of processor time a frame, in the server and its model")
    print(f"  resident memory: second quarter {first:.0f} MiB, last quarter {last:.0f} MiB, most {max(memory):.0f} MiB")


def click_latencies(session: RemoteSession, clicks: int) -> list[float]:
    """Return milliseconds from sending a click at the newest frame until its mask has arrived."""
    draw = random.Random(0)
    found = []
    for _ in range(clicks):
        session.step()
        begin = time.perf_counter()
        session.correct(0, points=[[draw.uniform(100, 380), draw.uniform(80, 190)]])
        found.append(1000 * (time.perf_counter() - begin))
    return found


def follow(server: Connection, video: str, seconds: float, frames: list[int], k: int) -> None:
    """Follow a session for some seconds; at the end of the video another one is opened."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with server.open(["the red circle"], video=video) as session:
            for _ in session.stream():
                frames[k] += 1
                if time.monotonic() >= end:
                    return
            session.delete()


def write_video(path: Path, count: int) -> Path:
    """Write a drawn video of a disc that goes round."""
    none = Segmentation(0, (), (), np.zeros((0, HEIGHT, WIDTH), bool), np.zeros(0, np.float32), np.zeros(0, bool))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with OverlaySink(path, fps=30, legend=False) as sink:
        for k in range(count):
            image = np.full((HEIGHT, WIDTH, 3), 190, np.uint8)
            x, y = 240 + 130 * np.cos(k / 30), 135 + 60 * np.sin(k / 30)
            image[(columns - x) ** 2 + (rows - y) ** 2 < 900] = (220, 30, 30)
            sink.write(Frame(k, image, k / 30), none)
    return path


def resident(pid: int) -> float:
    """Return the resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    main()

"""Measure the studio in headless Chromium: the first mask, the latency of frames, and the answer to clicks.

    python benchmarks/studio.py

runs ``refervos studio`` with the miniature, a drawn clip and the webcam that Chromium imitates at 30 frames per second,
and prints a table in Markdown. Run it on a quiet machine: the server and the browser share its cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SENTENCE = "the red circle"
PATIENCE = 300_000  # milliseconds

# Installed before the page's modules run: notes when each frame was sent by the server and when it was painted.
OBSERVE = """
(() => {
    const sent = new Map();
    window.latencies = [];
    const Plain = window.WebSocket;
    window.WebSocket = class extends Plain {
        constructor(...given) {
            super(...given);
            this.addEventListener("message", ({ data }) => {
                if (typeof data === "string") return;
                const length = new DataView(data).getUint32(0, true);
                const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
                sent.set(header.frame, header.sent);
            });
        }
    };
    addEventListener("DOMContentLoaded", () => {
        const canvas = document.querySelector("#stage-canvas");
        new MutationObserver(() => {
            const frame = Number(canvas.dataset.frame);
            if (!canvas.dataset.masks || !sent.has(frame)) return;
            window.latencies.push(Date.now() - sent.get(frame));
            sent.delete(frame);
        }).observe(canvas, { attributes: true, attributeFilter: ["data-frame", "data-masks"] });
    });
})();
"""

# Clicks on the object and waits until the masks of the frame have been painted again.
CLICK = """
(frame) => new Promise((resolve) => {
    const { studio } = window.refervosStudio;
    const begin = performance.now();
    const wait = () => {
        if (studio.stage.painted.at > begin && window.answered) resolve(performance.now() - begin);
        else requestAnimationFrame(wait);
    };
    window.answered = false;
    studio.session.addEventListener("frame", (event) => {
        if (event.detail.masks.frame >= frame) window.answered = true;
    });
    const points = [[0.25 * studio.view.width, 0.33 * studio.view.height, 1]];
    studio.stage.dispatchEvent(new CustomEvent("correct", { detail: { points, box: null } }));
    wait();
})
"""


@contextmanager
def running_studio(*options: str) -> Iterator[str]:
    """Run ``refervos studio`` on a free port and yield its address."""
    command = [sys.executable, "-m", "refervos", "studio", "--no-browser", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split(" at ")[1].strip()
    finally:
        server.terminate()
        server.wait(timeout=30)


def first_mask(page: Any, address: str) -> float:
    """Open the page and a clip, ask, and return the seconds until the first mask was painted."""
    page.goto(address)
    begin = page.evaluate("performance.timeOrigin")
    page.locator(".card").first.click()
    page.fill("#sentence", SENTENCE)
    page.press("#sentence", "Enter")
    page.locator('#stage-canvas[data-masks="0"]').wait_for(timeout=PATIENCE)
    seconds: float = (page.evaluate("Date.now()") - begin) / 1000
    return seconds


def live_latencies(page: Any, address: str, frames: int) -> tuple[list[float], list[float], float]:
    """Follow the fake webcam and click on it.

    Returns:
        Milliseconds from sending each frame to painting it, milliseconds from clicks to painted answers, and frames per
        second.
    """
    page.goto(address)
    page.click("#source-webcam")
    page.fill("#sentence", SENTENCE)
    page.press("#sentence", "Enter")
    page.locator('#stage-canvas[data-masks="0"]').wait_for(timeout=PATIENCE)
    page.evaluate("void (window.latencies.length = 0)")
    begin = page.evaluate("performance.now()")
    while page.evaluate("window.latencies.length") < frames:
        page.wait_for_timeout(200)
    rate = page.evaluate(f"1000 * window.latencies.length / (performance.now() - {begin})")
    latencies = page.evaluate("window.latencies")
    clicks = []
    for _ in range(20):
        page.wait_for_timeout(150)
        shown = int(page.locator("#stage-canvas").get_attribute("data-frame") or 0)
        clicks.append(page.evaluate(CLICK, shown))
    return latencies, clicks, rate


def recorded_clicks(page: Any) -> list[float]:
    """Pause the clip of ``first_mask``, and click on the newest frame that has masks."""
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    page.locator("#status", has_text=re.compile("Paused|are done")).wait_for(timeout=PATIENCE)
    newest = page.evaluate("window.refervosStudio.studio.session.newest")
    page.evaluate(f"window.refervosStudio.studio.seek({newest})")
    page.locator(f'#stage-canvas[data-frame="{newest}"][data-masks="0"]').wait_for(timeout=PATIENCE)
    return [page.evaluate(CLICK, newest) for _ in range(20)]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(name: str, values: Sequence[float], unit: str = "ms") -> str:
    """Format the median and the 95th percentile as a row of the table."""
    p50, p95 = statistics.median(values), quantile(values, 0.95)
    return f"| {name} | {p50:.0f} {unit} | {p95:.0f} {unit} | {len(values)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="Number of live frames to measure.")
    parser.add_argument("--runs", type=int, default=5, help="Number of times to open the page for the first mask.")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_studio("--folder", folder, "--limit", "sessions=50") as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(PATIENCE)
        page.add_init_script(OBSERVE)
        first = [first_mask(page, address) for _ in range(options.runs)]
        recorded = recorded_clicks(page)
        load = os.getloadavg()[0]
        latencies, clicks, rate = live_latencies(page, address, options.frames)
        browser.close()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} to {os.getloadavg()[0]:.1f}")
    print(f"live: {rate:.1f} frames per second\n")
    print("| | p50 | p95 | n |\n|---|---|---|---|")
    print(row("page opened to first mask", [1000 * seconds for seconds in first]))
    print(row("frame sent to painted mask, live 640x480", latencies))
    print(row("click to painted answer, live", clicks))
    print(row("click to painted answer, recording", recorded))


if __name__ == "__main__":
    main()

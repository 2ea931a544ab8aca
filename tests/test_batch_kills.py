"""The long form of the promise: fifty videos, four of them bad or long, and twenty kills at random moments."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from pathlib import Path

import pytest

from batch_jobs import PATIENT, begin, draw_videos, files, video_server, work, write_manifest
from refervos.batch.job import Job, latest_records
from refervos.batch.merging import check
from refervos.samwise.model import Samwise
from refervos.training.stages.language import train_byte_level
from scenes import MICRO, micro_model, scene
from video_files import write_video

KILLS = 20

LONG_FPS = 2
"""Frames per second of the video of twenty minutes, so that it has 2400 frames."""

SETTINGS = dataclasses.replace(PATIENT, timeout=20.0, save_every=1.0)


def write_micro(folder: Path) -> Path:
    """Write a model of random weights, four times as fast as the miniature."""
    words = train_byte_level(["the red circle", "the blue square"] * 4, 300)
    Samwise(micro_model(text=dataclasses.replace(MICRO.text, vocabulary=len(words))).config, words).save_pretrained(
        folder
    )
    return folder


def start_worker(job: Job) -> int:
    """Start a worker in a process group of its own; return its process number."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        code = 1
        try:
            work(job, SETTINGS)
            code = 0
        finally:
            os._exit(code)
    return child


def kill(child: int) -> bool:
    """Kill a worker and its decoder, if it is still at work; return whether it was."""
    ended, _ = os.waitpid(child, os.WNOHANG)
    if ended:
        return False
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("one_thread", "no_proxy")
def test_twenty_kills_leave_the_rows_of_an_undisturbed_run(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    draw = random.Random(11)
    drawn = [str(path) for path in draw_videos(videos, [draw.randint(3, 16) for _ in range(46)])]
    frames = 20 * 60 * LONG_FPS
    images = scene(frames, 48, 64)
    long = write_video(videos / "long.mp4", frames, fps=LONG_FPS, width=64, height=48, images=images)
    (videos / "stalls.mp4").write_bytes(Path(drawn[0]).read_bytes())
    (videos / "truncated.mp4").write_bytes(Path(drawn[1]).read_bytes()[:400])
    (videos / "empty.mp4").write_bytes(b"")
    model = str(write_micro(tmp_path / "model"))
    with video_server(videos) as address:
        bad = [f"{address}/stalls.mp4", f"{videos}/truncated.mp4", f"{videos}/empty.mp4"]
        everything = [*drawn, str(long), *bad]
        manifest = write_manifest(tmp_path / "m.jsonl", everything)
        calm = begin(tmp_path / "calm", manifest, shard_seconds=4.0, model=model)
        work(calm, SETTINGS)
        job = begin(tmp_path / "killed", manifest, shard_seconds=4.0, model=model)
        kills = 0
        workers = [start_worker(job), start_worker(job)]
        while kills < KILLS:
            time.sleep(draw.uniform(0.5, 12.0))
            # Sometimes one process dies, sometimes the whole machine.
            for place in [0, 1] if draw.random() < 0.5 else [draw.randrange(2)]:
                kills += kill(workers[place])
                workers[place] = start_worker(job)
            if len(job.finished()) == len(job.shards()):
                break
        for worker in workers:
            kill(worker)
        assert kills >= KILLS, f"the job was done after {kills} kills"
        work(job, SETTINGS)
    job.write_missing_records()
    assert files(tmp_path / "killed") == files(tmp_path / "calm")
    assert check(job) == check(calm)
    outcomes = [latest_records(each.shards(), each.records()) for each in (calm, job)]
    assert len(outcomes[0]) == len(everything) == 50
    assert [record.outcome() for record, _ in outcomes[0].values()] == [
        record.outcome() for record, _ in outcomes[1].values()
    ]
    failed = sorted(record.error or "" for record, _ in outcomes[1].values() if record.status == "failed")
    assert failed == ["DecoderTimeoutError", "VideoError", "VideoError"]

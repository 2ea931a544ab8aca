"""Plans: a simulated schedule, a cost fitted to measured times, and what the command prints."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs import SENTENCES, draw_videos, write_manifest
from refervos.batch.calibration import fit_cost
from refervos.batch.job import DATA, Job, Options, plan_units
from refervos.batch.manifest import read_manifest
from refervos.batch.planning import plan_job
from refervos.batch.schedule import example_table, pack_work, simulate, simulate_static
from refervos.batch.shard_files import MaskRows, UnitRecord, encode_shard
from refervos.batch.storage import open_store
from refervos.batch.units import Cost, Unit, pack
from refervos.cli.entry import main

PAGE = (Path(__file__).parents[1] / "docs" / "batch.md").read_text(encoding="utf-8")


def test_a_schedule_by_hand() -> None:
    schedule = simulate([3, 3, 2], 2, load=1)
    assert (schedule.seconds, schedule.work, schedule.lost) == (6, 8, 0)
    assert schedule.utilisation == pytest.approx(8 / 12)
    assert simulate_static([3, 3, 2], 2, load=1).seconds == 6
    assert simulate_static([3, 1, 3, 1], 2).seconds == 6
    assert simulate([3, 3, 1, 1], 2).seconds == 4


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=50), st.integers(1, 8))
def test_a_schedule_lies_between_its_bounds(work: list[float], slots: int) -> None:
    seconds = simulate(work, slots).seconds
    least = max(sum(work) / slots, *work)
    assert least * (1 - 1e-9) <= seconds <= (sum(work) / slots + max(work)) * (1 + 1e-9)


def test_failures_cost_the_piece_in_work_and_a_start() -> None:
    calm, failing = simulate([50.0] * 40, 4, 1.0), simulate([50.0] * 40, 4, 1.0, mean_uptime=300.0)
    assert failing.lost > 0
    assert failing.seconds > calm.seconds
    # All workers are busy until one has nothing left to take.
    assert failing.seconds * 4 >= failing.work + failing.lost


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 400), min_size=1, max_size=60), st.floats(1, 200))
def test_simulated_shards_are_those_of_the_units(works: list[float], seconds: float) -> None:
    units = [Unit(f"{index:03d}", "u", "v", 0, None, ("x",), 1, work) for index, work in enumerate(works)]
    packed = [sum(unit.work for unit in shard) for shard in pack(units, seconds)]
    assert packed == pytest.approx(pack_work(works, seconds))


def test_the_page_shows_the_simulated_table() -> None:
    (shown,) = re.findall(r"\| schedule \|.*?\n\n", PAGE, re.DOTALL)
    rows = [line.split("|")[1:-1] for line in shown.strip().splitlines()[2:]]
    table = example_table(runs=20)
    assert [row[0].split(" (mean of")[0].strip() for row in rows] == [name for name, _ in table]
    for (_, minutes, utilisation, lost), (_, schedules) in zip(rows, table, strict=True):
        found = [schedule.seconds / 60 for schedule in schedules]
        assert float(minutes.split(";")[0]) == pytest.approx(sum(found) / len(found), abs=0.051)
        assert float(minutes.split(";")[-1]) == pytest.approx(max(found), abs=0.051)
        assert float(utilisation.split(";")[-1]) == pytest.approx(min(s.utilisation for s in schedules), abs=0.0051)
        if lost.strip():
            hours = sum(schedule.lost for schedule in schedules) / len(schedules) / 3600
            assert float(lost.split()[0]) == pytest.approx(hours, abs=0.051)


def test_costs_are_found_in_the_times_of_a_job(tmp_path: Path) -> None:
    cost = Cost(load=5.0, overhead=0.5, commit=0.25, shared=0.02, sentence=0.03)
    job = Job(open_store(tmp_path), Options(), "f", shard_seconds=0.0).begin()
    units = [
        Unit(f"{frames}-{count}", "u", "v", 0, None, SENTENCES[:count], frames, frames)
        for frames in (16, 40, 64)
        for count in (1, 2)
    ]
    job.add(units)
    for worker, shards in enumerate((job.shards()[::2], job.shards()[1::2])):
        now = 1000.0 + 100 * worker
        started, now = now, now + cost.load
        start = {"time": started + 2.0, "cpu": 1.0, "event": "start", "frames": 0, "started": started}
        lines: list[dict[str, Any]] = [start]
        for shard in shards:
            (unit,) = shard.units
            record = UnitRecord(unit.name, "ok", frames=unit.frames)
            job.store.create(f"{DATA}/{shard.name}.parquet", encode_shard(shard.name, {}, [record], [MaskRows()]))
            begun, now = now, now + cost.seconds(unit.frames, len(unit.expressions))
            segmented, now = now, now + cost.commit
            moments = [{"time": each, "cpu": (each - started) / 2} for each in (begun, segmented, now)]
            commit = {"event": "commit", "frames": 0, "shard": shard.name}
            lines.append({**moments[2], **commit, "begun": moments[0], "segmented": moments[1]})
        log = "".join(f"{json.dumps(line)}\n" for line in lines)
        job.store.append(f"_log/{worker}.jsonl", log.encode())
    found, half = fit_cost(job), fit_cost(job, "cpu")
    for name in ("load", "overhead", "commit", "shared", "sentence"):
        assert getattr(found, name) == pytest.approx(getattr(cost, name), rel=1e-3), name
        assert getattr(half, name) == pytest.approx(getattr(cost, name) / 2, rel=1e-3), name


def test_a_plan_has_the_shards_of_a_run_at_its_frame_rate() -> None:
    cost = Cost(load=7.0, overhead=0.5, commit=0.25, shared=0.01, sentence=0.03)
    frames = [100, 900, 40, 2500, 300, 310, 20, 700]
    units = [Unit(f"{n}", "u", "v", 0, None, SENTENCES[: 1 + n % 2], count, 0.0) for n, count in enumerate(frames)]
    plan = plan_job(units, cost, 2, 20.0)
    assert plan.cost.fps == pytest.approx(25)
    run = Cost.from_fps(25, overhead=0.5)
    works = [dataclasses.replace(unit, work=run.seconds(unit.frames, len(unit.expressions))) for unit in units]
    assert plan.files == len(pack(works, 20.0)) > 2
    seconds = sum(0.5 + n * (0.01 + 0.03 * (1 + k % 2)) for k, n in enumerate(frames))
    assert plan.schedule.work == pytest.approx(seconds + 0.25 * plan.files)
    assert plan.longest == pytest.approx(0.5 + 2500 * 0.07)
    assert plan.schedule.seconds >= 7 + plan.longest


@pytest.mark.parametrize("overhead", [0.1234567, 2.0, 30.0])
def test_a_run_with_the_options_of_a_plan_packs_its_shards(
    overhead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [10 + 37 * index for index in range(12)]
    manifest = write_manifest(tmp_path / "m.jsonl", draw_videos(tmp_path, [2] * 12), frames=frames)
    cost = Cost(load=3.0, overhead=overhead, commit=0.1, shared=1 / 171, sentence=1 / 111)
    plan = plan_job(plan_units(read_manifest(manifest), {}, cost), cost, 2, 9.0)
    begun: list[Job] = []
    monkeypatch.setattr("refervos.cli.batch.run_here", lambda job, settings: begun.append(job))
    options = ["--device", "cpu", "--quiet", "--shard", "1/1", *plan.options()]
    monkeypatch.setattr(sys, "argv", ["refervos", "batch", str(manifest), str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shards = begun[0].shards()
    assert len(shards) == plan.files
    works = [cost.commit + sum(cost.seconds(unit.frames, 1) for unit in shard.units) for shard in shards]
    assert simulate(works, 2, cost.load) == plan.schedule


def test_the_command_plans_without_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", draw_videos(tmp_path, [2, 2, 2]), frames=[2400, 1200, 1200])
    options = ["--slots", "2", "--fps", "24", "--overhead", "0", "--load", "10", "--price", "3.6"]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["refervos", "batch", "plan", str(manifest), *options, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        printed = capsys.readouterr().out
        if more:
            found = json.loads(printed)
            assert found["files"] == 3 - 2 + 1  # 100 s and 50 s make a shard of 120 s; 50 s are left
            assert found["makespan_seconds"] == pytest.approx(160)
            assert found["worker_hours"] == pytest.approx(320 / 3600)
            assert found["money"] == pytest.approx(0.32)
            assert found["measured"] is False
        else:
            assert "makespan  3 min on 2 workers, 62% of their time used (simulated)" in printed
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".mp4", ".mp4", ".mp4"]

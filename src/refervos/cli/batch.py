"""``refervos batch``: segment the videos of a manifest, and watch, plan and merge such a job."""

from __future__ import annotations

import dataclasses
import json
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from refervos.cli.diagnose import parse_settings
from refervos.cli.options import (
    DeviceOption,
    ModelOption,
    OverwriteOption,
    Precision,
    ProtocolOption,
    QuietOption,
    SettingsOption,
)
from refervos.cli.segment import Borders, OnCut, OnRepeat
from refervos.errors import ConfigError, require_installed
from refervos.safe_text import one_line, printable

if TYPE_CHECKING:
    from refervos.batch.job import Job


class _RunByDefault(TyperGroup):
    """Group whose command ``run`` need not be written: ``refervos batch MANIFEST OUT``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


batch_app = typer.Typer(
    name="batch",
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Segment many videos, on any number of processes and machines: `refervos batch MANIFEST OUT`.",
)


class Runner(StrEnum):
    """What starts the workers."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


OutArgument = Annotated[str, typer.Argument(help="Folder of results, or an address such as s3://bucket/masks.")]
PriceOption = Annotated[float | None, typer.Option(min=0, help="Price of one worker for an hour.", show_default=False)]
OverheadOption = Annotated[
    float, typer.Option(min=0, help="Seconds that each video needs beside its frames, with --fps.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ManifestArgument = Annotated[
    Path, typer.Argument(help="CSV, JSON lines or Parquet file: video, expression or expressions, start, end, frames.")
]


@batch_app.command()
def run(
    context: typer.Context,
    manifest: ManifestArgument,
    out: OutArgument,
    model: ModelOption = "miniature",
    device: DeviceOption = None,
    dtype: Annotated[Precision, typer.Option(help="Floating-point precision of the model.")] = Precision.float32,
    protocol: ProtocolOption = None,
    settings: SettingsOption = None,
    clip: Annotated[int | None, typer.Option(min=1, help="Frames per clip; default the model's.")] = None,
    on_cut: Annotated[OnCut, typer.Option(help="At a scene cut: forget the memory, or ignore the cut.")] = OnCut.ignore,
    on_repeat: Annotated[
        OnRepeat, typer.Option(help="A repeated frame: segment it, or reuse masks.")
    ] = OnRepeat.answer,
    borders: Annotated[Borders | None, typer.Option(help="Mask borders; default the model's.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a worker; part of the options of the masks.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers; default one per CPU, or one per GPU.")
    ] = None,
    runner: Annotated[Runner, typer.Option(help="What starts workers: local processes, Slurm or Ray.")] = Runner.local,
    shard: Annotated[
        str | None,
        typer.Option(help="'i/n': process only each n-th shard from the i-th on (from 1), in this process."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed videos again.")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without a frame after which a decoder is killed.")
    ] = 60.0,
    save_every: Annotated[
        float, typer.Option(min=0, help="Seconds of work after which a long video's state is saved.")
    ] = 60.0,
    fps: Annotated[
        float, typer.Option(min=0.01, help="Frames per second of one worker, from which shards are packed.")
    ] = 30.0,
    overhead: OverheadOption = 2.0,
    shard_seconds: Annotated[float, typer.Option(min=0, help="Least work of a shard in seconds.")] = 120.0,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    hours: Annotated[float, typer.Option(min=0.1, help="Time limit of a Slurm job in hours.")] = 24.0,
    per_gpu: Annotated[int, typer.Option(min=1, help="Workers that share a GPU.")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; default a new one here.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Segment the videos of a manifest; the same command continues after an interruption.

    Example: `refervos batch videos.csv masks --workers 2`
    """
    require_installed("refervos batch", "batch", "pyarrow", "fsspec")
    from refervos.batch.job import Options, begin_job, local_path
    from refervos.batch.manifest import read_manifest
    from refervos.batch.units import Cost
    from refervos.batch.worker import WorkerSettings
    from refervos.progress import Bar

    part = parse_shard(shard)
    if runner is Runner.slurm:
        require_installed("the runner of Slurm", "slurm", "submitit")
    if runner is Runner.ray:
        require_installed("the runner of Ray", "ray", "ray")
    entries = read_manifest(manifest)
    overrides = parse_settings(settings or []) | ({} if protocol is None else {"protocol": protocol})
    options = Options(
        model=local_path(model),
        settings=overrides,
        dtype=dtype.value,
        clip=clip,
        on_cut=on_cut.value,
        on_repeat=on_repeat.value,
        borders=borders and borders.value,
        threads=threads,
    )
    with Bar("videos looked up", total=len(entries), show=False if quiet else None) as bar:
        cost = Cost.from_fps(fps, overhead=overhead)
        job = begin_job(out, entries, options, cost, shard_seconds, patience=timeout, advance=bar.advance)
    if retry_failed:
        job.repeat_failed()
    worker = WorkerSettings(device=device, timeout=timeout, save_every=save_every, part=part or (0, 1))
    try:
        if part is not None:
            run_here(job, worker)
        elif runner is Runner.local:
            run_locally(job, worker, workers, per_gpu, quiet=quiet)
        elif runner is Runner.slurm:
            from refervos.batch.run_slurm import run_slurm

            run_slurm(job, worker, workers=workers or 1, hours=hours, partition=partition)
        else:
            from refervos.batch.run_ray import run_ray

            run_ray(job, worker, workers=workers or 1, per_gpu=per_gpu, address=ray_address)
    finally:
        job.write_missing_records()
        if not quiet:
            typer.echo(describe(job), err=True)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Parse ``i/n``.

    Returns:
        The first shard, from 0, and the step; None without a text.

    Raises:
        ConfigError: When it has another form.
    """
    if text is None:
        return None
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise ConfigError(f"--shard is {text!r}; write i/n with i from 1 to n, such as 1/4.")
    return int(first) - 1, int(count)


def run_here(job: Job, settings: Any) -> None:
    """Process a share of the shards in this process."""
    from refervos.batch.worker import STOPPED, StopFlag, Worker

    with StopFlag(signal.SIGTERM, signal.SIGINT) as stop:
        Worker(job, settings, stop).run()
    if stop.received is not None:
        raise typer.Exit(STOPPED if stop.received == signal.SIGTERM else 128 + stop.received)


def run_locally(job: Job, settings: Any, workers: int | None, per_gpu: int, *, quiet: bool) -> None:
    """Process the job in processes of this machine, with a progress bar."""
    from refervos.batch.run_local import run_local, worker_devices
    from refervos.progress import Bar

    sizes = {shard.name: len(shard.units) for shard in job.shards()}
    counted = job.finished()
    done = sum(sizes.get(name, 0) for name in counted)
    with Bar("videos", total=sum(sizes.values()), show=False if quiet else None, done=done) as bar:

        def watch() -> None:
            new = job.finished() - counted
            counted.update(new)
            bar.advance(sum(sizes.get(name, 0) for name in new))

        run_local(job, settings, worker_devices(settings.device, workers, per_gpu), watch)


def describe(job: Job) -> str:
    """Describe a job in a sentence or two."""
    from refervos.batch.status import status_of

    found = status_of(job)
    text = f"{found.done} videos done, {found.failed} failed, {found.left} left in {job.store.address}"
    hint = f"; see refervos batch status {job.store.address}" if found.failed else ""
    return printable(f"{text}{hint}")


@batch_app.command()
def status(out: OutArgument, price: PriceOption = None, as_json: JsonOption = False) -> None:
    """Show what is done, failed and left, the speed, the remaining time, the slowest videos and the cost so far.

    Example: `refervos batch status masks --price 2.5`
    """
    require_installed("refervos batch", "batch", "pyarrow", "fsspec")
    from refervos.batch.job import Job
    from refervos.batch.status import status_of
    from refervos.batch.storage import open_store

    found = status_of(Job.open(open_store(out)))
    cost = None if price is None else found.cost(price)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(found), "cost": cost}, indent=2))
        return
    speed = "no worker is running"
    if found.frames_per_second is not None and found.seconds_left is not None:
        speed = f"{found.frames_per_second:.1f} frames/s, {duration(found.seconds_left)} left"
    lines = [
        f"videos   {found.done} done, {found.failed} failed, {found.left} left",
        f"shards   {found.shards_done} of {found.shards}",
        f"frames   {found.frames}",
        f"workers  {found.workers} running; {speed}",
        f"cost     {found.worker_hours:.2f} hours of workers" + ("" if cost is None else f", {cost:.2f} at {price}/h"),
    ]
    if found.slowest:
        lines.append("slowest")
        lines += [f"  {record.seconds:9.1f} s  {record.frames:7d} frames  {uri}" for record, uri in found.slowest]
    if found.failures:
        lines.append("failed")
        lines += [f"  {record.error}: {one_line(record.reason or '')}" for record, _ in found.failures[:50]]
    typer.echo(printable("\n".join(lines)))


def workers_text(count: int) -> str:
    """Write a number of workers."""
    return "1 worker" if count == 1 else f"{count} workers"


def duration(seconds: float) -> str:
    """Write a duration in hours and minutes, or in seconds if it is short."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@batch_app.command()
def plan(
    manifest: ManifestArgument,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Workers that run at the same time; default as many as here.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.01, help="Frames per second of a worker with one sentence; default measured here."),
    ] = None,
    overhead: OverheadOption = 2.0,
    load: Annotated[float, typer.Option(min=0, help="Seconds to start a worker, with --fps.")] = 20.0,
    price: PriceOption = None,
    shard_seconds: Annotated[float, typer.Option(min=0, help="Least work of a shard in seconds.")] = 120.0,
    model: ModelOption = "miniature",
    device: DeviceOption = None,
    dtype: Annotated[Precision, typer.Option(help="Floating-point precision of the model.")] = Precision.float32,
    protocol: ProtocolOption = None,
    settings: SettingsOption = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a worker.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Estimate duration, cost and number of files of a job before anything is spent.

    Example: `refervos batch plan videos.csv --slots 400 --fps 80 --price 2.5`
    """
    require_installed("refervos batch", "batch", "pyarrow", "fsspec")
    from refervos.batch.job import Options, local_path, plan_units
    from refervos.batch.manifest import read_manifest
    from refervos.batch.planning import plan_job
    from refervos.batch.units import Cost

    entries = read_manifest(manifest)
    cost = Cost.from_fps(fps or 30.0, overhead=overhead, load=load)
    units = plan_units(entries, {}, cost)
    if fps is None:
        from refervos.batch.calibration import measure_cost
        from refervos.batch.run_local import worker_devices

        overrides = parse_settings(settings or []) | ({} if protocol is None else {"protocol": protocol})
        options = Options(local_path(model), overrides, dtype.value, threads=threads)
        devices = worker_devices(device, None, 1)[: slots or None]
        slots = slots or len(devices)
        cost = measure_cost(entries, units, options, devices)
    found = plan_job(units, cost, slots or 1, shard_seconds)
    money, schedule = found.money(price), found.schedule
    if as_json:
        typer.echo(json.dumps({**found.as_json(price), "measured": fps is None}, indent=2))
        return
    origin = "measured here" if fps is None else "given"
    lines = [
        f"videos    {found.videos} with {found.frames} frames",
        f"seconds   {cost.shared:.4f} per frame + {cost.sentence:.4f} per frame and sentence, {cost.overhead:.2f} per "
        f"video, {cost.commit:.2f} per file, {cost.load:.1f} per start ({origin})",
        f"files     {found.files} of at least {shard_seconds:g} s of work (refervos batch {' '.join(found.options())})",
        f"work      {schedule.work / 3600:.2f} hours, the longest video {duration(found.longest)}",
        f"makespan  {duration(schedule.seconds)} on {workers_text(schedule.slots)}, "
        f"{schedule.utilisation:.0%} of their time used (simulated)",
        f"cost      {schedule.slot_hours:.2f} hours of workers" + ("" if money is None else f", {money:.2f}"),
    ]
    typer.echo("\n".join(lines))


@batch_app.command()
def merge(
    out: OutArgument,
    file: Annotated[Path, typer.Argument(help="Parquet file to write; that of the units is written beside it.")],
    partial: Annotated[bool, typer.Option("--partial", help="Merge a job that is not finished.")] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Check all files of a job and merge them into one, with a second one for the units.

    Example: `refervos batch merge masks masks.parquet`
    """
    require_installed("refervos batch", "batch", "pyarrow", "fsspec")
    from refervos.batch.job import Job
    from refervos.batch.merging import merge as merge_files
    from refervos.batch.storage import open_store

    for path in merge_files(Job.open(open_store(out)), file, partial=partial, overwrite=overwrite):
        typer.echo(f"wrote {printable(str(path))}")

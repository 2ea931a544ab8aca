"""Data workers: pickled sources, start methods, signals, and the same samples as in one process."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_sets import SMALL_DATA_SETS
from layouts import write_mevis
from layouts_images import write_refcoco
from refervos.errors import DataError, TrainingError
from refervos.loading import ASSETS, MINIATURE_FOLDER, load
from refervos.placement import Placement, letterbox
from refervos.sam2.config import Sam2Config
from refervos.text.encoder import TextConfig
from refervos.text.t5 import T5Config
from refervos.training import sampler
from refervos.training.sampler import ShareSampler, iterate_batches, make_loader, start_method
from refervos.training.stage import TRAIN, Key, SampleSource, Stage
from refervos.training.stages.clip_sources import BenchmarkClips, BenchmarkSource
from refervos.training.stages.language import LanguageSettings, LanguageStage
from refervos.training.stages.refsam import RefSamSettings, RefSamStage
from refervos.training.stages.sam import SamSettings, SamStage
from refervos.training.stages.samwise import ImagesSettings, ImagesStage, VideoSettings, VideoStage
from refervos.training.stages.track import TrackSettings, TrackStage
from refsam_models import TINY
from test_trainer import assert_same_result, run, toy
from training_stages import ToyStage

CPU = torch.device("cpu")
KEY = (3, 0, TRAIN)


def samwise() -> Any:
    """Return the configuration and the folder of the miniature."""
    return replace(load(device="cpu").config), {"model": MINIATURE_FOLDER}


def refsam() -> Any:
    return load("refsam-miniature", device="cpu").config, {"model": ASSETS / "refsam-miniature"}


def track(data: Path) -> Stage:
    shape = Sam2Config(image_size=128, hidden=64)
    return TrackStage.build(TrackSettings(model=shape, frames=(2,), recognition=1.0), {}, 1)


def sam(data: Path) -> Stage:
    return SamStage.build(SamSettings(model=TINY.sam), {}, 1)


def roberta(data: Path) -> Stage:
    shape = TextConfig(width=128, heads=4, layers=4, feedforward=512, segment_ends=(1, 2, 3, 4))
    return LanguageStage.build(LanguageSettings(model=shape), {}, 1)


def t5(data: Path) -> Stage:
    shape = T5Config(width=128, head_width=32, heads=4, layers=4, feedforward=512)
    return LanguageStage.build(LanguageSettings(kind="t5", t5=shape), {}, 1)


def images(data: Path) -> Stage:
    model, init = samwise()
    write_refcoco(data / "refer", "refcoco", ("train", "val"), "unc")
    source = BenchmarkSource("refcoco", str(data / "refer"))
    return ImagesStage.build(ImagesSettings(model=model, data=(source,), frames=(1,)), init, 1)


def video(data: Path) -> Stage:
    model, init = samwise()
    write_mevis(data / "mevis", "train", videos=2, frames=9)
    source = BenchmarkSource("mevis", str(data / "mevis"))
    return VideoStage.build(VideoSettings(model=model, data=(source,), frames=(4,)), init, 1)


def worlds(data: Path) -> Stage:
    model, init = samwise()
    return VideoStage.build(VideoSettings(model=model, frames=(2,)), init, 1)


def refsam_clips(data: Path) -> Stage:
    model, init = refsam()
    return RefSamStage.build(RefSamSettings(model=model, frames=(2,)), init, 1)


STAGES: dict[str, Callable[[Path], Stage]] = {
    made.__name__: made for made in (track, sam, roberta, t5, images, video, worlds, refsam_clips)
}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    made = {name: make(tmp_path_factory.mktemp(name)) for name, make in STAGES.items()}
    for stage in made.values():
        stage.prepare_data(2, 0)
    return made


@dataclass(frozen=True)
class Square:
    """Placement of a model with this image size."""

    side: int

    def place(self, frame_size: tuple[int, int]) -> Placement:
        return letterbox(frame_size, self.side, self.side)


class WeightsFound(pickle.Pickler):
    """Pickler that records the shape of every parameter."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.weights: list[tuple[int, ...]] = []

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, nn.Parameter):
            self.weights.append(tuple(thing.shape))
        return NotImplemented


@pytest.mark.parametrize("name", STAGES)
def test_workers_are_sent_no_weights(name: str, stages: dict[str, Stage]) -> None:
    stage = stages[name]
    loader = make_loader(stage.source(), KEY, ShareSampler(range(2), 2), workers=1, device=CPU)
    file = io.BytesIO()
    pickler = WeightsFound(file)
    pickler.dump((loader.dataset, loader.collate_fn))  # sent to a process that is not forked
    weights = sum(parameter.numel() * parameter.element_size() for parameter in stage.parameters())
    assert pickler.weights == []
    assert file.tell() < weights / 8, (file.tell(), weights)
    dataset, collate = pickle.loads(file.getvalue())
    again = collate([dataset[0, index] for index in range(2)])
    assert same(again, collate([loader.dataset[0, index] for index in range(2)]))


@pytest.mark.parametrize("name", SMALL_DATA_SETS)
def test_clips_of_every_data_set_can_be_pickled(name: str, tmp_path: Path) -> None:
    split, write = SMALL_DATA_SETS[name]
    write(tmp_path)
    source = BenchmarkSource(name, str(tmp_path), split)
    clips = BenchmarkClips([source.open()], batch=2, stride=2, placement=Square(64).place)
    once = clips.draw(0, 0, KEY, 2, 1)
    again = pickle.loads(pickle.dumps(clips)).draw(0, 0, KEY, 2, 1)
    assert same(vars(once), vars(again))


@dataclass(frozen=True)
class CombinedSource(SampleSource):
    """All sources in one, so that one worker process serves them all."""

    sources: Mapping[str, SampleSource]

    def draw(self, step: int, index: int, key: Key) -> dict[str, Any]:
        samples = {name: source.draw(step, index, key) for name, source in self.sources.items()}
        return samples | {"process": multiprocessing.current_process().name}

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        batch = {name: source.collate([sample[name] for sample in samples]) for name, source in self.sources.items()}
        return batch | {"process": [sample["process"] for sample in samples]}


def same(one: Any, other: Any) -> bool:
    """Compare two batches bit by bit."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("method", ["spawn", "forkserver"] if sys.platform == "linux" else ["spawn"])
def test_worker_processes_draw_the_samples_of_one_process(
    method: str, stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CombinedSource({name: stage.source() for name, stage in stages.items()})
    share = ShareSampler(range(3, 5), 4, accumulate=2)
    own = list(make_loader(source, KEY, share, workers=0, device=CPU))
    monkeypatch.setattr(sampler, "start_method", lambda device: method)
    from_worker = list(make_loader(source, KEY, share, workers=1, device=CPU))
    assert {name for batch in own for name in batch.pop("process")} == {"MainProcess"}
    assert "MainProcess" not in {name for batch in from_worker for name in batch.pop("process")}
    assert len(own) == len(from_worker) == 4
    assert all(map(same, own, from_worker))
    assert not same(own[0], own[1])


def test_training_with_worker_processes_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "one", toy(steps=2, validate_every=2))
    monkeypatch.setattr(sampler, "start_method", lambda device: "spawn")
    run(tmp_path / "two", toy(steps=2, validate_every=2, workers=1))
    assert_same_result(tmp_path / "one" / "toy", tmp_path / "two" / "toy")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a fork server")
def test_the_fork_server_preloads_the_source(stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    preloaded: list[str] = []
    server: Any = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(type(server), "set_forkserver_preload", lambda self, modules: preloaded.extend(modules))
    for device in ("cpu", "cuda"):
        make_loader(stages["sam"].source(), KEY, ShareSampler(range(1), 2), workers=1, device=torch.device(device))
    assert preloaded == ["refervos.training.stages.prompt_stage"]


def test_processes_are_forked_only_if_no_gpu_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    found = [start_method(torch.device(name)) for name in ("cpu", "cuda:1", "xpu")]
    assert found == ["fork", "forkserver", "forkserver"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert start_method(CPU) == "forkserver"
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert {start_method(torch.device(name)) for name in ("cpu", "cuda", "mps")} == {"spawn"}


def test_the_loader_uses_the_start_method(stages: dict[str, Stage]) -> None:
    for workers, method in ((1, start_method(CPU)), (0, None)):
        loader = make_loader(stages["sam"].source(), KEY, ShareSampler(range(1), 2), workers=workers, device=CPU)
        context = loader.multiprocessing_context
        assert (None if context is None else context.get_start_method()) == method


@dataclass(frozen=True)
class UnreadableSource(SampleSource):
    """Source that cannot draw the samples of one step."""

    which: int

    def draw(self, step: int, index: int, key: Key) -> int:
        if step == self.which:
            raise DataError("clip/00001.jpg is no image that can be read.")
        return step

    def collate(self, samples: list[int]) -> list[int]:
        return samples


def loader_of(source: SampleSource, workers: int) -> Any:
    return make_loader(source, KEY, ShareSampler(range(8), 2), workers=workers, device=CPU)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_sample_that_cannot_be_drawn_raises_its_error_and_no_worker_stays(workers: int) -> None:
    found: list[Any] = []

    def draw_all() -> None:
        with iterate_batches(loader_of(UnreadableSource(3), workers)) as batches:
            assert len(multiprocessing.active_children()) == workers
            found.extend(batches)

    with pytest.raises(DataError) as caught:
        draw_all()
    assert str(caught.value) == "clip/00001.jpg is no image that can be read."
    assert found == [[0, 0], [1, 1], [2, 2]]
    assert multiprocessing.active_children() == []


def test_no_worker_stays_when_the_trainer_stops_early() -> None:
    with iterate_batches(loader_of(UnreadableSource(-1), 2)) as batches:
        assert next(batches) == [0, 0]
    assert multiprocessing.active_children() == []


class UnreadableStage(ToyStage):
    """Toy stage whose first image cannot be read."""

    def source(self) -> Any:
        return UnreadableSource(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_command_ends_at_once_when_a_sample_cannot_be_read(workers: int, tmp_path: Path) -> None:
    """A separate process, because it once hung at its exit."""
    recipe = toy(steps=4, stage="test_training_workers:UnreadableStage", workers=workers)
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "cut", "stages": [recipe]}))
    command = [sys.executable, "-m", "refervos", "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=60, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "refervos: clip/00001.jpg is no image that can be read.\n"


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked only on Linux")
def test_workers_end_after_a_grace_period_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "GRACE_PERIOD", 0.5)
    signalled: list[float] = []

    def draw_all() -> None:
        with iterate_batches(waiting()) as batches:
            assert next(batches) == [0, 0]
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid or 0, signal.SIGTERM)
            signalled.append(time.monotonic())
            assert next(batches) == [1, 1]  # it continues for now: the trainer may have got the signal, too
            time.sleep(20)

    with pytest.raises(TrainingError, match="a data worker process was lost"):
        draw_all()
    assert 0.4 < time.monotonic() - signalled[0] < 15


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 1), (signal.SIGTERM, 2)])
def test_a_lost_worker_is_reported_even_while_the_trainer_sleeps(number: int, times: int) -> None:
    def draw_some() -> None:
        with iterate_batches(waiting()) as batches:
            next(batches)
            (worker,) = multiprocessing.active_children()
            for _ in range(times):
                os.kill(worker.pid or 0, number)
                time.sleep(0.5)
            time.sleep(20)

    with pytest.raises(
        TrainingError, match=r"lost \(DataLoader worker .* is killed by .*\); .* set fewer in the recipe"
    ):
        draw_some()
    assert multiprocessing.active_children() == []


def waiting() -> Any:
    return make_loader(UnreadableSource(-1), KEY, ShareSampler(range(1000), 2), workers=1, device=CPU)

"""The benchmark: what the clock counts, what is measured apart, what a report says; and compiled stages."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

import refsam_models
from bench_process import DEADLY, FAULTY, take_memory
from refervos.bench import measuring
from refervos.bench.cases import (
    DTYPES,
    PLAIN_SAM2,
    Case,
    Failure,
    Measurement,
    chosen,
    combinations,
    counts,
    known_model,
)
from refervos.bench.clock import (
    ADAPTERS,
    CME,
    CONDITION,
    DECODER,
    PLACEMENT_METHODS,
    REST,
    STAGES,
    TEXT,
    TRACKING,
    ClockTime,
    ProcessorTime,
    StageClock,
    StageMethod,
    time_on,
)
from refervos.bench.families import FAMILIES, REFSAM_STAGES, SAMWISE_STAGES, preset_names
from refervos.bench.machine import Machine, read_cpuinfo, this_machine
from refervos.bench.measured_models import HashedWords, draw_material
from refervos.bench.measuring import also_counted, measure, peak_operations
from refervos.bench.memory import peak_device_megabytes, peak_resident_megabytes, resident_megabytes
from refervos.bench.plain_sam2 import PlainSam2
from refervos.bench.processes import measured_apart
from refervos.bench.report import Report, as_json, as_markdown, machine_lines
from refervos.cli import entry as cli
from refervos.errors import ConfigError
from refervos.loading import BUNDLED, load
from refervos.ops.compilation import compile_stages
from refervos.ops.linear import one_dnn_product
from refervos.refsam.model import RefSam
from refervos.samwise.model import Samwise
from scenes import CAPTION, MICRO, MICRO_SAM2, micro_model, scene, session_of

MINIATURE = Case("miniature", "online", frames=2, warm_up=1, threads=1)

# The clock.


class Ticks:
    """A probe whose readings are a number that the test moves on."""

    now = 0.0

    def mark(self) -> float:
        return self.now

    def between(self, start: float, end: float) -> float:
        return end - start

    def settle(self) -> None:
        """Nothing to wait for."""


class Nested(nn.Module):
    """Takes 1 before, 5 within and 2 after the inner method."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.ticks = ticks

    def outer(self) -> str:
        self.ticks.now += 1
        self.inner(0)
        self.ticks.now += 2
        return "answer"

    def inner(self, which: int) -> None:
        self.ticks.now += 5


NESTED = (
    StageMethod("", "outer", DECODER),
    StageMethod("", "inner", (CME, TEXT)),
    StageMethod("", "no such method", REST),
    StageMethod("no.such.module", "forward", REST),
)


def test_a_stage_within_a_stage_is_not_counted_twice() -> None:
    ticks = Ticks()
    model = Nested(ticks)
    with StageClock(model, NESTED, ticks) as clock:
        assert model.outer() == "answer"
        model.inner(1)
        assert clock.totals() == {DECODER: 3.0, CME: 5.0, TEXT: 5.0}
        clock.restart()
        model.outer()
        assert clock.totals() == {DECODER: 3.0, CME: 5.0}


def test_a_call_that_fails_is_over() -> None:
    ticks = Ticks()
    model = Nested(ticks)
    with StageClock(model, NESTED, ticks) as clock:
        with pytest.raises(IndexError):
            model.inner(2)
        with pytest.raises(TypeError):
            model.outer("too many")  # type: ignore[call-arg]
        model.outer()
    assert clock.totals() == {DECODER: 3.0, CME: 5.0}


class FakeCuda:
    """Stands in for a machine with several GPUs, and notes which of them is asked for what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, object]] = []
        self.now = 0.0
        fake = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                fake.asked.append(("record", stream))
                self.time = fake.now

            def elapsed_time(self, other: Event) -> float:
                return other.time - self.time

        def noted(name: str, answer: object) -> Callable[[object], object]:
            def ask(device: object) -> object:
                self.asked.append((name, str(device)))
                return answer

            return ask

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
        monkeypatch.setattr(torch.cuda, "synchronize", noted("synchronize", None))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", noted("memory", 5_000_000))
        about = SimpleNamespace(name="Some GPU", total_memory=24_000_000_000)
        monkeypatch.setattr(torch.cuda, "get_device_properties", noted("properties", about))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "cuda", "12.8")


def test_a_gpu_that_is_not_the_current_one_is_timed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    probe = time_on(torch.device("cuda:1"))
    start = probe.mark()
    cuda.now = 7.0
    end = probe.mark()
    probe.settle()
    assert probe.between(start, end) == 7.0
    assert cuda.asked == [*[("record", "the stream of cuda:1")] * 2, ("synchronize", "cuda:1")]


def test_gpus_of_other_kinds_are_timed_by_the_clock_when_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    monkeypatch.setattr(torch.xpu, "synchronize", lambda device: waited.append(str(device)))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 2_000_000 * len(waited))
    for name in ("mps", "xpu:1"):
        probe = time_on(torch.device(name))
        assert probe.between(probe.mark(), probe.mark()) == 2.0
        probe.settle()
    assert waited == ["mps", "mps", "xpu:1", "xpu:1"]


def test_the_clock_reads_the_device_of_its_model() -> None:
    assert isinstance(StageClock(Nested(Ticks()), ()).probe, ProcessorTime)
    elsewhere = StageClock(Nested(Ticks()).to("meta"), ()).probe
    assert isinstance(elsewhere, ClockTime)
    assert elsewhere.device == torch.device("meta")


def test_the_memory_and_the_name_are_those_of_the_gpu_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_device_megabytes("cpu") is None
    assert peak_device_megabytes("mps") is None  # torch does not tell
    cuda = FakeCuda(monkeypatch)
    assert peak_device_megabytes("cuda:1") == 5.0
    machines = [this_machine(device) for device in ("cuda:1", "cpu", "mps")]
    assert cuda.asked == [("memory", "cuda:1"), ("properties", "cuda:1"), ("properties", "0")]
    assert [(machine.gpu, machine.gpu_gigabytes, machine.cuda) for machine in machines] == [
        *[("Some GPU", 24.0, "12.8")] * 2,
        ("Apple GPU (mps)", None, None),
    ]
    assert "; Some GPU (24 GB, CUDA 12.8)" in machine_lines(machines[0])
    assert "; Apple GPU (mps)\n" in machine_lines(machines[2])


def instance_attributes(model: Samwise) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


def test_the_clock_leaves_the_model_as_it_was() -> None:
    model = micro_model()
    replaced = lambda *arguments, **options: type(model.tracker).upsample(model.tracker, *arguments, **options)  # noqa: E731
    object.__setattr__(model.tracker, "upsample", replaced)  # as a compiled stage is
    before = instance_attributes(model)
    plain = session_of(model, [CAPTION]).step(scene(1)[0])
    with StageClock(model, SAMWISE_STAGES):
        assert "encode_stage" in vars(model.tracker)
        timed = session_of(model, [CAPTION]).step(scene(1)[0])
    assert instance_attributes(model) == before
    assert vars(model.tracker)["upsample"] is replaced
    assert plain.logits is not None
    assert timed.logits is not None
    assert np.array_equal(plain.logits, timed.logits)


def labels(methods: Sequence[StageMethod]) -> list[str]:
    """The stages that methods belong to and those of placements, in the order of a frame."""
    named = {label for entry in methods for label in ([entry.stage] if isinstance(entry.stage, str) else entry.stage)}
    return [stage for stage in STAGES if stage in named | set(PLACEMENT_METHODS.values())]


def test_every_stage_of_a_frame_is_found() -> None:
    # Whoever renames a method of a model must tell the clock.
    model = micro_model(cme_decision="always", cme_window=1)
    with StageClock(model, SAMWISE_STAGES) as clock:
        list(session_of(model, [CAPTION]).stream(scene(4), clip_length=2))
    assert list(clock.totals()) == labels(SAMWISE_STAGES)
    assert min(clock.totals().values()) > 0
    with StageClock(refsam := refsam_models.tiny_model(), REFSAM_STAGES) as clock:
        refsam.open(refsam_models.SENTENCES[0]).step(scene(1)[0])
    assert list(clock.totals()) == labels(REFSAM_STAGES)
    assert min(clock.totals().values()) > 0


# Measuring.

WIDER = dataclasses.replace(MICRO_SAM2, hidden=128)
"""transformers' own tracker fails where pointers are as narrow as memory maps."""


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refervos.bench.measuring.PEAK_SIDE", {"cpu": 64, "gpu": 64})


def test_a_case_is_measured() -> None:
    case = dataclasses.replace(MINIATURE, mode="clip", sentences=2, frames=9, flops=True)
    result = measure(case)
    assert isinstance(result, Measurement), result
    assert (result.weights, result.image_size, result.answered_at_once) == ("trained", 128, 8)
    assert (len(result.answers), result.frames) == (2, 16)  # whole clips
    assert result.frame_milliseconds * result.frames_per_second == pytest.approx(1000)
    assert sum(result.stages.values()) == pytest.approx(result.processor)
    assert all(result.stages[stage] > 0 for stage in labels(SAMWISE_STAGES) if stage != CME)  # which looks later
    assert result.peak_megabytes >= (result.loaded_megabytes or 0) > 0
    assert result.floor_milliseconds is not None
    assert result.latency(100) == max(result.answers)


def test_operations_are_those_of_the_sentences() -> None:
    one, four = (measure(dataclasses.replace(MINIATURE, sentences=count, flops=True)) for count in (1, 4))
    assert isinstance(one, Measurement)
    assert isinstance(four, Measurement)
    shared = ("patch embedding", "image stages 1-2")
    assert all(four.operations[stage] == one.operations[stage] for stage in shared)
    assert four.operations["image stages 3-4"] == pytest.approx(4 * one.operations["image stages 3-4"])


def test_operations_are_counted_whoever_does_them() -> None:
    # float32 takes ways around torch that its counter does not see; bfloat16 in mixed precision takes none.
    near, plain = (measure(dataclasses.replace(MINIATURE, dtype=dtype, flops=True)) for dtype in DTYPES[:2])
    assert isinstance(near, Measurement)
    assert isinstance(plain, Measurement)
    # Memory attention takes fewer operations the near way.
    assert 0.5 * plain.operations[CONDITION] < near.operations.pop(CONDITION) <= plain.operations.pop(CONDITION)
    assert near.operations == pytest.approx(plain.operations)


def test_what_torch_does_not_count_is_counted() -> None:
    tokens, weight = torch.zeros(1, 2, 10, 32), torch.zeros(5, 32)
    image, kernel = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 3, 3)
    for call, operations in (
        (lambda: torch.mkldnn_convolution(image, kernel, None, [1, 1], [2, 2], [1, 1], 1), 2 * 2 * 5 * 4 * 4 * 3 * 9),
        (lambda: torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens), 2 * 4 * 10 * 10 * 32),
        (lambda: one_dnn_product(tokens, weight), 2 * 2 * 10 * 32 * 5),
    ):
        with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=also_counted()) as counter:
            call()
        assert counter.get_total_flops() == operations


@pytest.mark.parametrize(
    ("there", "dtype", "ways"), [(True, "bfloat16", 2), (False, "bfloat16", 1), (True, "float32", 2)]
)
def test_the_peak_is_the_best_of_the_ways_that_there_are(
    there: bool, dtype: str, ways: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []
    products: list[str] = []

    def one_dnn(wanted: torch.dtype) -> bool:
        asked.append(wanted)
        return there

    class Slow(Ticks):
        def mark(self) -> float:
            self.now += 6000
            return self.now

    monkeypatch.setattr(measuring, "has_one_dnn", one_dnn)
    monkeypatch.setattr(measuring, "one_dnn_product", lambda one, other: products.append("oneDNN"))
    monkeypatch.setattr(torch, "mm", lambda one, other: products.append("torch"))
    assert peak_operations(dataclasses.replace(MINIATURE, dtype=dtype)) > 0
    assert asked == [getattr(torch, dtype)]
    assert products == [name for name in ("torch", "oneDNN")[:ways] for _ in range(10)]
    products.clear()
    monkeypatch.setattr(measuring, "time_on", lambda device: Slow())
    assert peak_operations(dataclasses.replace(MINIATURE, dtype=dtype)) == 2 * 64**3 / 6000 / 1e6
    assert products == [name for name in ("torch", "oneDNN")[:ways] for _ in range(2)]  # 6 s each are enough


def test_random_weights_of_a_size_and_the_baseline_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {"micro": dataclasses.replace(MICRO, sam2=WIDER)}
    monkeypatch.setitem(FAMILIES, "samwise", dataclasses.replace(FAMILIES["samwise"], presets=presets))
    asked = measure(dataclasses.replace(MINIATURE, model="micro", size=192, sentences=2))
    baseline = measure(dataclasses.replace(MINIATURE, model="micro", size=192, mode=PLAIN_SAM2, stages=False))
    for result in (asked, baseline):
        assert isinstance(result, Measurement), result
        assert (result.weights, result.image_size, result.frames) == ("random", 192, 2)
    assert isinstance(asked, Measurement)
    assert asked.stages[ADAPTERS] > 0


@pytest.fixture
def _refsam_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {"tiny-refsam": refsam_models.TINY}
    monkeypatch.setitem(FAMILIES, "refsam", dataclasses.replace(FAMILIES["refsam"], presets=presets))


@pytest.mark.usefixtures("_refsam_preset")
def test_another_family_is_measured_through_the_same_session() -> None:
    case = dataclasses.replace(MINIATURE, model="tiny-refsam", mode="clip", size=96, sentences=2)
    result = measure(case)
    assert isinstance(result, Measurement), result
    assert (result.weights, result.image_size, result.frames, result.switches) == ("random", 96, 2, 0)
    assert result.stages[TRACKING] > 0
    assert CONDITION not in result.stages
    with pytest.raises(ConfigError, match="tiny-refsam is built on no tracker to compare it with"):
        measure(dataclasses.replace(case, mode=PLAIN_SAM2))


def test_trained_weights_of_one_image_size_are_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refervos.bench.measured_models.load", lambda *_, **__: RefSam(refsam_models.TINY))
    with pytest.raises(ConfigError, match="own has weights for images of side 64 alone; leave --size out"):
        measure(dataclasses.replace(MINIATURE, model="models/own", size=96))


def test_sizes_of_all_families_can_be_had() -> None:
    assert preset_names() == ["tiny", "base-plus", "large", "vit-b", "vit-l", "vit-h"]


def test_what_goes_wrong_in_torch_is_a_failure_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    monkeypatch.setattr("refervos.bench.measuring.open_subject", out_of_memory)
    assert measure(MINIATURE) == Failure(MINIATURE, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")


def test_the_baseline_follows_a_click() -> None:
    torch.manual_seed(0)
    tracker = PlainSam2(WIDER)
    masks = [tracker.step(frame) for frame in scene(3)]
    assert [(mask.shape, mask.dtype) for mask in masks] == [((96, 128), np.dtype(bool))] * 3
    assert len(tracker._session.frames_tracked_per_obj[0]) == 2  # all but the one that was clicked


def test_every_case_is_given_the_same() -> None:
    few, many = (draw_material(dataclasses.replace(MINIATURE, sentences=count)) for count in (2, 30))
    assert few[1] == many[1][:2]
    assert len({prompt.expression for prompt in many[1]}) > 10
    assert few[0][0].shape == (480, 854, 3)
    # Forwards and backwards: no jump, also where they begin again.
    jumps = [
        np.abs(one.astype(int) - other).mean() for one, other in zip(few[0], [*few[0][1:], few[0][0]], strict=True)
    ]
    assert 0 < min(jumps) <= max(jumps) < 3 * float(np.median(jumps))


def test_words_become_ids_of_the_vocabulary() -> None:
    words = HashedWords(100, start=(0,), end=(2,))
    ids, verbs = words.encode("the red square and the ring")
    assert ids[0] == 0
    assert ids[-1] == 2
    assert ids[1] == ids[5] != ids[2]
    assert all(4 <= number < 100 for number in ids[1:-1])
    assert len(ids) == len(verbs) == 8
    assert len(words.encode("word " * 50, limit=10)[0]) == 10
    assert HashedWords(100, start=(), end=(1,)).encode("the red square")[0] == [*ids[1:4], 1]


# Processes.


def test_each_case_has_a_process_of_its_own() -> None:
    ballast = np.ones(60_000_000)  # what this process has does not count
    cases = [dataclasses.replace(MINIATURE, sentences=count) for count in (2, DEADLY, 1, FAULTY)]
    results = measured_apart(cases, take_memory)
    first, dead, last = (next(results) for _ in range(3))
    with pytest.raises(ConfigError, match="the case is at fault"):
        next(results)
    assert isinstance(first, Failure)
    assert isinstance(last, Failure)
    assert dead == Failure(cases[1], "the process was killed, perhaps for want of memory")
    (more, one, threads), (less, other, _) = (map(int, result.reason.split()) for result in (first, last))
    assert one != other
    assert threads == 1
    assert 200 < more - less < 280
    assert peak_resident_megabytes() >= (resident_megabytes() or 0) > ballast.nbytes / 1e6


# Options and reports.


def test_combinations_are_every_one_and_the_baseline_first() -> None:
    cases = combinations(
        MINIATURE, modes=["clip", "online"], sentences=[1, 4], dtypes=["float32"], compiled=True, baseline=True
    )
    assert [case.label for case in cases[:4]] == [
        "plain SAM2, float32",
        "clip, 1 sentence, float32",
        "clip, 1 sentence, float32, compiled",
        "clip, 4 sentences, float32",
    ]
    assert len({case.label for case in cases}) == len(cases) == 9


@pytest.mark.parametrize("model", [*BUNDLED, "tiny", "owner/name", str(Path(__file__).parent)])
def test_every_model_that_can_be_had_is_known(model: str) -> None:
    known_model(model, ["tiny"])


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: chosen("clip,offline", "--mode", ("clip", "online")), "--mode has 'offline'; it takes clip, online"),
        (lambda: chosen(" ,", "--dtype", ("float32",)), "--dtype has ''; it takes float32"),
        (lambda: counts("1,x", "--sentences"), "--sentences is '1,x'; give positive numbers"),
        (lambda: counts("0", "--sentences"), "--sentences is '0'; give positive numbers"),
        (lambda: known_model("hug", ["tiny"]), "there is no model 'hug'; give a model folder, .* random weights: tiny"),
        (
            lambda: combinations(MINIATURE, modes=["clip"], sentences=[1], dtypes=["float16"]),
            "float16 is computed on GPUs only, and the device is cpu",
        ),
        (
            lambda: measure(dataclasses.replace(MINIATURE, size=100)),
            "image_size is 100; it must be a positive multiple",
        ),
    ],
)
def test_bad_input_is_told_in_a_sentence(ask: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ask()


def test_a_model_asked_with_clicks_is_refused(tmp_path: Path) -> None:
    from refervos.sam2.segmenter import Sam2Segmenter
    from refervos.sam2.tracker import Sam2Tracker

    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(tmp_path / "clicks")
    with pytest.raises(ConfigError, match=r"clicks is of no family that bench measures; .* with sentences"):
        measure(dataclasses.replace(MINIATURE, model=str(tmp_path / "clicks")))


def test_the_processor_is_read_as_linux_tells_it(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2: fast\nflags\t\t: fpu avx2 amx_bf16\n\n"
        "processor\t: 1\nmodel name\t: Other\nflags\t\t: avx512f\n"
    )
    assert read_cpuinfo(path) == ("Some CPU @ 2: fast", ("avx2", "amx_bf16"))
    assert read_cpuinfo(tmp_path / "none") == ("", ())


MACHINE = Machine("Some CPU", ("avx2",), 2, 16.0, "Linux", "3.11", "2.13", "5.23", "0.1", None, None, None, True)


def measurement(case: Case, processor: float, **values: object) -> Measurement:
    """Two answers of 100 and 300 ms."""
    fixed = {
        "weights": "trained",
        "image_size": 128,
        "answered_at_once": 1,
        "answers": (100.0, 300.0),
        "first_answer": 900.0,
        "warm_up_seconds": 1.5,
        "stages": {},
        "switches": 3,
        "loaded_megabytes": 400.0,
        "peak_megabytes": 512.4,
        "peak_device_megabytes": None,
    }
    return Measurement(case=case, processor=processor, **(fixed | values))  # type: ignore[arg-type]


def test_a_report_tells_speed_stages_floor_and_failures() -> None:
    base = measurement(dataclasses.replace(MINIATURE, mode=PLAIN_SAM2), 160.0)
    stages, operations = {DECODER: 120.0, REST: 80.0}, {DECODER: 3.0}
    asked = measurement(MINIATURE, 200.0, stages=stages, operations=operations, peak_operations=100.0)
    emulated = measurement(dataclasses.replace(MINIATURE, dtype="bfloat16"), 500.0, stages={REST: 500.0})
    failed = Failure(dataclasses.replace(MINIATURE, sentences=16), "no memory")
    report = Report("refervos bench", MACHINE, [base, asked, emulated, failed])

    table = [line.split("|")[1:-1] for line in as_markdown(report).splitlines() if line.startswith("|")]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in table}
    #                  frames/s, ms/frame, CPU ms, p50, p90, p99, worst, first, warm-up, RAM, x SAM2, switches
    assert rows["2: online, 1 sentence, float32"] == (
        ["5.00", "200", "100", "200", "280", "298", "300", "900", "1.50", "512", "1.25", "3"]
    )
    assert rows["3: online, 1 sentence, bfloat16"][-2] == "-"  # no baseline in this type
    assert rows["1: plain SAM2, float32"][-2] == "-"
    assert rows["CPU ms/frame"] == ["2", "3"]
    assert rows["rest"] == ["40.0", "250"]
    floor = table[[row[0].strip() for row in table].index("GFLOP/frame (x floor)") :]
    assert {row[0].strip(): row[1].strip() for row in floor}["decoder"] == "3.00 (2.00x)"  # 60 ms where 30 would do
    assert "- 4, online, 16 sentences, float32: no memory" in as_markdown(report)
    assert "- This processor has no instructions for bfloat16: oneDNN emulates it" in as_markdown(report)

    read = json.loads(as_json(report))
    assert read["machine"]["processor"] == "Some CPU"
    assert read["results"][1]["times_plain_sam2"] == 1.25
    assert read["results"][1]["latency_milliseconds"]["p50"] == 200
    assert read["results"][1]["case"]["dtype"] == "float32"
    assert read["results"][3]["reason"] == "no memory"


@pytest.mark.parametrize("device", ["cuda:1", "mps", "xpu"])
def test_results_of_any_gpu_are_told_by_its_time(device: str) -> None:
    case = dataclasses.replace(MINIATURE, device=device, dtype="bfloat16")
    base = measurement(dataclasses.replace(case, mode=PLAIN_SAM2), 9.0, answers=(50.0, 50.0))
    asked = measurement(case, 1.0, stages={DECODER: 400.0})
    assert (asked.frame_cost, base.frame_cost) == (200.0, 50.0)
    text = as_markdown(Report("refervos bench", MACHINE, [base, asked]))
    assert "GPU ms/frame" in text
    assert "x SAM2: the clock's time of a frame" in text
    assert f"1 thread, {device}." in text
    assert "bfloat16:" not in text  # which is about processors
    assert combinations(case, modes=["clip"], sentences=[1], dtypes=["float16"])


@pytest.mark.parametrize(
    ("flags", "one_dnn", "note"),
    [
        (("avx2", "avx512f", "avx512_bf16"), True, None),
        (("amx_bf16",), True, None),
        (("bf16",), True, None),
        ((), True, None),  # not known, so nothing is claimed
        (("avx2", "avx512f"), True, "no instructions for bfloat16: oneDNN emulates it"),
        (("avx2",), False, "oneDNN multiplies no bfloat16 on this processor"),
        ((), False, "oneDNN multiplies no bfloat16 on this processor"),
    ],
)
def test_what_is_told_of_bfloat16_is_true(flags: tuple[str, ...], one_dnn: bool, note: str | None) -> None:
    machine = dataclasses.replace(MACHINE, flags=flags, one_dnn_bfloat16=one_dnn)
    found = machine.bfloat16_note
    assert found is None if note is None else note in str(found)
    text = as_markdown(Report("bench", machine, [measurement(dataclasses.replace(MINIATURE, dtype="bfloat16"), 1.0)]))
    assert ("multiplies no bfloat16" in text or "emulates" in text) == (note is not None)
    plain = as_markdown(Report("bench", machine, [measurement(MINIATURE, 1.0)]))
    assert "bfloat16" not in plain


def test_this_machine_tells_what_one_dnn_does_with_bfloat16() -> None:
    one = torch.ones(4, 4, dtype=torch.bfloat16)
    try:
        one_dnn_product(one, one)
        works = True
    except (RuntimeError, AttributeError):
        works = False
    assert this_machine().one_dnn_bfloat16 == works


def test_a_run_without_any_result_is_still_a_report() -> None:
    text = as_markdown(Report("refervos bench", MACHINE, [Failure(MINIATURE, "no memory")]))
    assert text.endswith("- 1, online, 1 sentence, float32: no memory")


def test_the_command_writes_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["refervos", "bench", "miniature", "--mode", "online", "--frames", "2", "--warm-up", "1"]
    command += ["--threads", "1", "--device", "cpu", "--out", "speed.json", "--markdown", "speed.md"]

    def run() -> object:
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code

    assert run() in (0, None)
    printed = capsys.readouterr().out
    assert "1: online, 1 sentence, float32" in printed
    assert (tmp_path / "speed.md").read_text() == printed
    result = json.loads((tmp_path / "speed.json").read_text())["results"][0]
    assert result["frames"] == 2
    assert result["stage_milliseconds_a_frame"][CONDITION] > 0
    assert run() == 2
    assert capsys.readouterr().err.strip() == "refervos: speed.json exists already; give another file or --overwrite."


# Compiled stages.


def short_memory() -> Samwise:
    """A model whose memory is full after two frames, and whose CME never looks."""
    return micro_model(sam2=dataclasses.replace(MICRO_SAM2, memory_slots=3, pointer_limit=3), cme=False)


def stepped(model: Samwise, count: int) -> np.ndarray:
    """Mask logits of frames that are given one by one (T, 1, H, W)."""
    session = session_of(model, [CAPTION])
    return np.stack([logits for frame in scene(count) if (logits := session.step(frame).logits) is not None])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of logits relative to the largest that is not the absent object's."""
    return float(np.abs(found - expected).max() / np.abs(expected[expected > -1000]).max())


def compiled_methods(model: Samwise) -> dict[str, object]:
    """The stages that are no longer the class's."""
    found = {stage.method: vars(stage.owner).get(stage.method) for stage in model.stages_to_compile()}
    return {name: method for name, method in found.items() if method is not None}


@dataclass
class CompiledRun:
    """What came of a few frames on a compiled model."""

    model: Samwise
    logits: np.ndarray
    graphs: list[int]  # compiled by the end of each frame
    times: dict[str, float]  # of the stages


@pytest.fixture(scope="module")
def compiled_run() -> CompiledRun:
    """Stages are traced and counted, but run as they are: a real compiler would take minutes."""
    counter = CompileCounter()
    torch._dynamo.reset()
    model = short_memory()
    compile_stages(model, counter)
    session = session_of(model, [CAPTION])
    logits, graphs = [], []
    with StageClock(model, SAMWISE_STAGES) as clock:
        for frame in scene(6):
            logits.append(session.step(frame).logits)
            graphs.append(counter.frame_count)
    return CompiledRun(model, np.stack([part for part in logits if part is not None]), graphs, clock.totals())


def test_compiled_stages_answer_as_before(compiled_run: CompiledRun) -> None:
    expected = stepped(short_memory(), 6)
    assert expected.std() > 0.1
    assert difference(compiled_run.logits, expected) < 1e-4


def test_each_stage_is_compiled_once_and_memory_attention_when_memory_is_full(compiled_run: CompiledRun) -> None:
    # Four image stages, decoder and memory encoder with the first frame.
    assert compiled_run.graphs == [6, 6, 7, 7, 7, 7]


def test_compiled_stages_are_timed(compiled_run: CompiledRun) -> None:
    assert set(compiled_run.times) == set(labels(SAMWISE_STAGES)) - {CME}


def test_compiling_leaves_weights_and_saving_alone(compiled_run: CompiledRun, tmp_path: Path) -> None:
    model, other = compiled_run.model, short_memory()
    state, expected = model.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    model.save_pretrained(tmp_path / "model")
    other.save_pretrained(tmp_path / "other")
    saved, plain = (load(tmp_path / name, device="cpu") for name in ("model", "other"))
    assert isinstance(saved, Samwise)
    assert isinstance(plain, Samwise)
    np.testing.assert_array_equal(stepped(saved, 1), stepped(plain, 1))
    assert not compiled_methods(other)  # other models are not touched


def test_a_compiled_model_is_not_compiled_again(compiled_run: CompiledRun) -> None:
    before = compiled_methods(compiled_run.model)
    assert set(before) == {"encode_stage", "attend_to_memory", "decode", "remember"}
    compile_stages(compiled_run.model)
    assert compiled_methods(compiled_run.model) == before


def test_a_model_without_stages_is_not_compiled() -> None:
    model = micro_model()
    model.stages_to_compile = lambda: ()  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="Samwise has no stages to compile; load it without compiling"):
        compile_stages(model)


@pytest.mark.slow
def test_the_real_compiler_answers_as_before() -> None:
    torch._dynamo.reset()
    expected = stepped(short_memory(), 6)
    model = short_memory()
    compile_stages(model)
    found = stepped(model, 6)
    assert expected.std() > 0.1
    assert difference(found, expected) < 1e-4

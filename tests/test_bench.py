"""The speed benchmark: stage clock, measurements, processes, options and reports; and compiled stages."""

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
import videoglamm_models
from bench_process import DEADLY, FAULTY, take_memory
from refervos.bench import measuring, memory
from refervos.bench.cases import (
    DTYPES,
    MODES,
    PLAIN_SAM2,
    Case,
    Failure,
    Measurement,
    check_model,
    combinations,
    parse_counts,
    parse_names,
)
from refervos.bench.clock import (
    ADAPTERS,
    CME,
    CONDITION,
    DECODER,
    LANGUAGE,
    PLACEMENT_METHODS,
    REMEMBER,
    REST,
    STAGES,
    TEXT,
    TRACKING,
    VISION,
    ClockTime,
    ProcessorTime,
    StageClock,
    StageMethod,
    probe_for,
)
from refervos.bench.families import FAMILIES, REFSAM_STAGES, SAMWISE_STAGES, preset_names
from refervos.bench.machine import Machine, read_cpuinfo, this_machine
from refervos.bench.measured_models import draw_inputs
from refervos.bench.measuring import flop_formulas, measure, peak_operations
from refervos.bench.memory import peak_device_megabytes, peak_resident_megabytes, resident_megabytes
from refervos.bench.plain_sam2 import PlainSam2
from refervos.bench.processes import measure_in_processes
from refervos.bench.random_models import HashTokenizer
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
    """Probe whose readings are a number that the test advances."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def elapsed(self, start: float, end: float) -> float:
        return end - start

    def synchronise(self) -> None:
        """Do nothing."""


class Nested(nn.Module):
    """Module with an outer method that takes 1 before, 5 within and 2 after the inner one."""

    def __init__(self, ticks: Ticks) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.ticks = ticks

    def outer(self) -> str:
        self.ticks.now += 1
        self.inner(0)
        self.ticks.now += 2
        return "result"

    def inner(self, index: int) -> None:
        self.ticks.now += 5


NESTED = (
    StageMethod("", "outer", DECODER),
    StageMethod("", "inner", (CME, TEXT)),
    StageMethod("", "no such method", REST),
    StageMethod("no.such.module", "forward", REST),
)


def test_a_nested_stage_is_not_counted_twice() -> None:
    ticks = Ticks()
    model = Nested(ticks)
    with StageClock(model, NESTED, ticks) as clock:
        assert model.outer() == "result"
        model.inner(1)
        assert clock.totals() == {DECODER: 3.0, CME: 5.0, TEXT: 5.0}
        clock.reset()
        model.outer()
        assert clock.totals() == {DECODER: 3.0, CME: 5.0}


def test_a_failed_call_is_closed() -> None:
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
    """Fake of torch's functions on a machine with several GPUs, which records the calls and their devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, object]] = []
        self.now = 0.0
        fake = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                fake.calls.append(("record", stream))
                self.time = fake.now

            def elapsed_time(self, other: Event) -> float:
                return other.time - self.time

        def recorded(name: str, result: object) -> Callable[[object], object]:
            def call(device: object) -> object:
                self.calls.append((name, str(device)))
                return result

            return call

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
        monkeypatch.setattr(torch.cuda, "synchronize", recorded("synchronize", None))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", recorded("memory", 5_000_000))
        properties = SimpleNamespace(name="Some GPU", total_memory=24_000_000_000)
        monkeypatch.setattr(torch.cuda, "get_device_properties", recorded("properties", properties))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "cuda", "12.8")


def test_a_gpu_other_than_the_current_one_is_timed_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    probe = probe_for(torch.device("cuda:1"))
    start = probe.read()
    cuda.now = 7.0
    end = probe.read()
    probe.synchronise()
    assert probe.elapsed(start, end) == 7.0
    assert cuda.calls == [*[("record", "the stream of cuda:1")] * 2, ("synchronize", "cuda:1")]


def test_gpus_of_other_kinds_are_synchronised_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append("mps"))
    monkeypatch.setattr(torch.xpu, "synchronize", lambda device: waits.append(str(device)))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 2_000_000 * len(waits))
    for name in ("mps", "xpu:1"):
        probe = probe_for(torch.device(name))
        assert probe.elapsed(probe.read(), probe.read()) == 2.0
        probe.synchronise()
    assert waits == ["mps", "mps", "xpu:1", "xpu:1"]


def test_the_default_probe_is_that_of_the_models_device() -> None:
    assert isinstance(StageClock(Nested(Ticks()), ()).probe, ProcessorTime)
    on_meta = StageClock(Nested(Ticks()).to("meta"), ()).probe
    assert isinstance(on_meta, ClockTime)
    assert on_meta.device == torch.device("meta")


def test_memory_and_name_are_those_of_the_measured_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_device_megabytes("cpu") is None
    assert peak_device_megabytes("mps") is None  # torch does not report it
    cuda = FakeCuda(monkeypatch)
    assert peak_device_megabytes("cuda:1") == 5.0
    machines = [this_machine(device) for device in ("cuda:1", "cpu", "mps")]
    assert cuda.calls == [("memory", "cuda:1"), ("properties", "cuda:1"), ("properties", "0")]
    assert [(machine.gpu, machine.gpu_gigabytes, machine.cuda) for machine in machines] == [
        *[("Some GPU", 24.0, "12.8")] * 2,
        ("Apple GPU (mps)", None, None),
    ]
    assert "; Some GPU (24 GB, CUDA 12.8)" in machine_lines(machines[0])
    assert "; Apple GPU (mps)\n" in machine_lines(machines[2])


def instance_attributes(model: Samwise) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


def test_the_clock_restores_the_model_and_does_not_change_its_masks() -> None:
    model = micro_model()
    replaced = lambda *arguments, **options: type(model.tracker).upsample(model.tracker, *arguments, **options)  # noqa: E731
    object.__setattr__(model.tracker, "upsample", replaced)  # like a compiled stage
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
    """List the stages of methods and of placements, in the order of their computation."""
    named = {label for entry in methods for label in ([entry.stage] if isinstance(entry.stage, str) else entry.stage)}
    return [stage for stage in STAGES if stage in named | set(PLACEMENT_METHODS.values())]


def test_every_stage_of_a_family_is_timed() -> None:
    # Fails if a model's method is renamed but its entry of the clock is not.
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
"""transformers' own tracker fails if pointers are as narrow as memory maps."""


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refervos.bench.measuring.PEAK_SIDE", {"cpu": 64, "gpu": 64})


def test_a_measurement_adds_up() -> None:
    case = dataclasses.replace(MINIATURE, mode="clip", sentences=2, frames=9, flops=True)
    result = measure(case)
    assert isinstance(result, Measurement), result
    assert (result.weights, result.image_size, result.answered_at_once) == ("trained", 128, 8)
    assert (len(result.answers), result.frames) == (2, 16)  # whole clips
    assert result.frame_milliseconds * result.frames_per_second == pytest.approx(1000)
    assert sum(result.stages.values()) == pytest.approx(result.processor)
    assert all(result.stages[stage] > 0 for stage in labels(SAMWISE_STAGES) if stage != CME)  # the CME starts later
    assert (result.peak_megabytes or 0) >= (result.loaded_megabytes or 0) > 0
    assert result.floor_milliseconds is not None
    assert result.latency(100) == max(result.answers)


def test_operations_grow_with_the_sentences_except_in_shared_stages() -> None:
    one, four = (measure(dataclasses.replace(MINIATURE, sentences=count, flops=True)) for count in (1, 4))
    assert isinstance(one, Measurement)
    assert isinstance(four, Measurement)
    shared = ("patch embedding", "image stages 1-2")
    assert all(four.operations[stage] == one.operations[stage] for stage in shared)
    assert four.operations["image stages 3-4"] == pytest.approx(4 * one.operations["image stages 3-4"])


def test_operations_do_not_depend_on_the_library_that_computes_them() -> None:
    # float32 uses oneDNN, which torch's counter does not know; bfloat16 in mixed precision does not.
    one_dnn, plain = (measure(dataclasses.replace(MINIATURE, dtype=dtype, flops=True)) for dtype in DTYPES[:2])
    assert isinstance(one_dnn, Measurement)
    assert isinstance(plain, Measurement)
    # The fast path of memory attention takes fewer operations.
    assert 0.5 * plain.operations[CONDITION] < one_dnn.operations.pop(CONDITION) <= plain.operations.pop(CONDITION)
    assert one_dnn.operations == pytest.approx(plain.operations)


def test_formulas_count_operations_that_torch_does_not() -> None:
    tokens, weight = torch.zeros(1, 2, 10, 32), torch.zeros(5, 32)
    image, kernel = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 3, 3)
    for call, operations in (
        (lambda: torch.mkldnn_convolution(image, kernel, None, [1, 1], [2, 2], [1, 1], 1), 2 * 2 * 5 * 4 * 4 * 3 * 9),
        (lambda: torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens), 2 * 4 * 10 * 10 * 32),
        (lambda: one_dnn_product(tokens, weight), 2 * 2 * 10 * 32 * 5),
    ):
        with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            call()
        assert counter.get_total_flops() == operations


@pytest.mark.parametrize(
    ("available", "dtype", "kernels"), [(True, "bfloat16", 2), (False, "bfloat16", 1), (True, "float32", 2)]
)
def test_the_peak_is_that_of_the_fastest_available_kernel(
    available: bool, dtype: str, kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[torch.dtype] = []
    products: list[str] = []

    def one_dnn(dtype: torch.dtype) -> bool:
        checked.append(dtype)
        return available

    class Slow(Ticks):
        def read(self) -> float:
            self.now += 6000
            return self.now

    monkeypatch.setattr(measuring, "has_one_dnn", one_dnn)
    monkeypatch.setattr(measuring, "one_dnn_product", lambda one, other: products.append("oneDNN"))
    monkeypatch.setattr(torch, "mm", lambda one, other: products.append("torch"))
    assert peak_operations(dataclasses.replace(MINIATURE, dtype=dtype)) > 0
    assert checked == [getattr(torch, dtype)]
    assert products == [name for name in ("torch", "oneDNN")[:kernels] for _ in range(10)]
    products.clear()
    monkeypatch.setattr(measuring, "probe_for", lambda device: Slow())
    assert peak_operations(dataclasses.replace(MINIATURE, dtype=dtype)) == 2 * 64**3 / 6000 / 1e6
    assert products == [name for name in ("torch", "oneDNN")[:kernels] for _ in range(2)]  # 6 s each


def test_presets_and_their_baseline_are_measured_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {"micro": dataclasses.replace(MICRO, sam2=WIDER)}
    monkeypatch.setitem(FAMILIES, "samwise", dataclasses.replace(FAMILIES["samwise"], presets=presets))
    referring = measure(dataclasses.replace(MINIATURE, model="micro", size=192, sentences=2))
    baseline = measure(dataclasses.replace(MINIATURE, model="micro", size=192, mode=PLAIN_SAM2, stages=False))
    for result in (referring, baseline):
        assert isinstance(result, Measurement), result
        assert (result.weights, result.image_size, result.frames) == ("random", 192, 2)
    assert isinstance(referring, Measurement)
    assert referring.stages[ADAPTERS] > 0


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
    with pytest.raises(ConfigError, match="tiny-refsam is based on no tracker to compare it with"):
        measure(dataclasses.replace(case, mode=PLAIN_SAM2))


@pytest.mark.filterwarnings("ignore::refervos.errors.UnknownWordsWarning")  # a tokenizer of few words
def test_a_language_model_is_measured_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {"tiny-videoglamm": dataclasses.replace(videoglamm_models.SMALL, lora=None, ask_every=1)}
    monkeypatch.setitem(FAMILIES, "videoglamm", dataclasses.replace(FAMILIES["videoglamm"], presets=presets))
    case = dataclasses.replace(MINIATURE, model="tiny-videoglamm", mode="online", size=128, sentences=2)
    result = measure(case)
    assert isinstance(result, Measurement), result
    assert (result.weights, result.image_size, result.frames, result.switches) == ("random", 128, 2, 0)
    assert min(result.stages[stage] for stage in (VISION, LANGUAGE, REMEMBER)) > 0
    monkeypatch.setitem(presets, "tiny-videoglamm", dataclasses.replace(presets["tiny-videoglamm"], ask_every=None))
    seldom = measure(case)
    assert isinstance(seldom, Measurement)
    assert LANGUAGE not in seldom.stages  # asked in the first frame alone
    assert seldom.stages[CONDITION] > 0


def test_trained_weights_of_one_image_size_are_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refervos.bench.measured_models.load", lambda *_, **__: RefSam(refsam_models.TINY))
    with pytest.raises(ConfigError, match="the weights of own fit only images of side 64; leave out --size"):
        measure(dataclasses.replace(MINIATURE, model="models/own", size=96))


def test_presets_of_all_families_are_listed() -> None:
    assert preset_names() == ["tiny", "base-plus", "large", "vit-b", "vit-l", "vit-h", "videoglamm-published"]


def test_an_error_of_torch_is_a_failure_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    monkeypatch.setattr("refervos.bench.measuring.open_model", out_of_memory)
    assert measure(MINIATURE) == Failure(MINIATURE, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")


def test_the_baseline_tracks_a_clicked_object() -> None:
    torch.manual_seed(0)
    tracker = PlainSam2(WIDER)
    masks = [tracker.step(frame) for frame in scene(3)]
    assert [(mask.shape, mask.dtype) for mask in masks] == [((96, 128), np.dtype(bool))] * 3
    assert len(tracker._session.frames_tracked_per_obj[0]) == 2  # all but the clicked one


def test_every_case_has_the_same_frames_and_sentences() -> None:
    few, many = (draw_inputs(dataclasses.replace(MINIATURE, sentences=count)) for count in (2, 30))
    assert few[1] == many[1][:2]
    assert len({prompt.expression for prompt in many[1]}) > 10
    assert few[0][0].shape == (480, 854, 3)
    # Forwards and backwards: no jump, even where they repeat.
    jumps = [
        np.abs(one.astype(int) - other).mean() for one, other in zip(few[0], [*few[0][1:], few[0][0]], strict=True)
    ]
    assert 0 < min(jumps) <= max(jumps) < 3 * float(np.median(jumps))


def test_the_hash_tokenizer_maps_words_to_ids_of_the_vocabulary() -> None:
    words = HashTokenizer(100, start=(0,), end=(2,))
    ids, verbs = words.encode("the red square and the ring")
    assert ids[0] == 0
    assert ids[-1] == 2
    assert ids[1] == ids[5] != ids[2]
    assert all(4 <= number < 100 for number in ids[1:-1])
    assert len(ids) == len(verbs) == 8
    assert len(words.encode("word " * 50, limit=10)[0]) == 10
    assert HashTokenizer(100, start=(), end=(1,)).encode("the red square")[0] == [*ids[1:4], 1]


# Processes.


def test_each_case_has_its_own_process_and_peak_memory() -> None:
    ballast = np.ones(60_000_000)  # memory of this process must not count
    cases = [dataclasses.replace(MINIATURE, sentences=count) for count in (2, DEADLY, 1, FAULTY)]
    results = measure_in_processes(cases, take_memory)
    first, dead, last = (next(results) for _ in range(3))
    with pytest.raises(ConfigError, match="the case is wrong"):
        next(results)
    assert isinstance(first, Failure)
    assert isinstance(last, Failure)
    assert dead == Failure(cases[1], "the process was killed, perhaps for lack of memory")
    (more, one, threads), (less, other, _) = (map(int, result.reason.split()) for result in (first, last))
    assert one != other
    assert threads == 1
    assert 200 < more - less < 280
    assert (peak_resident_megabytes() or 0) >= (resident_megabytes() or 0) > ballast.nbytes / 1e6


@pytest.mark.parametrize(("platform", "megabytes"), [("linux", 2.048), ("darwin", 0.002)])
def test_without_proc_the_peak_is_that_of_getrusage(
    platform: str, megabytes: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """macOS counts bytes, other POSIX systems kilobytes."""
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=2000))
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "resource", usage)
    assert peak_resident_megabytes() == pytest.approx(megabytes)


def test_on_windows_memory_is_unknown_and_the_report_has_a_dash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    monkeypatch.setitem(sys.modules, "resource", None)  # its import fails
    assert (resident_megabytes(), peak_resident_megabytes()) == (None, None)
    result = measurement(MINIATURE, 200.0, peak_megabytes=None, loaded_megabytes=None)
    header, _, row = (
        line.split("|")[1:-1]
        for line in as_markdown(Report("refervos bench", MACHINE, [result])).splitlines()
        if line.startswith("|")
    )
    assert dict(zip(map(str.strip, header), map(str.strip, row), strict=True))["RAM MB"] == "-"
    assert json.loads(as_json(Report("refervos bench", MACHINE, [result])))["results"][0]["peak_megabytes"] is None


# Options and reports.


def test_every_combination_is_a_case_and_the_baseline_comes_first() -> None:
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
def test_existing_models_are_accepted(model: str) -> None:
    check_model(model, ["tiny"])  # raises for others, as the next test checks


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: parse_names("clip,offline", "--mode", MODES),
            "--mode has 'offline'; it takes clip, online",
        ),
        (lambda: parse_names(" ,", "--dtype", ("float32",)), "--dtype has ''; it takes float32"),
        (lambda: parse_counts("1,x", "--sentences"), "--sentences is '1,x'; give positive numbers"),
        (lambda: parse_counts("0", "--sentences"), "--sentences is '0'; give positive numbers"),
        (lambda: check_model("hug", ["tiny"]), "there is no model 'hug'; give a model folder, .* random weights: tiny"),
        (
            lambda: combinations(MINIATURE, modes=["clip"], sentences=[1], dtypes=["float16"]),
            "float16 needs a GPU, and the device is cpu",
        ),
        (
            lambda: measure(dataclasses.replace(MINIATURE, size=100)),
            "image_size is 100; it must be a positive multiple",
        ),
    ],
)
def test_bad_options_are_refused_in_a_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        call()


def test_a_model_that_takes_only_clicks_is_refused(tmp_path: Path) -> None:
    from refervos.sam2.segmenter import Sam2Segmenter
    from refervos.sam2.tracker import Sam2Tracker

    Sam2Segmenter(Sam2Tracker(MICRO_SAM2)).save_pretrained(tmp_path / "clicks")
    with pytest.raises(ConfigError, match=r"the family of clicks is not supported by .* that takes sentences"):
        measure(dataclasses.replace(MINIATURE, model=str(tmp_path / "clicks")))


def test_the_processor_is_the_first_one_in_cpuinfo(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2: fast\nflags\t\t: fpu avx2 amx_bf16\n\n"
        "processor\t: 1\nmodel name\t: Other\nflags\t\t: avx512f\n"
    )
    assert read_cpuinfo(path) == ("Some CPU @ 2: fast", ("avx2", "amx_bf16"))
    assert read_cpuinfo(tmp_path / "none") == ("", ())


MACHINE = Machine("Some CPU", ("avx2",), 2, 16.0, "Linux", "3.11", "2.13", "5.23", "0.1", None, None, None, True)


def measurement(case: Case, processor: float, **values: object) -> Measurement:
    """Make a measurement of two calls of 100 and 300 ms."""
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


def test_a_report_has_speed_stages_floor_and_failures() -> None:
    base = measurement(dataclasses.replace(MINIATURE, mode=PLAIN_SAM2), 160.0)
    stages, operations = {DECODER: 120.0, REST: 80.0}, {DECODER: 3.0}
    referring = measurement(MINIATURE, 200.0, stages=stages, operations=operations, peak_operations=100.0)
    emulated = measurement(dataclasses.replace(MINIATURE, dtype="bfloat16"), 500.0, stages={REST: 500.0})
    failed = Failure(dataclasses.replace(MINIATURE, sentences=16), "no memory")
    report = Report("refervos bench", MACHINE, [base, referring, emulated, failed])

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
    assert {row[0].strip(): row[1].strip() for row in floor}["decoder"] == "3.00 (2.00x)"  # 60 ms, the floor is 30
    assert "- 4, online, 16 sentences, float32: no memory" in as_markdown(report)
    assert "- This processor has no instructions for bfloat16: oneDNN emulates it" in as_markdown(report)

    read = json.loads(as_json(report))
    assert read["machine"]["processor"] == "Some CPU"
    assert read["results"][1]["times_plain_sam2"] == 1.25
    assert read["results"][1]["latency_milliseconds"]["p50"] == 200
    assert read["results"][1]["case"]["dtype"] == "float32"
    assert read["results"][3]["reason"] == "no memory"


@pytest.mark.parametrize("device", ["cuda:1", "mps", "xpu"])
def test_results_of_any_gpu_are_reported_in_its_time(device: str) -> None:
    case = dataclasses.replace(MINIATURE, device=device, dtype="bfloat16")
    base = measurement(dataclasses.replace(case, mode=PLAIN_SAM2), 9.0, answers=(50.0, 50.0))
    referring = measurement(case, 1.0, stages={DECODER: 400.0})
    assert (referring.frame_cost, base.frame_cost) == (200.0, 50.0)
    text = as_markdown(Report("refervos bench", MACHINE, [base, referring]))
    assert "GPU ms/frame" in text
    assert "x SAM2: wall-clock time of a frame" in text
    assert f"1 thread, {device}." in text
    assert "bfloat16:" not in text  # a caveat of processors only
    assert combinations(case, modes=["clip"], sentences=[1], dtypes=["float16"])


@pytest.mark.parametrize(
    ("flags", "one_dnn", "note"),
    [
        (("avx2", "avx512f", "avx512_bf16"), True, None),
        (("amx_bf16",), True, None),
        (("bf16",), True, None),
        ((), True, None),  # unknown flags, so no caveat
        (("avx2", "avx512f"), True, "no instructions for bfloat16: oneDNN emulates it"),
        (("avx2",), False, "oneDNN multiplies no bfloat16 on this processor"),
        ((), False, "oneDNN multiplies no bfloat16 on this processor"),
    ],
)
def test_the_caveat_of_bfloat16_follows_the_processor(flags: tuple[str, ...], one_dnn: bool, note: str | None) -> None:
    machine = dataclasses.replace(MACHINE, flags=flags, one_dnn_bfloat16=one_dnn)
    caveat = machine.bfloat16_note
    assert caveat is None if note is None else note in str(caveat)
    text = as_markdown(Report("bench", machine, [measurement(dataclasses.replace(MINIATURE, dtype="bfloat16"), 1.0)]))
    assert ("multiplies no bfloat16" in text or "emulates" in text) == (note is not None)
    plain = as_markdown(Report("bench", machine, [measurement(MINIATURE, 1.0)]))
    assert "bfloat16" not in plain


def test_this_machine_reports_if_one_dnn_multiplies_bfloat16() -> None:
    one = torch.ones(4, 4, dtype=torch.bfloat16)
    try:
        one_dnn_product(one, one)
        works = True
    except (RuntimeError, AttributeError):
        works = False
    assert this_machine().one_dnn_bfloat16 == works


def test_a_report_of_failures_only_lists_them() -> None:
    text = as_markdown(Report("refervos bench", MACHINE, [Failure(MINIATURE, "no memory")]))
    assert text.endswith("- 1, online, 1 sentence, float32: no memory")


def test_the_command_writes_its_printed_report(
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
    """Make a model whose memory is full after two frames, without a CME."""
    return micro_model(sam2=dataclasses.replace(MICRO_SAM2, memory_slots=3, pointer_limit=3), cme=False)


def stepped(model: Samwise, count: int) -> np.ndarray:
    """Return the mask logits of frames in single steps (T, 1, H, W)."""
    session = session_of(model, [CAPTION])
    return np.stack([logits for frame in scene(count) if (logits := session.step(frame).logits) is not None])


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of logits, relative to the largest logit of a present object."""
    return float(np.abs(found - expected).max() / np.abs(expected[expected > -1000]).max())


def compiled_methods(model: Samwise) -> dict[str, object]:
    """Return the stage methods that replace the class's on the instance."""
    found = {stage.method: vars(stage.owner).get(stage.method) for stage in model.stages_to_compile()}
    return {name: method for name, method in found.items() if method is not None}


@dataclass
class CompiledRun:
    """Results of a few frames with a compiled model."""

    model: Samwise
    logits: np.ndarray
    graphs: list[int]  # number of compiled graphs after each frame
    times: dict[str, float]  # time of each stage


@pytest.fixture(scope="module")
def compiled_run() -> CompiledRun:
    """Trace and count the stages, but run them eagerly: a real compiler would take minutes."""
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


def test_compiled_stages_give_the_same_logits(compiled_run: CompiledRun) -> None:
    expected = stepped(short_memory(), 6)
    assert expected.std() > 0.1
    assert difference(compiled_run.logits, expected) < 1e-4


def test_each_stage_is_compiled_once_and_memory_attention_when_memory_is_full(compiled_run: CompiledRun) -> None:
    # The first frame compiles four image stages, decoder and memory encoder.
    assert compiled_run.graphs == [6, 6, 7, 7, 7, 7]


def test_compiled_stages_are_timed_by_the_clock(compiled_run: CompiledRun) -> None:
    assert set(compiled_run.times) == set(labels(SAMWISE_STAGES)) - {CME}


def test_compiling_changes_neither_weights_nor_saved_models(compiled_run: CompiledRun, tmp_path: Path) -> None:
    model, other = compiled_run.model, short_memory()
    state, expected = model.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    model.tokenizer = other.tokenizer = None  # that of ``session_of`` cannot be saved
    model.save_pretrained(tmp_path / "model")
    other.save_pretrained(tmp_path / "other")
    saved, plain = (load(tmp_path / name, device="cpu") for name in ("model", "other"))
    assert isinstance(saved, Samwise)
    assert isinstance(plain, Samwise)
    np.testing.assert_array_equal(stepped(saved, 1), stepped(plain, 1))
    assert not compiled_methods(other)  # other models are not affected


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
def test_the_real_compiler_gives_the_same_logits() -> None:
    torch._dynamo.reset()
    expected = stepped(short_memory(), 6)
    model = short_memory()
    compile_stages(model)
    found = stepped(model, 6)
    assert expected.std() > 0.1
    assert difference(found, expected) < 1e-4

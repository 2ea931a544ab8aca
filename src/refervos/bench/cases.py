"""Cases to measure, one for each combination of the options, and their measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refervos.checkpoints.hub import is_hub_id
from refervos.errors import ConfigError
from refervos.models.registry import BY_NAME

MODES = ("clip", "online")
"""Ways to pass frames: in clips of the model's length, or one by one."""

PLAIN_SAM2 = "plain-sam2"
"""Mode of the baseline: transformers' SAM2, which tracks one object from a click."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """Configuration to measure, in its own process.

    Attributes:
        model: Model folder, hub id, ``miniature``, or the name of a preset, which has random weights.
        mode: One of ``MODES``, or ``PLAIN_SAM2``.
        sentences: Number of sentences at once.
        dtype: Type of weights and activations.
        compiled: Compile the heavy stages.
        size: Side of the model's square image, default the model's.
        frame_size: Height and width of the frames.
        frames: Least number of measured frames.
        warm_up: Least number of frames before them, which fill the memory.
        threads: Processor threads.
        device: Name of the device in torch: ``cpu``, ``cuda:1``, ``mps`` ...
        stages: Time the stages.
        flops: Count operations, and measure the machine's peak.
    """

    model: str
    mode: str
    sentences: int = 1
    dtype: str = "float32"
    compiled: bool = False
    size: int | None = None
    frame_size: tuple[int, int] = (480, 854)
    frames: int = 24
    warm_up: int = 16
    threads: int = 1
    device: str = "cpu"
    stages: bool = True
    flops: bool = False

    @property
    def on_gpu(self) -> bool:
        """True if the device is a GPU of any kind."""
        return self.device.partition(":")[0] != "cpu"

    @property
    def label(self) -> str:
        """Name that distinguishes the case from the others of a run."""
        if self.mode == PLAIN_SAM2:
            return f"plain SAM2, {self.dtype}"
        sentences = "1 sentence" if self.sentences == 1 else f"{self.sentences} sentences"
        return f"{self.mode}, {sentences}, {self.dtype}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class Measurement:
    """Results of one case. Milliseconds are wall-clock time unless stated otherwise.

    Attributes:
        case: The measured case.
        weights: ``random`` or ``trained``; they affect speed only through the number of the CME's switches.
        image_size: Side of the model's square image.
        answered_at_once: Frames in a call: the clip's length, or 1.
        answers: Milliseconds of each call, in order.
        processor: Processor milliseconds of all calls, summed over all threads.
        first_answer: Milliseconds of the very first call, a cold start.
        warm_up_seconds: Seconds from the first frame to the first measured one, compiling included.
        stages: Milliseconds of each stage, summed over all calls: processor time, or GPU time on a GPU.
        switches: Number of memory rewrites by the CME, over all measured frames and sentences.
        loaded_megabytes: Resident memory with the model loaded; None if the system does not report it.
        peak_megabytes: Peak resident memory of the process; None if the system does not report it.
        peak_device_megabytes: Peak GPU memory of tensors, loading and warm-up included; None without a GPU, and if
            torch does not report it, as on a Mac.
        operations: Floating-point operations of each stage a frame, in units of 10^9; empty if not counted.
        peak_operations: Operations in a second of processor time (or GPU time) of a product of large matrices of the
            same type, in units of 10^9; None if not counted.
    """

    case: Case
    weights: str
    image_size: int
    answered_at_once: int
    answers: tuple[float, ...]
    processor: float
    first_answer: float
    warm_up_seconds: float
    stages: dict[str, float]
    switches: int
    loaded_megabytes: float | None
    peak_megabytes: float | None
    peak_device_megabytes: float | None
    operations: dict[str, float] = field(default_factory=dict)
    peak_operations: float | None = None

    @property
    def frames(self) -> int:
        """Number of measured frames."""
        return len(self.answers) * self.answered_at_once

    @property
    def frame_milliseconds(self) -> float:
        """Mean time of a frame."""
        return sum(self.answers) / self.frames

    @property
    def frame_processor(self) -> float:
        """Mean processor time of a frame."""
        return self.processor / self.frames

    @property
    def frame_cost(self) -> float:
        """Milliseconds of a frame for ratios: processor time, which depends less on other load than wall-clock time; on
        a GPU wall-clock time.
        """
        return self.frame_milliseconds if self.case.on_gpu else self.frame_processor

    @property
    def frames_per_second(self) -> float:
        """Frames in a second."""
        return 1000 / self.frame_milliseconds

    @property
    def frame_operations(self) -> float | None:
        """Operations of a frame in units of 10^9; None if not counted."""
        return sum(self.operations.values()) if self.operations else None

    @property
    def floor_milliseconds(self) -> float | None:
        """Milliseconds of a frame if all its operations ran at the peak; None if not counted."""
        if self.frame_operations is None or not self.peak_operations:
            return None
        return 1000 * self.frame_operations / self.peak_operations

    def latency(self, percent: float) -> float:
        """Return a percentile of the calls' milliseconds; 100 is the worst."""
        return float(np.percentile(self.answers, percent))


@dataclass(frozen=True)
class Failure:
    """Case that could not be measured.

    Attributes:
        case: The case.
        reason: The reason in one line.
    """

    case: Case
    reason: str


def combinations(
    template: Case,
    *,
    modes: Iterable[str],
    sentences: Iterable[int],
    dtypes: Iterable[str],
    compiled: bool = False,
    baseline: bool = False,
) -> list[Case]:
    """Make a case for each combination of options.

    Args:
        template: Case with the shared options.
        modes: Some of ``MODES``.
        sentences: Numbers of sentences at once.
        dtypes: Some of ``DTYPES``.
        compiled: Repeat each case, compiled.
        baseline: Add transformers' SAM2 for each type, before the others.

    Returns:
        The cases in the order of the run.

    Raises:
        ConfigError: When the device does not support a type.
    """
    cases: list[Case] = []
    for dtype in dtypes:
        if dtype == "float16" and not template.on_gpu:
            raise ConfigError(f"float16 needs a GPU, and the device is {template.device}; give bfloat16.")
        if baseline:
            cases.append(dataclasses.replace(template, mode=PLAIN_SAM2, sentences=1, dtype=dtype, stages=False))
        for mode in modes:
            for count in sentences:
                for state in (False, True) if compiled else (False,):
                    cases.append(dataclasses.replace(template, mode=mode, sentences=count, dtype=dtype, compiled=state))
    return cases


def parse_names(text: str, option: str, known: Sequence[str]) -> list[str]:
    """Parse names separated by commas.

    Args:
        text: Text such as ``clip,online``.
        option: Name of the option, for error messages.
        known: The valid names.

    Returns:
        The names without duplicates.

    Raises:
        ConfigError: When a name is unknown or there is none.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names or [""]:
        if name not in known:
            raise ConfigError(f"{option} has {name!r}; it takes {', '.join(known)}, separated by commas.")
    return names


def parse_counts(text: str, option: str) -> list[int]:
    """Parse positive integers separated by commas.

    Args:
        text: Text such as ``1,4,16``.
        option: Name of the option, for error messages.

    Returns:
        The numbers without duplicates.

    Raises:
        ConfigError: When there is none, or one is no positive integer.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} is {text!r}; give positive numbers separated by commas, such as 1,4,16.")
    return list(dict.fromkeys(int(part) for part in parts))


def check_model(model: str, presets: Sequence[str]) -> None:
    """Check that a model exists before any case is run.

    Args:
        model: Name, folder or hub id.
        presets: Names of the presets, which have random weights.

    Raises:
        ConfigError: When there is no such model.
    """
    if model in (*presets, *BY_NAME) or Path(model).exists() or is_hub_id(model):
        return
    raise ConfigError(
        f"there is no model {model!r}; give a model folder, a hub id owner/name, a name that 'refervos models' lists, "
        f"or a size with random weights: {', '.join(presets)}."
    )

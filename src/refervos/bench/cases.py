"""What is to be measured: every combination of the options, one case each, and what came out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refervos.errors import ConfigError
from refervos.loading import BUNDLED

MODES = ("clip", "online")
"""How frames are given: as many at once as the model likes, or one by one."""

PLAIN_SAM2 = "plain-sam2"
"""The mode of the baseline: transformers' SAM2, which follows one object from a click."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """One thing to measure, in a process of its own.

    Attributes:
        model: Model folder, hub id, ``miniature``, or the name of a size, which then has random weights.
        mode: One of ``MODES``, or ``PLAIN_SAM2``.
        sentences: How many objects are asked for at once.
        dtype: What is computed in.
        compiled: Whether the heavy stages are compiled.
        size: Side of the model's square image, default the model's.
        frame_size: Height and width of the frames.
        frames: How many are measured, at least.
        warm_up: How many go before, at least, so that the memory is full.
        threads: Processor threads.
        device: Where it runs, as torch names it: ``cpu``, ``cuda:1``, ``mps`` ...
        stages: Whether stages are timed.
        flops: Whether operations are counted, and the machine's peak measured.
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
        """Whether it runs on a GPU, of whatever kind, and not on the processor."""
        return self.device.partition(":")[0] != "cpu"

    @property
    def label(self) -> str:
        """What tells this case from the others of a run."""
        if self.mode == PLAIN_SAM2:
            return f"plain SAM2, {self.dtype}"
        asked = "1 sentence" if self.sentences == 1 else f"{self.sentences} sentences"
        return f"{self.mode}, {asked}, {self.dtype}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class Measurement:
    """What was measured of one case. Milliseconds are by the clock where nothing else is said.

    Attributes:
        case: What was measured.
        weights: ``random`` or ``trained``; speed does not depend on it, except that the CME fires or not.
        image_size: Side of the model's square image.
        answered_at_once: Frames of an answer: the clip's length, or 1.
        answers: Milliseconds of each answer, one after another.
        processor: Processor milliseconds of all answers together, over all threads.
        first_answer: Milliseconds of the very first answer, before anything was warm.
        warm_up_seconds: From the first frame until the measured ones, compiling included.
        stages: Milliseconds of each stage over all answers: processor time, or the GPU's where it runs on one.
        switches: How often the CME rewrote the memory, over all frames and sentences measured.
        loaded_megabytes: Resident memory with the model loaded; None where the system does not tell.
        peak_megabytes: The most resident memory the process ever had.
        peak_device_megabytes: The most GPU memory that tensors ever had, loading and warm-up included; None without a
            GPU, and where torch does not tell, as on a Mac.
        operations: Units of 10^9 floating-point operations a frame of each stage; empty where not counted.
        peak_operations: Units of 10^9 operations in a second of processor time (or the GPU's) that a product of large
            matrices of the same type reaches; None likewise.
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
    peak_megabytes: float
    peak_device_megabytes: float | None
    operations: dict[str, float] = field(default_factory=dict)
    peak_operations: float | None = None

    @property
    def frames(self) -> int:
        """How many frames were measured."""
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
        """What ratios are taken of: a frame's processor time, which other work on the machine changes less than the
        clock's; on a GPU the clock's.
        """
        return self.frame_milliseconds if self.case.on_gpu else self.frame_processor

    @property
    def frames_per_second(self) -> float:
        """Frames answered in a second."""
        return 1000 / self.frame_milliseconds

    @property
    def frame_operations(self) -> float | None:
        """Units of 10^9 operations of a frame, None where not counted."""
        return sum(self.operations.values()) if self.operations else None

    @property
    def floor_milliseconds(self) -> float | None:
        """What a frame would cost if all its operations were done at the peak; None where not counted."""
        if self.frame_operations is None or not self.peak_operations:
            return None
        return 1000 * self.frame_operations / self.peak_operations

    def latency(self, percent: float) -> float:
        """Milliseconds within which this share of the answers came; 100 is the worst."""
        return float(np.percentile(self.answers, percent))


@dataclass(frozen=True)
class Failure:
    """A case that could not be measured.

    Attributes:
        case: Which.
        reason: One line.
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
    """One case for each combination.

    Args:
        template: What all cases share.
        modes: Of ``MODES``.
        sentences: How many at once.
        dtypes: Of ``DTYPES``.
        compiled: Each case a second time, compiled.
        baseline: For each type also transformers' SAM2, before the others.

    Returns:
        The cases, in the order in which they are run.

    Raises:
        ConfigError: When the device has no such type.
    """
    cases: list[Case] = []
    for dtype in dtypes:
        if dtype == "float16" and not template.on_gpu:
            raise ConfigError(f"float16 is computed on GPUs only, and the device is {template.device}; give bfloat16.")
        if baseline:
            cases.append(dataclasses.replace(template, mode=PLAIN_SAM2, sentences=1, dtype=dtype, stages=False))
        for mode in modes:
            for count in sentences:
                for twice in (False, True) if compiled else (False,):
                    cases.append(dataclasses.replace(template, mode=mode, sentences=count, dtype=dtype, compiled=twice))
    return cases


def chosen(text: str, option: str, known: Sequence[str]) -> list[str]:
    """Read names separated by commas.

    Args:
        text: Such as ``clip,online``.
        option: Name in error messages.
        known: The names that there are.

    Returns:
        The names, each once.

    Raises:
        ConfigError: When one is unknown or there is none.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names or [""]:
        if name not in known:
            raise ConfigError(f"{option} has {name!r}; it takes {', '.join(known)}, separated by commas.")
    return names


def counts(text: str, option: str) -> list[int]:
    """Read positive numbers separated by commas.

    Args:
        text: Such as ``1,4,16``.
        option: Name in error messages.

    Returns:
        The numbers, each once.

    Raises:
        ConfigError: When there is none, or one is no positive number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} is {text!r}; give positive numbers separated by commas, such as 1,4,16.")
    return list(dict.fromkeys(int(part) for part in parts))


def known_model(model: str, sizes: Sequence[str]) -> None:
    """Make sure that a model can be found, before anything is started.

    Args:
        model: What was given.
        sizes: Names of sizes with random weights.

    Raises:
        ConfigError: When there is no such model.
    """
    if model in (*sizes, *BUNDLED) or Path(model).exists() or model.count("/") == 1:
        return
    raise ConfigError(
        f"there is no model {model!r}; give a model folder, a hub id owner/name, {' or '.join(BUNDLED)}, "
        f"or a size to be had with random weights: {', '.join(sizes)}."
    )

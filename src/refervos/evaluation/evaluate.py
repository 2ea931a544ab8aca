"""Segment and score every expression of a data set, into a folder from which an interrupted evaluation continues.

The unit is a group of expressions about one video that are segmented in one session. The masks of the whole group are
written first, then its results; if any result is missing, the whole group is segmented again, because rounding may
depend on the grouping. A killed and resumed run therefore ends with the same files as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import refervos
from refervos.checkpoints.weights import weights_digest
from refervos.data.sample import Sample
from refervos.data.sentences import require_sentences
from refervos.errors import EvaluationError, PromptError
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expression_scores import read_json, save_json, score_expression
from refervos.evaluation.inference import ChunkPrediction, Mode, clip_length_of, predict_in_hindsight, predict_video
from refervos.evaluation.matched import by_annotator, merged_png, score_matched, uses_matching
from refervos.evaluation.predictions import mask_png
from refervos.evaluation.report import Evaluation
from refervos.evaluation.result_folder import ResultFolder, Settings
from refervos.evaluation.summary import summarise
from refervos.files.locks import FolderLock
from refervos.files.writing import PartialFolder, prepare_folder
from refervos.loading import load, trained_words
from refervos.processes import run_in_processes
from refervos.progress import Bar
from refervos.prompts import Prompt
from refervos.segmenter import Segmenter
from refervos.text.vocabulary import warn_of_unknown_words

GROUP_SIZE = 8
"""Expressions segmented at once; frames are read once per group, and memory grows with its size."""

Work = tuple[int, int]
"""A group of expressions: index of the video, and index of the group within the video."""


@dataclass(frozen=True)
class Request:
    """Everything an evaluation needs, in a picklable form, so that every process can prepare itself.

    Attributes:
        model: Model, as for ``refervos.load``.
        part: The data set.
        root: Folder of the results.
        mode: How frames are grouped into clips.
        group_size: Expressions segmented at once.
        device: Device, as for ``refervos.load``.
        dtype: Precision, as for ``refervos.load``.
        overrides: Fields of the model's configuration to change.
        hindsight: Decide at the end of each video which object is meant (see ``refervos.session.hindsight``).
    """

    model: str
    part: Part
    root: Path
    mode: Mode = "clips"
    group_size: int = GROUP_SIZE
    device: str | None = None
    dtype: str = "float32"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    hindsight: bool = False

    def begin(self, part: OpenPart | None = None) -> Callable[[Work], Iterator[int]]:
        """Load the model, open the data set and claim the folder.

        Args:
            part: The data set, if it is already open.

        Returns:
            A function that segments and scores one group of expressions, as ``Evaluator.run``.
        """
        segmenter = load(self.model, device=self.device, dtype=self.dtype, **self.overrides)
        part = part or self.part.open()
        read = getattr(segmenter, "read", None)  # of models that take text prompts
        if part.scoring != "worlds" and read is not None:  # reading worlds would draw all clips
            require_sentences(part.samples(), lambda text: read(text, ()))
        clip_length = clip_length_of(segmenter, self.mode)
        evaluator = Evaluator(segmenter, part, ResultFolder(self.root), clip_length, self.hindsight)
        commit = getattr(segmenter, "hub_commit", None)
        binding = self._binding(segmenter, evaluator)
        settings = Settings(self.model, self.part, binding, self.command, None if commit is None else str(commit))
        settings.claim(evaluator.folder)
        groups = self.groups(part)
        return lambda work: evaluator.run(groups[work[0]][work[1]])

    def groups(self, part: OpenPart) -> list[list[list[Sample]]]:
        """Return the groups of expressions of each video."""
        return [group_expressions(samples, self.group_size, uses_matching(part)) for _, samples in part.videos]

    @property
    def title(self) -> str:
        """Name and changed settings of the model."""
        set_to = "".join(f" {name}={json.dumps(value)}" for name, value in self.overrides.items())
        return f"{Path(self.model).name or self.model}{set_to}"

    @property
    def command(self) -> str:
        """The equivalent command, which names local folders without the folders around them."""
        part, model = self.part, Path(self.model)
        words = ["refervos", "eval", model.name if model.exists() else self.model, part.name]
        words += [] if part.folder is None else [part.folder.name]
        words += [] if part.split is None else ["--split", part.split]
        words += [] if part.videos is None else ["--count", str(part.videos)]
        words += [] if self.mode == "clips" else ["--online"] if self.mode == "online" else ["--clip", str(self.mode)]
        words += ["--hindsight"] if self.hindsight else []
        words += [] if self.dtype == "float32" else ["--dtype", self.dtype]
        for name, value in self.overrides.items():
            words += ["--set", f"{name}={json.dumps(value)}"]
        return shlex.join(words)

    def _binding(self, model: Any, evaluator: Evaluator) -> dict[str, Any]:
        """Return the settings that the results depend on."""
        config = getattr(model, "config", None)
        return {
            "dataset": evaluator.part.dataset.name,
            "split": evaluator.part.dataset.split,
            "clip length": evaluator.clip_length,
            "together": self.group_size,
            "dtype": self.dtype,
            **({"hindsight": True} if self.hindsight else {}),
            **({} if config is None else _flat(dataclasses.asdict(config))),
            "weights": weights_digest(model) if isinstance(model, torch.nn.Module) else model.fingerprint(),
            "version": refervos.__version__,
        }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings; names are joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def group_expressions(samples: Sequence[Sample], size: int, matching: bool) -> list[list[Sample]]:
    """Group the expressions about a video that are segmented at once.

    Args:
        samples: All expressions about the video.
        size: Maximum size of a group.
        matching: Group by annotator, of any size, because one annotator's predictions are merged.
    """
    if matching:
        return list(by_annotator(samples).values())
    return [list(samples[start : start + size]) for start in range(0, len(samples), size)]


def evaluate(request: Request, *, processes: int = 1, show_progress: bool | None = None) -> Evaluation:
    """Segment and score all expressions without a result, then summarise the results of all.

    Args:
        request: Model, data set and settings.
        processes: Number of processes; each loads the model, and they use all GPUs in turn unless a device is named.
        show_progress: Show a progress bar; default only on a terminal.

    Returns:
        The tables, the data set and the masks.

    Raises:
        RefervosError: When the model, the data set or the folder is unusable.
    """
    part, folder = request.part.open(), ResultFolder(request.root)
    if request.hindsight and uses_matching(part):
        raise EvaluationError(
            f"{part.dataset.name} is scored by mask logits, which hindsight does not give; evaluate without hindsight."
        )
    if part.scoring != "worlds":
        require_sentences(part.samples())
        # Here, because each process loads the model, and the warning must come once.
        words = trained_words(request.model)
        warn_of_unknown_words([sample.expression for sample in part.samples()] if words else (), words)
    prepare_folder(request.root)
    lock = FolderLock(request.root, "evaluating", EvaluationError)
    try:
        _run_pending(request, part, processes, show_progress)
    finally:
        lock.release()
    clip_length = read_json(folder.settings)["binding"]["clip length"]
    mode = "online" if clip_length == 1 else f"clips of {clip_length}"
    mode += ", in hindsight" if request.hindsight else ""
    title = f"{request.title} on {part.dataset.name} {part.dataset.split}, {mode}"
    summary = summarise(title, part.scoring, folder.results(part), folder.matched_results(part))
    return Evaluation(summary, part, folder.predictions)


def _run_pending(request: Request, part: OpenPart, processes: int, show_progress: bool | None) -> None:
    """Segment and score the groups without results."""
    folder = ResultFolder(request.root)
    groups, matching = request.groups(part), uses_matching(part)
    pending = [
        (video, number)
        for video, of_video in enumerate(groups)
        for number, group in enumerate(of_video)
        if not folder.is_complete(group, matching)
    ]
    total = sum(len(part.videos[video][0]) * len(groups[video][number]) for video, number in pending)
    if not pending:
        request.begin(part)  # checks that the results are those of this model and these settings
    if processes > 1:
        begins = [replace(request, device=device).begin for device in devices_of(request.device, processes)]
    else:
        begins = [partial(request.begin, part)]
    with Bar("masks", total, show_progress) as bar:
        for masks in run_in_processes(begins, pending, processes):
            bar.advance(masks)


def devices_of(device: str | None, processes: int) -> list[str | None]:
    """List the devices that the processes use in turn.

    Args:
        device: Device, as for ``refervos.load``.
        processes: Number of processes.

    Returns:
        The named device, or as many GPUs as there are processes if none is named.
    """
    if device not in (None, "cuda"):
        return [device]
    count = min(torch.cuda.device_count(), processes)  # does not initialise CUDA in this process
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [device]


@dataclass(frozen=True)
class Evaluator:
    """A model, the data set it is evaluated on, and the folder of the results.

    Attributes:
        segmenter: The model, in evaluation mode.
        part: The data set.
        folder: Folder of the results.
        clip_length: Frames processed as one clip.
        hindsight: Decide at the end of each video which object is meant.
    """

    segmenter: Segmenter[Any]
    part: OpenPart
    folder: ResultFolder
    clip_length: int
    hindsight: bool = False

    def run(self, group: Sequence[Sample]) -> Iterator[int]:
        """Segment and score the expressions of one group.

        Args:
            group: Expressions about one video.

        Yields:
            The number of new masks after each clip.

        Raises:
            DataError: When a frame or ground-truth mask cannot be read.
            EvaluationError: When the model does not support an expression or a file cannot be written.
        """
        video, matching = group[0].video, uses_matching(self.part)
        folders = [self.folder.predictions.of(sample) for sample in group]
        folders += [self.folder.merged(video.id, str(group[0].annotator))] if matching else []
        switches, seconds, index = np.zeros(len(group), dtype=np.int64), 0.0, 0
        with ExitStack() as stack:
            parts = [stack.enter_context(PartialFolder(folder, error=EvaluationError)) for folder in folders]
            masks, merged = parts[: len(group)], parts[len(group) :]
            for chunk in self._chunks(group, matching):
                # In place: a chunk of logits is large, and nothing else reads it.
                probabilities = None if chunk.logits is None else torch.from_numpy(chunk.logits).sigmoid_().numpy()
                for number, of_frame in enumerate(chunk.masks):
                    name = f"{video.frames.names[index]}.png"
                    for part, mask in zip(masks, of_frame, strict=True):
                        part.add(name, mask_png(mask))
                    if probabilities is not None:
                        for part in merged:
                            part.add(name, merged_png(probabilities[number]))
                    index += 1
                switches += chunk.switches.sum(axis=0)
                seconds += chunk.seconds
                yield chunk.masks.shape[0] * len(group)
            for part in parts:
                part.put_in_place()
        self._score(group, switches.tolist(), seconds / len(group))

    def _chunks(self, group: Sequence[Sample], keep_logits: bool) -> Iterator[ChunkPrediction]:
        """Run the model on one group."""
        video = group[0].video

        def read(start: int, stop: int | None) -> Iterator[Any]:
            return (video.frames.read(number) for number in range(len(video))[start:stop])

        try:
            prompts = [Prompt(sample.expression) for sample in group]
            if self.hindsight:
                yield from predict_in_hindsight(self.segmenter, read, prompts, self.clip_length)
            else:
                frames = read(0, None)
                yield from predict_video(self.segmenter, frames, prompts, self.clip_length, keep_logits=keep_logits)
        except PromptError as error:
            ids = ", ".join(sample.expression_id for sample in group)
            raise EvaluationError(f"one of the expressions {ids} about video {video.id}: {error}") from error

    def _score(self, group: Sequence[Sample], switches: Sequence[int], seconds: float) -> None:
        """Score the masks and write the results, which marks the group as done."""
        predictions, video = self.folder.predictions, group[0].video.id
        files: dict[Path, Any] = {}
        for sample, count in zip(group, switches, strict=True):
            result = score_expression(sample, predictions, switches=count, seconds=seconds)
            files[self.folder.result(sample)] = dataclasses.asdict(result)
        if uses_matching(self.part):
            annotator = str(group[0].annotator)
            result_by_object = score_matched(group, predictions, self.folder.merged(video, annotator))
            files[self.folder.matched(video, annotator)] = dataclasses.asdict(result_by_object)
        for file, values in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            save_json(values, file)

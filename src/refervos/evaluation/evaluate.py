"""Answer and score every expression of a data set, into a folder that an interrupted evaluation goes on with.

The unit is a group of expressions about one video that are asked together. First the masks of all of them are put in
place, then their results; a group without one of its results is answered anew as a whole, because a model's rounding
may depend on what is asked together. So a run that was killed and one that was not end with the same files.
"""

from __future__ import annotations

import dataclasses
import json
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
from refervos.evaluation.answers import ChunkAnswer, Mode, answer_video, clip_length_of
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expressions import read_json, save_json, score_expression
from refervos.evaluation.matched import by_annotator, matches, merged_png, score_matched
from refervos.evaluation.predictions import mask_png
from refervos.evaluation.report import Evaluation
from refervos.evaluation.result_folder import ResultFolder, Settings
from refervos.evaluation.summary import summarise
from refervos.files.locks import FolderLock
from refervos.files.writing import PartialFolder, prepare_folder
from refervos.loading import load
from refervos.processes import run_in_processes
from refervos.progress import Bar
from refervos.prompts import Prompt
from refervos.segmenter import Segmenter

TOGETHER = 8
"""Expressions asked at once; frames are read once for each such group, and memory grows with it."""

Work = tuple[int, int]
"""A group of expressions: the number of its video, and its number among the video's groups."""


@dataclass(frozen=True)
class Request:
    """An evaluation in words, from which every process can prepare for it.

    Attributes:
        model: As ``refervos.load`` takes it.
        part: What is asked.
        root: The folder of the results.
        mode: How frames come.
        together: Expressions asked at once.
        device: As ``refervos.load`` takes it.
        dtype: Likewise.
        overrides: Fields of the model's configuration to change.
    """

    model: str
    part: Part
    root: Path
    mode: Mode = "clips"
    together: int = TOGETHER
    device: str | None = None
    dtype: str = "float32"
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def begin(self, part: OpenPart | None = None) -> Callable[[Work], Iterator[int]]:
        """Load the model, open the data set and claim the folder.

        Args:
            part: The data set, where it is open already.

        Returns:
            What answers one group of expressions, as ``Evaluator.answer``.
        """
        segmenter = load(self.model, device=self.device, dtype=self.dtype, **self.overrides)
        part = part or self.part.open()
        read = getattr(segmenter, "read", None)  # models that are asked with sentences have it
        if part.scoring != "worlds" and read is not None:  # worlds would have to be drawn
            require_sentences(part.samples(), lambda text: read(text, ()))
        evaluator = Evaluator(segmenter, part, ResultFolder(self.root), clip_length_of(segmenter, self.mode))
        Settings(self.model, self.part, self._binding(segmenter, evaluator)).claim(evaluator.folder)
        groups = self.groups(part)
        return lambda work: evaluator.answer(groups[work[0]][work[1]])

    def groups(self, part: OpenPart) -> list[list[list[Sample]]]:
        """For each video, which expressions are asked together."""
        return [grouped(samples, self.together, matches(part)) for _, samples in part.videos]

    @property
    def title(self) -> str:
        """What is evaluated, in a few words."""
        set_to = "".join(f" {name}={json.dumps(value)}" for name, value in self.overrides.items())
        return f"{Path(self.model).name or self.model}{set_to}"

    def _binding(self, model: Any, evaluator: Evaluator) -> dict[str, Any]:
        """What the results depend on."""
        config = getattr(model, "config", None)
        return {
            "dataset": evaluator.part.dataset.name,
            "split": evaluator.part.dataset.split,
            "clip length": evaluator.clip_length,
            "together": self.together,
            "dtype": self.dtype,
            **({} if config is None else _flat(dataclasses.asdict(config))),
            "weights": weights_digest(model) if isinstance(model, torch.nn.Module) else model.fingerprint(),
            "version": refervos.__version__,
        }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dots in their names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def grouped(samples: Sequence[Sample], together: int, matching: bool) -> list[list[Sample]]:
    """Which expressions about a video are asked together.

    Args:
        samples: All that are about it.
        together: How many at most.
        matching: Whether one annotator's answers are merged; then they are asked together, however many they are.
    """
    if matching:
        return list(by_annotator(samples).values())
    return [list(samples[start : start + together]) for start in range(0, len(samples), together)]


def evaluate(request: Request, *, processes: int = 1, show_progress: bool | None = None) -> Evaluation:
    """Answer and score all expressions that are not yet, and put the results of all together.

    Args:
        request: What is asked of whom.
        processes: How many share the work; each loads the model, and where there are several GPUs and none is named,
            they take them in turn.
        show_progress: True or False; default when standard error is a terminal.

    Returns:
        The tables, and what they are about.

    Raises:
        RefervosError: When the model, the data set or the folder is not as it should be.
    """
    part, folder = request.part.open(), ResultFolder(request.root)
    if part.scoring != "worlds":
        require_sentences(part.samples())
    prepare_folder(request.root)
    lock = FolderLock(request.root, "evaluating", EvaluationError)
    try:
        _answer_waiting(request, part, processes, show_progress)
    finally:
        lock.release()
    look = read_json(folder.settings)["binding"]["clip length"]
    look = "online" if look == 1 else f"clips of {look}"
    title = f"{request.title} on {part.dataset.name} {part.dataset.split}, {look}"
    summary = summarise(title, part.scoring, folder.results(part), folder.matched_results(part))
    return Evaluation(summary, part, folder.predictions)


def _answer_waiting(request: Request, part: OpenPart, processes: int, show_progress: bool | None) -> None:
    """Answer and score what has no results yet."""
    folder = ResultFolder(request.root)
    groups, matching = request.groups(part), matches(part)
    waiting = [
        (video, number)
        for video, of_video in enumerate(groups)
        for number, group in enumerate(of_video)
        if not folder.holds(group, matching)
    ]
    total = sum(len(part.videos[video][0]) * len(groups[video][number]) for video, number in waiting)
    if not waiting:
        request.begin(part)  # which makes sure that the results are those of this model and these settings
    if processes > 1:
        begins = [replace(request, device=device).begin for device in devices_of(request.device, processes)]
    else:
        begins = [partial(request.begin, part)]
    with Bar("masks", total, show_progress) as bar:
        for masks in run_in_processes(begins, waiting, processes):
            bar.advance(masks)


def devices_of(device: str | None, processes: int) -> list[str | None]:
    """Tell which devices several processes take in turn.

    Args:
        device: As ``refervos.load`` takes it.
        processes: How many there are.

    Returns:
        Every GPU, as far as there are processes, where none is named; else the device alone.
    """
    if device not in (None, "cuda"):
        return [device]
    count = min(torch.cuda.device_count(), processes)  # which sets no GPU up in this process
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [device]


@dataclass(frozen=True)
class Evaluator:
    """A model that answers a data set into a folder.

    Attributes:
        segmenter: The model, in evaluation mode.
        part: What is asked.
        folder: Where results go.
        clip_length: Frames looked at together.
    """

    segmenter: Segmenter[Any]
    part: OpenPart
    folder: ResultFolder
    clip_length: int

    def answer(self, group: Sequence[Sample]) -> Iterator[int]:
        """Answer and score the expressions of one group.

        Args:
            group: About one video.

        Yields:
            After each clip, how many masks it gave.

        Raises:
            DataError: When frames or truth cannot be read.
            EvaluationError: When the model cannot be asked, naming the expressions, or a file cannot be written.
        """
        video, matching = group[0].video, matches(self.part)
        places = [self.folder.predictions.of(sample) for sample in group]
        places += [self.folder.merged(video.id, str(group[0].annotator))] if matching else []
        switches, seconds, index = np.zeros(len(group), dtype=np.int64), 0.0, 0
        with ExitStack() as stack:
            parts = [stack.enter_context(PartialFolder(place, error=EvaluationError)) for place in places]
            masks, merged = parts[: len(group)], parts[len(group) :]
            for chunk in self._chunks(group, matching):
                # In the logits' place: a chunk of them is large, and nothing else reads them.
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

    def _chunks(self, group: Sequence[Sample], keep_logits: bool) -> Iterator[ChunkAnswer]:
        """Ask the model."""
        video = group[0].video
        frames = (video.frames.read(number) for number in range(len(video)))
        try:
            prompts = [Prompt(sample.expression) for sample in group]
            yield from answer_video(self.segmenter, frames, prompts, self.clip_length, keep_logits=keep_logits)
        except PromptError as error:
            ids = ", ".join(sample.expression_id for sample in group)
            raise EvaluationError(f"one of the expressions {ids} about video {video.id}: {error}") from error

    def _score(self, group: Sequence[Sample], switches: Sequence[int], seconds: float) -> None:
        """Score what was answered, and write the results, which says that the group is done."""
        predictions, video = self.folder.predictions, group[0].video.id
        files: dict[Path, Any] = {}
        for sample, count in zip(group, switches, strict=True):
            result = score_expression(sample, predictions, switches=count, seconds=seconds)
            files[self.folder.result(sample)] = dataclasses.asdict(result)
        if matches(self.part):
            annotator = str(group[0].annotator)
            found = score_matched(group, predictions, self.folder.merged(video, annotator))
            files[self.folder.matched(video, annotator)] = dataclasses.asdict(found)
        for file, values in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            save_json(values, file)

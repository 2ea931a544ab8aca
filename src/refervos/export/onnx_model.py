"""Exported model: the same loop over frames, with parts computed by ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refervos.checkpoints.weights import CONFIG
from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, PromptError, is_out_of_memory
from refervos.ops.borders import Borders
from refervos.placement import Placement
from refervos.prompts import Prompt
from refervos.sam2.memory import MemoryReading
from refervos.sam2.tracker import Decoded, FrameFeatures, Sam2Tracker
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.motion import compare_frames, small_frames
from refervos.samwise.streamer import ClipFeatures, SamwiseStreamer
from refervos.samwise.track import SamwiseTrack, TrackWindows
from refervos.segmenter import FramePrediction
from refervos.session.session import SessionMixin
from refervos.text.tokenizer import Tokenizer, has_tokenizer
from refervos.typed_config import config_from_mapping

OUTSIDE_THE_GRAPHS = {
    "borders",
    "cme",
    "cme_decision",
    "cme_window",
    "memory_policy",
    "presence_scale",
    "presence_shift",
    "presence_threshold",
    "short_side",
    "switch_memory",
}
"""Fields of the configuration that only the loop uses, and no graph; they can still be changed."""

NO_CORRECTIONS = "an exported model takes only sentences; for clicks, boxes and masks load the PyTorch model."


class GraphFolder:
    """Graphs in a folder, each opened when it is first used.

    Args:
        folder: Folder of the ``.onnx`` files.
        threads: Threads of one graph; default as many as torch uses.

    Raises:
        MissingDependencyError: When ONNX Runtime is not installed.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                f"{folder} holds ONNX graphs, which need ONNX Runtime: pip install 'refervos[onnx]'."
            ) from error
        self.folder, self.threads = folder, threads
        self._runtime = onnxruntime
        self._opened: dict[str, Any] = {}

    def check(self, digests: Mapping[str, str]) -> None:
        """Compare the files with the exported ones: a graph with a few changed bytes may still run.

        Args:
            digests: Digest of each graph's file at the export, by the graph's name.

        Raises:
            CheckpointError: When a file is missing, cannot be read, or differs.
        """
        for name, expected in digests.items():
            path = self._path(name)
            try:
                found = digest(path)
            except OSError as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error.strerror}); run 'refervos export' again."
                ) from error
            if found != expected:
                raise CheckpointError(
                    f"{path} is not the graph that was exported, but was damaged or replaced; run 'refervos export' "
                    f"again, or remove '{name}' from 'graphs' in {CONFIG} if you changed it yourself."
                )

    def run(self, name: str, outputs: Sequence[str], **inputs: Tensor) -> list[Tensor]:
        """Run one graph.

        Args:
            name: Name of its file without ``.onnx``.
            outputs: Names of the outputs to return.
            **inputs: All inputs by name.

        Returns:
            The outputs in that order.

        Raises:
            CheckpointError: When the file is missing or no graph, or the graph cannot be run with these inputs.
        """
        graph = self._open(name)
        feeds = {key: value.detach().contiguous().numpy() for key, value in inputs.items()}
        try:
            return [torch.from_numpy(array) for array in graph.run(list(outputs), feeds)]
        except Exception as error:
            raise self._error(name, "cannot be run in this model", error) from error

    def _path(self, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; run 'refervos export' again.")
        return path

    def _open(self, name: str) -> Any:
        if name in self._opened:
            return self._opened[name]
        path = self._path(name)
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.threads or torch.get_num_threads()
        # The graphs run one after the other: threads that spin until the next call would slow down the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # errors are raised as exceptions and need not be logged, too
        try:
            # Without the fallback, which retries the same provider and prints a message.
            graph = self._runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=False
            )
        except Exception as error:
            raise self._error(name, "is not a readable graph", error) from error
        return self._opened.setdefault(name, graph)

    def _error(self, name: str, problem: str, error: Exception) -> Exception:
        """Convert an error of the runtime, whose errors have no common base class."""
        reason = " ".join(str(error).split())
        if is_out_of_memory(error) or "allocate memory" in reason:
            return MemoryError(reason)
        return CheckpointError(
            f"{self.folder / name}.onnx {problem} ({reason[:160].rstrip('.')}); run 'refervos export' again."
        )


def digest(path: Path) -> str:
    """Compute the SHA-256 of a graph's file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OnnxTracker:
    """Functions of ``Sam2Tracker`` that the loop over frames calls, as graphs.

    Args:
        graphs: The graphs.
        config: The model's shape.
    """

    def __init__(self, graphs: GraphFolder, config: SamwiseConfig) -> None:
        self.graphs = graphs
        self.config = config.sam2

    def condition(self, top: Tensor, memory: MemoryReading) -> Tensor:
        """See ``Sam2Tracker.condition``."""
        if memory.empty:
            return self.without_memory(top)
        tensors = vars(memory.as_tensors(self.config.hidden))
        return self.graphs.run("condition", ["conditioned"], top=top, **tensors)[0]

    def without_memory(self, top: Tensor) -> Tensor:
        """See ``Sam2Tracker.without_memory``."""
        return self.graphs.run("without_memory", ["conditioned"], top=top)[0]

    def decode(
        self,
        conditioned: Tensor,
        features: FrameFeatures,
        sparse: Tensor,
        *,
        extra: tuple[Tensor, Tensor] | None = None,
    ) -> Decoded:
        """See ``Sam2Tracker.decode``."""
        masks, ious, tokens, early, *score = self.graphs.run(
            "decode",
            ["mask_logits", "ious", "tokens", "early_tokens", *["score"] * self.config.object_score],
            conditioned=conditioned,
            fine=features.fine,
            middle=features.middle,
            prompts=sparse,
        )
        extra_token = None
        if extra is not None:
            (extra_token,) = self.graphs.run("early_token", ["token"], conditioned=extra[0], prompts=extra[1])
        return Decoded(masks, ious, tokens, early, score[0] if score else None, extra_token)

    def pointer(self, token: Tensor, score: Tensor | None) -> Tensor:
        """See ``Sam2Tracker.pointer``."""
        return self.graphs.run("pointer", ["pointer"], token=token, **_known(score))[0]

    def remember(self, top: Tensor, mask_logits: Tensor, score: Tensor | None) -> Tensor:
        """See ``Sam2Tracker.remember``."""
        return self.graphs.run("remember", ["map"], top=top, mask_logits=mask_logits, **_known(score))[0]

    upsample = Sam2Tracker.upsample


def _known(score: Tensor | None) -> dict[str, Tensor]:
    return {} if score is None else {"score": score}


class OnnxSamwise(SamwiseStreamer, SessionMixin):
    """SAMWISE's streaming step in ONNX Runtime, for the same sessions.

    Args:
        config: Configuration of the exported model.
        tokenizer: Tokenizer of the exported model.
        graphs: Graphs of the exported model.
        source: Fingerprint of the exported model.
        description: The ``describe()`` of the exported model.
    """

    def __init__(
        self,
        config: SamwiseConfig,
        tokenizer: Tokenizer | None,
        graphs: GraphFolder,
        *,
        source: str,
        description: dict[str, Any],
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.graphs = graphs
        self.tracker = OnnxTracker(graphs, config)
        self.training = False
        self.memory_budget: int | None = None
        self._source, self._description = source, description

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the graphs' weights and activations: float32."""
        return torch.float32

    @classmethod
    def from_folder(
        cls, folder: Path, header: dict[str, Any], overrides: dict[str, Any], *, threads: int | None = None
    ) -> OnnxSamwise:
        """Load a folder written by ``export_onnx``.

        Args:
            folder: The folder.
            header: Contents of its ``config.json``.
            overrides: Fields of the configuration to change; only those outside the graphs.
            threads: Threads of one graph; default as many as torch uses.

        Raises:
            ConfigError: When a field is unknown, or part of the graphs.
            CheckpointError: When ``config.json`` or a graph differs from the export.
            MissingDependencyError: When ONNX Runtime is not installed.
        """
        values, source, description = (header.get(key) for key in ("config", "source", "description"))
        digests = header.get("graphs", {})  # folders of early versions have none
        if not (
            isinstance(values, dict)
            and isinstance(source, str)
            and isinstance(description, dict)
            and isinstance(digests, dict)
        ):
            raise CheckpointError(f"{folder / CONFIG} is incomplete; run 'refervos export' again.")
        config = config_from_mapping(SamwiseConfig, {**values, **overrides}, str(folder / CONFIG))
        fixed = sorted(set(overrides) - OUTSIDE_THE_GRAPHS)
        if fixed:
            raise ConfigError(
                f"{fixed[0]} is part of the exported graphs; export the model again with the value you need."
            )
        tokenizer = Tokenizer.from_pretrained(folder) if has_tokenizer(folder) else None
        graphs = GraphFolder(folder, threads)
        graphs.check(digests)
        return cls(config, tokenizer, graphs, source=source, description=description)

    # The parts.

    @property
    def borders(self) -> Borders:
        """See ``VideoSegmenterBase``."""
        return self.config.borders

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def encode_shared(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See ``SamwiseStreamer``; one video (1, T, 3, S, S)."""
        frames = [self.graphs.run("shared", ["fine", "second"], pixels=frame) for frame in pixels[0].split(1)]
        shared = tuple(torch.cat(outputs).unsqueeze(0) for outputs in zip(*frames, strict=True))
        return (*shared, small_frames(pixels)) if self.config.motion_features else shared

    def encode_tracks(
        self, shared: Sequence[Tensor], ids: Tensor, verbs: Tensor, tracks: Sequence[SamwiseTrack] = ()
    ) -> ClipFeatures:
        """See ``SamwiseStreamer``; frame by frame, which is equivalent online."""
        fine, second, *small = shared
        windows = TrackWindows(tracks, videos=1)
        clip = ClipFeatures([], [], [])
        for time in range(fine.shape[1]):
            past = self._past(windows)
            compared = {}
            if small:
                frame = small[0][:, time : time + 1]
                compared["compared"] = compare_frames(frame, windows.pictures())
                windows.keep_pictures(frame)
            middle, top, prompts, *inside = self.graphs.run(
                "tracks",
                ["middle", "top", "prompts", *(f"inside_{index}" for index in range(len(past)))],
                second=second[:, time],
                ids=ids,
                **({"verbs": verbs.long()} if self.config.motion_prompt else {}),
                **compared,
                **past,
            )
            for index, tokens in enumerate(inside):
                windows.keep(index, tokens.unsqueeze(1))
            clip.features.append(FrameFeatures(fine[:, time].expand(len(ids), -1, -1, -1), middle, top))
            moving = verbs.any(dim=1) & self.config.motion_prompt
            rows = [tokens[: 4 if moves else 3] for tokens, moves in zip(prompts, moving.tolist(), strict=True)]
            clip.prompts.append(rows)
            clip.unbiased_prompts.append(rows)
        return clip

    def _past(self, windows: TrackWindows) -> dict[str, Tensor]:
        """Return the tracks' windows, including empty ones."""
        past = {}
        for index, (patches, tokens) in enumerate(self.config.window_patches):
            kept = windows.before(index)
            if kept is None:
                rows = len(windows.tracks) if index else windows.videos
                kept = torch.zeros(rows, patches, 0, tokens, self.config.adapter_width)
            past[f"past_{index}"] = kept
        return past

    def switch_logits(self, tracked: Tensor, unbiased: Tensor) -> Tensor:
        """See ``ConditionalMemoryEncoder.forward``."""
        return self.graphs.run("switch", ["logits"], tracked=tracked, unbiased=unbiased)[0]

    # Differences from a PyTorch model.

    def begin(self, prompt: Prompt) -> SamwiseTrack:
        """Start a track for a sentence.

        Raises:
            PromptError: When the prompt has clicks, a box or a mask, or no sentence, or there is no tokenizer.
        """
        if prompt.geometric:
            raise PromptError(NO_CORRECTIONS)
        return super().begin(prompt)

    def correct(self, track: SamwiseTrack, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Refuse the correction, which is not exported.

        Raises:
            PromptError: Always.
        """
        raise PromptError(NO_CORRECTIONS)

    def fingerprint(self) -> str:
        """Compute the SHA-256 of the configuration and of the exported model's fingerprint."""
        return hashlib.sha256(f"onnx {self.config} {self._source}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return parts and parameter counts of the exported model."""
        return {**self._description, "family": "SAMWISE (ONNX)", "trained": 0}

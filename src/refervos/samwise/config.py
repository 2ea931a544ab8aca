"""Configuration of SAMWISE with all its hyper-parameters, and the published sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from refervos.errors import ConfigError
from refervos.ops.borders import Borders
from refervos.sam2.config import SAM2_PRESETS, Sam2Config
from refervos.samwise.cme import SwitchMode
from refervos.text.encoder import TextConfig
from refervos.typed_config import WIDTH, check_divides, check_range

Protocol = Literal["default", "published"]

TimeMode = Literal["clip", "online"]

MemoryPolicy = Literal["published", "gated", "switch"]


@dataclass(frozen=True)
class SamwiseConfig:
    """Hyper-parameters of SAMWISE. Defaults: the published model (SAM2 base-plus, RoBERTa-base).

    Attributes:
        sam2: Shape of the frozen tracker.
        text: Shape of the frozen text encoder.
        adapter_width: Channels inside the CMT adapters.
        adapter_heads: Attention heads inside them.
        text_to_visual: Whether the adapters change the image tokens by the text.
        visual_to_text: Whether the adapters change the text tokens by the image.
        hsa: Whether the adapters attend over time (Hierarchical Selective Attention); off in image pre-training.
        hsa_patches: Patch side of each adapter's temporal attention.
        motion_prompt: Whether the sentence's verbs give a second prompt token (off in the released checkpoints).
        cme: Whether the Conditional Memory Encoder runs.
        cme_decision: ``learned``, or ``always`` to switch whenever it runs (the paper's ablation).
        cme_window: ``cme_decision_window``: the CME first runs after this many frames and pauses for one fewer after a
            switch.
        cme_feedforward: Width of its feed-forward network.
        switch_memory: How the stored mask is computed on a switch, with memory policies ``published`` and ``gated``.
        presence_scale: Scale of the object score in the presence logit.
        presence_shift: Shift added after scaling. Presence is the probability that the object is visible; scale and
            shift are fitted on clips with ground truth.
        presence_threshold: Masks are emptied where the presence is below this.
        memory_policy: ``published`` stores every frame, whether the object was seen or not, and a switch adds the other
            object to the stored mask. ``gated`` stores no frames in which the object was not seen. ``switch`` is like
            ``gated``, but a switch replaces the frame's mask and clears the earlier memory. All use the sign of the
            raw object score: gating memory by the presence lost objects with uncertain scores.
        time: How the adapters attend over time. ``clip``: all frames of a clip attend to each other (published).
            ``online``: each frame attends to itself and the ``clip_length - 1`` frames before it, which are cached in
            the track; each frame is segmented before the next one is known, at the cost of one frame.
        clip_length: Frames that the adapters process at once: of the clip, or of the window.
        short_side: Frames are resized so that the short side has at most this many pixels and the long side at most
            ``sam2.image_size``.
        protocol: ``default`` fixes the released code's bugs; ``published`` reproduces them, for comparing numbers (a
            one-frame clip clears the memory, padding leaks into the adapters, only the first verb counts and the
            memory-free pass ignores it, a switch to an empty mask still pauses the CME).
        motion_features: Not published. The first adapter also reads differences to earlier frames
            (``samwise.motion``).
        borders: Not published. With ``frame``, mask borders follow the frame's edges (``refervos.ops.borders``).
        words: The words that a model of synthetic worlds was trained on; empty for an open vocabulary.
    """

    sam2: Sam2Config = field(default_factory=Sam2Config)
    text: TextConfig = field(default_factory=TextConfig)
    adapter_width: int = 256
    adapter_heads: int = 8
    text_to_visual: bool = True
    visual_to_text: bool = True
    hsa: bool = True
    hsa_patches: tuple[int, ...] = (8, 4, 2)
    motion_prompt: bool = False
    cme: bool = True
    cme_decision: Literal["learned", "always"] = "learned"
    cme_window: int = 4
    cme_feedforward: int = 128
    switch_memory: SwitchMode = "reweight"
    memory_policy: MemoryPolicy = "published"
    presence_scale: float = 1.0
    presence_shift: float = 0.0
    presence_threshold: float = 0.5
    time: TimeMode = "clip"
    clip_length: int = 8
    short_side: int = 1020
    protocol: Protocol = "default"
    borders: Borders = "bilinear"
    motion_features: bool = False
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.hsa_patches) != 3:
            raise ConfigError(f"hsa_patches is {self.hsa_patches}; it must have one entry for each of three adapters.")
        check_range(
            self,
            adapter_width=WIDTH,
            adapter_heads=WIDTH,
            hsa_patches=(1, self.sam2.image_size),
            cme_feedforward=WIDTH,
            short_side=(1, self.sam2.image_size),
            presence_scale=(1e-6, 1e6),
            presence_shift=(-1e6, 1e6),
        )
        check_divides(self, "adapter_width", "adapter_heads")
        for stage, patch in enumerate(self.hsa_patches, start=1):
            grid = self.sam2.image_size // 4 // 2**stage
            if self.hsa and grid % patch:
                raise ConfigError(
                    f"hsa_patches has {patch} for Hiera stage {stage + 1}, whose grid of {grid} it does not divide."
                )
        if self.clip_length < 1:
            raise ConfigError(f"clip_length is {self.clip_length}; it must be at least 1.")
        if self.borders == "frame" and self.protocol == "published":
            raise ConfigError("borders is 'frame', which the published protocol does not have; use 'bilinear'.")
        if self.motion_features and self.protocol == "published":
            raise ConfigError(
                "motion_features are on, which the published protocol does not have; use protocol 'default', or "
                "a model without them, such as samwise-mevis."
            )
        if self.time == "online" and self.protocol == "published":
            raise ConfigError("time is 'online', which the published protocol does not have; use 'clip'.")
        if not 0 < self.presence_threshold < 1:
            raise ConfigError(f"presence_threshold is {self.presence_threshold}; it must lie between 0 and 1.")
        if self.cme_window < 1:
            raise ConfigError(f"cme_window is {self.cme_window}; it must be at least 1.")
        check_range(self, clip_length=(1, 1000), cme_window=(1, 10**9))

    @property
    def window_patches(self) -> tuple[tuple[int, int], ...]:
        """Number of patches at each adapter, and number of tokens per patch."""
        sizes = []
        for index, patch in enumerate(self.hsa_patches):
            cells, side = 2 * self.sam2.grid >> index, patch if self.hsa else 1
            sizes.append(((cells // side) ** 2, side**2))
        return tuple(sizes)


AS_PUBLISHED: dict[str, str | float] = {
    "borders": "bilinear",
    "time": "clip",
    "memory_policy": "published",
    "presence_scale": 1.0,
    "presence_shift": 0.0,
    "presence_threshold": 0.5,
}
"""Settings of the published protocol, for a model that was trained for streams."""


SAMWISE_PRESETS: dict[str, SamwiseConfig] = {
    "tiny": SamwiseConfig(sam2=SAM2_PRESETS["tiny"]),
    "base-plus": SamwiseConfig(sam2=SAM2_PRESETS["base-plus"]),
    "large": SamwiseConfig(sam2=SAM2_PRESETS["large"]),
}
"""SAMWISE over each published SAM2 size; base-plus is the paper's model."""

"""Every stage at a size that trains in a moment, for tests of the trainer with several processes."""

from __future__ import annotations

from typing import Any

from torch import nn

from refervos.training.recipe import Recipe, recipe_from_mapping
from refervos.training.stages.language import LanguageStage
from refervos.training.stages.track import TrackStage

SAM2 = {
    "image_size": 64, "hiera_width": 8, "hiera_heads": 1, "hiera_blocks": [1, 1, 2, 1], "hiera_windows": [8, 4, 4, 2],
    "hiera_global_blocks": [3], "hiera_background": 4, "hidden": 64, "memory_layers": 1, "memory_feedforward": 64,
    "fuser_feedforward": 64, "decoder_heads": 2, "decoder_feedforward": 64, "decoder_downsample": 1, "pointer_limit": 4,
}  # fmt: skip
VIDEOGLAMM = {
    "clip": {"width": 32, "feedforward": 64, "layers": 2, "heads": 2, "image_size": 64, "patch": 16},
    "internvideo": {
        "width": 32, "feedforward": 64, "layers": 2, "heads": 2, "image_size": 64, "patch": 16, "frames": 4,
    },
    "phi": {
        "vocabulary": 260, "width": 32, "feedforward": 64, "layers": 2, "heads": 2, "positions": 512, "window": None,
        "pad": 0, "end": [2],
    },
    "lora": None, "seg": 6, "frames": 4, "pooling": 2,
}  # fmt: skip
SAMWISE = {"adapter_width": 32, "adapter_heads": 4, "short_side": 128}
WORLD = {"objects": [1, 3], "radius": [0.1, 0.3]}

SETTINGS: dict[str, dict[str, Any]] = {
    "language": {
        "model": {
            "width": 32, "layers": 4, "heads": 2, "feedforward": 64, "positions": 66, "segment_ends": [1, 2, 3, 4],
        }
    },
    "track": {"model": SAM2, "world": WORLD, "frames": [3], "recognition": 0.1, "objects": 2, "hiding": 2.0},
    "images": {"model": SAMWISE, "world": WORLD, "freeze_norms": True},
    "video": {"model": SAMWISE, "world": WORLD, "frames": [6], "freeze_norms": True},
    "refsam": {"world": WORLD, "frames": [2]},
    "vision": {"model": VIDEOGLAMM, "world": {"frames": 4}},
    "conversation": {
        "model": VIDEOGLAMM, "lengths": [4], "questions": 1, "trained": ["language", "projectors"],
        "masked_frames": 2, "padded_masks": None,
    },
    "conversation-first": {
        "model": VIDEOGLAMM, "lengths": [4], "questions": 1, "trained": ["language", "projectors"],
        "masked_frames": 1, "decoding": "first", "pointing": 1.0, "presence": 0.1,
    },
}  # fmt: skip
"""Settings by name of the stage in the recipe; a suffix after a dash is not part of the kind."""


class WithoutDropout(nn.Module):
    """A stage without dropout, whose random numbers differ between processes."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        modules: list[Any] = list(self.modules())
        for module in modules:
            if hasattr(module, "dropout_p"):
                module.dropout_p = 0.0
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return self


class SteadyTrackStage(WithoutDropout, TrackStage):
    """The track stage without dropout."""


class SteadyLanguageStage(WithoutDropout, LanguageStage):
    """The language stage without dropout."""


INITS = {
    "images": {"frozen": "miniature"},
    "video": {"frozen": "miniature"},
    "refsam": {"frozen": "refsam-miniature"},
    "vision": {"tracker": "miniature"},
    "conversation": {"tracker": "miniature"},
}
KINDS = {"track": "small_stages:SteadyTrackStage", "language": "small_stages:SteadyLanguageStage"}


def small_stage(name: str, **changes: Any) -> dict[str, Any]:
    """Return the recipe of a stage.

    Args:
        name: A key of ``SETTINGS``.
        **changes: Other values of the stage; those in ``settings`` are added to the small ones.
    """
    kind = name.split("-")[0]
    return {
        "name": name, "stage": KINDS.get(kind, kind), "steps": 3, "batch": 4, "checkpoint_every": 100,
        "validation_batches": 2, "log_every": 1, "init": INITS.get(kind), "optimiser": {"rate": 3e-5},
        **changes,
        "settings": {**SETTINGS[name], **changes.get("settings", {})},
    }  # fmt: skip


def small_recipe(*stages: dict[str, Any]) -> Recipe:
    """Make a recipe of such stages."""
    return recipe_from_mapping({"name": "small", "seed": 5, "stages": list(stages)})

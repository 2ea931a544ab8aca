"""Script of ``test_other_cpus``, run in a process with fewer CPU instruction sets; writes its results to a file.

The instruction sets are fixed when oneDNN and torch are loaded, so the caller sets them in the environment.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from device_models import MINIATURES, SENTENCES, circle, ious, shapes
from refervos import load
from refervos.loading import bundled_folder
from refervos.samwise.config import SamwiseConfig
from refervos.training.stage import TRAIN, Stage
from refervos.training.stages.samwise import ImagesSettings, ImagesStage, VideoSettings, VideoStage
from refervos.worlds import WorldConfig

FRAMES = 3


def masks(name: str, dtype: str) -> np.ndarray:
    """Segment a short video with a miniature, bool (T, N, H, W)."""
    session = load(name, device="cpu", dtype=dtype).open(list(SENTENCES))
    return np.stack([session.step(frame).masks for frame in shapes(FRAMES)])


def agreement(rounded: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Compute the lowest IoU of masks with others."""
    return {"iou": float(ious(rounded, exact).min())}


def stages() -> dict[str, Callable[[], Stage]]:
    """Make an images and a video stage over the miniature's frozen parts."""
    packaged = load("miniature", device="cpu")
    shape = packaged.config
    assert isinstance(shape, SamwiseConfig)
    init = {"model": bundled_folder("miniature")}
    world = WorldConfig(objects=(2, 3))
    common: dict[str, Any] = {"model": shape, "world": world, "sentences": 1}
    return {
        "images": lambda: ImagesStage.build(ImagesSettings(**common), init, 1),  # type: ignore[arg-type]
        "video": lambda: VideoStage.build(VideoSettings(frames=(2,), **common), init, 1),  # type: ignore[arg-type]
    }


def step(make: Callable[[], Stage], dtype: torch.dtype | None) -> dict[str, float]:
    """Compute a loss, the norm of its gradient, and the loss after one gradient step."""
    torch.manual_seed(0)
    stage = make().train()
    stage.prepare_data(1, 0)
    source = stage.source()
    batch = source.collate([source.draw(0, 0, (1, 0, TRAIN))])
    learning = [parameter for parameter in stage.parameters() if parameter.requires_grad]

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            found: torch.Tensor = stage(batch)["loss"]
        return found

    before = loss()
    before.backward()
    gradient = torch.nn.utils.clip_grad_norm_(learning, 1.0)
    torch.optim.SGD(learning, lr=1e-2).step()
    return {"loss": before.item(), "gradient": gradient.item(), "after": loss().item()}


def attempt(work: Callable[[], Any]) -> Any:
    """Run some work and return its result, or the end of the traceback."""
    try:
        return work()
    except Exception:
        return {"error": "".join(traceback.format_exc(limit=-4))}


def main(out: Path) -> None:
    """Run everything and write the results to a file."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "bfloat16 in oneDNN": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    }
    for name in MINIATURES:
        exact = masks(name, "float32")
        found[f"{name} float32"] = {
            "iou": float(ious(exact[:, 0], np.stack([circle(t) for t in range(FRAMES)])).min()),
            "pixels": exact.sum((2, 3)).min(0).tolist(),
        }
        found[f"{name} bfloat16"] = attempt(lambda name=name, exact=exact: agreement(masks(name, "bfloat16"), exact))  # type: ignore[misc]
    for name, make in stages().items():
        for dtype in ("float32", "bfloat16"):
            chosen = None if dtype == "float32" else torch.bfloat16
            found[f"{name} {dtype}"] = attempt(lambda make=make, chosen=chosen: step(make, chosen))  # type: ignore[misc]
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

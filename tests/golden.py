"""Golden numbers of the released SAMWISE code: its weights rebuilt from their names, its frames from a formula.

The numbers in ``tests/data`` were computed by running the released code (ClaudiaCuttano/SAMWISE, commit dad43ab) on a
CPU in float32, with weights that depend on each parameter's official name and shape alone.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refervos.placement import Placement
from refervos.samwise.checkpoints import official_names as _official_names
from refervos.samwise.model import Samwise

DATA = Path(__file__).parent / "data"
FILMED = Path(__file__).parents[2] / "shared" / "parity"
"""Folder of the goldens on filmed frames, which are third-party and not part of the project."""

MEMORY_FREE = "nomem"


def official_names(name: str) -> tuple[str, ...]:
    """Convert the name of one of our tensors to the released code's; empty if it has none."""
    return _official_names(name) or ("",)


def noise(name: str, shape: Sequence[int]) -> np.ndarray:
    """Draw uniform noise of zero mean and unit variance that depends only on the name, float64."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2.0 * unit - 1.0) * 3.0**0.5).reshape(tuple(shape))


def formula_input(name: str, shape: Sequence[int], scale: float) -> Tensor:
    """Make an input of the module goldens."""
    return torch.from_numpy((scale * noise(f"input:{name}", shape)).astype(np.float32))


def manifest(variant: str) -> dict[str, Any]:
    """Read the names, shapes and checksums of an official checkpoint."""
    return json.loads((DATA / "manifests" / f"{variant}.json").read_text())


def tensor_of(entry: Mapping[str, Any]) -> np.ndarray:
    """Rebuild one entry of a manifest, float32 (zeros for integer buffers)."""
    shape, kind = tuple(entry["shape"]), entry["kind"]
    if kind == "zero":
        return np.zeros(shape, np.float32)
    draw = noise(entry["name"], shape)
    if kind == "bn_var":
        draw = np.abs(draw)
    return (entry["offset"] + entry["scale"] * draw).astype(np.float32)


def official_state(variant: str) -> dict[str, Tensor]:
    """Rebuild an official state dict from its manifest."""
    state: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for entry in manifest(variant)["entries"]:
        if "alias_of" in entry:
            aliases[entry["name"]] = entry["alias_of"]
            continue
        value = torch.from_numpy(tensor_of(entry))
        state[entry["name"]] = value if entry["dtype"].startswith("float") else value.long()
    return state | {name: state[original] for name, original in aliases.items()}


def write_official(path: Path, state: Mapping[str, Tensor], overrides: Mapping[str, Any], **extra: Any) -> Path:
    """Write an official-format ``.pth``."""
    changed = {name: torch.tensor(value, dtype=torch.float32) for name, value in overrides.items()}
    torch.save({"model": {**state, **changed}, **extra}, path)
    return path


def synthetic_frame(t: int, height: int = 144, width: int = 256) -> np.ndarray:
    """Draw frame ``t`` of the synthetic clip, uint8 (H, W, 3): textured ramp, two discs, a bar that enters at t = 5."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    red = (x * 3 + y * 2 + 7 * t + ((x * y) >> 5)) % 160 + 20
    green = (x + y * 3 + ((x * x) >> 6) + 3 * t) % 140 + 30
    blue = (2 * x + y + ((y * y) >> 5)) % 150 + 25
    image = np.stack([red, green, blue], -1)
    for cx, cy, radius, colour in ((60 + 6 * t, 70, 22, (220, 40, 40)), (190 - 5 * t, 90 - t, 17, (40, 80, 225))):
        image[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = colour
    left = 256 - 14 * (t - 4)
    image[(y >= 20) & (y < 44) & (x >= left) & (x < left + 40)] = (235, 220, 60)
    return image.astype(np.uint8)


def deviation(golden: Mapping[str, np.ndarray], key: str, value: Tensor) -> float:
    """Compute the largest absolute difference from a golden tensor, stored whole or at sampled positions."""
    mine = value.detach().cpu().double().contiguous().numpy()
    if key in golden:
        return float(np.abs(golden[key].astype(np.float64).reshape(-1) - mine.reshape(-1)).max(initial=0.0))
    assert tuple(golden[f"{key}.shape"]) == mine.shape, f"{key}: {golden[f'{key}.shape']} against {mine.shape}"
    flat = mine.reshape(-1)
    probed = np.abs(golden[f"{key}.val"] - flat[golden[f"{key}.idx"]]).max()
    first = golden[f"{key}.first64"]
    return float(max(probed, np.abs(first - flat[: len(first)]).max()))


class Golden(dict[str, np.ndarray]):
    """Golden ``.npz`` file, read completely, with its ``meta`` parsed."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as archive:
            super().__init__({name: archive[name] for name in archive.files})
        self.meta: dict[str, Any] = json.loads(str(self["meta"])) if "meta" in self else {}

    def has(self, key: str) -> bool:
        """Return True if a tensor is stored, whole or at sampled positions."""
        return key in self or f"{key}.val" in self


class Probe:
    """Recorder of a model's intermediate results while it segments one track."""

    def __init__(self, model: Samwise) -> None:
        self.model = model
        self.frames: list[dict[str, Tensor]] = []
        self._current: dict[str, Tensor] = {}
        tracker = model.tracker
        self._condition, self._decode, self._remember = tracker.condition, tracker.decode, tracker.remember
        self._cme = model.cme.forward

    def __enter__(self) -> Probe:
        tracker = self.model.tracker

        def condition(*args: Any) -> Tensor:
            self._current = {"memcond": self._condition(*args)}
            self.frames.append(self._current)
            return self._current["memcond"]

        def decode(*args: Any, **kwargs: Any) -> Any:
            decoded = self._decode(*args, **kwargs)
            call = "mem" if "mem.sparse" not in self._current else MEMORY_FREE
            assert decoded.score is not None or not self.model.config.sam2.object_score
            self._current |= {
                f"{call}.sparse": args[2],
                f"{call}.raw_logits": decoded.mask_logits[0, 0],
                f"{call}.ious": decoded.ious,
                f"{call}.early_obj_ptr": decoded.early_tokens[:, 0],
                f"{call}.obj_ptr": tracker.pointer(decoded.tokens[:, 0], decoded.score),
            }
            if decoded.extra_early_token is not None:
                self._current[f"{MEMORY_FREE}.early_obj_ptr"] = decoded.extra_early_token
            if decoded.score is not None:
                self._current[f"{call}.object_score_logits"] = decoded.score.unsqueeze(1)
            return decoded

        def cme(*args: Any) -> Tensor:
            self._current["cme_logits"] = self._cme(*args)
            return self._current["cme_logits"]

        def remember(top: Tensor, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self._current["high_res_after"] = logits.clone()
            self._current["maskmem_features"] = self._remember(top, logits, *args, **kwargs)
            return self._current["maskmem_features"]

        tracker.__dict__.update(condition=condition, decode=decode, remember=remember)
        self.model.cme.__dict__["forward"] = cme
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("condition", "decode", "remember"):
            del self.model.tracker.__dict__[name]
        del self.model.cme.__dict__["forward"]


def follow_golden(
    model: Samwise,
    golden: Golden,
    frame: Callable[[int], np.ndarray],
    clips: Sequence[tuple[int, int]],
    *,
    prefix: str = "",
    verbs: Sequence[bool] | None = None,
    ids: Sequence[int] | None = None,
) -> list[dict[str, float]]:
    """Segment a golden video and measure every quantity that the golden holds.

    Args:
        model: Model with the golden's weights.
        golden: The golden numbers.
        frame: Returns frame ``t``, uint8 (H, W, 3).
        clips: First and last-plus-one frame of each clip.
        prefix: Prefix of every key, such as ``w4/``.
        verbs: Motion flag of each token.
        ids: Token ids, default the golden's.

    Returns:
        For each frame the largest absolute differences; ``switch`` is 0 or 1.
    """
    track = model.begin_tokens(golden["input_ids"][0].tolist() if ids is None else ids, verbs)
    dtype = next(model.tracker.parameters()).dtype
    rows: list[dict[str, float]] = []
    for start, stop in clips:
        images = [torch.from_numpy(frame(t)).permute(2, 0, 1) for t in range(start, stop)]
        places = [model.placement((image.shape[1], image.shape[2])) for image in images]
        pixels = torch.stack([place.place(image) for place, image in zip(places, images, strict=True)])
        pixels = pixels.to(model.device, dtype)
        with Probe(model) as probe:
            predictions = list(model.segment_clip(pixels, [track], places))
        for t, recorded, prediction, place in zip(range(start, stop), probe.frames, predictions, places, strict=True):
            key = f"{prefix}frame{t:02d}/"
            if not any(name.startswith(key) for name in golden):
                rows.append({})
                continue
            square = torch.nn.functional.interpolate(
                prediction.mask_logits[None], size=[place.image_size] * 2, mode="bilinear", align_corners=False
            )
            recorded |= {
                "mem.low_res_masks": prediction.mask_logits[0],
                "pred_mask": square[..., : place.resized[0], : place.resized[1]],
            }
            row = {
                name: deviation(golden, key + name, value)
                for name, value in recorded.items()
                if golden.has(key + name) and (name != "high_res_after" or bool(prediction.switched[0]))
            }
            if f"{key}mem.low_res_masks.f16" in golden and not golden.has(f"{key}mem.low_res_masks"):
                stored = golden[f"{key}mem.low_res_masks.f16"].astype(np.float64)
                row["mem.low_res_masks"] = float(
                    np.abs(stored - prediction.mask_logits[0].cpu().double().numpy()).max()
                )
            if f"{prefix}final_masks_packed" in golden:
                row["final_pixels"] = _final_mask_pixels(golden, prefix, t, prediction.mask_logits, place)
            row["switch"] = float(bool(prediction.switched[0]) != bool(golden[f"{key}switch"]))
            rows.append(row)
    return rows


def _final_mask_pixels(golden: Golden, prefix: str, t: int, mask_logits: Tensor, place: Placement) -> float:
    """Count the pixels of the full-size mask that differ from the released demo's."""
    _, height, width = golden.meta["final_shape"]
    mine = Placement((height, width), place.resized, place.image_size).restore(mask_logits)[0] > 0
    theirs = np.unpackbits(golden[f"{prefix}final_masks_packed"][t])[: height * width].reshape(height, width)
    return float((mine.cpu().numpy() != theirs.astype(bool)).sum())


def worst(rows: Sequence[Mapping[str, float]], names: Sequence[str], start: int = 0, stop: int | None = None) -> float:
    """Return the largest difference of some quantities over some frames, of which at least one must exist."""
    values = [row[name] for row in rows[start:stop] for name in names if name in row]
    assert values, f"no {names} in frames {start} to {stop}"
    return max(values)

"""Correctness on this device: tests parametrised by device, goldens, and bfloat16 against float32."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from on_gpu.context import ROOT, Context, Values, table

TESTS = ROOT / "tests"
TWINS = (TESTS / "test_devices.py", TESTS / "test_cuda_graphs.py", TESTS / "test_trainer_frozen.py")

# Tests.


class Tally:
    """Plugin of pytest that counts the outcomes of tests."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.selected = 0
        self.outcomes: dict[str, str] = {}
        self.failures: dict[str, str] = {}

    def pytest_collection_finish(self, session: Any) -> None:
        """Count the selected tests."""
        self.selected = len(session.items)
        self.context.keep(self.values())

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record the outcome of a test, or an error before its start."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.outcomes[report.nodeid] = report.outcome
        if report.failed:
            self.failures[report.nodeid] = (report.longreprtext.strip().splitlines() or [""])[-1]
        self.context.keep(self.values())

    def values(self) -> Values:
        """Return the counts, and the last line of each failure."""
        counts = {name: list(self.outcomes.values()).count(name) for name in ("passed", "failed", "skipped")}
        lines = [f"- {name}: {line}" for name, line in self.failures.items()]
        short = f"{self.selected} chosen, " + ", ".join(f"{count} {name}" for name, count in counts.items())
        return {
            "chosen": self.selected,
            **counts,
            "failures": self.failures,
            "short": short,
            "markdown": "\n".join(lines),
        }


def twins(context: Context) -> Values:
    """Run the tests parametrised by device on this one; with ``quick`` only collect them."""
    import pytest

    for file in TWINS:
        if not file.is_file():
            raise FileNotFoundError(f"{file.relative_to(ROOT)} is missing")
    tally = Tally(context)
    chosen = "cuda or gpu or recorded" if context.on_gpu else "cpu"
    options = [*map(str, TWINS), "-k", chosen, "-p", "no:cacheprovider"]
    code = int(pytest.main([*options, *(["--collect-only"] if context.quick else [])], plugins=[tally]))
    values = tally.values()
    if code or values["failed"]:
        raise AssertionError(f"pytest ended with code {code}: {values['short']}")
    if not (values["chosen"] if context.quick else values["passed"]):
        raise AssertionError(f"no test ran on {context.device}: {values['short']}")
    return values


# Parity.


@dataclass(frozen=True)
class Bound:
    """Bound of the differences of a golden's quantities in some frames.

    Attributes:
        names: Names of the quantities.
        most: Largest absolute difference.
        frames: First and last-plus-one frame.
    """

    names: tuple[str, ...]
    most: float
    frames: tuple[int, int | None] = (0, None)


Bounds = tuple[Bound, ...]

GOLDENS: Mapping[str, tuple[tuple[tuple[int, int], ...], Mapping[str, Bounds]]] = {
    "absent": (
        ((0, 8), (8, 12)),
        {
            "float32": (
                Bound(("switch",), 0.0),
                Bound(("mem.sparse",), 1.1e-5),
                Bound(("mem.low_res_masks", "pred_mask", "mem.raw_logits", "nomem.raw_logits"), 1.2e-3),
                Bound(("mem.obj_ptr", "mem.early_obj_ptr", "nomem.early_obj_ptr"), 6.3e-4),
                Bound(("mem.object_score_logits", "cme_logits", "memcond", "high_res_after"), 1.2e-3),
                Bound(("maskmem_features",), 1.5e-3),
            ),
            "float64": (
                Bound(("switch",), 0.0),
                Bound(("mem.sparse",), 1.1e-5),
                Bound(("mem.low_res_masks", "pred_mask", "mem.raw_logits", "nomem.raw_logits"), 4.5e-4),
                Bound(("mem.obj_ptr", "mem.early_obj_ptr", "nomem.early_obj_ptr"), 2.1e-4),
                Bound(("mem.object_score_logits", "cme_logits", "memcond", "high_res_after"), 4e-4),
                Bound(("maskmem_features",), 1e-3),
            ),
        },
    ),
    "switch": (
        ((0, 8), (8, 16), (16, 17)),
        {
            "float32": (
                Bound(("switch",), 0.0),
                Bound(("mem.low_res_masks",), 2e-3, (0, 2)),
                Bound(("mem.low_res_masks",), 0.12),
            ),
            "float64": (
                Bound(("switch",), 0.0),
                Bound(("mem.sparse",), 1.1e-5),
                Bound(("mem.low_res_masks", "pred_mask"), 4.5e-4, (0, 1)),
                Bound(("mem.low_res_masks", "pred_mask"), 5e-3, (1, 8)),
                Bound(("mem.low_res_masks", "pred_mask"), 3e-2, (8, 16)),
            ),
        },
    ),
}
"""Clips of each drawn golden, and the bounds of each type.

In float64 the choice of kernels hardly matters, and the bounds are those of ``tests/test_parity.py``. In float32 they
are three times the differences of oneDNN's kernels on an Intel processor (4.0e-4, 2.1e-4, 4.1e-4, 4.8e-4), in frames
where rounding does not feed back.
"""

IOU = 0.95
"""Least mean IoU of the trained miniatures' masks in bfloat16 with those in float32."""


def parity(context: Context) -> Values:
    """Compare with the released code in float32 and float64, and bfloat16 with float32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    rows: list[list[str]] = []
    values: Values = {"goldens": {}, "bfloat16": {}}
    wrong: list[str] = []

    def keep() -> Values:
        ious = ", ".join(f"{name} {found['mean']:.4f}" for name, found in values["bfloat16"].items())
        compared = f"{len(rows)} goldens' quantities compared, {len(wrong)} beyond their bounds"
        values["short"] = f"{compared}; IoU of bfloat16 with float32: {ious or 'not measured'}"
        values["markdown"] = "\n\n".join(
            [
                table(["golden: quantities", "frames", "largest difference", "bound"], rows),
                table(
                    ["bfloat16 against float32", "masks", "mean IoU", "median", "below 0.9"],
                    [
                        [name, str(f["masks"]), f"{f['mean']:.4f}", f"{f['median']:.4f}", f"{100 * f['low']:.1f} %"]
                        for name, f in values["bfloat16"].items()
                    ],
                ),
            ]
        )
        return context.keep(values)

    for name, dtype, bound, reached in golden_differences(context):
        first, last = bound.frames
        span = "all" if (first, last) == (0, None) else f"{first} to {(last or 0) - 1}"
        label = f"{name}, {dtype}: {', '.join(bound.names)}"
        rows.append([label, span, f"{reached:.1e}", f"{bound.most:.1e}"])
        found = {**dataclasses.asdict(bound), "reached": reached}
        values["goldens"].setdefault(name, {}).setdefault(dtype, []).append(found)
        if not reached <= bound.most:
            wrong.append(f"{label} differ by {reached:.1e}, more than {bound.most:.1e}")
        keep()
    for name, found in bfloat16_ious(context):
        values["bfloat16"][name] = found
        if not found["mean"] >= IOU:
            wrong.append(f"{name} in bfloat16: mean IoU {found['mean']:.3f}, less than {IOU}")
        keep()
    if wrong:
        raise AssertionError("; ".join(wrong))
    return keep()


def golden_differences(context: Context) -> Iterator[tuple[str, str, Bound, float]]:
    """Compare the model with the drawn goldens on the device; with ``quick`` only one clip of one golden in float32.

    Yields:
        Golden, type, bound, and the largest difference.
    """
    import torch

    sys.path.insert(0, str(TESTS))
    from golden import DATA, Golden, follow_golden, official_state, synthetic_frame, worst, write_official
    from refervos.samwise.checkpoints import load_official

    state = official_state("tiny_hsa_cme")
    for name, (clips, types) in GOLDENS.items():
        golden = Golden(DATA / f"synth256_{name}.npz")
        with tempfile.TemporaryDirectory(prefix="refervos-golden-") as folder:
            path = write_official(Path(folder) / "official.pth", state, golden.meta["overrides"])
            model = load_official(path, image_size=256, protocol="published").to(context.device)
        for dtype, bounds in types.items():
            model.to(getattr(torch, dtype))
            measured = follow_golden(model, golden, synthetic_frame, clips[:1] if context.quick else clips)
            for bound in bounds:
                yield name, dtype, bound, worst(measured, bound.names, *bound.frames)
            if context.quick:
                return


def bfloat16_ious(context: Context) -> Iterator[tuple[str, Values]]:
    """Run the packaged models in both types, frame by frame.

    Yields:
        Model, and statistics of the IoUs of its masks in one type with those in the other, 1 for two empty masks.
    """
    import numpy as np

    from refervos import load
    from refervos.loading import BUNDLED
    from refervos.worlds import WorldConfig, draw_clip, referring_expressions

    config = WorldConfig(frames=2 if context.quick else 24, height=128, width=128)
    clips = [draw_clip((7, number), config) for number in range(1 if context.quick else 12)]
    for name in BUNDLED:
        exact, rounded = (load(name, device=context.device, dtype=dtype) for dtype in ("float32", "bfloat16"))
        ious: list[float] = []
        for clip in clips:
            sentences = [expression.text for expression in referring_expressions(clip, np.random.default_rng(7))[:3]]
            sessions = exact.open(sentences), rounded.open(sentences)
            for frame in clip.frames:
                one, other = (session.step(frame).masks for session in sessions)  # (3, H, W) each
                intersections, unions = (one & other).sum((1, 2)), (one | other).sum((1, 2))
                ious += [float(i / u) if u else 1.0 for i, u in zip(intersections, unions, strict=True)]
        yield (
            name,
            {
                "masks": len(ious),
                "mean": statistics.mean(ious),
                "median": statistics.median(ious),
                "low": sum(iou < 0.9 for iou in ious) / len(ious),
            },
        )

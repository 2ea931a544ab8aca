"""Numerical parity with the released SAMWISE code on filmed frames.

The frames are third-party and not part of the project, so these tests run only where the frames are available. The
bounds are about three times the differences that another attention kernel makes in the released code itself. At
image size 256 the model runs in float64, so that only the goldens' own rounding remains; at full size in float32 with
attention as plain matrix products, as in the released code. ``make parity`` runs all tests and prints the differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import FILMED, Golden, deviation, follow_golden, worst
from refervos.placement import letterbox
from refervos.samwise.cme import cme_loss
from refervos.samwise.model import Samwise
from refervos.training.losses import mask_losses

pytestmark = pytest.mark.skipif(not FILMED.is_dir(), reason="the filmed golden frames are not part of the project")

CAPTION = [0, 627, 5253, 14656, 81, 5, 8402, 2]
SHORT_CAPTION = [0, 1039, 2335, 11, 2]
MASKS, SCORE = "mem.low_res_masks", "mem.object_score_logits"


def filmed(folder: str) -> Callable[[int], np.ndarray]:
    """Return a frame reader for one of the golden folders."""
    from PIL import Image

    def frame(t: int) -> np.ndarray:
        return np.array(Image.open(FILMED / folder / f"frame_{t:02d}.png").convert("RGB"))

    return frame


def golden(name: str) -> Golden:
    return Golden(FILMED / f"{name}.npz")


def report(name: str, rows: list[dict[str, float]]) -> None:
    """Print the differences (pytest -s)."""
    names = sorted({key for row in rows for key in row})
    print(f"\n{name}: " + ", ".join(f"{key} {worst(rows, [key]):.1e}" for key in names))


def test_a_fast_video_matches_the_golden(golden_model: Callable[..., Samwise]) -> None:
    g = golden("fast256_video")
    model = golden_model("tiny_hsa_cme", g.meta["overrides"], image_size=256).double()
    rows = follow_golden(model, g, filmed("frames256"), ((0, 8), (8, 16), (16, 17)), ids=CAPTION)
    report("fast256_video", rows)
    assert worst(rows, ["switch"]) == 0
    assert worst(rows, [MASKS], 0, 1) < 4.5e-4
    assert worst(rows, [MASKS], 1, 8) < 2e-3
    assert worst(rows, [MASKS], 8, 16) < 8.4e-3
    assert worst(rows, [MASKS], 16) < 4.5e-4
    assert worst(rows, [SCORE]) < 2.7e-3
    assert worst(rows, ["mem.sparse"]) < 3.3e-5
    assert worst(rows, ["nomem.obj_ptr", "nomem.early_obj_ptr"]) < 9e-5


@pytest.mark.slow
@pytest.mark.parametrize("window", [4, 16, 1])
def test_windows_of_several_lengths_match_the_goldens(
    window: int, golden_model: Callable[..., Samwise], monkeypatch: pytest.MonkeyPatch
) -> None:
    g = golden("fast256_windows")
    model = golden_model("tiny_hsa_cme", g.meta["overrides"], image_size=256).double()
    clips = [(start, start + window) for start in range(0, 16, window)]
    if window == 16:
        # At the switch in frame 5 two pixels have a memory-free logit of -2e-5, which rounding made positive in the
        # golden; `reweight` jumps there, and with zero as the limit later frames differ by up to 4e-2.
        monkeypatch.setattr(
            "refervos.samwise.streamer.rewrite_memory_mask",
            lambda tracked, unbiased, mode: torch.where(unbiased > -3e-5, 10 * unbiased, tracked),
        )
    rows = follow_golden(model, g, filmed("frames256"), clips, prefix=f"w{window}/", ids=CAPTION)
    report(f"fast256_windows w{window}", rows)
    assert worst(rows, ["switch"]) == 0
    assert worst(rows, [MASKS], 0, 10) < 3e-3
    assert worst(rows, [MASKS], 10) < 8.4e-3
    assert worst(rows, [SCORE]) < 2.7e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reweight", "all_mask", "avg", "off"])
def test_switch_modes_match_the_goldens(mode: str, golden_model: Callable[..., Samwise]) -> None:
    g = golden("fast256_switch_modes")
    options = {"cme": False} if mode == "off" else {"switch_memory": mode}
    model = golden_model("tiny_hsa_cme", g.meta["overrides"], image_size=256, **options).double()
    rows = follow_golden(model, g, filmed("frames256"), ((0, 8), (8, 12)), prefix=f"{mode}/", ids=CAPTION)
    report(f"fast256_switch_modes {mode}", rows)
    assert worst(rows, ["switch"], 5) == 0
    assert worst(rows, [MASKS], 5, 10) < 3e-3
    assert worst(rows, [MASKS], 10) < 8.4e-3
    assert worst(rows, [SCORE], 5) < 2.7e-3


@pytest.mark.parametrize(
    ("prefix", "clips", "tokens"),
    [pytest.param("", ((0, 8),), (3, 5), marks=pytest.mark.slow), ("noverb/", ((0, 3),), ())],
)
def test_the_motion_prompt_matches_the_golden(
    prefix: str, clips: tuple[tuple[int, int], ...], tokens: tuple[int, ...], golden_model: Callable[..., Samwise]
) -> None:
    g = golden("fast256_motion")
    model = golden_model("tiny_hsa_cme_motion", g.meta["overrides"], image_size=256).double()
    verbs = [index in tokens for index in range(len(CAPTION))]
    rows = follow_golden(model, g, filmed("frames256"), clips, prefix=prefix, verbs=verbs, ids=CAPTION)
    report(f"fast256_motion {prefix}", rows)
    assert worst(rows, ["switch"]) == 0
    assert worst(rows, [MASKS]) < 2e-3
    assert worst(rows, [SCORE]) < 2.7e-3


@pytest.mark.slow
def test_a_model_without_hsa_and_cme_matches_the_golden(golden_model: Callable[..., Samwise]) -> None:
    g = golden("fast256_nohsa")
    model = golden_model("tiny_hsa_cme", g.meta["overrides"], image_size=256, cme=False).double()
    adapters: list[Any] = list(model.adapters)
    attentions = [adapter.hsa for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.hsa = None
        rows = follow_golden(model, g, filmed("frames256"), ((0, 6),), ids=CAPTION)
    finally:
        for adapter, attention in zip(adapters, attentions, strict=True):
            adapter.hsa = attention
    report("fast256_nohsa", rows)
    assert worst(rows, [MASKS], 0, 1) < 4.5e-4
    assert worst(rows, [MASKS], 1) < 2e-3


def batch(model: Samwise, frames: list[np.ndarray], captions: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Make a batch of images with a caption each; return placed pixels and padded ids."""
    images = [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]
    place = model.placement((images[0].shape[1], images[0].shape[2]))
    pixels = torch.stack([place.place(image) for image in images]).unsqueeze(1)  # (N, 1, 3, S, S)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(c) for c in captions], batch_first=True, padding_value=1)
    return pixels, ids


def test_a_batch_of_images_matches_the_golden(golden_model: Callable[..., Samwise]) -> None:
    g = golden("fast256_ris")
    model = golden_model("tiny_ris", {}, image_size=256)
    assert (model.config.hsa, model.config.cme, model.config.sam2.object_score) == (False, False, False)
    frame = filmed("frames256")
    pixels, ids = batch(model, [frame(t) for t in (0, 8, 16)], [CAPTION, SHORT_CAPTION, CAPTION])
    assert ids.tolist() == g["ids"].tolist()
    with torch.no_grad():
        masks = model(pixels, ids).mask_logits[:, 0]
    reached = [deviation(g, f"frame{t:02d}/{MASKS}", masks[t]) for t in range(3)]
    print(f"\nfast256_ris: {max(reached):.1e}")
    assert max(reached) < 3e-4


@pytest.mark.slow
@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("case", ["ris_A", "ris_B", "ris_AB"])
def test_images_at_full_size_match_the_goldens(case: str, golden_model: Callable[..., Samwise]) -> None:
    g = golden("image_tiny")
    model = golden_model("tiny_ris", {})
    frame = filmed("frames")
    captions = {"A": CAPTION, "B": SHORT_CAPTION}
    pixels, ids = batch(model, [frame({"A": 0, "B": 8}[n]) for n in case[4:]], [captions[n] for n in case[4:]])
    with torch.no_grad():
        masks = model(pixels, ids).mask_logits[:, 0]
    reached = [deviation(g, f"{case}/frame{t:02d}/{MASKS}", mask) for t, mask in enumerate(masks)]
    print(f"\nimage_tiny {case}: {max(reached):.1e}")
    assert max(reached) < 3e-4


@pytest.mark.slow
@pytest.mark.usefixtures("plain_kernels")
def test_one_frame_with_temporal_attention_at_full_size_matches_the_golden(
    golden_model: Callable[..., Samwise],
) -> None:
    g = golden("image_tiny")
    model = golden_model("tiny_hsa_cme", g.meta["overrides_hsa_T1"])
    rows = follow_golden(model, g, filmed("frames"), ((0, 1),), prefix="hsa_T1/", ids=CAPTION)
    report("image_tiny hsa_T1", rows)
    assert worst(rows, [MASKS]) < 4.5e-4


@pytest.mark.slow
def test_a_video_at_full_size_matches_the_golden(golden_model: Callable[..., Samwise]) -> None:
    g = golden("video_tiny")
    model = golden_model("tiny_hsa_cme", g.meta["overrides"]).double()
    assert letterbox((480, 854), 1024, 1020).resized == (575, 1024)
    rows = follow_golden(model, g, filmed("frames"), ((0, 8), (8, 12)), ids=CAPTION)
    report("video_tiny", rows)
    assert worst(rows, ["switch"]) == 0
    assert worst(rows, [SCORE], 0, 8) < 1.8e-3
    assert worst(rows, ["memcond"], 0, 8) < 6e-4
    assert worst(rows, ["cme_logits"], 0, 8) < 2.7e-4
    assert worst(rows, [SCORE], 8) < 7.2e-2
    assert worst(rows, ["memcond"], 8) < 2.1e-2
    assert worst(rows, ["cme_logits"], 8) < 1.8e-2
    # Of 409,920, at 854 x 480 as the released demo writes them; 8 and, after the switch in frame 7, 50 are reached.
    assert worst(rows, ["final_pixels"], 0, 8) <= 24
    assert worst(rows, ["final_pixels"], 8) <= 150
    assert worst(rows, [MASKS], 0, 4) < 4.5e-3


@pytest.mark.slow
@pytest.mark.usefixtures("plain_kernels")
def test_the_motion_prompt_at_full_size_matches_the_golden(golden_model: Callable[..., Samwise]) -> None:
    g = golden("motion_tiny")
    model = golden_model("tiny_hsa_cme_motion", g.meta["overrides"])
    verbs = [index in (3, 5) for index in range(len(CAPTION))]
    rows = follow_golden(model, g, filmed("frames"), ((0, 8),), verbs=verbs)
    report("motion_tiny", rows)
    assert worst(rows, ["switch"]) == 0
    assert worst(rows, [SCORE]) < 2.4e-4
    assert worst(rows, ["memcond"]) < 2.4e-4


TRAINING = {"video_T2": 2, "video_T3": 3, "video_T8": 8, "pretrain": 1}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if frames == 8 else ()) for case, frames in TRAINING.items()]
)
def test_a_training_step_matches_the_golden(case: str, golden_model: Callable[..., Samwise]) -> None:
    """Compares losses, CME decisions and labels, gradients and batch statistics for a batch of two clips."""
    g = golden("fast256_train")
    frames = TRAINING[case]
    model = (
        golden_model("tiny_ris", {}, image_size=256)
        if case == "pretrain"
        else golden_model("tiny_hsa_cme", g.meta["overrides_video"], image_size=256)
    )
    model.double().train()
    frame = filmed("frames256")
    if case == "pretrain":
        clips = [[frame(0)], [frame(8)]]
    else:
        clips = [[frame(t) for t in range(frames)], [frame(8 + t)[:, ::-1].copy() for t in range(frames)]]
    place = model.placement((144, 256))
    pixels = torch.stack(
        [torch.stack([place.place(torch.from_numpy(f).permute(2, 0, 1)) for f in clip]) for clip in clips]
    )
    output = model(pixels.double(), torch.from_numpy(g["ids"]))
    masks = model.tracker.upsample(output.mask_logits)[..., :144, :256]  # (2, T, 144, 256)
    targets = [
        torch.from_numpy(np.unpackbits(g[f"{case}/target{n}"])[: frames * 144 * 256].reshape(frames, 144, 256))
        if g[f"{case}/target{n}"].size < frames * 144 * 256
        else torch.from_numpy(g[f"{case}/target{n}"].reshape(frames, 144, 256))
        for n in range(2)
    ]
    focal, dice = mask_losses(masks, targets, published=True)
    loss = focal + dice
    bound = {"video_T8": 6e-4, "pretrain": 2.4e-5}.get(case, 9e-6)
    reached = max(abs(focal.item() - g[f"{case}/loss_mask"].item()), abs(dice.item() - g[f"{case}/loss_dice"].item()))
    if case == "video_T8":
        assert output.cme_labels.tolist() == g["video_T8/cme_labels"].tolist()
        decision = cme_loss(output.cme_logits, output.cme_labels)
        assert deviation(g, "video_T8/cme_logits", output.cme_logits) < 6e-3
        assert abs(decision.item() - g["video_T8/CME_loss"].item()) < bound
        loss = loss + decision
    print(f"\nfast256_train {case}: losses {reached:.1e}")
    assert reached < bound
    loss.backward()
    check_gradients(model, g, case)
    for name in (n for n in g if n.startswith(f"{case}/bn/")):
        index, part, statistic = name.rsplit("cmt_adapters.", 1)[1].split(".", 2)
        norm = getattr(model.adapters[int(index)], "vision_down_norm" if "down" in part else "vision_up_norm")
        assert deviation(g, name, getattr(norm, statistic.removeprefix("1."))) < 1e-4


def check_gradients(model: Samwise, g: Golden, case: str) -> None:
    """Compare the norms of the gradients with the golden's."""
    from refervos.samwise.checkpoints import official_names

    mine = {official_names(name)[0]: p.grad for name, p in model.named_parameters() if p.requires_grad}
    # T=2 is good to 5 %, T=3 and pre-training to 1 %; of T=8 only the CME's own gradients are recorded.
    bound = {"video_T2": 0.05, "video_T8": 0.001}.get(case, 0.01)
    compared, largest = 0, 0.0
    total = float(np.sqrt(np.nansum(g[f"{case}/grad_norms"] ** 2)))
    for name, norm in zip(g[f"{case}/grad_names"].tolist(), g[f"{case}/grad_norms"].tolist(), strict=True):
        gradient = mine[name]
        if np.isnan(norm):  # the part did not run
            assert gradient is None or gradient.abs().max() == 0, name
            continue
        assert gradient is not None, name
        compared += 1
        # Gradients that are zero but for rounding have no relative error.
        largest = max(largest, abs(gradient.norm().item() - norm) / max(norm, 1e-4 * total))
    print(f"{case}: {compared} gradients within {largest:.2%}")
    assert compared >= 15
    assert largest < bound

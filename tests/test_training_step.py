"""Training steps of SAMWISE: changed and frozen weights, gradients, clips of several videos and sentences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import manifest
from refervos.sam2.tracker import Sam2Tracker
from refervos.samwise.cme import IGNORED_LABEL, cme_loss
from refervos.samwise.config import SAMWISE_PRESETS
from refervos.samwise.model import Samwise
from refervos.training.losses import mask_losses
from scenes import CAPTION, SHORT_CAPTION, micro_model, scene

TRAINED = ("adapters.", "text_prompt.", "motion_prompt.", "cme.")


def training_loss(model: Samwise, frames: int) -> torch.Tensor:
    place = model.placement((96, 128))
    clips = [scene(frames, seed=seed) for seed in (0, 3)]
    pixels = torch.stack(
        [torch.stack([place.place(torch.from_numpy(f).permute(2, 0, 1)) for f in clip]) for clip in clips]
    )
    padded = SHORT_CAPTION + [1] * (len(CAPTION) - len(SHORT_CAPTION))
    ids = torch.tensor([CAPTION, padded])
    output = model(pixels, ids, torch.tensor([[False, True] + [False] * 5] * 2))
    masks = model.tracker.upsample(output.mask_logits)[..., :96, :]
    targets = [torch.zeros(frames, 96, 128) for _ in range(2)]
    for target in targets:
        target[:, 20:60, 30:80] = 1
    focal, dice = mask_losses(masks, targets)
    assert output.cme_logits.shape == (2 * max(0, frames - 5), 2)
    labels = torch.where(output.cme_labels == IGNORED_LABEL, 0, output.cme_labels)  # so that the CME always learns
    return focal + dice + cme_loss(output.cme_logits, labels)


def test_frozen_parts_are_byte_identical_after_a_step() -> None:
    model = micro_model(motion_prompt=True)
    before = copy.deepcopy(model.state_dict())
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        training_loss(model, 7).backward()
        optimiser.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(TRAINED) for name in changed)
    never_read = {name for name in before if name.startswith("cme.norm2.")}
    expected = {name for name in before if name.startswith(TRAINED)} - never_read
    assert changed == expected
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(name.startswith(TRAINED) for name in with_gradient)
    assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad} - never_read


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = micro_model().train()
    assert model.adapters.training
    assert not any(part.training for frozen in model.frozen_parts() for part in frozen.modules())
    # Without dropout two passes give the same loss, but for batch statistics, which do not enter in training mode.
    assert training_loss(model, 2).item() == training_loss(model, 2).item()


@pytest.mark.parametrize(
    ("preset", "variant", "trained", "total"),
    [
        ("tiny", "tiny_hsa_cme", 5_120_770, 168_763_421),
        ("base-plus", "base_hsa_cme", 5_235_906, 210_766_237),
        ("large", "large_hsa_cme", 5_466_178, 354_592_973),
    ],
)
def test_parameter_counts_match_the_published_models(preset: str, variant: str, trained: int, total: int) -> None:
    with torch.device("meta"):
        model = Samwise(SAMWISE_PRESETS[preset])
    described = model.describe()
    assert described["trained"] == trained
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"adapters", "text_prompt", "cme"}
    # RoBERTa's language-model head (in the released files, never run) is left out; transformers' RoBERTa has a token
    # type embedding that fairseq's has not.
    official = manifest(variant)
    head = official["params_by_module[total,trainable]"]
    assert official["params_total"] == total
    assert described["total"] == total - head["text_encoder.lm_head"][0] + 768


def test_gradients_flow_through_the_memory() -> None:
    """The last frame's loss has a gradient in the first frame's memory."""
    model = micro_model().train()
    place = model.placement((96, 128))
    pixels = torch.stack([place.place(torch.from_numpy(f).permute(2, 0, 1)) for f in scene(3)]).unsqueeze(0)
    ids = torch.tensor([CAPTION])
    clip = model.encode(pixels, ids, torch.zeros_like(ids, dtype=torch.bool))
    track = model.begin_tokens(CAPTION)
    for time in range(3):
        frame = model.track_frame(clip, time, [track])
    oldest = track.memory.maps[0].features
    (gradient,) = torch.autograd.grad(frame.mask_logits.sum(), oldest)
    assert gradient.abs().max() > 0


def clips(videos: int, frames: int) -> torch.Tensor:
    """Return placed frames of different videos (V, T, 3, S, S)."""
    place = micro_model().placement((96, 128))
    return torch.stack(
        [
            torch.stack([place.place(torch.from_numpy(f).permute(2, 0, 1)) for f in scene(frames, seed=seed)])
            for seed in range(videos)
        ]
    )


def test_several_sentences_about_a_video_give_the_masks_of_a_copy_for_each() -> None:
    """Sentences about one video are adjacent rows."""
    model = micro_model()
    pixels = clips(2, 3)
    padded = SHORT_CAPTION + [1] * (len(CAPTION) - len(SHORT_CAPTION))
    ids = torch.tensor([CAPTION, padded, padded, CAPTION])
    with torch.no_grad():
        shared = model(pixels, ids).mask_logits
        copied = model(pixels.repeat_interleave(2, dim=0), ids).mask_logits
    torch.testing.assert_close(shared, copied)
    assert not torch.allclose(shared[0], shared[3])


def test_chunks_share_one_memory() -> None:
    """Chunks of one frame give the masks of a session's steps; longer chunks give others."""
    model = micro_model()
    pixels = clips(1, 4)
    ids = torch.tensor([CAPTION])
    with torch.no_grad():
        whole, halves = (model(pixels, ids, chunk=chunk).mask_logits for chunk in (None, 2))
        steps = model(pixels, ids, chunk=1).mask_logits
    assert not torch.allclose(whole, halves)
    track = model.begin_tokens(CAPTION)
    place = model.placement((96, 128))
    for time in range(4):
        (prediction,) = model.segment_clip(pixels[0, time : time + 1], [track], [place])
        torch.testing.assert_close(prediction.mask_logits[0], steps[0, time])


@pytest.mark.parametrize("part", ["text_to_visual", "visual_to_text"])
def test_each_direction_of_an_adapter_can_be_left_out(part: str) -> None:
    """The tokens of a missing direction pass unchanged: the adapter adds nothing to them."""
    model = micro_model(**{part: False}).train()
    vision, text = torch.rand(2, 16, 16, 32), torch.rand(1, 5, 32)
    adapted = model.adapters[0](vision, text, 2)
    assert bool(adapted.vision.any()) == (part != "text_to_visual")
    assert bool(adapted.text.any()) == (part != "visual_to_text")


def test_the_cme_can_be_set_to_switch_at_every_decision() -> None:
    """This is an ablation of the paper."""
    pixels = clips(1, 8)
    switched = {}
    for decision in ("learned", "always"):
        model = micro_model(cme_decision=decision)
        with torch.no_grad():
            model.cme.head.bias.copy_(torch.tensor([100.0, 0.0]))  # the learned decision is never to switch
        track = model.begin_tokens(CAPTION)
        predictions = model.segment_clip(pixels[0], [track], [model.placement((96, 128))] * 8)
        switched[decision] = [bool(prediction.switched[0]) for prediction in predictions]
    assert not any(switched["learned"])
    assert switched["always"] == [False] * 5 + [True, False, False]


def test_the_last_frame_of_a_training_clip_is_not_written_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = micro_model()
    written: list[int] = []
    remember = Sam2Tracker.remember

    def counted(tracker: Sam2Tracker, top: Tensor, *others: Any, **options: Any) -> Tensor:
        written.append(len(top))
        return remember(tracker, top, *others, **options)

    monkeypatch.setattr(Sam2Tracker, "remember", counted)
    pixels = torch.zeros(1, 3, 3, model.image_size, model.image_size)
    model(pixels, torch.tensor([CAPTION]))
    assert written == [1, 1]  # of three frames
    model(pixels[:, :1], torch.tensor([CAPTION]))
    assert written == [1, 1]  # an image needs no memory


def test_padding_does_not_change_the_masks_with_or_without_gradients() -> None:
    """A track's state must not depend on the length of other sentences."""
    model = micro_model().double()
    pixels = torch.rand(1, 2, 3, model.image_size, model.image_size, dtype=torch.float64)
    padded = torch.tensor([SHORT_CAPTION + [model.pad] * 4])
    with torch.no_grad():
        alone, with_padding = (model(pixels, ids).mask_logits for ids in (torch.tensor([SHORT_CAPTION]), padded))
    torch.testing.assert_close(with_padding, alone)
    torch.testing.assert_close(model(pixels, padded).mask_logits.detach(), alone)

"""Memory policies: which frames are stored, and the effect of a switch."""

from __future__ import annotations

import pytest
import torch

from refervos.errors import ConfigError
from refervos.samwise.model import Samwise
from refervos.samwise.track import SamwiseTrack
from refervos.segmenter import FramePrediction
from scenes import CAPTION, micro_model, scene

POLICIES = ("published", "gated", "switch")


def run(model: Samwise, frames: int) -> tuple[SamwiseTrack, list[FramePrediction]]:
    """Follow one sentence through a scene, frame by frame."""
    place = model.placement((96, 128))
    track = model.begin_tokens(CAPTION)
    predictions = []
    for image in scene(frames):
        pixels = place.place(torch.from_numpy(image).permute(2, 0, 1)).unsqueeze(0)
        predictions += list(model.segment_clip(pixels, [track], [place]))
    return track, predictions


def blind_model(**options: object) -> Samwise:
    """Make a model whose object score always says absent."""
    model = micro_model(time="online", cme=False, **options)
    with torch.no_grad():
        model.tracker.get_parameter("sam.mask_decoder.pred_obj_score_head.proj_out.bias").fill_(-50)
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_frames_without_the_object_are_stored_only_by_the_published_policy(policy: str) -> None:
    track, predictions = run(blind_model(memory_policy=policy), 3)
    assert all(bool((prediction.mask_logits < 0).all()) for prediction in predictions)
    assert len(track.memory.maps) == len(track.memory.pointers) == (3 if policy == "published" else 0)
    assert track.frame == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_frames_with_the_object_are_stored_by_every_policy(policy: str) -> None:
    track, _ = run(micro_model(time="online", cme=False, memory_policy=policy), 3)
    assert len(track.memory.maps) == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_the_presence_threshold_empties_masks_and_leaves_the_memory_unchanged(policy: str) -> None:
    plain, visible = run(micro_model(time="online", memory_policy=policy), 3)
    kept, hidden = run(micro_model(time="online", memory_policy=policy, presence_threshold=1 - 1e-9), 3)
    assert any(bool((prediction.mask_logits > 0).any()) for prediction in visible)
    assert not any(bool((prediction.mask_logits > 0).any()) for prediction in hidden)
    for one, other in zip(plain.memory.maps, kept.memory.maps, strict=True):
        torch.testing.assert_close(one.features, other.features)


@pytest.mark.parametrize("policy", POLICIES)
def test_only_the_switch_policy_replaces_the_mask_and_clears_the_memory(policy: str) -> None:
    options = {"time": "online", "memory_policy": policy, "cme_decision": "always"}
    track, predictions = run(micro_model(**options), 6)
    _, without = run(micro_model(**{**options, "cme": False}), 6)
    assert [bool(prediction.switched[0]) for prediction in predictions] == [False] * 5 + [True]
    same = torch.allclose(predictions[5].mask_logits, without[5].mask_logits)
    assert same == (policy != "switch")
    assert [entry.frame for entry in track.memory.maps] == ([5] if policy == "switch" else [0, 1, 2, 3, 4, 5])
    for before, after in zip(predictions[:5], without[:5], strict=True):
        assert torch.equal(before.mask_logits, after.mask_logits)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_presence_threshold_of_zero_or_one_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        micro_model(presence_threshold=threshold)

"""What is remembered of a frame in which nothing was seen, and what a switch does, under each memory policy."""

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
    answers = []
    for image in scene(frames):
        pixels = place.place(torch.from_numpy(image).permute(2, 0, 1)).unsqueeze(0)
        answers += list(model.segment_clip(pixels, [track], [place]))
    return track, answers


def unseeing(**options: object) -> Samwise:
    """A model that never sees its object."""
    model = micro_model(time="online", cme=False, **options)
    with torch.no_grad():
        model.tracker.get_parameter("sam.mask_decoder.pred_obj_score_head.proj_out.bias").fill_(-50)
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_frames_without_the_object_are_remembered_as_published_only(policy: str) -> None:
    track, answers = run(unseeing(memory_policy=policy), 3)
    assert all(bool((answer.mask_logits < 0).all()) for answer in answers)
    assert len(track.memory.maps) == len(track.memory.pointers) == (3 if policy == "published" else 0)
    assert track.frame == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_frames_with_the_object_are_remembered_by_all(policy: str) -> None:
    track, _ = run(micro_model(time="online", cme=False, memory_policy=policy), 3)
    assert len(track.memory.maps) == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_a_presence_threshold_hides_a_mask_and_leaves_the_memory_alone(policy: str) -> None:
    plain, shown = run(micro_model(time="online", memory_policy=policy), 3)
    kept, hidden = run(micro_model(time="online", memory_policy=policy, presence_threshold=1 - 1e-9), 3)
    assert any(bool((answer.mask_logits > 0).any()) for answer in shown)
    assert not any(bool((answer.mask_logits > 0).any()) for answer in hidden)
    for one, other in zip(plain.memory.maps, kept.memory.maps, strict=True):
        torch.testing.assert_close(one.features, other.features)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_switch_does(policy: str) -> None:
    """As published the answer stays and the memory goes on; a real switch answers anew and forgets."""
    options = {"time": "online", "memory_policy": policy, "cme_decision": "always"}
    track, answers = run(micro_model(**options), 6)
    _, without = run(micro_model(**{**options, "cme": False}), 6)
    assert [bool(answer.switched[0]) for answer in answers] == [False] * 5 + [True]
    same = torch.allclose(answers[5].mask_logits, without[5].mask_logits)
    assert same == (policy != "switch")
    assert [entry.frame for entry in track.memory.maps] == ([5] if policy == "switch" else [0, 1, 2, 3, 4, 5])
    for before, after in zip(answers[:5], without[:5], strict=True):
        assert torch.equal(before.mask_logits, after.mask_logits)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        micro_model(presence_threshold=threshold)

"""Plain SAM2: parity with transformers' video session, tracks, prompts and the segmenter contract."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Sam2VideoModel, Sam2VideoProcessor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from refervos.bench.plain_sam2 import hf_config
from refervos.errors import PromptError
from refervos.prompts import Prompt
from refervos.sam2.config import as_version_2_1
from refervos.sam2.memory import MemoryBank, group_by_layout
from refervos.sam2.prompting import place_mask, place_points
from refervos.sam2.segmenter import Sam2Segmenter, Sam2Track
from refervos.sam2.tracker import NO_OBJECT_LOGIT, Sam2Tracker
from refervos.segmenter import FramePrediction, Segmenter
from scenes import MICRO_SAM2

V1 = replace(MICRO_SAM2, hidden=128, memory_layers=2, multimask_stability=True)
CONFIGS = {
    "v1": V1,
    "v2.1": as_version_2_1(V1),
    "v2.1 at 256": as_version_2_1(replace(V1, image_size=256, multimask_stability=False)),
    "no score": replace(V1, object_score=False),
}

FRAME_SIZE = (90, 160)
FRAMES = 18
"""Enough for both windows to roll over: six maps, fifteen pointers."""


def mask_prompt() -> np.ndarray:
    mask = np.zeros(FRAME_SIZE, dtype=bool)
    mask[20:70, 30:90] = True
    return mask


PROMPTS = {
    "one click": Prompt(points=[[70.0, 40.5]]),
    "clicks": Prompt(points=[[70, 40], [10, 80], [120, 12]], labels=[1, 0, 1]),
    "box": Prompt(box=[20, 10, 100, 85]),
    "box and click": Prompt(box=[20, 10, 100, 85], points=[[64, 40]], labels=[0]),
    "mask": Prompt(mask=mask_prompt()),
}


GAINS = {"q_proj": 0.8, "k_proj": 0.8, "pred_obj_score_head.proj_out": 8.0}
"""Sharper attention amplifies rounding errors; object scores must be far from zero on either side."""


def randomise_(model: nn.Module, seed: int, seen: float) -> None:
    """Draw weights at a useful scale for every layer: with the usual 0.02 the outputs would hardly vary.

    Args:
        model: A ``Sam2VideoModel``.
        seed: Seed of the random numbers.
        seen: Added to every object score; far below zero there would be no masks to compare.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("positional_embedding"):
            tensor.copy_(noise)
        elif name.endswith("bias"):
            tensor.copy_(0.05 * noise)
        elif any(part in name for part in ("embed.weight", "token", "pos_embed", "encoding", "no_", "occlusion")):
            tensor.copy_(0.5 * noise)
        elif tensor.ndim == 1:  # norms and layer scales
            tensor.copy_(1 + 0.1 * noise)
        else:
            gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
            tensor.copy_(gain * noise / tensor[0].numel() ** 0.5)
    if "no_object_pointer" in state:
        state["mask_decoder.pred_obj_score_head.proj_out.bias"].add_(seen)


@pytest.fixture(scope="module", autouse=True)
def _forget(one_thread: None) -> Iterator[None]:
    yield
    segmenter.cache_clear()


EXACT = torch.float64
"""For comparisons of whole videos: in float32, rounding occasionally changes the sign of mask pixels."""

TOLERANCE = 5e-4
"""Mask logits vary by about 2; transformers computes some steps in float32, including positions of clicks."""


@cache
def segmenter(name: str, seen: float = 10.0, dtype: torch.dtype = torch.float32) -> Sam2Segmenter:
    tracker = Sam2Tracker(CONFIGS[name])
    randomise_(tracker.sam, sorted(CONFIGS).index(name), seen)
    return Sam2Segmenter(tracker).to(dtype)


@pytest.fixture(params=["v1", "v2.1"])
def model(request: pytest.FixtureRequest) -> Sam2Segmenter:
    return segmenter(request.param, dtype=EXACT)


@pytest.fixture
def small() -> Sam2Segmenter:
    return segmenter("v2.1")


def video(size: int, frames: int = FRAMES, seed: int = 0) -> Tensor:
    """Draw slowly changing smooth noise (T, 3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    start, end = (torch.randn(3, 8, 8, generator=generator) for _ in range(2))
    steps = torch.linspace(0, 1, frames).reshape(-1, 1, 1, 1)
    coarse = start * (1 - steps) + end * steps  # (T, 3, 8, 8)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")


def stack_predictions(predictions: Sequence[FramePrediction]) -> tuple[Tensor, Tensor]:
    """Stack mask logits (T, N, 4g, 4g) and scores (T, N)."""
    scores = [prediction.score for prediction in predictions if prediction.score is not None]
    return torch.stack([prediction.mask_logits for prediction in predictions]), torch.stack(scores)


def run(
    model: Sam2Segmenter, pixels: Tensor, tracks: Sequence[Sam2Track], frame_size: tuple[int, int] = FRAME_SIZE
) -> list[FramePrediction]:
    return list(model.segment_clip(pixels, tracks, [model.placement(frame_size)] * len(pixels)))


# Parity with transformers.


class Reference:
    """transformers' video session with the same weights, with its deviations from Meta's code undone."""

    def __init__(self, model: Sam2Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = model.tracker.config.image_size
        self.sam = Sam2VideoModel(hf_config(model.tracker.config)).to(EXACT).eval()
        self.sam.load_state_dict(model.tracker.sam.state_dict())
        encode, frame_forward, use_mask = (
            self.sam._encode_new_memory,
            self.sam._single_frame_forward,
            self.sam._use_mask_as_output,
        )

        def encode_exactly(*args: object, **options: object) -> object:
            # Otherwise memory is cast to bfloat16, an error of 0.03 and more.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "bfloat16", EXACT)
                return encode(*args, **options)

        def use_mask_with_single_token(*args: object, **options: object) -> object:
            # Meta's code takes the pointer of a mask prompt from the single-mask token; transformers does not.
            def single(*inner: object, **inner_options: object) -> object:
                return frame_forward(*inner, **inner_options, multimask_output=False)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self.sam, "_single_frame_forward", single)
                return use_mask(*args, **options)

        monkeypatch.setattr(self.sam, "_encode_new_memory", encode_exactly)
        monkeypatch.setattr(self.sam, "_use_mask_as_output", use_mask_with_single_token)

    def run(self, pixels: Tensor, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Stream frames; return low-resolution mask logits (T, 4g, 4g) and object scores (T,)."""
        session = Sam2VideoInferenceSession(None, *FRAME_SIZE, dtype=EXACT)
        # Its constructor needs torchvision; prompts need only these two fields.
        processor = Sam2VideoProcessor.__new__(Sam2VideoProcessor)
        processor.target_size, processor.point_pad_value = self.size, -10
        labels = prompt.labels or [1] * len(prompt.points or ())
        processor.add_inputs_to_inference_session(
            session,
            frame_idx=0,
            obj_ids=1,
            input_points=None if prompt.points is None else [[[list(map(float, p)) for p in prompt.points]]],
            input_labels=None if prompt.points is None else [[list(labels)]],
            input_boxes=None if prompt.box is None else [[list(map(float, prompt.box))]],
            input_masks=prompt.mask,
        )
        outputs = [self.sam(session, frame=frame) for frame in pixels]
        masks = torch.stack([output.pred_masks.reshape(self.size // 4, -1) for output in outputs])
        return masks, torch.stack([output.object_score_logits.reshape(()) for output in outputs])


def compare(model: Sam2Segmenter, prompt: Prompt, monkeypatch: pytest.MonkeyPatch, *, frames: int = FRAMES) -> Tensor:
    pixels = video(model.tracker.config.image_size, frames).to(EXACT)
    masks, scores = Reference(model, monkeypatch).run(pixels, prompt)
    predictions = run(model, pixels, [model.begin(prompt)])
    ours, our_scores = stack_predictions(predictions)
    print(f"largest difference: masks {(ours[:, 0] - masks).abs().max():.0e} (deviation {masks.std():.1f}), ", end="")
    print(f"scores {(our_scores[:, 0] - scores).abs().max():.0e} ({scores.min():.1f} to {scores.max():.1f})")
    assert masks[1:].std() > 1
    torch.testing.assert_close(ours[:, 0], masks, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(our_scores[:, 0], scores, rtol=0, atol=TOLERANCE)
    return scores


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_masks_and_scores_equal_those_of_transformers(
    model: Sam2Segmenter, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One kind of prompt is enough to test that the windows roll over; the others need only a few frames.
    compare(model, PROMPTS[kind], monkeypatch, frames=FRAMES if kind == "one click" else 6)


def test_masks_and_scores_equal_those_of_transformers_at_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(segmenter("v2.1 at 256", dtype=EXACT), PROMPTS["box and click"], monkeypatch, frames=4)


@pytest.mark.parametrize("kind", ["clicks", "mask"])
@pytest.mark.parametrize(("name", "seen"), [("v1", 8.0), ("v2.1", -2.5)])
def test_masks_and_scores_equal_those_of_transformers_for_absent_objects(
    name: str, seen: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = compare(segmenter(name, seen, EXACT), PROMPTS[kind], monkeypatch, frames=12)
    assert (scores > 0).sum() > 2
    assert (scores <= 0).sum() > 2


# Tracks.


def test_tracks_of_different_age_do_not_affect_each_other(model: Sam2Segmenter) -> None:
    pixels = video(128, frames=10).to(EXACT)
    starts = [(0, "one click"), (3, "mask"), (3, "box"), (3, "mask"), (8, "clicks")]
    tracks = [model.begin(PROMPTS[kind]) for _, kind in starts]
    joint: list[list[FramePrediction]] = []
    for begin, end in [(0, 3), (3, 8), (8, 10)]:
        present = [track for track, (start, _) in zip(tracks, starts, strict=True) if start <= begin]
        joint.append(run(model, pixels[begin:end], present))
    masks, scores = zip(*(stack_predictions(part) for part in joint), strict=True)
    for index, (start, kind) in enumerate(starts):
        mask = torch.cat([part[:, index] for part in masks if part.shape[1] > index])
        score = torch.cat([part[:, index] for part in scores if part.shape[1] > index])
        alone = stack_predictions(run(model, pixels[start:], [model.begin(PROMPTS[kind])]))
        torch.testing.assert_close(mask, alone[0][:, 0], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(score, alone[1][:, 0], rtol=0, atol=TOLERANCE)
        assert tracks[index].frame == 10 - start


def test_a_frame_is_encoded_once_for_all_tracks(small: Sam2Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    embed = small.tracker.embed_patches

    def counted(pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return embed(pixels)

    monkeypatch.setattr(small.tracker, "embed_patches", counted)
    run(small, video(128, frames=3), [small.begin(prompt) for prompt in PROMPTS.values()])
    assert encoded == [1, 1, 1]


def test_interleaved_streams_do_not_affect_each_other(small: Sam2Segmenter) -> None:
    first, second = video(128, frames=6, seed=1), video(128, frames=6, seed=2)
    placements = [small.placement(FRAME_SIZE)] * 6
    prompts = PROMPTS["one click"], PROMPTS["mask"]
    alone = [run(small, pixels, [small.begin(prompt)]) for pixels, prompt in zip((first, second), prompts, strict=True)]
    streams = [
        small.segment_clip(pixels, [small.begin(prompt)], placements)
        for pixels, prompt in zip((first, second), prompts, strict=True)
    ]
    for expected in zip(*alone, strict=True):
        for stream, expected_prediction in zip(streams, expected, strict=True):
            assert torch.equal(next(stream).mask_logits, expected_prediction.mask_logits)


def test_one_clip_gives_the_masks_of_several(small: Sam2Segmenter) -> None:
    pixels = video(128, frames=5)
    whole = run(small, pixels, [small.begin(PROMPTS["box"])])
    track = small.begin(PROMPTS["box"])
    parts = [*run(small, pixels[:2], [track]), *run(small, pixels[2:3], [track]), *run(small, pixels[3:], [track])]
    assert torch.equal(stack_predictions(whole)[0], stack_predictions(parts)[0])


def test_frames_are_computed_when_requested(small: Sam2Segmenter) -> None:
    track = small.begin(PROMPTS["box"])
    stream = small.segment_clip(video(128, frames=3), [track], [small.placement(FRAME_SIZE)] * 3)
    assert track.frame == 0
    next(stream)
    assert track.frame == 1


def test_memory_is_bounded(small: Sam2Segmenter) -> None:
    track = small.begin(PROMPTS["one click"])
    run(small, video(128, frames=FRAMES + 5), [track])
    memory = track.memory
    assert [entry.frame for entry in memory.conditioning_maps] == [0]
    assert [entry.frame for entry in memory.conditioning_pointers] == [0]
    assert [entry.frame for entry in memory.maps] == [17, 18, 19, 20, 21, 22]
    assert [entry.frame for entry in memory.pointers] == list(range(8, 23))


def test_tracks_are_grouped_by_memory_layout_and_kind() -> None:
    young, old, other = MemoryBank(), MemoryBank(), MemoryBank()
    for bank in (old, other):
        bank.store(0, torch.zeros(64, 2, 2), torch.zeros(64), conditioning=True)
    readings = [old.read(1), young.read(0), other.read(1), old.read(2), young.read(0)]
    assert group_by_layout(readings, ["a"] * 5) == [[0, 2], [1, 4], [3]]
    assert group_by_layout(readings, ["a", "a", "b", "a", "a"]) == [[0], [1, 4], [2], [3]]


# Prompts.


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt(expression="the dog"), "not sentences; load a SAMWISE or RefSAM model for sentences"),
        (Prompt(expression="the dog", points=[[1, 2]]), "not sentences; load a SAMWISE or RefSAM model for sentences"),
        (Prompt(mask=np.zeros(FRAME_SIZE, dtype=bool)), "the mask prompt is empty"),
        (Prompt(points=[[5, 5], [160, 20]]), "click at x 160, y 20 .* x must be from 0 to 159 and y from 0 to 89"),
        (Prompt(points=[[20, 90]]), "click at x 20, y 90"),
        (Prompt(points=[[-0.5, 20]]), "click at x -0.5, y 20"),
        (Prompt(box=[10, 10, 161, 40]), "x 161, y 40 reaches outside the frame; x must be from 0 to 160"),
        (Prompt(box=[10, -1, 30, 40]), "x 10, y -1 .* reaches outside"),
        (Prompt(mask=np.ones((160, 90), dtype=bool)), "mask prompt is 90 x 160 pixels and the frame 160 x 90"),
    ],
)
def test_invalid_prompts_are_refused_before_any_track_changes(small: Sam2Segmenter, prompt: Prompt, words: str) -> None:
    good = small.begin(PROMPTS["box"])
    with pytest.raises(PromptError, match=words) as caught:
        small.segment_clip(video(128, frames=1), [good, small.begin(prompt)], [small.placement(FRAME_SIZE)])
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert good.frame == 0


def test_prompts_are_checked_against_the_first_frame_only(small: Sam2Segmenter) -> None:
    track = small.begin(PROMPTS["mask"])
    run(small, video(128, frames=1), [track])
    assert len(run(small, video(128, frames=1), [track], frame_size=(20, 30))) == 1


def test_prompts_at_the_edge_of_the_frame_are_accepted(small: Sam2Segmenter) -> None:
    edge = [Prompt(points=[[0, 0], [159, 89]]), Prompt(box=[0, 0, 160, 90]), Prompt(mask=np.ones(FRAME_SIZE, bool))]
    assert run(small, video(128, frames=1), [small.begin(p) for p in edge])[0].mask_logits.shape == (3, 32, 32)


def test_prompts_are_scaled_to_the_square(small: Sam2Segmenter) -> None:
    points, labels = place_points(PROMPTS["box and click"], small.placement(FRAME_SIZE))
    across, down = 128 / 160, 128 / 90
    expected_prediction = [[20 * across, 10 * down], [100 * across, 85 * down], [64 * across, 40 * down]]
    torch.testing.assert_close(points, torch.tensor(expected_prediction))
    assert labels.tolist() == [2, 3, 0]
    assert place_points(Prompt(points=[[1, 1], [2, 2]]), small.placement(FRAME_SIZE))[1].tolist() == [1, 1]
    mask = place_mask(mask_prompt(), small.placement(FRAME_SIZE))
    assert mask.shape == (1, 128, 128)
    assert mask.unique().tolist() == [0, 1]
    assert mask.mean().item() == pytest.approx(mask_prompt().mean(), abs=0.01)
    assert torch.equal(place_mask(np.eye(128, dtype=bool), small.placement((128, 128)))[0], torch.eye(128))


def test_a_mask_prompt_is_returned_as_the_mask_of_its_frame(small: Sam2Segmenter) -> None:
    (prediction,) = run(small, video(128, frames=1), [small.begin(PROMPTS["mask"])])
    restored = small.placement(FRAME_SIZE).restore(prediction.mask_logits)[0].numpy() > 0
    assert (restored & mask_prompt()).sum() / (restored | mask_prompt()).sum() > 0.95
    assert prediction.score is not None
    assert prediction.score.tolist() == [10]


def test_a_mask_that_vanishes_in_the_square_counts_as_absent(small: Sam2Segmenter) -> None:
    speck = np.zeros((1000, 1000), dtype=bool)
    speck[500, 500] = True
    track = small.begin(Prompt(mask=speck))
    (prediction,) = run(small, video(128, frames=1), [track], frame_size=(1000, 1000))
    assert prediction.score is not None
    assert prediction.score.tolist() == [-10]
    pointer = track.memory.conditioning_pointers[0].vector
    assert torch.equal(pointer, small.tracker.sam.get_parameter("no_object_pointer")[0])


def test_models_without_an_object_score_gate_nothing() -> None:
    model = segmenter("no score")
    predictions = run(model, video(128, frames=3), [model.begin(prompt) for prompt in PROMPTS.values()])
    assert all(prediction.score is None for prediction in predictions)
    assert all(prediction.mask_logits.min() > NO_OBJECT_LOGIT for prediction in predictions)


# The protocol.


def test_the_segmenter_contract_is_implemented(small: Sam2Segmenter) -> None:
    model: Segmenter[Sam2Track] = small
    assert model.clip_length == 1
    assert model.device == torch.device("cpu")
    assert model.placement((90, 160)).resized == (128, 128)
    (prediction,) = run(small, video(128, frames=1), [small.begin(PROMPTS["box"]), small.begin(PROMPTS["mask"])])
    assert prediction.switched.tolist() == [False, False]
    assert prediction.score is not None
    assert prediction.score.shape == (2,)


def test_the_description_counts_all_parameters() -> None:
    assert segmenter("v1").describe()["family"] == "SAM2"
    described = segmenter("v2.1").describe()
    assert described["family"] == "SAM2.1"
    assert described["total"] == sum(p.numel() for p in segmenter("v2.1").parameters())
    assert 0 < described["total"] - sum(described["parts"].values()) < 0.1 * described["total"]
    assert described["trained"] == 0


def test_the_model_is_never_in_training_mode(small: Sam2Segmenter) -> None:
    assert not any(module.training for module in small.train().modules())
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_bfloat16_agrees_with_float32_and_leaves_no_mode_on(small: Sam2Segmenter) -> None:
    # Prompts with a single candidate mask, so that rounding cannot select another.
    pixels, prompts = video(128, frames=4), [PROMPTS["clicks"], PROMPTS["mask"]]
    exact, _ = stack_predictions(run(small, pixels, [small.begin(prompt) for prompt in prompts]))
    small = copy.deepcopy(small).to(torch.bfloat16)
    stream = small.segment_clip(pixels, [small.begin(p) for p in prompts], [small.placement(FRAME_SIZE)] * 4)
    rounded = []
    for prediction in stream:
        rounded.append(prediction.mask_logits.float())
        # Between two frames the caller's own modes are active.
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
    assert torch.stack(rounded).isfinite().all()
    assert 0 < (exact[0, 0] - rounded[0][0]).abs().mean() < 0.1
    assert torch.equal(exact[0, 1], rounded[0][1])

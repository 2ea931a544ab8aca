"""Numerical parity with the released VideoGLaMM code, on goldens that ship with the project.

Bounds are three times the figures of ``data/videoglamm/README.md``, section 5; what is reached stands beside them.
Where rounding feeds back through SAM2's memory the model runs in float64, so that what is left is the goldens' own.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import videoglamm_golden as inputs
from golden import deviation, synthetic_frame
from refervos.videoglamm.config import ClipConfig, InternVideoConfig, VideoGlammConfig
from refervos.videoglamm.decoding import decode_frame, follow_phrases
from refervos.videoglamm.frames import (
    EncoderPixels,
    clip_pixels,
    decoded_frames,
    encoder_frames,
    evenly,
    image_pixels,
    internvideo_pixels,
    place_squashed,
)
from refervos.videoglamm.language import embed
from refervos.videoglamm.model import Decoding, Rule, VideoGlamm, VisualTokens, seg_places
from videoglamm_golden import ANSWERS, CONFIG, POST_B, SEG, golden


def test_rebuilt_weights_have_the_recorded_checksums() -> None:
    wrong = [
        name
        for name, entry in inputs.entries().items()
        if zlib.crc32(inputs.value_of(name).astype("<f4").tobytes()) != entry["crc32"]
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoGlamm:
    return inputs.released_model(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def video(model: VideoGlamm) -> VisualTokens:
    with torch.no_grad():
        return model.encode_pixels(inputs.encoder_pixels())


# Frames.


def test_the_same_frames_are_chosen() -> None:
    numbers = golden("preprocess")
    tried = 0
    for key, chosen in numbers.items():
        kind, _, case = key.partition("/")
        if kind == "decode":
            length, fps = case.removeprefix("n").split("_fps")
            mine = decoded_frames(int(length), float(fps))
        elif kind == "encoder_frames":
            mine = encoder_frames(int(case.removeprefix("n")), 16)
        elif kind in ("sam_train_frames", "subsample_images"):
            count, wanted = (int(part) for part in case.removeprefix("n").split("_t"))
            mine = evenly(count, wanted) if kind == "sam_train_frames" else encoder_frames(count, wanted)
        else:
            continue
        assert mine == chosen.tolist(), key
        tried += 1
    assert tried == 34


def deviation_at(key: str, value: Tensor) -> float:
    """Largest difference from a golden that is stored at probed places, whose number of probes is its own."""
    stored = golden("preprocess")[f"{key}.val"]
    places = inputs.probe_places(value.numel(), len(stored))
    return float(np.abs(value.flatten().numpy()[places] - stored).max())


@pytest.mark.parametrize(("name", "size"), [("land", (144, 256)), ("port", (150, 91))])
def test_frames_are_resized_and_normalised_alike(name: str, size: tuple[int, int]) -> None:
    numbers = golden("preprocess")
    for t in (0, 2):
        frame = synthetic_frame(t, *size)
        sam = place_squashed(size, 1024)
        assert list(sam.first or ()) == numbers[f"{name}/resize_shape"].tolist()
        assert deviation_at(f"{name}/clip336/t{t}", clip_pixels(frame, ClipConfig())) == 0
        # OpenCV's arithmetic in integers: torch's bilinear resize would differ by 0.0175 in 12 % of the pixels.
        assert deviation_at(f"{name}/iv224/t{t}", internvideo_pixels(frame, InternVideoConfig())) < 3e-7  # 0
        placed = sam.place(torch.from_numpy(frame).permute(2, 0, 1))
        assert deviation_at(f"{name}/sam1024/t{t}", placed) < 7.2e-7  # 2.4e-7
    frame = synthetic_frame(0, *size)
    assert deviation(numbers, f"{name}/clip84/t0", clip_pixels(frame, CONFIG.clip)) == 0
    assert CONFIG.internvideo is not None
    assert deviation(numbers, f"{name}/iv56/t0", internvideo_pixels(frame, CONFIG.internvideo)) < 3e-7  # 0
    placed = place_squashed(size, 128).place(torch.from_numpy(frame).permute(2, 0, 1))
    assert deviation(numbers, f"{name}/sam128/t0", placed) < 7.2e-7  # 2.4e-7
    assert deviation_at(f"{name}/single_image336", image_pixels(frame, VideoGlammConfig()).clip) == 0


# What the language model sees and says.


def test_encoders_projectors_and_pooling(model: VideoGlamm, video: VisualTokens) -> None:
    numbers, pixels = golden("llm"), inputs.encoder_pixels()
    assert pixels.internvideo is not None
    assert model.video_projector is not None
    with torch.no_grad():
        image, clips = model.image_features(pixels.clip), model.video_features(pixels.internvideo)
        assert deviation(numbers, "clip_features", image) < 5.1e-6  # 1.9e-6
        # The golden's own rounding is 4.4e-6 (against float64); the same kernels in the same order give 0.
        assert deviation(numbers, "iv_features", clips.flatten(1, 2)) < 7e-6  # 2.4e-6
        assert deviation(numbers, "image_projected", model.image_projector(image[:4])) < 2.7e-6  # 8e-7
        assert deviation(numbers, "video_projected", model.video_projector(clips.flatten(1, 2))) < 5.1e-6  # 3.1e-6
    assert deviation(numbers, "visual_tokens", video.tokens) < 2.7e-6  # 9.8e-7
    assert (len(video.tokens), video.placeholders) == (208, 16)


def test_every_layer_of_the_language_model(model: VideoGlamm, video: VisualTokens) -> None:
    numbers = golden("llm")
    ids = inputs.prompt() + ANSWERS["A3"]
    with torch.no_grad():
        embedded = embed(model.language, ids, video.tokens)
        output = model.language.model(inputs_embeds=embedded.unsqueeze(0), output_hidden_states=True, use_cache=False)
        logits = model.language.lm_head(output.last_hidden_state[0])
    assert deviation(numbers, "inputs_embeds", embedded) < 2.7e-6  # 9.8e-7
    for index in range(2):
        assert deviation(numbers, f"layer{index}", output.hidden_states[index + 1][0]) < 1.02e-5  # 2.4e-6
    assert deviation(numbers, "final_hidden", output.last_hidden_state[0]) < 1.02e-5  # 2.4e-6
    assert deviation(numbers, "logits", logits) < 1.02e-5  # 2.9e-6
    assert logits.argmax(-1).tolist() == numbers["logits_argmax"].tolist()


@pytest.mark.parametrize("case", ["A0", "A1", "A2", "A3", "A5", "B2", "image"])
def test_states_and_prompt_tokens(case: str, model: VideoGlamm, video: VisualTokens) -> None:
    numbers = golden("llm")
    ids, visual = inputs.prompt() + ANSWERS.get(case, []), video
    with torch.no_grad():
        if case == "B2":
            ids, visual = inputs.prompt(POST_B) + ANSWERS["A2"], model.encode_pixels(inputs.encoder_pixels(7))
        elif case == "image":
            ids = inputs.prompt(images=1) + ANSWERS["A2"]
            alone = EncoderPixels(inputs.encoder_pixels().clip[3:4], None)
            visual = model.encode_pixels(alone, single=True)
            assert deviation(numbers, "image/inputs_embeds", embed(model.language, ids, visual.tokens)) < 2.7e-6
        states = model.read_ids(ids, visual)
        tokens = model.seg_tokens(ids, visual, states)
        logits = model.language.lm_head(states[-20:])
    assert ids == numbers[f"{case}/ids"].tolist()
    assert len(states) == numbers[f"{case}/seq_len"]
    places = seg_places(ids, SEG, len(visual.tokens))
    assert [place - 1 for place in places] == numbers[f"{case}/seg_index"].tolist()
    assert deviation(numbers, f"{case}/final_tail", states[-20:]) < 1.02e-5  # 2.5e-6
    assert deviation(numbers, f"{case}/seg_embeds", tokens) < 1.02e-5  # 1.9e-6
    if case != "image":
        assert deviation(numbers, f"{case}/logits_tail", logits) < 1.02e-5  # 2.6e-6


# Masks.


@pytest.mark.parametrize("case", ["A1", "A2", "A3", "A5"])
def test_masks_of_single_frames(case: str, model: VideoGlamm) -> None:
    numbers = golden("framewise")
    tokens = torch.from_numpy(golden("llm")[f"{case}/seg_embeds"])
    place = place_squashed((90, 130), CONFIG.sam2.image_size)
    for t, frame in enumerate(inputs.sam_frames(6)):
        key = f"{case}/frame{t:02d}/"
        with torch.inference_mode():
            features = model.tracker.pyramid(model.tracker.encode(frame.unsqueeze(0)))
            decoded = decode_frame(model.tracker, features, tokens)
        assert decoded.score is not None
        with torch.inference_mode():
            plain = decode_frame(model.tracker, features, tokens, stability=False)
        assert deviation(numbers, f"{key}low_res", decoded.mask_logits) < 1.8e-4  # 1.2e-4
        assert deviation(numbers, f"{key}ious", decoded.ious) < 1.5e-6  # 1.4e-6
        assert deviation(numbers, f"{key}object_score_logits", decoded.score.unsqueeze(1)) < 7.5e-5  # 5.5e-5
        if numbers.has(f"{key}pred_mask"):
            assert deviation(numbers, f"{key}pred_mask", place.restore(decoded.mask_logits[:, 0])) < 1.2e-4  # 1.1e-4
        if case == "A3":
            # Both outcomes of the fallback from an unstable mask are in the golden.
            fell_back = ((decoded.mask_logits - plain.mask_logits).abs() > 1e-3).flatten(1).any(1)
            assert fell_back.tolist() == numbers["fallback_used"][t].tolist()
            if t == 0:
                for index, level in enumerate((features.fine, features.middle, features.top)):
                    assert deviation(numbers, f"fpn{index}", level) < 3.3e-5


def test_all_four_masks_of_a_frame(model: VideoGlamm) -> None:
    numbers, tracker = golden("framewise"), model.tracker
    tokens = torch.from_numpy(golden("llm")["A3/seg_embeds"])
    assert deviation(numbers, "sparse", tokens.unsqueeze(1)) < 1.02e-5
    with torch.inference_mode():
        assert deviation(numbers, "dense00", tracker.sam.prompt_encoder.no_mask().flatten()) == 0
        for t, frame in enumerate(inputs.sam_frames(2)):
            features = tracker.pyramid(tracker.encode(frame.unsqueeze(0))).take([0] * len(tokens))
            image, sparse = tracker.without_memory(features.top), tokens.unsqueeze(1)
            one = tracker.decode(image, features, sparse, stability=False)
            three = tracker.decode(image, features, sparse, multimask=True)
            masks = torch.cat([one.mask_logits, three.mask_logits], dim=1)
            assert deviation(numbers, f"A3/frame{t:02d}/all_masks", masks) < 1.8e-4
            assert deviation(numbers, f"A3/frame{t:02d}/all_ious", torch.cat([one.ious, three.ious], 1)) < 1.8e-6


def test_masks_of_a_single_image(model: VideoGlamm) -> None:
    tokens = torch.from_numpy(golden("llm")["image/seg_embeds"])
    (predicted,) = model.segment(inputs.sam_frames(1), tokens, decoding="frames")
    assert deviation(golden("framewise"), "image/frame00/low_res", predicted.mask_logits.unsqueeze(1)) < 1.8e-4


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, VideoGlamm]:
    """The model in float64, with memory maps in bfloat16 or not."""
    folder = inputs.write_checkpoint(tmp_path_factory.mktemp("exact"), wrapped=True)
    models = {}
    for rounded in (True, False):
        config = replace(CONFIG, sam2=replace(CONFIG.sam2, bfloat16_memory=rounded))
        models[rounded] = inputs.load_official(folder, config=config).double()
    return models


VIDEOS = ["video3_f32mem", "video_long_f32mem", "video3", "video_long"]


@pytest.mark.parametrize("name", VIDEOS)
def test_masks_through_memory(name: str, exact: dict[bool, VideoGlamm]) -> None:
    numbers = golden(name)
    rounded = "f32mem" not in name
    tracker = exact[rounded].tracker
    place = place_squashed(tuple(numbers.meta["hw"]), CONFIG.sam2.image_size)
    tracks = exact[rounded].begin_tracks(torch.from_numpy(numbers["embeds"]).double())
    seen: dict[str, float] = defaultdict(float)
    wrong = 0
    frames = inputs.sam_frames(numbers.meta["frames"], 3 if "long" in name else 0)
    for t, frame in enumerate(frames.double()):
        with torch.inference_mode():
            predicted = follow_phrases(tracker, frame, tracks)
        assert predicted.score is not None
        key = f"frame{t:02d}/"
        banks = [track.memory for track in tracks]
        pointers = [(bank.pointers or bank.conditioning_pointers)[-1].vector for bank in banks]
        maps = torch.stack([(bank.maps or bank.conditioning_maps)[-1].features for bank in banks])
        assert maps.dtype == (torch.bfloat16 if rounded else torch.float64)
        part = "low_res 0" if t == 0 else "low_res 1" if t == 1 else "low_res 2-4" if t < 5 else "low_res 5+"
        stored = maps.double().contiguous().numpy().reshape(-1)[numbers[f"{key}memory.idx"]]
        full = place.restore(predicted.mask_logits)
        golden_masks = inputs.unpacked(numbers, "masks")[t]
        wrong += int((golden_masks != (full > 0).numpy()).sum())
        for quantity, value in {
            part: deviation(numbers, f"{key}low_res", predicted.mask_logits.unsqueeze(1)),
            "score": deviation(numbers, f"{key}object_score_logits", predicted.score.unsqueeze(1)),
            "pointers": deviation(numbers, f"{key}obj_ptr", torch.stack(pointers)),
            "video_res": deviation(numbers, f"{key}video_res", full.unsqueeze(1)),
            "memory": float(np.abs(stored - numbers[f"{key}memory_bank_probe"]).max()),
        }.items():
            seen[quantity] = max(seen[quantity], value)
        shown = (predicted.score > 0).tolist()
        assert shown == (numbers[f"{key}object_score_logits"][:, 0] > 0).tolist()
    bounds = ROUNDED if rounded else UNROUNDED
    assert {quantity: value for quantity, value in seen.items() if value > bounds[quantity]} == {}
    # Of 351,000 and 61,440 pixels; each of them has a logit of nearly zero.
    assert wrong <= {"video3_f32mem": 1, "video_long_f32mem": 0, "video3": 42, "video_long": 9}[name]


UNROUNDED = {
    # 4.0e-5 in the long video, 3.0e-5 in the other: the golden's own rounding, which the README's second
    # implementation, in float32 with the same kernels, shares (1.3e-5).
    "low_res 0": 4.5e-5,
    "low_res 1": 3.0e-5,  # 1.0e-5
    "low_res 2-4": 3.3e-5,  # 1.1e-5
    "low_res 5+": 6.3e-5,  # 2.2e-5
    "score": 4.2e-5,  # 2.3e-5
    "pointers": 9.6e-5,  # 3.4e-5
    "video_res": 1.3e-4,  # 1.2e-4, as the logits before the gate
    "memory": 4e-4,  # 3.7e-4: the last place of a number above 4096 in float32
}

ROUNDED = {
    "low_res 0": 4.5e-5,  # as above
    "low_res 1": 1.44e-4,  # 1.1e-5
    "low_res 2-4": 1.53e-3,  # 5.0e-4
    "low_res 5+": 4.2e-3,  # 2.2e-3
    "score": 5.7e-3,  # 1.5e-3
    "pointers": 8.7e-3,  # 3.8e-3
    "video_res": 4.2e-3,  # 1.5e-3
    "memory": 0.04,  # 0.031: one step of bfloat16 at 4
}


# Answers.


def forced(steps: list[int], seen: list[Tensor]) -> Rule:
    """The goldens' rule: ``[SEG]`` alone at some steps, elsewhere neither that nor the end. Keeps the logits before."""

    def rule(written: Sequence[int], logits: Tensor) -> Tensor:
        seen.append(logits)
        changed = torch.full_like(logits, -torch.inf) if len(written) in steps else logits.clone()
        changed[SEG] = logits[SEG] if len(written) in steps else -torch.inf
        changed[list(CONFIG.phi.end)] = -torch.inf
        return changed

    return rule


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("case", ["frames", "video", "first", "none", "prompt_seg"])
def test_generated_answers(case: str, cached: bool, model: VideoGlamm, video: VisualTokens) -> None:
    numbers = golden("generation")
    post = [*inputs.POST[:4], SEG, *inputs.POST[4:]] if case == "prompt_seg" else inputs.POST
    ids = inputs.prompt(post)
    seen: list[Tensor] = []
    context = model.start(ids, video, cached=cached)
    written = list(model.generate(context, limit=8, rule=forced(numbers.meta["steps"][case], seen)))
    whole = [*ids, *(token.id for token in written)]
    assert whole == numbers[f"{case}/output_ids"].tolist()
    assert deviation(numbers, f"{case}/step_logits", torch.stack(seen)) < 1.2e-5  # 3.6e-6
    states = torch.stack([token.state for token in written])
    assert deviation(numbers, f"{case}/last_hidden_tail", states) < 1.2e-5  # 4.0e-6
    assert context.length - 1 == numbers[f"{case}/hidden_len"]
    tokens = [token.prompt_token for token in written if token.prompt_token is not None]
    if case == "prompt_seg":  # in the released code a [SEG] of the prompt counts like one of the answer
        with torch.no_grad():
            both = model.seg_tokens(whole, video, model.read_ids(whole[:-1], video))
        assert torch.allclose(both[1:], torch.stack(tokens), atol=1e-5)
        tokens = list(both)
    if case == "none":
        assert not tokens
        assert not list(model.segment(inputs.sam_frames(2), torch.zeros(0, CONFIG.sam2.hidden)))
        return
    prompts = torch.stack(tokens)
    assert deviation(numbers, f"{case}/seg_embeds", prompts) < 1.2e-5  # 2.2e-6
    if cached:
        place = place_squashed((90, 130), CONFIG.sam2.image_size)
        decoding: Decoding = "frames" if case == "frames" else "memory"
        frames = inputs.sam_frames(10)[:6]
        masks = [place.masks(predicted.mask_logits) for predicted in model.segment(frames, prompts, decoding=decoding)]
        wrong = torch.stack(masks).numpy() != inputs.unpacked(numbers, f"{case}/masks")
        assert wrong.sum() <= (2 if case == "frames" else 36)  # 0; through memory in bfloat16 3, 1 and 12 of 140,400


def test_a_cache_changes_rounding_alone(model: VideoGlamm, video: VisualTokens) -> None:
    answers = []
    for cached in (True, False):
        context = model.start(inputs.prompt(), video, cached=cached)
        # Long enough for the window of 128 positions to slide, in pieces that are read between answers.
        tokens = list(model.generate(context, limit=40, rule=forced([3, 30], [])))
        model.add(context, [13, 301, 44, 8])
        tokens += model.generate(context, limit=40, rule=forced([1], []))
        answers.append(tokens)
    kept, anew = answers
    assert [token.id for token in kept] == [token.id for token in anew]
    worst = max(float((one.state - other.state).abs().max()) for one, other in zip(kept, anew, strict=True))
    assert worst < 5.4e-6 * 2  # the README's 1.8e-6, three times, over ten times as many steps

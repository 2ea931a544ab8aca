"""VideoGLaMM's structure, checkpoints and folders, by what must hold; numbers are in ``test_videoglamm_parity.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import refervos
import videoglamm_golden as inputs
from refervos.conversion import convert
from refervos.errors import CheckpointError, ConfigError, FrameError, MissingDependencyError
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from refervos.videoglamm.checkpoints import as_merged, infer_config, is_official, load_official
from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, ClipConfig, LoraConfig, PhiConfig
from refervos.videoglamm.decoding import follow_phrases
from refervos.videoglamm.encoders import pool
from refervos.videoglamm.frames import EncoderPixels, video_pixels
from refervos.videoglamm.model import VideoGlamm
from videoglamm_golden import ANSWERS, CONFIG
from videoglamm_models import random_model, small_tokenizer


def loaded(path: str | Path, **how: Any) -> VideoGlamm:
    """``refervos.load``, of a VideoGLaMM."""
    model: Any = refervos.load(path, device="cpu", **how)
    assert isinstance(model, VideoGlamm)
    return model


# Sizes.


def test_the_published_size_is_that_of_the_paper() -> None:
    config = VIDEOGLAMM_PRESETS["published"]
    assert (config.image_tokens, config.video_tokens, config.visual_tokens) == (144, 64, 3328)
    with torch.device("meta"):
        model = VideoGlamm(config)
    parts = model.describe()["parts"]
    assert parts["language model"] == 3_821_079_552 - 2 * (32064 - 32012) * 3072 + 32 * 8 * (3072 + 9216)
    assert parts["image projector"] == 1024 * 3072 + 3072 + 3072 * 3072 + 3072
    assert parts["video projector"] == 1408 * 3072 + 3072 + 3072 * 3072 + 3072
    assert parts["language-to-vision projector"] == 3072 * 3072 + 3072 + 3072 * 256 + 256
    assert 0.97e9 < parts["video encoder"] < 1.0e9
    assert 0.28e9 < parts["image encoder"] < 0.31e9
    assert 0.22e9 < parts["SAM2"] < 0.23e9
    assert len(model.image_encoder.clip.encoder.layers) == 23  # type: ignore[union-attr, arg-type]
    assert model.video_encoder is not None
    assert len(model.video_encoder.layers) == 39
    lora = [name for name, _ in model.named_parameters() if "lora" in name]
    assert len(lora) == 64
    # What the weights take in bfloat16, in GB.
    assert 10.5 < 2 * model.describe()["total"] / 1e9 < 11


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: replace(CONFIG, seg=512), "seg is 512"),
        (lambda: replace(CONFIG, pooling=4), "pooling is 4; it must divide the 6 patches"),
        (lambda: replace(CONFIG, frames=6), "frames is 6; it must be a multiple of the video encoder.s 4"),
        (lambda: replace(CONFIG, phi=replace(CONFIG.phi, positions=208)), "no positions are left"),
        (lambda: replace(CONFIG, sam2=replace(CONFIG.sam2, object_score=False)), "object_score"),
        (lambda: ClipConfig(image_size=100), "image_size is 100"),
        (lambda: LoraConfig(rank=0), "rank is 0"),
        (lambda: PhiConfig(window=0), "window is 0"),
        (lambda: PhiConfig(heads=5), "width is 3072"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(build: Callable[[], object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build()


# Encoders.


@pytest.fixture(scope="module")
def model() -> VideoGlamm:
    return random_model()


def test_chunks_of_frames_do_not_see_each_other(model: VideoGlamm) -> None:
    pixels = inputs.encoder_pixels()
    assert pixels.internvideo is not None
    changed = EncoderPixels(pixels.clip.clone(), pixels.internvideo.clone())
    assert changed.internvideo is not None
    for tensor in (changed.clip, changed.internvideo):
        tensor[5] += 1
    with torch.no_grad():
        before, after = (model.encode_pixels(each).tokens for each in (pixels, changed))
    differs = (before != after).any(1)
    image, video = differs[: 16 * 9].unflatten(0, (16, 9)), differs[16 * 9 :].unflatten(0, (16, 4))
    assert image.any(1).nonzero().flatten().tolist() == [5]
    assert video.any(1).nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_pooling_is_the_mean_of_squares() -> None:
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    assert pool(tokens, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_a_model_without_a_video_encoder_reads_image_tokens_alone() -> None:
    alone = random_model(replace(CONFIG, internvideo=None))
    frames = list(np.random.default_rng(0).integers(0, 256, (20, 30, 50, 3), dtype=np.uint8))
    visual = alone.encode_video(frames)
    assert (len(visual.tokens), visual.placeholders) == (144, 16)
    assert alone.video_projector is None


def test_frames_are_checked_and_short_videos_repeat_their_last(model: VideoGlamm) -> None:
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 30, 50, 3), dtype=np.uint8))
    pixels = video_pixels(frames, CONFIG)
    assert pixels.internvideo is not None
    assert all(torch.equal(tensor[2], tensor[15]) for tensor in (pixels.clip, pixels.internvideo))
    assert not torch.equal(pixels.clip[1], pixels.clip[2])
    assert len(frames) == 3  # the released code lengthens the caller's list
    with pytest.raises(FrameError, match="no frames"):
        model.encode_video([])
    with pytest.raises(FrameError, match="uint8"):
        model.encode_video([np.zeros((4, 4, 3))])
    line = model.encode_video([np.zeros((1, 3000, 3), np.uint8)])
    assert torch.isfinite(line.tokens).all()


# Masks.


def test_as_many_masks_as_phrases_and_bounded_memory(model: VideoGlamm) -> None:
    tokens = torch.randn(3, CONFIG.sam2.hidden, generator=torch.Generator().manual_seed(0))
    frames = inputs.sam_frames(1)
    tracks = model.begin_tracks(tokens)
    for _ in range(30):
        with torch.inference_mode():
            predicted = follow_phrases(model.tracker, frames[0], tracks)
        assert predicted.mask_logits.shape == (3, 32, 32)
    memory = tracks[0].memory
    assert (len(memory.maps), len(memory.pointers), len(memory.conditioning_maps)) == (6, 15, 1)
    assert not list(model.segment(frames, tokens[:0]))


def test_phrases_that_join_later_do_not_touch_the_others(model: VideoGlamm) -> None:
    tokens = torch.randn(2, CONFIG.sam2.hidden, generator=torch.Generator().manual_seed(0))
    frames = inputs.sam_frames(4)
    alone = [each.mask_logits for each in model.segment(frames, tokens[:1])]
    first, second = model.begin_tracks(tokens)
    tracks = [first]
    for t, frame in enumerate(frames):
        if t == 2:
            tracks.append(second)
        with torch.inference_mode():
            predicted = follow_phrases(model.tracker, frame, tracks)
        assert torch.allclose(predicted.mask_logits[:1], alone[t], atol=1e-4)
    late = [each.mask_logits for each in model.segment(frames[2:], tokens[1:])]
    assert torch.allclose(predicted.mask_logits[1:], late[1], atol=1e-4)


# Checkpoints.


def write_bin(folder: Path, state: dict[str, Tensor], shards: int = 1) -> Path:
    """A folder with torch's own files."""
    folder.mkdir()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    places: dict[str, str] = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(state.items())[shard::shards])
        torch.save(part, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def write_shards(folder: Path, state: dict[str, Tensor]) -> Path:
    """A folder with safetensors in two shards."""
    folder.mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places: dict[str, str] = {}
    for index, name in enumerate(names):
        part = dict(list(state.items())[index::2])
        save_file({key: value.contiguous() for key, value in part.items()}, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def spoken(model: VideoGlamm) -> tuple[Tensor, Tensor]:
    """States and prompt tokens of an answer about the goldens' video."""
    ids = [*inputs.prompt(), *ANSWERS["A2"]]
    with torch.no_grad():
        visual = model.encode_pixels(inputs.encoder_pixels())
        states = model.read_ids(ids, visual)
        return states, model.seg_tokens(ids, visual, states)


def test_merged_and_unmerged_checkpoints_say_the_same(tmp_path: Path) -> None:
    wrapped = inputs.official_state(wrapped=True)
    unmerged = inputs.official_state()
    merged = inputs.official_state(merged=True)
    paths = [
        write_bin(tmp_path / "wrapped", wrapped),
        write_bin(tmp_path / "unmerged", unmerged, shards=3),
        write_shards(tmp_path / "merged", merged),
    ]
    torch.save({"module": {f"module.{name}": value for name, value in wrapped.items()}}, tmp_path / "deepspeed.pt")
    models = [load_official(path, config=CONFIG) for path in (*paths, tmp_path / "deepspeed.pt")]
    assert [model.config.lora is None for model in models] == [False, False, True, False]
    states, tokens = spoken(models[0])
    for other in models[1:]:
        again = spoken(other)
        assert torch.allclose(again[0], states, atol=1e-5)
        assert torch.allclose(again[1], tokens, atol=1e-5)
    frame = inputs.sam_frames(1)
    masks = [next(iter(model.segment(frame, tokens))).mask_logits for model in models]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert all(is_official(path) for path in paths)


def without(state: dict[str, Tensor], beginning: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(beginning)}


def test_parts_that_a_checkpoint_leaves_out_come_from_their_own_files(tmp_path: Path) -> None:
    whole = inputs.official_state(merged=True)
    model = load_official(write_shards(tmp_path / "whole", whole), config=CONFIG)
    parts = {"clip": "model.image_vision_tower.", "video": "model.vision_tower.", "sam": "model.visual_model."}
    bare = whole
    for beginning in parts.values():
        bare = without(bare, beginning)
    tower = "model.image_vision_tower.vision_tower."
    clip = {name.removeprefix(tower): value for name, value in whole.items() if name.startswith(tower)}
    (tmp_path / "clip").mkdir()
    save_file(
        {"text_model.final_layer_norm.bias": torch.zeros(3), "logit_scale": torch.zeros(1), **clip},
        tmp_path / "clip" / "model.safetensors",
    )
    video = {name.removeprefix("model.vision_tower."): value for name, value in whole.items() if parts["video"] in name}
    torch.save({"module": {f"module.{name}": value for name, value in video.items()}}, tmp_path / "internvideo.pt")
    Sam2Segmenter(model.tracker)  # the tracker is one of SAM2's
    with pytest.raises(CheckpointError, match=r"missing: model\.image_vision_tower"):
        load_official(write_shards(tmp_path / "bare", bare), config=CONFIG, clip=None)
    rest = bare | {name: value for name, value in whole.items() if name.startswith(parts["sam"])}
    put_together = load_official(
        write_shards(tmp_path / "rest", rest),
        clip=tmp_path / "clip",
        internvideo=tmp_path / "internvideo.pt",
        config=CONFIG,
    )
    mine, theirs = put_together.state_dict(), model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_the_tracker_may_come_from_a_sam2_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inputs.official_state(merged=True)
    tracker = Sam2Tracker(CONFIG.sam2)
    folder = write_shards(tmp_path / "rest", without(whole, "model.visual_model."))
    with pytest.raises(CheckpointError, match=r"missing: model\.visual_model"):
        load_official(folder, config=CONFIG)
    # Meta's files hold the published sizes alone, which are too large for a test: what they would give stands in.
    monkeypatch.setattr("refervos.videoglamm.checkpoints.load_sam2", lambda path: tracker)
    (tmp_path / "sam2.pt").write_bytes(b"")
    model = load_official(folder, config=CONFIG, sam2=tmp_path / "sam2.pt")
    mine = model.tracker.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in tracker.state_dict().items())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda state: {**state, "model.extra.weight": torch.zeros(2)}, "1 unexpected: model.extra.weight"),
        (lambda state: without(state, "lm_head"), "missing: lm_head.weight"),
        (
            lambda state: {**state, "model.mm_projector.0.weight": torch.zeros(3, 3)},
            r"1 misshapen: model.mm_projector.0.weight is \(3, 3\), \(96, 64\) expected",
        ),
        (
            lambda state: {**state, "model.norm.weight": torch.full((96,), float("nan"))},
            "NaN or infinity in model.norm.weight",
        ),
    ],
)
def test_what_does_not_fit_is_listed(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], told: str, tmp_path: Path
) -> None:
    state = spoil(inputs.official_state(merged=True))
    with pytest.raises(CheckpointError, match=told):
        load_official(write_bin(tmp_path / "spoilt", state), config=CONFIG)


def test_a_published_checkpoint_is_told_from_its_weights() -> None:
    published = VIDEOGLAMM_PRESETS["published"]
    source = {
        "model.embed_tokens.weight": torch.empty(32012, 3072, device="meta"),
        "model.text_hidden_fcs.0.0.weight": torch.empty(3072, 3072, device="meta"),
        "model.layers.0.self_attn.qkv_proj.lora_A.default.weight": torch.empty(8, 3072, device="meta"),
    }
    header = {"seg_token_idx": 32011, "sliding_window": 2047, "model_type": "VideoGPT+"}
    assert infer_config(source, header, "it") == published
    assert infer_config(source, {}, "it") == published
    merged = dict(list(source.items())[:2])
    assert infer_config(merged, header, "it") == replace(published, lora=None)
    with pytest.raises(CheckpointError, match="not a VideoGLaMM checkpoint"):
        infer_config({"a": torch.zeros(1)}, {}, "it")


def test_scales_that_transformers_renamed_are_found_again() -> None:
    name = "model.visual_model.memory_encoder.fuser.layers.0"
    assert set(as_merged({f"{name}.gamma": torch.zeros(1)})) == set(as_merged({f"{name}.weight": torch.zeros(1)}))


# Folders of our own.


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoGlamm]:
    """An unmerged checkpoint with its tokenizer, converted."""
    folder = tmp_path_factory.mktemp("conversion")
    source = inputs.write_checkpoint(folder / "official", wrapped=True)
    (source / "config.json").write_text(json.dumps({"model_type": "VideoGPT+"}))
    small_tokenizer().save_pretrained(source)
    made = convert(source, folder / "model", config=CONFIG)
    assert isinstance(made, VideoGlamm)
    return folder / "model", made


def test_a_converted_folder_is_loaded_with_every_number(converted: tuple[Path, VideoGlamm]) -> None:
    folder, made = converted
    model = loaded(folder)
    assert model.config == made.config == CONFIG
    assert model.tokenizer is not None
    assert model.fingerprint() == made.fingerprint()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(spoken(model), spoken(made), strict=True))
    half = loaded(folder, dtype="bfloat16")
    assert half.compute_dtype == torch.bfloat16
    assert half.language.lm_head.weight.dtype == torch.bfloat16
    assert half.language.model.rotary_emb.inv_freq.dtype == torch.float32
    close = torch.nn.functional.cosine_similarity(spoken(half)[0].float(), spoken(model)[0], dim=-1)
    assert close.min() > 0.99  # 0.9989


def test_an_official_folder_is_told_to_be_converted(converted: tuple[Path, VideoGlamm]) -> None:
    with pytest.raises(CheckpointError, match="refervos convert"):
        refervos.load(converted[0].parent / "official", device="cpu")


def test_conversion_refuses_parts_that_have_no_place(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="clip applies only to VideoGLaMM"):
        convert(tmp_path / "other.pth", tmp_path / "model", clip="owner/name")
    assert not (tmp_path / "model").exists()


def test_a_model_in_training_is_saved_with_its_adaptation(tmp_path: Path) -> None:
    model = random_model()
    model.choose_trained()
    model.save_pretrained(tmp_path / "model")
    again = loaded(tmp_path / "model")
    assert again.config.lora == CONFIG.lora
    assert again.fingerprint() == model.fingerprint()
    described = again.describe()
    assert described["family"] == "VideoGLaMM"
    assert described["settings"]["LoRA"] == "rank 8"


# Fewer bits.


@pytest.mark.parametrize(("bits", "least"), [(8, 0.999), (4, 0.95)])
def test_a_language_model_in_fewer_bits_says_nearly_the_same(bits: int, least: float, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = replace(CONFIG, phi=replace(CONFIG.phi, width=128, feedforward=256))
    random_model(config).save_pretrained(tmp_path / "model")
    whole, model = (loaded(tmp_path / "model", dtype="bfloat16", bits=each) for each in (None, bits))
    assert loaded(tmp_path / "model", bits=bits).compute_dtype == torch.bfloat16
    layer = model.language.model.layers[0].self_attn.qkv_proj
    assert layer.weight.dtype == (torch.int8 if bits == 8 else torch.uint8)
    assert model.language.lm_head.weight.dtype == torch.bfloat16
    assert model.describe()["settings"]["quantisation"] == f"{bits} bits"
    mine, theirs = spoken(model)[0].float(), spoken(whole)[0].float()
    assert not torch.equal(mine, theirs)
    assert float(torch.nn.functional.cosine_similarity(mine, theirs, dim=-1).mean()) > least
    with pytest.raises(CheckpointError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_bits_that_there_are_not_are_one_sentence(converted: tuple[Path, VideoGlamm]) -> None:
    with pytest.raises(ConfigError, match="bits is 3"):
        loaded(converted[0], bits=3)
    with pytest.raises(ConfigError, match="has 96 inputs"):
        loaded(converted[0], bits=4)
    with pytest.raises(ConfigError, match="applies only to VideoGLaMM"):
        refervos.load("miniature", device="cpu", bits=4)


@pytest.mark.parametrize(("package", "bits"), [("transformers", None), ("peft", None), ("bitsandbytes", 4)])
def test_a_package_that_is_missing_is_named(
    package: str, bits: int | None, converted: tuple[Path, VideoGlamm], monkeypatch: pytest.MonkeyPatch
) -> None:
    from refervos import errors

    there = errors._is_installed
    monkeypatch.setattr(errors, "_is_installed", lambda name: name != package and there(name))
    extra = "quantised" if package == "bitsandbytes" else "videoglamm"
    with pytest.raises(MissingDependencyError, match=rf"{package}.*refervos\[{extra}\]"):
        loaded(converted[0], bits=bits)


def test_naming_the_package_imports_neither_transformers_nor_peft() -> None:
    run = "import sys, refervos.videoglamm.model, refervos.videoglamm.conversation, refervos.videoglamm.checkpoints\n"
    run += "assert not {'transformers', 'peft', 'bitsandbytes'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", run], check=True, env=os.environ)

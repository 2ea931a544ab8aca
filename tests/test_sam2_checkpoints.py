"""SAM2 checkpoints in Meta's and Hugging Face's format: loaded completely, or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel

from refervos.bench.plain_sam2 import hf_config
from refervos.errors import CheckpointError, ConfigError
from refervos.prompts import Prompt
from refervos.sam2.checkpoints import load_sam2, meta_names
from refervos.sam2.config import SAM2_PRESETS, Sam2Config, as_version_2_1, config_from_folder
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.sam2.tracker import Sam2Tracker
from scenes import MICRO_SAM2

CONFIGS = {
    "tiny v1": SAM2_PRESETS["tiny"],
    "tiny v2.1": as_version_2_1(SAM2_PRESETS["tiny"]),
    "v1": MICRO_SAM2,
    "v2.1": as_version_2_1(MICRO_SAM2),
    "no score": replace(MICRO_SAM2, object_score=False),
}
TWIN = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.fixture(scope="module", autouse=True)
def _forget(one_thread: None) -> Iterator[None]:
    yield
    tracker_of.cache_clear()


@cache
def tracker_of(name: str) -> Sam2Tracker:
    """Make a tracker with distinct random tensors."""
    tracker = Sam2Tracker(CONFIGS[name])
    generator = torch.Generator().manual_seed(len(name))
    for tensor in tracker.sam.state_dict().values():
        tensor.uniform_(-1, 1, generator=generator)
    return tracker.eval()


def meta_state(tracker: Sam2Tracker) -> dict[str, Tensor]:
    """Return the tracker's weights under Meta's names, split as in Meta's files."""
    state: dict[str, Tensor] = {}
    for name, tensor in tracker.sam.state_dict().items():
        names = meta_names(name)
        state.update(zip(names, tensor.split(1) if len(names) > 1 else [tensor], strict=True))
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_same_weights(tracker: Sam2Tracker, expected: Sam2Tracker) -> None:
    state, expected_state = tracker.sam.state_dict(), expected.sam.state_dict()
    assert state.keys() == expected_state.keys()
    assert [name for name in state if not torch.equal(state[name], expected_state[name])] == []


@pytest.fixture
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the small model count as a published size."""
    monkeypatch.setitem(SAM2_PRESETS, "micro", MICRO_SAM2)


def refusal(path: Path) -> str:
    """Return the one-sentence reason why a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_sam2(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert path.name in message
    return message


# Meta's names.


def test_names_and_shapes_match_an_official_checkpoint() -> None:
    places = [Path(__file__).parent / "data" / "manifests", Path(__file__).parents[2] / "shared/parity/manifests"]
    manifest = next((file for place in places if (file := place / "tiny_hsa_cme.json").is_file()), None)
    if manifest is None:
        pytest.skip("the list of an official checkpoint's tensors (tiny_hsa_cme.json) is not here")
    entries = json.loads(manifest.read_text())["entries"]
    official = {
        entry["name"].removeprefix("sam."): [size for size in entry["shape"] if size != 1]
        for entry in entries
        if entry["name"].startswith("sam.") and ".project_" not in entry["name"]
    }
    ours = meta_state(tracker_of("tiny v1"))
    assert {name: [size for size in tensor.shape if size != 1] for name, tensor in ours.items()} == official
    assert len(ours) > 450


@pytest.mark.parametrize(
    ("ours", "meta"),
    [
        ("vision_encoder.backbone.blocks.3.layer_norm2.weight", "image_encoder.trunk.blocks.3.norm2.weight"),
        ("vision_encoder.backbone.blocks.3.mlp.proj_out.bias", "image_encoder.trunk.blocks.3.mlp.layers.1.bias"),
        ("vision_encoder.neck.convs.2.weight", "image_encoder.neck.convs.2.conv.weight"),
        ("mask_decoder.iou_prediction_head.layers.0.weight", "sam_mask_decoder.iou_prediction_head.layers.1.weight"),
        ("object_pointer_proj.proj_out.weight", "obj_ptr_proj.layers.2.weight"),
        (
            "mask_decoder.transformer.layers.1.layer_norm4.bias",
            "sam_mask_decoder.transformer.layers.1.norm4.bias",
        ),
        ("mask_decoder.upscale_conv2.weight", "sam_mask_decoder.output_upscaling.3.weight"),
        ("prompt_encoder.mask_embed.layer_norm2.weight", "sam_prompt_encoder.mask_downscaling.4.weight"),
        ("memory_attention.layers.0.layer_norm3.weight", "memory_attention.layers.0.norm3.weight"),
        (
            "memory_attention.layers.0.cross_attn_image.o_proj.weight",
            "memory_attention.layers.0.cross_attn_image.out_proj.weight",
        ),
        ("memory_encoder.memory_fuser.layers.1.pointwise_conv2.bias", "memory_encoder.fuser.layers.1.pwconv2.bias"),
        ("memory_encoder.memory_fuser.layers.1.scale", "memory_encoder.fuser.layers.1.gamma"),
        (
            "memory_encoder.mask_downsampler.layers.2.layer_norm.weight",
            "memory_encoder.mask_downsampler.encoder.7.weight",
        ),
        ("memory_encoder.feature_projection.weight", "memory_encoder.pix_feat_proj.weight"),
        ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
        ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
        ("temporal_positional_encoding_projection_layer.bias", "obj_ptr_tpos_proj.bias"),
        (TWIN, "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    ],
)
def test_names_are_converted_to_metas(ours: str, meta: str) -> None:
    assert meta_names(ours) == (meta,)


# Meta's files.


@pytest.mark.parametrize("name", ["tiny v1", "tiny v2.1"])
def test_a_meta_file_is_loaded_exactly(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    torch.save({"model": meta_state(tracker_of(name))}, path)
    loaded = load_sam2(path)
    path.unlink()
    assert_same_weights(loaded, tracker_of(name))
    assert loaded.config == replace(CONFIGS[name], multimask_stability=True)
    assert not loaded.training


@pytest.mark.usefixtures("_published")
@pytest.mark.parametrize("name", ["v1", "v2.1", "no score"])
def test_a_meta_file_of_a_data_parallel_run_is_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    torch.save({f"module.{key}": tensor for key, tensor in meta_state(tracker_of(name)).items()}, path)
    loaded = load_sam2(path)
    assert_same_weights(loaded, tracker_of(name))
    assert loaded.config == replace(CONFIGS[name], multimask_stability=True)


@pytest.mark.usefixtures("_published")
def test_a_meta_file_gives_the_masks_of_its_tracker(tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    torch.save({"model": meta_state(tracker_of("v1"))}, path)
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    masks = []
    for tracker in (tracker_of("v1"), load_sam2(path)):
        tracker.config = replace(MICRO_SAM2, multimask_stability=True)
        model = Sam2Segmenter(tracker)
        track = model.begin(Prompt(points=[[5, 5]]))
        masks.append([out.mask_logits for out in model.segment_clip(pixels, [track], [model.placement((40, 60))] * 2)])
    assert all(torch.equal(first, second) for first, second in zip(*masks, strict=True))


@pytest.mark.usefixtures("_published")
def test_every_tensor_that_does_not_match_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    state = meta_state(tracker_of("v1"))
    del state["maskmem_tpos_enc"], state["sam_prompt_encoder.point_embeddings.2.weight"]
    state["no_obj_ptr"] = torch.zeros(1, 65)
    state["text.weight"] = torch.zeros(3)
    torch.save({"model": state}, path)
    message = refusal(path)
    assert "2 missing: maskmem_tpos_enc, sam_prompt_encoder.point_embeddings.2.weight" in message
    assert "1 unexpected: text.weight" in message
    assert "1 misshapen: no_obj_ptr is (1, 65), (1, 64) expected" in message


def test_unpublished_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    torch.save({"model": meta_state(tracker_of("v1"))}, path)
    assert "width 16 with 7 blocks; the published (width, blocks) are tiny (96, 12)" in refusal(path)


class Trap:
    """Object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_no_code_in_a_file_is_executed(tmp_path: Path) -> None:
    path, created = tmp_path / "sam2.pt", tmp_path / "created"
    torch.save({"model": meta_state(tracker_of("v1")), "extra": Trap(created)}, path)
    assert "cannot be read as weights: " in refusal(path)
    assert not created.exists()
    torch.load(path, weights_only=False)
    assert created.exists()  # the trap works


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_meta_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "sam2.pt"
    torch.save({"model": meta_state(tracker_of("v1"))}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "cannot be read as weights: " in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "contains a list"),
        ({"epoch": 3}, "no state dict under the key 'model'"),
        ({"model": {"conv.weight": torch.zeros(3)}}, "it is not a SAM2 checkpoint"),
    ],
)
def test_files_without_a_sam2_are_refused(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert words in refusal(tmp_path / "other.pt")


def test_text_files_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sam2.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "cannot be read as weights: " in refusal(tmp_path / "sam2.pt")
    assert "does not exist" in refusal(tmp_path / "absent.pt")


# Hugging Face folders.


def hf_folder(folder: Path, name: str) -> Path:
    """Save transformers' model with the tracker's weights."""
    model = Sam2VideoModel(hf_config(CONFIGS[name]))
    model.load_state_dict(tracker_of(name).sam.state_dict())
    model.save_pretrained(folder)
    return folder


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("name", ["v1", "v2.1"])
@pytest.mark.parametrize("twins", [True, False])
def test_a_hugging_face_folder_is_loaded_exactly(name: str, twins: bool, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "sam2", name)
    weights = load_file(folder / "model.safetensors")
    assert TWIN in weights
    if not twins:  # older releases of transformers save only one of two equal tensors
        del weights[TWIN]
        save_file(weights, folder / "model.safetensors")
    loaded = load_sam2(folder)
    assert_same_weights(loaded, tracker_of(name))
    assert loaded.config == CONFIGS[name]
    assert not loaded.training


def test_tensors_of_a_hugging_face_folder_that_do_not_match_are_listed(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "sam2", "v1")
    weights = load_file(folder / "model.safetensors")
    del weights["no_memory_embedding"]
    save_file(
        weights | {"extra": torch.zeros(1), "no_object_pointer": torch.zeros(2, 32)}, folder / "model.safetensors"
    )
    message = refusal(folder)
    assert "1 missing: no_memory_embedding" in message
    assert "1 unexpected: extra" in message
    assert "1 misshapen: no_object_pointer is (2, 32), (1, 64) expected" in message


def test_folders_with_truncated_or_missing_files_are_refused(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "sam2", "v1")
    whole = (folder / "model.safetensors").read_bytes()
    for kept in (0, 1000, len(whole) // 2):
        (folder / "model.safetensors").write_bytes(whole[:kept])
        assert "model.safetensors cannot be read as weights: it is " in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json is not valid JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "roberta"}, "has model_type roberta; give a Hugging Face SAM2 folder"),
        ({"num_maskmem": "seven"}, "memory_slots is 'seven' where int is expected"),
        ({"multimask_output_for_tracking": False}, "multimask_output_for_tracking is False; only the published"),
        ({"memory_encoder_output_channels": 32}, "memory_width is 32"),
        ({"enable_occlusion_spatial_embedding": True}, "1 missing: occlusion_spatial_embedding_parameter"),
    ],
)
def test_hugging_face_folders_with_unsupported_settings_are_refused(
    values: dict[str, object], words: str, tmp_path: Path
) -> None:
    folder = hf_folder(tmp_path / "sam2", "v1")
    change_config(folder, **values)
    assert words in refusal(folder)


@pytest.mark.parametrize("config", [*SAM2_PRESETS.values(), MICRO_SAM2, as_version_2_1(MICRO_SAM2)])
def test_configurations_are_read_back_from_transformers(config: Sam2Config) -> None:
    config = replace(config, multimask_stability=config.image_size == 128)
    assert config_from_folder(hf_config(config).to_dict()) == config


def test_unsupported_behaviour_is_refused() -> None:
    hf = hf_config(MICRO_SAM2)
    hf.mask_decoder_config.dynamic_multimask_stability_thresh = 0.5
    with pytest.raises(
        ConfigError, match=r"dynamic_multimask_stability_thresh is 0\.5; only the published value 0\.98"
    ):
        config_from_folder(hf.to_dict())


@pytest.mark.parametrize("header", [{}, {"num_maskmem": 5}])
def test_omitted_fields_have_the_defaults_of_transformers(header: dict[str, Any]) -> None:
    filled = Sam2VideoConfig.from_dict(header).to_dict()
    assert config_from_folder(header) == config_from_folder(filled)

"""SAM checkpoints in Meta's, Hugging Face's and our own format: loaded completely, or refused with a reason."""

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
from transformers import SamModel

from refervos.checkpoints.weights import count_parameters
from refervos.errors import CheckpointError, ConfigError
from refervos.sam.checkpoints import load_sam, meta_name, save_sam
from refervos.sam.config import SAM_PRESETS, SamConfig
from refervos.sam.model import Sam
from transformers_sam import hf_config

# Meta's files do not contain the number of decoder heads, so the published decoder is used for them; folders do.
MICRO = SamConfig(
    image_size=64, patch=8, vit_width=32, vit_layers=4, vit_heads=2, vit_global_blocks=(1, 3), vit_window=5
)
NARROW = replace(MICRO, hidden=32, decoder_layers=1, decoder_heads=2, decoder_feedforward=48, decoder_downsample=4)
CONFIGS = {"micro": MICRO, "narrow": NARROW}
TABLE = "shared_image_embedding.positional_embedding"
TWIN = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.fixture(scope="module", autouse=True)
def _forget(one_thread: None) -> Iterator[None]:
    yield
    published_model.cache_clear()


@cache
def published_model(name: str) -> SamModel:
    """Make a SAM of transformers with distinct random tensors."""
    model = SamModel(hf_config(CONFIGS[name])).eval()
    generator = torch.Generator().manual_seed(len(name))
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)
    return model


def hf_names_by_meta(config: SamConfig) -> dict[str, str]:
    """Map Meta's name of every tensor of a SAM to transformers'."""
    modules = {
        "image_encoder.patch_embed.proj": "vision_encoder.patch_embed.projection",
        "image_encoder.neck.1": "vision_encoder.neck.layer_norm1",
        "image_encoder.neck.3": "vision_encoder.neck.layer_norm2",
        "mask_decoder.transformer.norm_final_attn": "mask_decoder.transformer.layer_norm_final_attn",
        "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
        "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
        "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
        "prompt_encoder.mask_downscaling.0": "prompt_encoder.mask_embed.conv1",
        "prompt_encoder.mask_downscaling.1": "prompt_encoder.mask_embed.layer_norm1",
        "prompt_encoder.mask_downscaling.3": "prompt_encoder.mask_embed.conv2",
        "prompt_encoder.mask_downscaling.4": "prompt_encoder.mask_embed.layer_norm2",
        "prompt_encoder.mask_downscaling.6": "prompt_encoder.mask_embed.conv3",
    }
    tensors = {
        "image_encoder.pos_embed": "vision_encoder.pos_embed",
        "image_encoder.neck.0.weight": "vision_encoder.neck.conv1.weight",
        "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": TABLE,
    }
    for name in ("mask_decoder.iou_token", "mask_decoder.mask_tokens"):
        tensors[f"{name}.weight"] = f"{name}.weight"
    for name in ("prompt_encoder.no_mask_embed", "prompt_encoder.not_a_point_embed"):
        tensors[f"{name}.weight"] = f"{name}.weight"
    for index in range(4):
        tensors[f"prompt_encoder.point_embeddings.{index}.weight"] = f"prompt_encoder.point_embed.{index}.weight"
    for index in range(config.vit_layers):
        meta, hf = f"image_encoder.blocks.{index}", f"vision_encoder.layers.{index}"
        modules |= {f"{meta}.norm{n}": f"{hf}.layer_norm{n}" for n in (1, 2)}
        modules |= {f"{meta}.{part}": f"{hf}.{part}" for part in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")}
        tensors |= {f"{meta}.attn.rel_pos_{axis}": f"{hf}.attn.rel_pos_{axis}" for axis in "hw"}
    transformer = "mask_decoder.transformer"
    attentions = [f"{transformer}.final_attn_token_to_image"]
    for index in range(config.decoder_layers):
        layer = f"{transformer}.layers.{index}"
        modules |= {f"{layer}.norm{n}": f"{layer}.layer_norm{n}" for n in (1, 2, 3, 4)}
        modules |= {f"{layer}.mlp.lin{n}": f"{layer}.mlp.lin{n}" for n in (1, 2)}
        for kind in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            attentions.append(f"{layer}.{kind}")
    for attention in attentions:
        modules |= {f"{attention}.{part}_proj": f"{attention}.{part}_proj" for part in ("q", "k", "v", "out")}
    for head in ("iou_prediction_head", *(f"output_hypernetworks_mlps.{index}" for index in range(4))):
        for index, layer in enumerate(("proj_in", "layers.0", "proj_out")):
            modules[f"mask_decoder.{head}.layers.{index}"] = f"mask_decoder.{head}.{layer}"
    for meta, hf in modules.items():
        tensors |= {f"{meta}.{last}": f"{hf}.{last}" for last in ("weight", "bias")}
    return tensors


def meta_state(model: SamModel, config: SamConfig) -> dict[str, Tensor]:
    """Return a model's weights under Meta's names."""
    state = model.state_dict()
    return {meta: state[hf].clone() for meta, hf in hf_names_by_meta(config).items()}


def micro_state() -> dict[str, Tensor]:
    return meta_state(published_model("micro"), MICRO)


def hf_folder(folder: Path, name: str = "narrow") -> Path:
    """Save a model with transformers."""
    published_model(name).save_pretrained(folder)
    return folder


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    """Change ``config.json``; names may be dotted, None removes a setting."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for name, value in changes.items():
        *sections, last = name.split(".")
        part = config
        for section in sections:
            part = part[section]
        part[last] = value
        if value is None:
            del part[last]
    file.write_text(json.dumps(config))


def assert_computes_as(sam: Sam, model: SamModel) -> None:
    """Check that weights are bit-identical and outputs equal up to the order of summation."""
    state, expected = sam.sam.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []
    assert not sam.training
    size = sam.config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    clicks, labels = torch.tensor([[[9.0, 40.0]], [[50.0, 7.0]]]), torch.ones(2, 1, dtype=torch.int64)
    with torch.no_grad():
        expected = model(pixels, input_points=clicks[:, None], input_labels=labels[:, None], multimask_output=True)
        top = sam.encode(pixels).top
        # transformers appends a padding point to clicks.
        tokens = sam.embed_points(
            torch.cat([clicks, torch.zeros(2, 1, 2)], dim=1), torch.cat([labels, -torch.ones_like(labels)], dim=1)
        )
        decoded = sam.decode(top + sam.no_mask(), tokens, multimask=True)
        torch.testing.assert_close(top, model.get_image_embeddings(pixels), rtol=0, atol=2e-5)
    torch.testing.assert_close(decoded.mask_logits, expected.pred_masks[:, 0], rtol=0, atol=2e-5)
    torch.testing.assert_close(decoded.ious, expected.iou_scores[:, 0], rtol=0, atol=2e-5)
    assert decoded.mask_logits.std() > 0.02  # a thousand times the tolerance


def refusal(path: Path) -> str:
    """Return the one-sentence reason why a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_sam(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert path.name in message
    return message


def refusal_of(state: object, folder: Path) -> str:
    torch.save(state, folder / "sam.pth")
    return refusal(folder / "sam.pth")


# Names and sizes.


@pytest.mark.parametrize("name", CONFIGS)
def test_names_are_converted_to_metas(name: str) -> None:
    table = hf_names_by_meta(CONFIGS[name])
    assert {meta_name(hf): hf for hf in table.values()} == table
    assert {*table.values(), TWIN} == set(published_model(name).state_dict())


@pytest.mark.parametrize(("preset", "count"), [("vit-b", 93_735_472), ("vit-l", 312_342_832), ("vit-h", 641_090_608)])
def test_presets_have_as_many_parameters_as_published(preset: str, count: int) -> None:
    with torch.device("meta"):
        sam = Sam(SAM_PRESETS[preset])
    # For Meta the Fourier table of 2 x 128 numbers is a buffer, for transformers a parameter that is not trained.
    assert count_parameters(sam) == count + 256


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vit_heads": 0}, "vit_heads is 0; a SAM needs at least 1."),
        ({"image_size": 1000}, "image_size is 1000; it must be a multiple of patch 16."),
        ({"decoder_heads": 3}, "hidden is 256; it must be a multiple of 8 and of decoder_heads x decoder_downsample"),
    ],
)
def test_invalid_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamConfig(**changes)
    assert words in str(caught.value)


# Meta's files.


def test_a_meta_file_computes_the_same_as_transformers(tmp_path: Path) -> None:
    torch.save(micro_state(), tmp_path / "sam.pth")
    loaded = load_sam(tmp_path / "sam.pth")
    (tmp_path / "sam.pth").unlink()
    assert loaded.config == MICRO
    assert_computes_as(loaded, published_model("micro"))


def test_a_meta_file_of_a_data_parallel_run_is_loaded(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in micro_state().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "sam.pth")
    assert_computes_as(load_sam(tmp_path / "sam.pth"), published_model("micro"))


def test_every_tensor_that_does_not_match_is_listed(tmp_path: Path) -> None:
    state = micro_state()
    del state["prompt_encoder.point_embeddings.2.weight"], state["mask_decoder.iou_prediction_head.layers.1.bias"]
    state["text.weight"] = torch.zeros(3)
    state["image_encoder.blocks.2.mlp.lin1.bias"] = torch.zeros(64)
    message = refusal_of(state, tmp_path)
    missing = "mask_decoder.iou_prediction_head.layers.1.bias, prompt_encoder.point_embeddings.2.weight"
    assert f"2 missing: {missing}" in message
    assert "1 unexpected: text.weight" in message
    assert "1 misshapen: image_encoder.blocks.2.mlp.lin1.bias is (64,), (128,) expected" in message


def _with_reach(state: dict[str, Tensor], reach: dict[int, int]) -> None:
    """Set the number of tokens a side that blocks attend over."""
    for block, tokens in reach.items():
        for axis in "hw":
            state[f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"] = torch.zeros(2 * tokens - 1, 16)


@pytest.mark.parametrize(
    ("reach", "words"),
    [
        ({0: 8, 2: 8}, r"a map of 8 tokens a side and attention over [8];"),
        ({0: 4}, "a map of 8 tokens a side and attention over [4, 5, 8];"),
        ({3: 5}, "vit_global_blocks is (1,); it must ascend and end with the last block, 3"),
    ],
)
def test_ambiguous_windows_are_refused(reach: dict[int, int], words: str, tmp_path: Path) -> None:
    state = micro_state()
    _with_reach(state, reach)
    assert words in refusal_of(state, tmp_path)


def test_a_window_may_be_larger_than_the_map(tmp_path: Path) -> None:
    state = micro_state()
    _with_reach(state, {0: 14, 2: 14})
    torch.save(state, tmp_path / "sam.pth")
    assert load_sam(tmp_path / "sam.pth").config == replace(MICRO, vit_window=14)


def test_a_decoder_of_unpublished_width_is_refused(tmp_path: Path) -> None:
    message = refusal_of(meta_state(published_model("narrow"), NARROW), tmp_path)
    assert "a mask decoder of width 32 with attention of width 8; only widths 256 and 128 are supported" in message


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("image_encoder.patch_embed.proj.weight", torch.zeros(32, 192)),
        ("image_encoder.pos_embed", torch.zeros(())),
        ("image_encoder.blocks.0.attn.rel_pos_h", None),
        ("image_encoder.blocks.2.attn.rel_pos_h", torch.zeros(9, 0)),
        ("image_encoder.neck.0.weight", None),
        ("mask_decoder.transformer.layers.0.mlp.lin1.weight", torch.zeros(4)),
    ],
)
def test_tensors_needed_to_infer_the_configuration_must_be_valid(
    name: str, changed: Tensor | None, tmp_path: Path
) -> None:
    state = micro_state()
    del state[name]
    if changed is not None:
        state[name] = changed
    message = refusal_of(state, tmp_path)
    assert f"has no {name} with " in message
    assert "it is not a SAM checkpoint" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "contains a list"),
        ({"epoch": 3}, "no state dict under the key 'model'"),
        ({"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(3)}}, "it is not a SAM checkpoint"),
    ],
)
def test_files_without_a_sam_are_refused(content: object, words: str, tmp_path: Path) -> None:
    assert words in refusal_of(content, tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_meta_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(micro_state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "cannot be read as weights: " in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.pth")


@pytest.mark.slow
def test_a_meta_file_of_the_published_size_is_loaded_exactly(tmp_path: Path) -> None:
    config = SAM_PRESETS["vit-b"]
    sam = Sam(config)
    state = meta_state(sam.sam, config)
    assert sum(tensor.numel() for tensor in state.values()) == 93_735_472 + 256
    torch.save(state, tmp_path / "sam_vit_b_01ec64.pth")
    loaded = load_sam(tmp_path / "sam_vit_b_01ec64.pth")
    assert loaded.config == config
    expected = sam.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


# Hugging Face folders.


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hugging_face_folder_computes_the_same_as_transformers(name: str, tmp_path: Path) -> None:
    loaded = load_sam(hf_folder(tmp_path / "sam", name))
    assert loaded.config == CONFIGS[name]
    assert_computes_as(loaded, published_model(name))


@pytest.mark.parametrize("tables", [(TABLE,), (TWIN,), (TABLE, TWIN)])
def test_a_hugging_face_folder_may_store_the_shared_table_once_or_twice(
    tables: tuple[str, ...], tmp_path: Path
) -> None:
    folder = hf_folder(tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    table = weights[TABLE if TABLE in weights else TWIN]
    kept = {name: tensor for name, tensor in weights.items() if name not in (TABLE, TWIN)}
    save_file(kept | {name: table.clone() for name in tables}, folder / "model.safetensors")
    assert_computes_as(load_sam(folder), published_model("narrow"))


def test_a_hugging_face_folder_of_an_older_release_is_loaded(tmp_path: Path) -> None:
    """Omitted settings have transformers' defaults, and obsolete settings are ignored."""
    folder = hf_folder(tmp_path / "sam", "micro")
    change_config(
        folder,
        {
            "transformers_version": "4.29.0",
            "torch_dtype": "float32",
            "mask_decoder_config": None,
            "prompt_encoder_config.mask_input_channels": None,
            "vision_config.hidden_act": None,
            "vision_config.mlp_dim": None,
            "vision_config.projection_dim": 512,
            "vision_config.dropout": 0.0,
            "vision_config.initializer_factor": 1.0,
        },
    )
    assert load_sam(folder).config == MICRO


def test_a_hugging_face_folder_in_half_precision_is_loaded_in_float32(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "sam")
    halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    loaded = load_sam(folder)
    token = "mask_decoder.iou_token.weight"
    assert torch.equal(loaded.sam.state_dict()[token], halves[token].float())
    assert loaded.dtype == torch.float32


def test_tensors_of_a_hugging_face_folder_that_do_not_match_are_listed(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    del weights["mask_decoder.mask_tokens.weight"]
    changed = {"extra": torch.zeros(1), "vision_encoder.pos_embed": torch.zeros(1, 4, 4, 32)}
    save_file(weights | changed, folder / "model.safetensors")
    message = refusal(folder)
    assert "1 missing: mask_decoder.mask_tokens.weight" in message
    assert "1 unexpected: extra" in message
    assert "1 misshapen: vision_encoder.pos_embed is (1, 4, 4, 32), (1, 8, 8, 32) expected" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "sam2"}, "has model_type sam2; give a SAM"),
        ({"model_type": None}, "has model_type None; give a SAM"),
        ({"vision_config.num_hidden_layers": "four"}, "vit_layers is 'four' where int is expected"),
        ({"vision_config.image_size": [64, 64]}, "image_size is (64, 64) where int is expected"),
        ({"vision_config.image_size": 60}, "image_size is 60; it must be a multiple of patch 8"),
        ({"vision_config.num_attention_heads": 3}, "it must be a multiple of vit_heads 3"),
        ({"vision_config.global_attn_indexes": [1]}, "must ascend and end with the last block, 3"),
        ({"vision_config.use_rel_pos": False}, "vision_config.use_rel_pos is False; only True is supported"),
        ({"vision_config.hidden_act": "relu"}, "vision_config.hidden_act is relu; only gelu is supported"),
        ({"vision_config.mlp_dim": 64}, "vision_config.mlp_dim is 64; only 128 is supported"),
        (
            {"prompt_encoder_config.image_size": 128},
            "prompt_encoder_config.image_size is 128; only 64 is supported",
        ),
        ({"mask_decoder_config.num_multimask_outputs": 5}, "num_multimask_outputs is 5; only 3 is supported"),
        ({"mask_decoder_config.hidden_size": 64}, "mask_decoder_config.hidden_size is 64; only 32 is supported"),
    ],
)
def test_hugging_face_folders_with_unsupported_settings_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = hf_folder(tmp_path / "sam")
    change_config(folder, changes)
    assert words in refusal(folder)


# Our own folders, and damaged folders.


def test_our_own_folder_is_saved_and_loaded(tmp_path: Path) -> None:
    sam = Sam(NARROW)
    sam.sam.load_state_dict(published_model("narrow").state_dict())
    save_sam(sam, tmp_path / "sam")
    loaded = load_sam(tmp_path / "sam")
    assert loaded.config == NARROW
    assert_computes_as(loaded, published_model("narrow"))


@pytest.mark.parametrize("kind", ["own", "hf"])
def test_folders_with_truncated_or_missing_files_are_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "sam"
    if kind == "own":
        save_sam(Sam(NARROW), folder)
    else:
        hf_folder(folder)
    whole = (folder / "model.safetensors").read_bytes()
    for kept in (0, 1000, len(whole) // 2):
        (folder / "model.safetensors").write_bytes(whole[:kept])
        reason = "it is truncated" if kept else "it is empty"
        assert f"model.safetensors cannot be read as weights: {reason}" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder)
    (folder / "config.json").write_text('{"model_type": ')
    assert "config.json is not valid JSON" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json; give a SAM" in refusal(folder)

"""VideoGLaMM's losses and gradients: on the released code's golden numbers, and by what must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import videoglamm_golden as inputs
from golden import deviation
from refervos.errors import ConfigError
from refervos.videoglamm.checkpoints import official_names
from refervos.videoglamm.language import merge_lora
from refervos.videoglamm.losses import (
    PUBLISHED_WEIGHTS,
    Losses,
    LossWeights,
    pad_masks,
    sigmoid_bce_loss,
    sigmoid_dice_loss,
)
from refervos.videoglamm.model import Example, LabelledIds, VideoGlamm, spliced_labels
from videoglamm_golden import ANSWERS, CONFIG, POST, POST_B, golden
from videoglamm_models import random_model


@pytest.mark.parametrize("count", [4, 2])
@pytest.mark.parametrize("kind", ["dice_loss", "sigmoid_ce_loss"])
def test_mask_losses_and_gradients(kind: str, count: int) -> None:
    function: Callable[[Tensor, Tensor, float], Tensor] = sigmoid_dice_loss if kind == "dice_loss" else sigmoid_bce_loss
    numbers = golden("losses")
    logits = torch.from_numpy(numbers["pred"]).requires_grad_()
    targets = torch.from_numpy(numbers["gt"])
    loss = function(logits, targets, count)
    loss.backward()
    assert deviation(numbers, f"{kind}/num{count}", loss) < 3e-6
    assert logits.grad is not None
    assert deviation(numbers, f"{kind}/num{count}/grad", logits.grad) < 1e-8
    each = [function(one.unsqueeze(0), wanted.unsqueeze(0), 1) for one, wanted in zip(logits, targets, strict=True)]
    assert deviation(numbers, f"{kind}/per_mask", torch.stack(each)) < 3e-6


@pytest.mark.parametrize("count", [0, 1, 2, 4, 6])
def test_masks_are_padded_alike(count: int) -> None:
    stored = torch.from_numpy(golden("preprocess")[f"mask_padding/n{count}"])
    padded = pad_masks(torch.zeros(count, *stored.shape[1:], dtype=stored.dtype), 4)
    assert torch.equal(padded, stored)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoGlamm:
    return inputs.released_model(tmp_path_factory.mktemp("released"))


def labelled(post: list[int], answer: str) -> LabelledIds:
    ids = inputs.prompt(post)
    return LabelledIds([*ids, *ANSWERS[answer]], [*[-100] * len(ids), *ANSWERS[answer]])


def batch_of(case: str) -> list[Example]:
    numbers = golden("train")
    height, width = numbers.meta["hw"]
    frames = numbers.meta["T"][case]

    def example(start: int, asked: list[tuple[list[int], str]], masks: int, first: int = 0) -> Example:
        conversations = [labelled(post, answer) for post, answer in asked]
        wanted = inputs.gt_masks(masks, frames, height, width, first)
        return Example(inputs.encoder_pixels(start), conversations, inputs.sam_frames(frames, start), wanted)

    return {
        "two": lambda: [example(0, [(POST, "A2")], 2), example(7, [(POST_B, "A1"), (POST, "A0")], 1, 1)],
        "zero": lambda: [example(0, [(POST, "A0")], 0)],
        "one": lambda: [example(0, [(POST, "A1")], 1)],
        "five": lambda: [example(7, [(POST_B, "A5")], 4)],
    }[case]()


def step(model: VideoGlamm, batch: list[Example], weights: LossWeights | None = None) -> Losses:
    """One training step's losses; gradients are in the parameters afterwards."""
    model.zero_grad(set_to_none=True)
    losses = model.train().loss(batch, weights)
    losses.total.backward()
    model.eval()
    return losses


def gradients(model: VideoGlamm) -> dict[str, Tensor | None]:
    """Gradients of what trains, by the released code's names."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return {official_names(name)[0]: value.grad for name, value in named}


@pytest.mark.parametrize("case", ["two", "zero", "one", "five", "wide"])
def test_a_training_step(case: str, model: VideoGlamm) -> None:
    numbers, wide = golden("train"), case == "wide"
    key = "wide/two/" if wide else f"official/{case}/"
    model.choose_trained(projectors=wide)
    if wide:
        model.tracker.sam.mask_decoder.requires_grad_(True)
    batch = batch_of("two" if wide else case)
    losses = step(model, batch, PUBLISHED_WEIGHTS)
    found = {"loss": losses.total, "ce_loss": losses.text, "mask_bce_loss": losses.bce, "mask_dice_loss": losses.dice}
    for name, value in found.items():
        assert value.item() == pytest.approx(float(numbers[key + name]), rel=3e-6, abs=1e-9), name  # 1.3e-6
    assert (losses.bce + losses.dice).item() == pytest.approx(float(numbers[f"{key}mask_loss"]), rel=3e-6)
    mine = gradients(model)
    names = [str(name) for name in numbers[f"{key}grad_names"]]
    assert set(names) <= set(mine)
    assert all(mine[name] is None for name in set(mine) - set(names))
    total = 0.0
    for name, norm in zip(names, numbers[f"{key}grad_norms"], strict=True):
        gradient = mine[name]
        if gradient is None:  # heads of the ambiguity masks, which are not computed here
            assert norm == 0
            continue
        total += float(gradient.norm()) ** 2
        if name.endswith("k_proj.bias"):  # softmax does not see a shift of all keys: both are rounding around zero
            assert max(float(gradient.norm()), float(norm)) < 2e-6
            continue
        assert float(gradient.norm()) == pytest.approx(float(norm), rel=1.5e-4, abs=1e-7), name  # 4.6e-5
        if f"{key}grad/{name}" in numbers:
            stored = numbers[f"{key}grad/{name}"]
            probed = gradient.flatten().numpy()[inputs.probe_places(gradient.numel(), len(stored))]
            assert np.abs(probed - stored).max() <= 1.5e-4 * np.abs(stored).max() + 1e-8, name  # 9.6e-5
    assert total**0.5 == pytest.approx(float(numbers[f"{key}grad_total"]), rel=1.5e-4)


@pytest.mark.parametrize("case", ["two", "zero", "one", "five"])
def test_rows_of_a_training_batch(case: str, model: VideoGlamm) -> None:
    numbers, key = golden("train"), f"official/{case}/"
    rows = [(each, example) for example in batch_of(case) for each in example.conversations]
    width = numbers[f"{key}input_ids"].shape[1]
    with torch.no_grad():
        tokens = []
        for index, (row, example) in enumerate(rows):
            assert numbers[f"{key}input_ids"][index].tolist() == [*row.ids, *[0] * (width - len(row.ids))]
            assert example.pixels is not None
            visual = model.encode_pixels(example.pixels)
            labels = spliced_labels(row, visual)
            stored = numbers[f"{key}spliced_labels"][index]
            assert stored[: len(labels)].tolist() == labels.tolist()
            assert set(stored[len(labels) :]) <= {-100}
            states = model.read_ids(row.ids, visual)
            tokens.append(model.seg_tokens(row.ids, visual, states))
        found = torch.cat(tokens)
        assert deviation(numbers, f"{key}seg_embeds", found) < 1.02e-5
        # The padding: where a prompt is missing, all of it is zero, and nothing of its mask counts.
        first = batch_of(case)[0]
        count = int(numbers[f"{key}n_prompts"][0])
        own = tokens[0]
        tracker = model.tracker
        features = tracker.pyramid(tracker.encode(first.frames[:1])).take([0] * count)
        missing = count - len(own)
        sparse = torch.cat([own, own.new_zeros(missing, own.shape[1])]).unsqueeze(1)
        dense = tracker.sam.prompt_encoder.no_mask().expand(count, -1, *features.top.shape[2:]).clone()
        dense[len(own) :] = 0
        masks = tracker.decode(
            tracker.without_memory(features.top), features, sparse, dense=dense, stability=False
        ).mask_logits
    assert deviation(numbers, f"{key}low_res_frame0", masks) < 1.8e-4


def test_only_the_padding_weakens_the_losses_of_masks(model: VideoGlamm) -> None:
    model.choose_trained()
    padded, plain = (step(model, batch_of("one"), weights) for weights in (PUBLISHED_WEIGHTS, LossWeights()))
    assert plain.bce.item() == pytest.approx(4 * padded.bce.item(), rel=1e-6)  # one of four
    assert plain.dice.item() == pytest.approx(4 * padded.dice.item(), rel=1e-6)
    assert plain.text.item() == padded.text.item()
    full = [step(model, batch_of("five"), weights) for weights in (PUBLISHED_WEIGHTS, LossWeights())]
    assert full[0] == full[1] or full[0].total.item() == pytest.approx(full[1].total.item(), rel=1e-7)
    with pytest.raises(ConfigError, match="padded_masks"):
        LossWeights(padded_masks=0)


def test_what_trains_is_what_the_paper_and_the_released_code_say() -> None:
    model = random_model()
    assert not [name for name, value in model.named_parameters() if value.requires_grad]
    chosen = model.choose_trained()
    assert set(chosen) == {"LoRA", "token embeddings", "head", "language-to-vision projector"}
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"language", "seg_projector"}
    adapted = [name for name, value in model.named_parameters() if value.requires_grad and "lora" in name]
    assert len(adapted) == 2 * CONFIG.phi.layers
    assert all("self_attn.qkv_proj" in name for name in adapted)
    assert {"image projector", "video projector"} <= set(model.choose_trained(projectors=True))
    model.train()
    assert model.language.training
    assert not any(part.training for part in model.frozen_parts())


def test_without_anything_learnt_low_rank_adaptation_changes_nothing() -> None:
    plain = random_model(replace(CONFIG, lora=None))
    adapted = random_model()
    missing = adapted.load_state_dict(
        {name.replace("qkv_proj.weight", "qkv_proj.base_layer.weight"): v for name, v in plain.state_dict().items()},
        strict=False,
    )
    assert all("lora" in name for name in missing.missing_keys)
    assert not missing.unexpected_keys
    with torch.no_grad():
        one, other = (model.read_ids([1, 5, 9, 77], None) for model in (plain, adapted))
        assert torch.allclose(one, other, atol=1e-6)
        for name, value in adapted.language.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
        learnt = adapted.read_ids([1, 5, 9, 77], None)
        assert not torch.allclose(one, learnt, atol=1e-2)
        merge_lora(adapted.language)
        assert not [name for name, _ in adapted.language.named_parameters() if "lora" in name or "base_layer" in name]
        assert torch.allclose(adapted.read_ids([1, 5, 9, 77], None), learnt, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(model: VideoGlamm) -> None:
    model.choose_trained(projectors=True)
    kept = step(model, batch_of("one"))
    before = {name: value.clone() for name, value in gradients(model).items() if value is not None}
    model.gradient_checkpointing = True
    assert model.gradient_checkpointing
    anew = step(model, batch_of("one"))
    model.gradient_checkpointing = False
    assert anew.total.item() == kept.total.item()
    after = gradients(model)
    for name, value in before.items():
        gradient = after[name]
        assert gradient is not None
        assert torch.allclose(gradient, value, atol=1e-7), name


def test_a_mask_depends_on_what_precedes_its_token_and_not_on_the_token(model: VideoGlamm) -> None:
    visual = model.encode_pixels(inputs.encoder_pixels())
    ids = [*inputs.prompt(), *ANSWERS["A1"]]
    at = ids.index(CONFIG.seg)
    table = model.language.get_input_embeddings().weight
    seen = []
    for changed in (None, CONFIG.seg, ids[at - 1]):
        with torch.no_grad():
            kept = table.clone()
            if changed is not None:
                table[changed] += 1
            seen.append(model.seg_tokens(ids, visual, model.read_ids(ids, visual)))
            table.copy_(kept)
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-3)


def test_a_batch_is_the_mean_over_all_its_masks_and_all_its_words(model: VideoGlamm) -> None:
    with torch.no_grad():
        model.train()
        both = model.loss(batch_of("two"))
        alone = [model.loss([example]) for example in batch_of("two")]
        model.eval()
    masks = [2, 1]
    assert both.bce.item() == pytest.approx(
        sum(count * each.bce.item() for count, each in zip(masks, alone, strict=True)) / 3, rel=1e-5
    )
    words = [6, 12]
    assert both.text.item() == pytest.approx(
        sum(count * each.text.item() for count, each in zip(words, alone, strict=True)) / 18, rel=1e-5
    )


def test_text_without_a_video_trains_the_words_alone(model: VideoGlamm) -> None:
    model.choose_trained(projectors=True)
    row = LabelledIds([1, 5, 9, 77, 2], [-100, -100, 9, 77, 2])
    losses = step(model, [Example(None, [row], torch.zeros(0, 3, 128, 128), torch.zeros(0, 0, 8, 8))])
    assert losses.text.item() > 0
    assert (losses.bce.item(), losses.dice.item()) == (0, 0)
    assert model.seg_projector[0].weight.grad is not None  # in the graph, as data parallelism needs it

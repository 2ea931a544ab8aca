"""Auxiliary comparison of image tokens with the text tokens of nouns, in trackers and in adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import TrainingError
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.training.stages.clip_sources import WorldClips
from refervos.training.stages.noun_states import TEMPLATES, load_nouns_of, noun_states
from refervos.training.stages.recognition import GROUP_WEIGHTS, RecognitionHead, WordSpace
from refervos.training.stages.samwise import ImagesSettings, ImagesStage, VideoSettings
from refervos.training.stages.track import TrackSettings, TrackStage
from refervos.training.stages.world_tensors import UNLABELLED, cell_labels, draw_framed
from refervos.worlds import KINDS, WorldConfig
from training_runs import batch_of, trainable_micro_model

WORLD = WorldConfig(objects=(2, 3), radius=(0.2, 0.3))


def stage_of(**changes: Any) -> ImagesStage:
    torch.manual_seed(0)
    model = trainable_micro_model(time="online", clip_length=4, cme=False)
    stage = ImagesStage(replace(ImagesSettings(world=WORLD, sentences=2), **changes), model)
    stage.prepare_data(2, 0)
    return stage


def test_the_states_of_a_noun_are_those_of_its_own_tokens() -> None:
    model = trainable_micro_model()
    assert model.tokenizer is not None
    names = ["circle", "hot air balloon"]
    found = noun_states(model.text, model.tokenizer, names)
    assert len(found) == len(TEMPLATES)
    sentence = TEMPLATES.index("the {} on the left")
    ids = torch.tensor([model.tokenizer.encode("the hot air balloon on the left")[0]])
    states = model.text.embed(ids)
    for segment in range(3):
        states = model.text.run_segment(segment, states)
    torch.testing.assert_close(found[sentence][0][1], states[0, 2:5].mean(0))  # after <s> and "the"
    last = model.text.run_segment(3, states)
    torch.testing.assert_close(found[sentence][1][1], last[0, 2:5].mean(0))


def test_cells_are_labelled_with_the_kinds_of_their_objects() -> None:
    clips = WorldClips(WORLD, (1.0,), {}, 64, names=16)
    names = clips.draw(0, 0, (1, 2, 0), 2, 1).names
    assert names is not None
    clip = draw_framed([1, 2, 0, 0, 0], WORLD, 2, (1.0,), 64)
    assert torch.equal(names, cell_labels(clip, 64, 16)[..., 0])
    assert WorldClips(WORLD, (1.0,), {}, 64).draw(0, 0, (1, 2, 0), 2, 1).names is None


def by_hand(stage: ImagesStage, batch: dict[str, Any], template: int) -> Tensor:
    """Compute the naming loss cell by cell."""
    model: Samwise = stage.model
    assert model.tokenizer is not None
    nouns = noun_states(model.text, model.tokenizer, list(KINDS))[template]
    labels = batch["names"].repeat_interleave(2, dim=0)  # (N, 1, n, n)
    inside: dict[int, Tensor] = {}
    change: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[Any, Any, Tensor], None]:
        def hook(_: Any, given: Any, out: Tensor) -> None:
            inside[number], change[number] = given[0].detach(), out.detach()

        return hook

    adapters: list[Any] = list(model.adapters)
    hooks = [adapter.hsa.register_forward_hook(keep(number)) for number, adapter in enumerate(adapters)]
    stage.predict(batch)
    for hook in hooks:
        hook.remove()
    entropies = []
    for number in (1, 2):
        adapter = adapters[number]
        text = nouns[number - 1] @ adapter.text_down.weight.T
        own: list[list[Tensor]] = [[], []]
        for row in range(labels.shape[0]):
            for y in range(labels.shape[-1]):
                for x in range(labels.shape[-1]):
                    label = int(labels[row, 0, y, x])
                    if label in (UNLABELLED, len(KINDS)):
                        continue
                    side = adapter.hsa.side
                    grid = round((inside[number].shape[1] * side * side) ** 0.5)
                    v, u = y * grid // labels.shape[-1], x * grid // labels.shape[-1]
                    patch, cell = (v // side) * (grid // side) + u // side, (v % side) * side + u % side
                    token = inside[number][row, patch, -1, cell]
                    query = adapter.vision_to_text.queries(token + change[number][row, patch, -1, cell])
                    key = adapter.vision_to_text.keys_and_values(text)[0]
                    seen = adapter.text_to_vision.keys_and_values(token)[0]
                    asked = adapter.text_to_vision.queries(text)
                    scale = (token.shape[-1] // adapter.vision_to_text.heads) ** -0.5
                    for part, logits in enumerate((key @ query, asked @ seen)):
                        own[part].append(F.cross_entropy(logits * scale, torch.tensor(label)))
        entropies += [torch.stack(part).mean() for part in own]
    return torch.stack(entropies).mean()


def test_the_naming_loss_compares_attention_logits_of_all_nouns() -> None:
    stage = stage_of(naming=1.0)
    batch = batch_of(stage)
    stage.train()
    torch.manual_seed(3)
    template = int(torch.randint(len(TEMPLATES), ()))
    torch.manual_seed(3)
    losses = stage(batch)
    torch.testing.assert_close(losses["naming"], by_hand(stage, batch, template), atol=1e-5, rtol=1e-4)


def test_the_naming_loss_trains_the_projections_of_the_last_two_adapters() -> None:
    stage = stage_of(naming=1.0)
    batch = batch_of(stage)
    assert batch["names"].shape[:2] == (2, 1)
    stage.train()
    losses = stage(batch)
    losses["naming"].backward()
    model: Samwise = stage.model
    gradients = dict(model.adapters.named_parameters())
    for name in ("1.text_down.weight", "2.vision_to_text.in_proj.weight", "2.text_to_vision.in_proj.weight"):
        gradient = gradients[name].grad
        assert gradient is not None
        assert gradient.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.text.parameters())
    assert stage(batch)["naming"].isfinite()  # the tokens of the first pass are cleared
    stage.eval()
    assert "naming" not in stage(batch)


def test_without_named_cells_the_loss_is_zero() -> None:
    stage = stage_of(naming=1.0)
    batch = batch_of(stage)
    stage.train()
    losses = stage(batch | {"names": torch.full_like(batch["names"], UNLABELLED)})
    assert losses["naming"] == 0
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in stage.parameters())


def test_naming_without_hsa_is_refused() -> None:
    with pytest.raises(TrainingError, match="naming is trained on drawn worlds, in adapters with HSA; set naming to 0"):
        VideoSettings(naming=1.0, model=SamwiseConfig(hsa=False))


def test_recognition_in_word_space_uses_projected_states_of_the_nouns() -> None:
    torch.manual_seed(0)
    states = [[torch.randn(3, 6), torch.randn(3, 6)]]
    space = WordSpace((4, 5), states, width=8)
    tokens = torch.randn(2, 9)
    first, second = space(tokens)
    assert first.shape == second.shape == (2, 4)
    expected = space.cells[1](tokens[:, 4:]) @ space.words[1](states[0][1]).T * 0.25
    torch.testing.assert_close(second[:, :3], expected)
    assert torch.equal(first[:, 3], torch.zeros(2))  # the background's classifier starts at zero
    head = RecognitionHead(9, 3, space)
    labels = torch.stack([torch.tensor([[[0, 2]]]), *[torch.full((1, 1, 2), UNLABELLED)] * 2], dim=-1)
    grid = tokens.reshape(1, 1, 2, 9)
    with_words = head(grid, labels)
    plain = RecognitionHead(9, 3)
    plain.load_state_dict({key: value for key, value in head.state_dict().items() if not key.startswith("words.")})
    normed = head.norm(tokens)
    by_words = [F.cross_entropy(logits, torch.tensor([0, 2])) for logits in space(normed)]
    torch.testing.assert_close(with_words, plain(grid, labels) + GROUP_WEIGHTS[0] * sum(by_words) / 2)


def test_a_tracker_learns_nouns_in_the_text_encoder_of_another_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = trainable_micro_model()
    tracker = tmp_path / "tracker"
    Sam2Segmenter(model.tracker).save_pretrained(tracker)
    with pytest.raises(TrainingError, match="has no text encoder"):
        load_nouns_of(tracker, ["circle"])
    settings = TrackSettings(world=WORLD, objects=2, recognition=1.0)
    assert model.tokenizer is not None
    stage = TrackStage.build(settings, {"model": tracker}, 1)
    plain = stage.recogniser
    assert plain is not None
    assert plain.words is None

"""Training on captions that the model samples and the facts of the scene judge."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from refervos.errors import TrainingError
from refervos.training.stages.judged_captions import (
    MENTIONED,
    MOVING,
    PRESENT,
    REPEATED,
    SPECIFIC,
    WRONG,
    Sampled,
    advantages,
    reward_caption,
    sample_answers,
)
from refervos.training.stages.videoglamm_parts import drawn_tokenizer
from refervos.videoglamm.frames import EncoderPixels
from refervos.videoglamm.language import IGNORED, embed
from refervos.videoglamm.model import Example, LabelledIds
from refervos.worlds import Facts, Motion, Scene, Thing, WorldConfig, draw_clip, draw_scene
from refervos.worlds.conversations import caption
from refervos.worlds.judge import judge
from refervos.worlds.shapes import TEXTURES
from test_videoglamm_stages import EASY, TINY, batch_of, stage_of

TOKENIZER = drawn_tokenizer()

SETTINGS: dict[str, Any] = {
    "model": TINY, "lengths": [4], "world": EASY, "questions": 1, "variety": 0.0, "detail": 0, "masked_frames": 1,
    "decoding": "first", "padded_masks": None, "pointing": 1.0, "bce": 0.0, "dice": 0.0,
    "trained": ["language", "projectors"],
}  # fmt: skip

END = (TOKENIZER.end,)


@pytest.fixture(scope="module")
def facts() -> Facts:
    """Facts of a red circle that moves up, a still blue star, and a green ring that enters from the right."""
    things = (
        Thing("circle", "red", 0.08, Motion((0.15, 0.85), (0.0, -0.025))),
        Thing("star", "blue", 0.1, Motion((0.85, 0.15))),
        Thing("ring", "green", 0.16, Motion((1.4, 0.8), (-0.05, 0.0))),
    )
    return Facts.of(draw_scene(Scene(things), 16, (128, 128)))


def judged(text: str, facts: Facts, *, ended: bool = True) -> Sampled:
    """Judge a caption whose phrases are in brackets."""
    tagged = text.replace("[", "<p> ").replace("]", " </p> [SEG]")
    return reward_caption([*TOKENIZER.encode(tagged), *(END if ended else ())], TOKENIZER.decode, END, facts)


def per_sentence(sample: Sampled) -> list[float]:
    """Rewards of the sentences, and then of the end if there is one."""
    return [*dict(zip(sample.sentences, sample.rewards, strict=True)).values()]


@pytest.mark.parametrize(
    ("text", "rewards"),
    [
        ("[the red circle] moves up.", [MENTIONED + SPECIFIC, 0.0]),
        ("[the red circle] moves.", [MENTIONED + MOVING, 0.0]),
        ("there is [a red circle].", [MENTIONED + PRESENT, 0.0]),
        ("there is [an red circle].", [WRONG, 0.0]),
        ("[the red circle] moves down.", [WRONG, 0.0]),
        ("[the red square] moves up.", [WRONG, 0.0]),
        ("the red circle moves up.", [WRONG, 0.0]),  # a phrase without a mask
        ("there are [three objects].", [WRONG, 0.0]),
        ("red the up.", [WRONG, 0.0]),
        ("[the red circle] moves up. [the red circle] moves up.", [MENTIONED + SPECIFIC, REPEATED, 0.0]),
        ("[the red circle] moves up. [the red circle] is on the left.", [MENTIONED + SPECIFIC, REPEATED, 0.0]),
        ("[the red circle] moves up. [the red circle] moves down.", [MENTIONED + SPECIFIC, WRONG, 0.0]),
        (
            "[the red circle] moves up. [the blue star] stays still. [the green ring] enters from the right.",
            [MENTIONED + SPECIFIC] * 3 + [0.0],
        ),
        ("[the red circle] is left of [the blue star].", [2 * MENTIONED + SPECIFIC, 0.0]),
        ("", [WRONG]),
    ],
)
def test_sentences_are_rewarded_for_what_is_true_specific_and_new(
    facts: Facts, text: str, rewards: list[float]
) -> None:
    assert per_sentence(judged(text, facts)) == pytest.approx(rewards)


def test_all_tokens_of_a_sentence_have_its_reward(facts: Facts) -> None:
    sample = judged("[the red circle] moves up. [the blue star] spins.", facts)
    first = TOKENIZER.encode("<p> the red circle </p> [SEG] moves up.")
    assert sample.rewards[: len(first)] == (MENTIONED + SPECIFIC,) * len(first)
    assert set(sample.rewards[len(first) : -1]) == {WRONG}
    assert sample.ids[-1] == TOKENIZER.end
    assert sample.rewards[-1] == 0.0


def test_an_unfinished_sentence_is_wrong(facts: Facts) -> None:
    sample = judged("[the red circle] moves up. [the blue star] stays still", facts, ended=False)
    assert per_sentence(sample) == pytest.approx([MENTIONED + SPECIFIC, WRONG])


def test_advantages_compare_what_a_sentence_leads_to_with_the_other_captions() -> None:
    samples = [
        Sampled((1, 2, 3, 9), (1.0, 1.0, 0.5, -1.0), (0, 0, 1, -1)),  # returns 1, 0, -1
        Sampled((1, 9), (1.0, -2.0), (0, -1)),  # returns 0, -2: it ends where the other one goes on
    ]
    assert advantages(samples) == [pytest.approx([0.5, 0.5, 1.0, 0.0]), pytest.approx([-0.5, -1.0])]
    assert advantages([Sampled((1,), (-1.0,), (0,))]) == [[0.0]]


def test_a_sentence_of_little_worth_is_better_than_ending_without_it(facts: Facts) -> None:
    first = "[the red circle] moves up."
    going_on, ending = (judged(text, facts) for text in (f"{first} there is [a blue star].", first))
    worth = advantages([going_on, ending])
    assert worth[0][-2] > 0 > worth[1][-1]


def test_ending_is_better_than_repeating_or_guessing(facts: Facts) -> None:
    first = "[the red circle] moves up."
    for more in (first, "there is [a blue ring].", "[the blue star] moves."):
        going_on, ending = judged(f"{first} {more}", facts), judged(first, facts)
        worth = advantages([going_on, ending])
        assert worth[0][-2] < 0 < worth[1][-1], more


def test_a_guess_is_worth_more_than_saying_less_only_if_it_is_probably_right() -> None:
    for claim, probability in ((MOVING, 15 / 16), (SPECIFIC, 5 / 6)):

        def guessed(right: float, claim: float = claim) -> float:
            return right * (MENTIONED + claim) + (1 - right) * WRONG

        assert guessed(probability - 0.05) < MENTIONED + PRESENT < guessed(probability + 0.05)


def test_sampled_answers_are_those_of_the_model_and_of_their_seed() -> None:
    stage = stage_of("conversation", SETTINGS)
    model = stage.model
    with torch.no_grad():
        videos = [model.encode_video(list(draw_clip(seed, WorldConfig(frames=4)).frames)) for seed in (1, 2)]
        prompt = [int(i) for i, label in zip(*_caption_row(stage), strict=True) if label == IGNORED]
        prompts = torch.stack([embed(model.language, prompt, video.tokens) for video in videos])

    def sampled(chosen: list[int]) -> list[list[list[int]]]:
        sources = [torch.Generator().manual_seed(5 + index) for index in chosen]
        return sample_answers(model.language, prompts[chosen], 3, 12, END, sources)

    together = sampled([0, 1])
    assert [len(answers) for answers in together] == [3, 3]
    assert together == [sampled([0])[0], sampled([1])[0]]
    assert len({tuple(ids) for answers in together for ids in answers}) > 1
    for answers in together:
        for ids in answers:
            assert len(ids) == 12 or ids[-1] == TOKENIZER.end
            assert TOKENIZER.end not in ids[:-1]
    # With a head that allows one token alone, every answer is that token; with the end, it is the end at once.
    head = model.language.lm_head
    for token, expected in ((20, [20] * 12), (TOKENIZER.end, [TOKENIZER.end])):
        with torch.no_grad():
            head.weight.zero_()
        hook = head.register_forward_hook(lambda _, __, out, token=token: out.index_fill(-1, torch.tensor([token]), 99))
        assert sampled([0]) == [[expected] * 3]
        hook.remove()


def _caption_row(stage: Any) -> tuple[list[int], list[int]]:
    row = batch_of(stage, 1)[0]["conversations"][0]
    return list(row.ids), list(row.labels)


def test_sampled_answers_do_not_count_in_the_mean() -> None:
    stage = stage_of("conversation", SETTINGS)
    sample = batch_of(stage, 1)[0]
    first, second = sample["conversations"][:2]

    def loss(*rows: LabelledIds) -> float:
        pixels = EncoderPixels(sample["clip"], sample["internvideo"])
        example = Example(pixels, rows, sample["frames"], sample["masks"])
        with torch.no_grad():
            return stage.model.read_batch([example], packed=True).text.item()

    def weighted(row: LabelledIds, weight: float) -> LabelledIds:
        return LabelledIds(row.ids, row.labels, [weight] * len(row.ids), counted=False)

    plain, other = loss(first), loss(second)
    count = [sum(label != IGNORED for label in row.labels) for row in (first, second)]
    assert loss(first, weighted(second, 0.0)) == pytest.approx(plain, rel=1e-5)
    for weight in (0.5, -1.0):
        total = plain + weight * other * count[1] / count[0]
        assert loss(first, weighted(second, weight)) == pytest.approx(total, rel=1e-4)


def test_true_sentences_become_more_likely() -> None:
    """From a model that knows the caption of a clip by heart and writes a wrong one as often."""
    settings = {**SETTINGS, "questions": 0, "judged": 2.0, "imitated": 0.0, "samples": 6, "pointing": 0.0}
    stage = stage_of("conversation", settings)
    batch = batch_of(stage, 1)
    facts = batch[0]["facts"]
    assert judge(stage.model.tokenizer.decode([i for i in _caption_row(stage)[1] if i >= 0]), facts).all_true
    wrong = "<p> the striped brown square </p> [SEG] grows."
    ids, labels = _caption_row(stage)
    prompt = [i for i, label in zip(ids, labels, strict=True) if label == IGNORED]
    answer = [*stage.model.tokenizer.encode(wrong), TOKENIZER.end]
    rows = [LabelledIds(ids, labels), LabelledIds([*prompt, *answer], [*[IGNORED] * len(prompt), *answer])]
    optimiser = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], 3e-3)
    sample = batch[0]
    pixels = EncoderPixels(sample["clip"], sample["internvideo"])

    def loss_of(*rows: LabelledIds) -> torch.Tensor:
        text: torch.Tensor = stage.model.read_batch([Example(pixels, rows, sample["frames"], sample["masks"])]).text
        return text

    for _ in range(100):
        loss = loss_of(*rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    stage.train()
    before = [loss_of(row).item() for row in rows]
    optimiser = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], 5e-4)
    shares = []
    for step in range(20):
        batch[0]["seed"] = step
        losses = stage(batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        shares.append(float(losses["all_true"][0] / losses["all_true"][1]))
    assert 0.15 < np.mean(shares[:3]) < 0.85  # it writes both at first
    after = [loss_of(row).item() for row in rows]
    assert after[0] < before[0] - 0.01  # per token
    assert after[1] > before[1] + 0.1


def test_captions_are_sampled_in_training_only_and_masks_stay_those_of_the_ground_truth() -> None:
    settings = {**SETTINGS, "judged": 1.0, "samples": 2, "placing": 1.0, "alignment": 0.1, "image_only": 0.5}
    stage = stage_of("conversation", settings)
    batch = batch_of(stage, 6)
    assert {sample["internvideo"] is None for sample in batch} == {True, False}
    stage.train()
    losses = stage(batch)
    assert torch.isfinite(losses["loss"])
    assert losses["all_true"][1] == 2 * sum(sample["internvideo"] is not None for sample in batch)
    stage.eval()
    assert "reward" not in stage(batch)
    assert "facts" in batch[0]
    assert batch_of(stage_of("conversation", SETTINGS), 1)[0]["facts"] is None
    stage.train()
    nothing_seen = [sample for sample in batch if sample["internvideo"] is None]
    assert torch.isfinite(stage(nothing_seen)["loss"])


def test_captions_weigh_less_than_answers_where_they_are_not_to_be_imitated() -> None:
    stage = stage_of("conversation", {**SETTINGS, "imitated": 0.25})
    batch = batch_of(stage, 1)
    rows = stage._imitated(batch[0]["conversations"])
    assert set(rows[0].weights) == {0.25}
    assert [row.weights for row in rows[1:]] == [None] * (len(rows) - 1)


def test_data_sets_cannot_be_judged() -> None:
    data = {"data": [{"sources": [{"name": "mevis", "folder": "x"}]}], "judged": 1.0}
    with pytest.raises(TrainingError, match="judged and imitated need captions that facts can judge"):
        stage_of("conversation", data)


def test_captions_name_the_pattern_of_every_object_if_wanted() -> None:
    config = WorldConfig(frames=8, objects=(3, 4), near_misses=0.8)
    named = plain = 0
    for seed in range(12):
        clip = draw_clip([seed, 5], config)
        facts = Facts.of(clip)
        if not facts.recognisable.any():
            continue
        for share in (1.0, 0.0):
            text = caption(clip, np.random.default_rng(seed), variety=0.0, patterns=share).answer
            assert judge(text, facts).all_true
            phrases = re.findall(r"<p> (.*?) </p>", text)
            with_pattern = [any(word in phrase for word in TEXTURES) for phrase in phrases]
            if share:
                assert all(with_pattern)
                named += len(phrases)
            else:
                plain += len(phrases) - sum(with_pattern)
    assert named > 20
    assert plain > 10


def test_vague_captions_describe_objects_that_look_alike_together() -> None:
    twins = [Thing("star", "blue", 0.1, Motion((x, y))) for x, y in ((0.2, 0.3), (0.8, 0.7))]
    ring = Thing("ring", "green", 0.12, Motion((0.5, 0.9)))
    facts = Facts.of(draw_scene(Scene((*twins, ring)), 8, (128, 128)))
    apart, together = (
        caption(facts.clip, np.random.default_rng(0), variety=0.0, detail=0, vague=share).answer for share in (0.0, 1.0)
    )
    assert "leftmost blue star" in apart or "blue star on the left" in apart
    assert "<p> The two blue stars </p> [SEG] stay still." in together
    assert judge(together, facts).all_true
    assert "green ring" in together


def test_vague_captions_are_true_and_say_less(facts: Facts) -> None:
    texts = [caption(facts.clip, np.random.default_rng(seed), variety=0.0, vague=1.0).answer for seed in range(30)]
    assert all(judge(text, facts).all_true for text in texts)
    words = {tuple(text.split("[SEG]")[1:]) for text in texts}
    assert any("moves up" in text for text in [caption(facts.clip, np.random.default_rng(1), variety=0.0).answer])
    assert not any("moves up" in text or "enters" in text or "stays" in text for text in texts)
    assert any("moves." in text for text in texts)
    assert any("There is <p> the red circle" in text or "There is <p> a red circle" in text for text in texts)
    assert len(words) > 1

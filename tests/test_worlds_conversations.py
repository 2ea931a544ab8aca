"""Conversations about drawn clips: answers are true, the judge finds what is false, and every word has a token."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from refervos.errors import ConfigError
from refervos.worlds import (
    COLOURS,
    KINDS,
    Clip,
    Facts,
    Motion,
    Scene,
    Thing,
    WorldConfig,
    all_sentences,
    draw_clip,
    draw_scene,
    referring_expressions,
)
from refervos.worlds.conversation_writer import CAPTION_TOKENS, Turn, count_tokens, sentence_case
from refervos.worlds.conversations import (
    CASES,
    CONVERSATION_SEED,
    CONVERSATION_WORLD,
    KIND_WEIGHTS,
    ConversationClip,
    caption,
    conversations,
    draw_conversation,
    held_out_conversation,
)
from refervos.worlds.grammar import ABSENT_ANSWER, parse_question, parse_sentence, verb_phrases
from refervos.worlds.judge import Verdict, judge, split_sentences
from refervos.worlds.statements import QUESTION_KINDS
from refervos.worlds.vocabulary import (
    SYSTEM_PROMPT,
    UNKNOWN,
    conversation_tokenizer,
    conversation_words,
    save_tokenizer,
    unknown_words,
)
from refervos.worlds.wording import PHRASES

CROWDED = WorldConfig(
    frames=16, objects=(3, 5), twins=0.5, alike=0.3, same_kind=0.3, occlude=0.5, textured=0.5, pan=0.2, late=0.2
)
BUSY = WorldConfig(
    height=96, width=144, frames=12, objects=(1, 4), still=0.1, turn_back=0.15, curve=0.1, pace=0.2, late=0.2, leave=0.1
)
CLIPS = 60


@pytest.fixture(scope="module")
def conversation_clips() -> list[ConversationClip]:
    """Conversations about clips of three worlds, with three degrees of variety."""
    worlds, varieties = (CONVERSATION_WORLD, CROWDED, BUSY), (0.0, 0.3, 1.0)
    return [
        draw_conversation((77, number), worlds[number % 3], 8, variety=varieties[number // 3 % 3])
        for number in range(CLIPS)
    ]


@pytest.fixture(scope="module")
def held_out() -> list[ConversationClip]:
    return [held_out_conversation(index) for index in range(40)]


def turns(sample: ConversationClip) -> Iterator[tuple[Turn, list[str]]]:
    """Yield all turns, each with the questions before it."""
    for conversation in sample.conversations:
        for place, turn in enumerate(conversation):
            yield turn, [earlier.question for earlier in conversation[:place]]


# --- generation ---


def test_every_answer_is_judged_true_and_addresses_its_question(conversation_clips: list[ConversationClip]) -> None:
    for sample in conversation_clips:
        facts = Facts.of(sample.clip)
        for turn, earlier in turns(sample):
            verdict = judge(turn.answer, facts, turn.question, earlier)
            assert verdict.correct, (turn, verdict)


def test_every_phrase_has_a_mask_and_refers_to_its_targets(conversation_clips: list[ConversationClip]) -> None:
    for sample in conversation_clips:
        facts = Facts.of(sample.clip)
        for turn, earlier in turns(sample):
            assert turn.answer.count("[SEG]") == len(turn.targets)
            assert all(objects for objects in turn.targets)
            phrases = judge(turn.answer, facts, turn.question, earlier).phrases
            assert all(phrase.has_mask for phrase in phrases)
            if turn.kind != "referring":
                assert tuple(phrase.objects for phrase in phrases) == turn.targets


def test_colours_nouns_and_numbers_of_a_phrase_match_its_targets(conversation_clips: list[ConversationClip]) -> None:
    """Checked by the words alone, without the parser."""
    nouns = {name: kind for kind, names in KINDS.items() for name in names}
    nouns |= {word: kind for name, kind in nouns.items() for word in (f"{name}s", f"{name}es")}
    numbers = {"one": 1, "two": 2, "both": 2, "three": 3, "four": 4, "five": 5}
    for sample in conversation_clips:
        for turn, _ in turns(sample):
            phrases = re.findall(r"<p> (.*?) </p> \[SEG\]", turn.answer)
            for phrase, objects in zip(phrases, turn.targets, strict=False):
                things = [sample.clip.scene.objects[index] for index in objects]
                words_of_phrase = re.split(
                    r" (?:left|right|above|below|under|that|in|on|at|larger|smaller) ", phrase.lower()
                )[0]
                for word in words_of_phrase.split():
                    if word in COLOURS:
                        assert {thing.colour for thing in things} == {word}
                    if word in nouns:
                        assert {thing.kind for thing in things} == {nouns[word]}
                first = re.sub(r"^the ", "", words_of_phrase).split()[0]
                if first in numbers and words_of_phrase.split()[-1] != first:
                    assert len(objects) == numbers[first]


def test_the_ground_truth_of_a_phrase_is_the_union_of_its_objects_masks(
    conversation_clips: list[ConversationClip],
) -> None:
    several = 0
    for sample in conversation_clips:
        for turn, _ in turns(sample):
            masks = sample.masks(turn)
            assert masks.shape == (len(turn.targets), *sample.clip.masks.shape[1:])
            assert masks.dtype == np.bool_
            for mask, objects in zip(masks, turn.targets, strict=True):
                several += len(objects) > 1
                np.testing.assert_array_equal(mask, sum(sample.clip.masks[i] for i in objects) > 0)
    assert several > 5


def test_absent_expressions_are_asked_for_only_if_wanted() -> None:
    asked = []
    for seed in range(6):
        sample = draw_conversation([seed, 3], count=3, kinds={"absent": 1.0})
        for (turn,) in sample.conversations:
            assert turn.answer == ABSENT_ANSWER
            assert not turn.targets
            asked.append(turn.question)
    assert len(set(asked)) > 10
    assert all("segment" in question or "masks" in question for question in asked)


def test_every_kind_of_question_occurs_with_both_outcomes(conversation_clips: list[ConversationClip]) -> None:
    all_turns = [turn for sample in conversation_clips for turn, _ in turns(sample)]
    kinds = Counter(turn.kind for turn in all_turns)
    assert set(kinds) == set(QUESTION_KINDS) == {kind for kind, weight in KIND_WEIGHTS.items() if weight}
    whether = [turn.answer.startswith("Yes") for turn in all_turns if turn.kind == "whether"]
    assert 0.3 < np.mean(whether) < 0.7
    assert {turn.motion for turn in all_turns if turn.kind == "which"} == {True, False}
    for kind in ("which", "referring", "count"):
        assert {bool(turn.targets) for turn in all_turns if turn.kind == kind} == {True, False}, kind
    assert any(len(conversation) == 2 for sample in conversation_clips for conversation in sample.conversations)


def test_referring_questions_and_answers_have_the_published_wording(conversation_clips: list[ConversationClip]) -> None:
    all_turns = [turn for sample in conversation_clips for turn, _ in turns(sample) if turn.kind == "referring"]
    forms = Counter(
        re.sub(r"(What is|Can you segment|Please segment|Where is) .* in this", r"\1 _ in this", t.question)
        for t in all_turns
    )
    assert "What is _ in this video? Please respond with segmentation masks." in forms
    assert "Can you segment _ in this video?" in forms
    assert len(forms) == 4
    answers = {turn.answer for turn in all_turns}
    assert {"It is [SEG].", "There is no such object."} <= answers
    assert answers <= {
        *("It is [SEG].", "Sure, [SEG].", "Sure, it is [SEG].", "Sure, the segmentation result is [SEG].", "[SEG]."),
        "There is no such object.",
    }


def test_captions_mention_every_object_and_are_short(held_out: list[ConversationClip]) -> None:
    for sample in held_out:
        named = {index for objects in sample.caption.targets for index in objects}
        assert named == set(range(len(sample.clip.masks)))
        assert count_tokens(sample.caption.answer) <= CAPTION_TOKENS


def test_captions_describe_the_objects_from_left_to_right() -> None:
    things = (
        Thing("star", "yellow", 0.12, Motion((0.8, 0.8), (-0.03, 0.0))),
        Thing("circle", "red", 0.1, Motion((0.25, 0.2), (0.0, 0.0))),
        Thing("cross", "green", 0.1, Motion((0.2, 0.75), (0.0, 0.0), spin=0.2)),
    )
    clip = draw_scene(Scene(things), 12, (128, 128))
    described = caption(clip, np.random.default_rng(0), variety=0.0)
    assert described.answer == (
        "<p> The green cross </p> [SEG] spins. <p> The red circle </p> [SEG] is at the top left and stays still. "
        "<p> The yellow star </p> [SEG] moves left."
    )
    assert described.targets == ((2,), (1,), (0,))
    least = caption(clip, np.random.default_rng(0), variety=0.0, detail=0)
    assert "<p> The red circle </p> [SEG] stays still." in least.answer


def draw_occlusion() -> Clip:
    """Draw a red circle that passes behind a yellow square."""
    things = (
        Thing("circle", "red", 0.11, Motion((0.15, 0.5), (0.06, 0.0))),
        Thing("square", "yellow", 0.2, Motion((0.5, 0.5))),
    )
    return draw_scene(Scene(things), 12, (128, 128))


def test_captions_name_the_object_in_front_of_an_occluded_one() -> None:
    described = caption(draw_occlusion(), np.random.default_rng(0), variety=0.0)
    assert (
        described.answer
        == "<p> The red circle </p> [SEG] moves right and passes behind <p> the yellow square </p> [SEG]."
    )
    assert described.targets == ((0,), (1,))


def test_look_alikes_are_distinguished_by_place_or_described_as_a_group() -> None:
    apart = [Thing("star", "blue", 0.1, Motion((x, 0.5))) for x in (0.15, 0.85)]
    described = caption(draw_scene(Scene(tuple(apart)), 8, (128, 128)), np.random.default_rng(0), variety=0.0)
    assert "<p> The blue star on the left </p> [SEG]" in described.answer
    close = [Thing("star", "blue", 0.1, Motion((x, 0.5 + x / 10))) for x in (0.46, 0.54)]
    described = caption(draw_scene(Scene(tuple(close)), 8, (128, 128)), np.random.default_rng(0), variety=0.0)
    assert described.answer == "<p> The two blue stars </p> [SEG] stay still."
    assert described.targets == ((0, 1),)


def test_the_seed_determines_the_conversations() -> None:
    one, two = draw_conversation(5), draw_conversation(5)
    assert one.conversations == two.conversations
    np.testing.assert_array_equal(one.clip.frames, two.clip.frames)
    assert draw_conversation(6).conversations != one.conversations
    plain = [draw_conversation(5, count=1, kinds={"description": 1.0}, variety=0.0).caption for _ in range(2)]
    assert plain[0] == plain[1]


def test_without_variety_the_scene_alone_determines_the_caption() -> None:
    clip = draw_conversation(9, CROWDED).clip
    described = {caption(clip, np.random.default_rng(seed), variety=0.0) for seed in range(5)}
    assert len(described) == 1
    assert len({caption(clip, np.random.default_rng(seed), variety=1.0) for seed in range(5)}) > 1


def test_the_held_out_set_does_not_change(held_out: list[ConversationClip]) -> None:
    """A failure here means a new held-out set, on which published results no longer hold."""
    assert CASES >= 300
    assert [split_sentences(sample.caption.answer) for sample in held_out[:3]] == HELD_OUT
    questions = [(turn.question, turn.answer) for turn, _ in turns(held_out[0]) if turn.kind != "description"]
    assert questions == HELD_OUT_QUESTIONS


HELD_OUT = [
    [
        "<p> The blue cross </p> [SEG] shrinks.",
        "<p> The orange square </p> [SEG] spins.",
        "<p> The orange cross </p> [SEG] moves up and leaves.",
    ],
    [
        "<p> The red ring </p> [SEG] enters from the left.",
        "<p> The orange crescent </p> [SEG] bounces off the border.",
        "<p> The green crescent </p> [SEG] moves left.",
        "<p> The blue circle </p> [SEG] moves down and to the left.",
        "<p> The white ring </p> [SEG] is on the right and stays still.",
    ],
    [
        "<p> The leftmost purple triangle </p> [SEG] stays still.",
        "<p> The rightmost purple triangle </p> [SEG] bounces off the border.",
    ],
]

HELD_OUT_QUESTIONS = [
    ("What is topmost cross in this video? Please respond with segmentation masks.", "It is [SEG]."),
    ("Which one is closest to the top?", "It is <p> the orange cross </p> [SEG]."),
    ("How many triangles leave?", "No triangle leaves."),
    ("What colour is the cross on the left?", "<p> The cross on the left </p> [SEG] is blue."),
    ("And where is it?", "It is on the left."),
    ("What shape is the blue object?", "It is a cross."),
    ("What pattern does the orange cross have?", "It is plain."),
    ("Where is the blue cross?", "It is on the left."),
    ("What does the orange cross do?", "It moves up and leaves."),
    ("Is the blue cross left of the orange square?", "Yes, it is left of <p> the orange square </p> [SEG]."),
    ("Which one leaves?", "It is <p> the orange cross </p> [SEG]."),
    ("And what does it do?", "It moves up and leaves."),
    ("Does the orange square spin?", "Yes, it spins."),
    ("What is the plain object that shrinks in this video? Please respond with segmentation masks.", "It is [SEG]."),
]


def test_held_out_clips_have_a_caption_and_questions_about_motion(held_out: list[ConversationClip]) -> None:
    assert all(sample.clip.frames.shape == (16, 128, 128, 3) for sample in held_out)
    motion = [turn for sample in held_out for turn, _ in turns(sample) if turn.motion and turn.kind != "description"]
    assert {turn.kind for turn in motion} >= {"which", "whether", "referring", "action"}
    assert len(motion) >= 3 * len(held_out)
    assert all(sample.conversations[0][0] is sample.caption for sample in held_out)


def test_held_out_seeds_cannot_occur_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[tuple[int, ...]] = []

    def recorded(seed: tuple[int, ...], config: WorldConfig) -> Clip:
        seeds.append(seed)
        return draw_clip(seed, config)

    monkeypatch.setattr("refervos.worlds.conversations.draw_clip", recorded)
    held_out_conversation(0)
    held_out_conversation(1)
    assert len(set(seeds)) == len(seeds) >= 2
    assert all(seed[0] == CONVERSATION_SEED and all(seed) for seed in seeds)


# --- judging ---


@pytest.fixture(scope="module")
def facts() -> Facts:
    """Facts of four objects that are clearly visible and move clearly.

    A red circle at the bottom left moves up, a blue star at the top right stays still, a striped blue star in the
    middle spins, and a large green ring enters late from the right.
    """
    things = (
        Thing("circle", "red", 0.08, Motion((0.15, 0.85), (0.0, -0.025))),
        Thing("star", "blue", 0.1, Motion((0.85, 0.15))),
        Thing("star", "blue", 0.1, Motion((0.5, 0.5), spin=0.15), texture="striped"),
        Thing("ring", "green", 0.16, Motion((1.4, 0.8), (-0.05, 0.0))),
    )
    return Facts.of(draw_scene(Scene(things), 16, (128, 128)))


VERDICTS: list[tuple[str, str]] = [
    ("The red circle moves up.", "true"),
    ("the red ball rises", "true"),
    ("<p> A red circle </p> [SEG] is moving up.", "true"),
    ("The red circle moves down.", "false"),
    ("The red circle turns back.", "false"),
    ("The red circle does not turn back.", "true"),
    ("The red circle stays still.", "false"),
    ("The red square moves up.", "false"),
    ("The circle moves up and spins.", "false"),
    ("The blue star moves left.", "false"),  # there are two, and neither does
    ("The blue star spins.", "undecidable"),  # there are two, and one does
    ("The striped blue star spins.", "true"),
    ("The blue star with stripes rotates and is in the middle.", "true"),
    ("The plain star stays still, and the striped star spins.", "true"),
    ("The plain star stays still while the striped star grows.", "false"),
    ("The two blue stars do not move.", "undecidable"),  # is spinning on the spot moving?
    ("The three blue stars spin.", "false"),
    ("Both stars spin.", "false"),
    ("There are two stars.", "true"),
    ("There are three stars.", "false"),
    ("There is one star.", "false"),
    ("There is a star.", "true"),
    ("There is a striped star, a green ring and a red circle.", "true"),
    ("There is a striped star, a green cross and a red circle.", "false"),
    ("There are four objects.", "true"),
    ("There is no triangle.", "true"),
    ("There are no stars.", "false"),
    ("Nothing turns back.", "true"),
    ("Nothing spins.", "false"),
    ("No circle moves left.", "true"),
    ("No circle moves up.", "false"),
    ("The green ring enters from the right and moves to the left.", "true"),
    ("The green ring enters from the left.", "false"),
    ("The green ring is the largest.", "true"),
    ("The red circle is larger than the green ring.", "false"),
    ("The red circle is on the left.", "true"),
    ("The red circle is at the bottom.", "undecidable"),  # at first
    ("The red circle is left of the striped star.", "true"),
    ("The striped star is left of the red circle.", "false"),
    ("The striped star is to the right of <p> the red circle </p> [SEG].", "true"),
    ("The red circle is not left of the green triangle.", "false"),  # there is none
    ("The red circle is left of the blue star.", "undecidable"),  # of which one?
    ("The star in the middle is striped.", "true"),
    ("The star in the middle is red.", "false"),
    ("The object that moves up is a circle.", "true"),
    ("The striped object is a circle.", "false"),
    ("One star spins.", "true"),
    ("Two stars spin.", "false"),
    ("The red circle and the green ring move.", "true"),
    ("The red circle and the striped star move left.", "false"),
    ("The dinosaur moves up.", "not understood"),
    ("The red circle dances.", "not understood"),
    ("Red circle circle the moves.", "not understood"),
    ("The red circle moves up and dances.", "not understood"),
    ("The red circle moves up, the green triangle moves down, and blah.", "not understood"),
    ("It is red.", "false"),  # no object was mentioned before
    ("Yes.", "undecidable"),
    ("[SEG].", "undecidable"),
]


@pytest.mark.parametrize(("text", "verdict"), VERDICTS)
def test_a_sentence_is_judged_by_the_scene(facts: Facts, text: str, verdict: str) -> None:
    (sentence,) = judge(text, facts).sentences
    assert sentence.verdict == verdict


ANSWERS: list[tuple[str, str, str, bool]] = [
    ("Which one spins?", "It is the striped star.", "true", True),
    ("Which one spins?", "It is <p> the blue star in the middle </p> [SEG].", "true", True),
    ("Which one spins?", "It is the red circle.", "false", True),
    ("Which one spins?", "They are the red circle and the striped star.", "false", True),
    ("Which one spins?", "Nothing spins.", "false", True),
    ("Which one turns back?", "Nothing turns back.", "true", True),
    ("Which one turns back?", "It is the red circle.", "false", True),
    ("What is left of the striped star?", "It is the red circle.", "true", True),
    ("Which star is striped?", "It is the star in the middle.", "true", True),
    ("Which object enters?", "The red circle moves up.", "true", False),
    ("What colour is the circle?", "It is red.", "true", True),
    ("What colour is the circle?", "It is blue.", "false", True),
    ("What colour is the circle?", "The circle is red.", "true", True),
    ("What colour is the circle?", "It moves up.", "true", False),
    ("What colour is the triangle?", "It is blue.", "false", True),
    ("What colour is the star?", "It is blue.", "undecidable", True),
    ("Which shape does the red object have?", "It is a circle.", "true", True),
    ("What pattern does the red circle have?", "It is plain.", "true", True),
    ("Where is the ring?", "It is at the bottom right.", "true", True),
    ("Where is the circle?", "It is on the left.", "true", True),
    ("What does the ring do?", "It enters from the right.", "true", True),
    ("How many stars are there?", "There are two stars.", "true", True),
    ("How many stars are there?", "There are three stars.", "false", True),
    ("How many stars are there?", "There is one ring.", "true", False),
    ("How many triangles are there?", "There are no triangles.", "true", True),
    ("How many stars spin?", "One star spins.", "true", True),
    ("Does the circle move up?", "Yes.", "true", True),
    ("Does the circle move up?", "No.", "false", True),
    ("Does the circle move up?", "No, it moves down.", "false", True),
    ("Does the circle move down?", "No, it moves up.", "true", True),
    ("Is there a green ring?", "Yes, there is a green ring.", "true", True),
    ("Is there a green triangle?", "No, there is no green triangle.", "true", True),
    ("Is there a green triangle?", "Yes, there is a green triangle.", "false", True),
    ("Are there two stars?", "Yes, there are two stars.", "true", True),
    ("Is the ring the largest?", "Yes, it is the largest.", "true", True),
    ("Can you segment the red circle in this video?", "Sure, it is [SEG].", "true", True),
    ("Can you segment the red square in this video?", "It is [SEG].", "false", True),
    ("Can you segment the red square in this video?", "There is no such object.", "true", True),
    ("Can you segment the red circle in this video?", "There is no such object.", "false", True),
    ("Can you segment the two stars in this video?", "[SEG].", "true", True),
    ("Can you segment the red circle in this video?", "It is.", "not understood", False),
    ("Why?", "It is red.", "undecidable", True),  # "it" is unclear; an unknown question counts as a description
]


@pytest.mark.parametrize(("question", "answer", "verdict", "answers"), ANSWERS)
def test_an_answer_is_judged_with_its_question(
    facts: Facts, question: str, answer: str, verdict: str, answers: bool
) -> None:
    judged = judge(answer, facts, question)
    (sentence,) = judged.sentences
    assert sentence.verdict == verdict
    assert sentence.answers == answers
    assert judged.correct == (answers and verdict == "true")


def test_it_refers_to_the_object_of_the_earlier_question(facts: Facts) -> None:
    for earlier in (["Which one spins?"], ["Where is the striped star?"], ["Is there a striped star?"]):
        assert judge("It is blue.", facts, "And what colour is it?", earlier).correct
        assert judge("It is red.", facts, "And what colour is it?", earlier).sentences[0].verdict is Verdict.FALSE
    chain = ["Which one spins?", "And what shape is it?"]
    assert judge("It is in the middle.", facts, "And where is it?", chain).correct
    assert not judge("It is blue.", facts, "And what colour is it?", ["Hello?"]).correct


def test_judged_phrases_list_their_objects(facts: Facts) -> None:
    text = "<p> The stars </p> [SEG] and <p> a green ring </p> [SEG] are moving, <p> the cross </p> spins."
    named = judge(text, facts).phrases
    assert [(phrase.text, phrase.objects, phrase.has_mask) for phrase in named] == [
        ("the stars", (1, 2), True),
        ("a green ring", (3,), True),
        ("the cross", (), False),
    ]
    assert judge("<p> the blue star </p> [SEG] spins.", facts).phrases[0].objects is None  # which of two?
    assert judge("<p> A blue star </p> [SEG] spins.", facts).phrases[0].objects == (2,)  # the one that does


def test_tags_capitals_and_spaces_change_no_verdict(held_out: list[ConversationClip]) -> None:
    for sample in held_out[:20]:
        facts, answer = Facts.of(sample.clip), sample.caption.answer
        for text in (answer.lower(), answer.replace(".", " ."), re.sub(r"</?p> ?|\[SEG\] ?", "", answer)):
            assert text != answer
            assert judge(text, facts).all_true


def swapped(text: str, one: str, other: str) -> str:
    """Exchange two words of a text."""
    return re.sub(rf"\b({one}|{other})\b", lambda m: other if m[1] == one else one, text)


def test_a_caption_with_another_colour_or_shape_is_false(held_out: list[ConversationClip]) -> None:
    changed = 0
    for sample in held_out:
        facts, things = Facts.of(sample.clip), sample.clip.scene.objects
        absent_colour = next(colour for colour in COLOURS if all(colour != thing.colour for thing in things))
        absent_kind = next(kind for kind in KINDS if all(kind != thing.kind for thing in things))
        for sentence in split_sentences(sample.caption.answer):
            if " two " in sentence or " three " in sentence:
                continue
            for words, absent in ((COLOURS, absent_colour), (KINDS, absent_kind)):
                text = re.sub(rf"\b({'|'.join(words)})\b", absent, sentence, count=1)
                changed += text != sentence
                assert (judge(text, facts).sentences[0].verdict == "false") == (text != sentence), text
    assert changed > 150


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("moves left", "moves right"),
        ("moves up", "moves down"),
        ("from the left", "from the right"),
        ("from the top", "from the bottom"),
        ("grows", "shrinks"),
        ("at the top", "at the bottom"),
        ("stays still", "turns back"),
        ("leaves and comes back", "stays still"),
    ],
)
def test_a_caption_with_the_opposite_movement_or_place_is_false(
    held_out: list[ConversationClip], one: str, other: str
) -> None:
    changed = 0
    for sample in held_out:
        facts = Facts.of(sample.clip)
        for sentence in split_sentences(sample.caption.answer):
            verbs = re.split(r"\[SEG\] ", sentence)[-1]  # the verbs, not the phrase
            text = sentence.replace(verbs, swapped(verbs, one, other))
            if text != sentence and one in sentence and "behind" not in sentence:
                changed += 1
                assert judge(text, facts).sentences[0].verdict == "false", text
    assert changed


def test_inverted_relations_are_false() -> None:
    changed = 0
    for seed in range(60):
        sample = draw_conversation((3, seed), count=4, kinds={"place": 1.0, "whether": 1.0}, families={"relation": 1.0})
        facts = Facts.of(sample.clip)
        for turn, earlier in turns(sample):
            if turn.answer.startswith("No"):
                continue
            for one, other in (("left of", "right of"), ("above", "below"), ("larger than", "smaller than")):
                text = swapped(turn.answer, one, other).replace("Yes, ", "")
                if one in turn.answer and one not in text:
                    changed += 1
                    assert judge(text, facts, turn.question, earlier).sentences[0].verdict == "false", text
    assert changed > 10


def test_the_object_in_front_does_not_pass_behind() -> None:
    facts = Facts.of(draw_occlusion())
    assert judge("The red circle is hidden by the yellow square.", facts).all_true
    assert judge("The yellow square passes behind the red circle.", facts).sentences[0].verdict == "false"


def test_captions_of_other_clips_are_false(held_out: list[ConversationClip]) -> None:
    verdicts = Counter(
        sentence.verdict
        for sample, other in pairwise(held_out)
        for sentence in judge(other.caption.answer, Facts.of(sample.clip)).sentences
    )
    assert verdicts[Verdict.TRUE] < 0.03 * verdicts.total()
    assert verdicts[Verdict.FALSE] > 0.9 * verdicts.total()


def test_every_expression_is_parsed_and_refers_to_its_targets() -> None:
    """For all families of referring expressions."""
    families: Counter[str] = Counter()
    for number in range(30):
        world = (CONVERSATION_WORLD, CROWDED, BUSY)[number % 3]
        clip = draw_clip((31, number), world)
        facts = Facts.of(clip)
        for expression in referring_expressions(clip, np.random.default_rng(number)):
            question = parse_question(
                f"What is {expression.text} in this video? Please respond with segmentation masks."
            )
            assert question is not None, expression.text
            assert question.kind == "referring"
            assert question.focus(facts) == expression.targets, expression.text
            families[expression.family] += 1
    assert len(families) == 10


def test_every_claim_has_an_affirmative_a_negated_and_a_question_form() -> None:
    for word in PHRASES:
        for phrase in verb_phrases(word):
            for many in (False, True):
                subject = "the circles" if many else "the circle"
                affirmed = parse_sentence(f"{subject} {phrase.form(many=many).format(ref='the star')}")
                assert len(affirmed) == 1
                assert affirmed[0] is not None, phrase
                if phrase.has_question_form:
                    text = phrase.question(subject, many=many).format(ref="the star")
                    question = parse_question(f"{text}?")
                    assert question is not None, text
                    assert question.statement == affirmed[0]
                    denied = parse_sentence(f"{subject} {phrase.form(many=many, negated=True).format(ref='the star')}")
                    assert denied != affirmed, phrase


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("moves left", ["moves left", "move left", "does not move left", "do not move left"]),
        ("left", ["is on the left", "are on the left", "is not on the left", "are not on the left"]),
        (
            "leaves and returns",
            [
                "leaves and comes back",
                "leave and come back",
                "does not leave and come back",
                "do not leave and come back",
            ],
        ),
    ],
)
def test_verb_phrases_have_four_forms(word: str, forms: list[str]) -> None:
    phrase = verb_phrases(word)[0]
    assert [phrase.form(negated=negated, many=many) for negated in (False, True) for many in (False, True)] == forms


def test_any_text_is_judged_in_bounded_time(facts: Facts) -> None:
    rng = np.random.default_rng(0)
    words = [*conversation_words(), "[SEG]", "<p>", "</p>", ".", ",", "?", "and", "and", "while", "xyzzy"]
    for length in (1, 2, 5, 20, 60, 400):
        for _ in range(30):
            text = " ".join(rng.choice(words, length))
            for sentence in judge(text, facts, " ".join(rng.choice(words, 6))).sentences:
                assert sentence.verdict in set(Verdict)
    for text in (
        "",
        ".",
        "...",
        "<p>",
        "</p> [SEG]",
        "<p> <p> a </p>",
        "[SEG] [SEG]",
        "\u00e9\ud83d\ude00",
        "a" * 10000,
    ):
        judge(text, facts)
    started = time.monotonic()
    for text in (
        "<p> " * 20_000,
        "the red circle and " * 5_000,
        "and " * 119,
        "the circle moves and " * 25,
        "no, " * 9_999,
    ):
        assert not judge(text, facts, text).all_true
    assert time.monotonic() - started < 5
    assert not judge("", facts).all_true
    assert not judge("...", facts).correct


def test_one_false_or_unknown_sentence_makes_a_text_not_true(facts: Facts) -> None:
    assert judge("The red circle moves up. The striped star spins.", facts).all_true
    assert not judge("The red circle moves up. The striped star sings.", facts).all_true
    assert not judge("The red circle moves down. The striped star spins.", facts).all_true


def test_sentence_case_capitalises_every_sentence() -> None:
    text = "<p> the red circle </p> [SEG] moves left. it is <p> the star </p> [SEG]. yes, it is."
    assert sentence_case(text) == "<p> The red circle </p> [SEG] moves left. It is <p> the star </p> [SEG]. Yes, it is."


# --- bad input ---


def test_worlds_with_sprites_are_refused() -> None:
    with pytest.raises(ConfigError, match="conversations are about drawn shapes"):
        draw_conversation(1, replace(CONVERSATION_WORLD, sprites="somewhere"))


def test_unknown_kinds_of_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="'gossip' is unknown; the kinds are description, referring"):
        draw_conversation(1, kinds={"gossip": 1.0})


def test_clips_without_a_recognisable_object_are_refused() -> None:
    clip = draw_scene(Scene((Thing("star", "red", 0.1, Motion((3.0, 3.0))),)), 8, (64, 64))
    with pytest.raises(ConfigError, match="shows no object well enough to describe"):
        conversations(clip, np.random.default_rng(0))


def test_a_missing_caption_is_reported() -> None:
    sample = draw_conversation(1, kinds={"count": 1.0}, count=1)
    with pytest.raises(ConfigError, match="has no caption"):
        _ = sample.caption


# --- vocabulary ---


def test_the_vocabulary_contains_every_word_of_the_conversations(conversation_clips: list[ConversationClip]) -> None:
    texts = [SYSTEM_PROMPT, *all_sentences()]
    texts += [
        text for sample in conversation_clips for turn, _ in turns(sample) for text in (turn.question, turn.answer)
    ]
    assert {text: unknown_words(text) for text in texts if unknown_words(text)} == {}
    tokenizer = conversation_tokenizer()
    assert 200 < tokenizer.get_vocab_size() < 320


def test_decoded_answers_are_unchanged(conversation_clips: list[ConversationClip]) -> None:
    tokenizer = conversation_tokenizer()
    for sample in conversation_clips[::3]:
        facts = Facts.of(sample.clip)
        for turn, earlier in turns(sample):
            encoded = tokenizer.encode(f"{turn.answer}<|end|>")
            ids = encoded.ids
            text = tokenizer.decode(ids)
            assert sentence_case(text) == turn.answer
            assert judge(text, facts, turn.question, earlier).correct
            assert encoded.tokens.count("[SEG]") == len(turn.targets)


def test_tokens_are_words_punctuation_and_tags() -> None:
    tokens = conversation_tokenizer().encode("<|user|>\nWhere is <p> the Star </p> [SEG]?<|end|>\nIt's a dog.").tokens
    assert tokens == [
        *("<|user|>", "where", "is", "<p>", "the", "star", "</p>", "[SEG]", "?", "<|end|>"),
        *("it", UNKNOWN, UNKNOWN, "a", UNKNOWN, "."),
    ]
    assert conversation_tokenizer().encode("").ids == []


def test_unknown_words_are_listed() -> None:
    assert unknown_words("Is the Dinosaur a fish? No dinosaur is.") == ("Dinosaur", "fish")
    assert unknown_words("Is the red circle <p> a star </p> [SEG]?") == ()


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = conversation_tokenizer()
    answer = "It is <p> the red circle </p> [SEG]."
    assert read(answer)["input_ids"] == ours.encode(answer).ids
    assert len(read) == ours.get_vocab_size()
    assert (read.pad_token_id, read.unk_token_id) == (0, 1)
    assert read.eos_token == "<|end|>"
    messages = [{"role": "user", "content": "Which one spins?"}, {"role": "assistant", "content": answer}]
    text = read.apply_chat_template(messages, tokenize=False)
    assert text == f"<|user|>\nWhich one spins?<|end|>\n<|assistant|>\n{answer}<|end|>\n"
    assert sentence_case(read.decode(read(answer + "<|end|>")["input_ids"], skip_special_tokens=True)) == answer

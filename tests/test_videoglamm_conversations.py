"""Prompts, grounded answers and conversations, with a tokenizer of words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from refervos.errors import CheckpointError, PromptError
from refervos.text.grounded import Answer, Phrase, parse_answer, stable, tagged
from refervos.videoglamm.conversation import (
    RESERVED,
    ChatTokenizer,
    Conversation,
    check_question,
    grounding_question,
    next_ids,
    opening_ids,
    referring_question,
)
from refervos.videoglamm.language import IMAGE, Sampling
from refervos.videoglamm.model import VideoGlamm
from videoglamm_models import MINIATURE, random_model, script, small_tokenizer


def phrases_of(answer: Answer) -> list[tuple[str, int]]:
    """Return each phrase and the position of its first character."""
    return [(answer.text[phrase.start : phrase.end], phrase.start) for phrase in answer.phrases]


@pytest.mark.parametrize(
    ("raw", "text", "phrases"),
    [
        (
            "<p> The red circle </p> [SEG] passes behind <p> the square </p> [SEG].",
            "The red circle passes behind the square.",
            [("The red circle", 0), ("the square", 29)],
        ),
        ("It is [SEG].", "It is.", [("", 5)]),
        ("[SEG].", ".", [("", 0)]),
        ("<p> a dog </p> runs.", "a dog runs.", []),
        ("<p> two dogs </p> [SEG] [SEG] run", "two dogs run", [("two dogs", 0), ("two dogs", 0)]),
        ("<p> a dog [SEG] runs", "a dog runs", [("a dog", 0)]),
        ("a </p> [SEG] b", "a b", [("", 1)]),
        ("<p>a<p> b </p>[SEG]c", "a b c", [("b", 2)]),
        ("<p> </p> [SEG] nothing", "nothing", [("", 0)]),
        ("", "", []),
        ("<p", "<p", []),
        ("<p> a cat </p> [SEG], and then", "a cat, and then", [("a cat", 0)]),
    ],
)
def test_an_answer_is_text_and_phrases(raw: str, text: str, phrases: list[tuple[str, int]]) -> None:
    answer = parse_answer(raw)
    assert answer.text == text
    assert phrases_of(answer) == phrases
    assert all(answer.text[phrase.start : phrase.end] == phrase.text for phrase in answer.phrases)
    assert answer.raw == raw


MARKED = st.lists(
    st.sampled_from(["<p>", "</p>", "[SEG]", " ", "a", "b c", ".", "<", "[S", "\ufffd", "\n"]), max_size=14
)


@settings(deadline=None, database=None, derandomize=True)
@given(parts=MARKED)
def test_whatever_is_written_has_a_meaning(parts: list[str]) -> None:
    raw = "".join(parts)
    answer = parse_answer(raw)
    assert len(answer.phrases) == raw.count("[SEG]")
    assert "[SEG]" not in answer.text
    for phrase in answer.phrases:
        assert answer.text[phrase.start : phrase.end] == phrase.text
        assert phrase.text == phrase.text.strip()


@settings(deadline=None, database=None, derandomize=True)
@given(parts=MARKED)
def test_what_was_shown_of_an_answer_is_never_taken_back(parts: list[str]) -> None:
    raw = "".join(parts).replace("\ufffd", "")
    whole = parse_answer(raw)
    for length in range(len(raw) + 1):
        so_far = parse_answer(stable(raw[:length]))
        assert whole.text.startswith(so_far.text)
        assert whole.phrases[: len(so_far.phrases)] == so_far.phrases
        later = whole.phrases[len(so_far.phrases) :]
        repeated = {phrase.start for phrase in so_far.phrases}  # [SEG] [SEG] after one phrase
        assert all(phrase.start >= so_far.settled or phrase.start in repeated for phrase in later)


def test_a_text_with_markup_is_parsed_to_what_was_marked() -> None:
    marked = tagged("The red circle passes behind the square.", [(0, 14), (29, 39)])
    assert marked == "<p> The red circle </p> [SEG] passes behind <p> the square </p> [SEG]."
    assert phrases_of(parse_answer(marked)) == [("The red circle", 0), ("the square", 29)]
    assert tagged("It is.", [(5, 5)]) == "It is [SEG]."


def test_the_prompt_is_the_published_template() -> None:
    tokenizer = small_tokenizer()
    ids = opening_ids(tokenizer, "what is happening here ?", 16)
    run = [place for place, token in enumerate(ids) if token == IMAGE]
    assert run == list(range(run[0], run[0] + 16))
    before = tokenizer.tokenizer.decode(ids[: run[0]])
    assert before.split() == ["<|system|>", "you", "are", "a", "helpful", "ai", "<unk>", "<|end|>", "<|user|>"]
    after = tokenizer.tokenizer.decode(ids[run[-1] + 1 :])
    assert after.split() == ["what", "is", "happening", "here", "?", "<|end|>", "<|assistant|>"]
    more = tokenizer.tokenizer.decode(next_ids(tokenizer, "which one turns back ?", ended=False))
    assert more.split() == ["<|end|>", "<|user|>", "which", "one", "turns", "back", "?", "<|end|>", "<|assistant|>"]
    assert next_ids(tokenizer, "which one ?", ended=True)[0] != tokenizer.end


def test_a_token_that_begins_a_text_stands_at_the_start_alone() -> None:
    tokenizer = small_tokenizer()
    inner = tokenizer.tokenizer
    inner.add_special_tokens({"bos_token": "<unk>"})
    begins = inner.bos_token_id
    inner.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", begins)]
    )
    ids = opening_ids(tokenizer, "what is this ?", 4)
    plain = opening_ids(small_tokenizer(), "what is this ?", 4)
    assert ids == [begins, *plain]
    assert begins not in next_ids(tokenizer, "what is this ?", ended=True)


def test_published_questions() -> None:
    assert referring_question("The Dog") == "What is the dog in this video? Please respond with segmentation masks."
    assert grounding_question("a man runs") == "Can you segment a man runs in this video?"
    asked = grounding_question("who runs?", interrogative=True)
    assert asked == "who runs? Please respond with segmentation masks."


@pytest.mark.parametrize("question", ["", "  \n", 3, None, "a\ud800b", "x" * 100_001, *(f"what {m}" for m in RESERVED)])
def test_a_question_that_cannot_be_asked_is_one_sentence(question: object) -> None:
    with pytest.raises(PromptError) as error:
        check_question(question)  # type: ignore[arg-type]
    assert str(error.value).startswith("the question")


def test_a_tokenizer_without_the_template_is_refused() -> None:
    plain = small_tokenizer().tokenizer
    with pytest.raises(CheckpointError, match=r"\[SEG\]"):
        ChatTokenizer(type("Other", (), {"get_vocab": lambda self: {"<|end|>": 1, "a": 2}})())
    assert ChatTokenizer(plain).seg == MINIATURE.seg


def test_a_tokenizer_is_written_and_read(tmp_path: Path) -> None:
    written = small_tokenizer()
    written.save_pretrained(tmp_path)
    read = ChatTokenizer.from_pretrained(tmp_path)
    text = "<|user|> the red circle [SEG] <|end|>"
    assert read.encode(text) == written.encode(text)
    assert read.decode(read.encode(text)).split() == ["the", "red", "circle", "[SEG]"]
    with pytest.raises(CheckpointError, match="no readable tokenizer"):
        ChatTokenizer.from_pretrained(tmp_path / "nothing")


# Conversations.


@pytest.fixture(scope="module")
def model() -> VideoGlamm:
    return random_model()


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8))


WRITTEN = "<p> the red circle </p> [SEG] passes behind <p> the blue square </p> [SEG] . <|end|>"


def test_an_answer_comes_piece_by_piece(model: VideoGlamm, frames: list[np.ndarray]) -> None:
    with torch.no_grad():
        talk = Conversation(model, model.encode_video(frames))
    pieces = list(talk.ask("what is happening here ?", rule=script(model, WRITTEN)))
    (turn,) = talk.turns
    assert (
        "".join(piece.text for piece in pieces) == turn.answer.text == "the red circle passes behind the blue square."
    )
    assert [piece.text for piece in pieces if piece.phrase is not None] == ["the red circle", "the blue square"]
    told = [piece.phrase for piece in pieces if piece.phrase is not None]
    assert told == list(turn.answer.phrases)
    assert told[0] == Phrase("the red circle", 0, 14)
    tokens = [piece.prompt_token for piece in pieces if piece.prompt_token is not None]
    assert torch.equal(torch.stack(tokens), turn.prompt_tokens)
    assert turn.ids[-1] == model.tokenizer.end
    assert len(pieces) > 4


def test_a_follow_up_question_keeps_the_context(model: VideoGlamm, frames: list[np.ndarray]) -> None:
    with torch.no_grad():
        visual = model.encode_video(frames)
    talk = Conversation(model, visual)
    list(talk.ask("what is happening here ?", rule=script(model, WRITTEN)))
    first = talk.turns[0]
    second = list(talk.ask("which one turns back ?", rule=script(model, "<p> it </p> [SEG] <|end|>")))
    assert len(talk.turns) == 2
    # The same as reading the whole conversation at once.
    ids = opening_ids(model.tokenizer, "what is happening here ?", visual.placeholders)
    ids += [*first.ids, *next_ids(model.tokenizer, "which one turns back ?", ended=True), *talk.turns[1].ids]
    with torch.no_grad():
        tokens = model.seg_tokens(ids, visual, model.read_ids(ids, visual))
    assert len(tokens) == 3
    mine = torch.cat([first.prompt_tokens, talk.turns[1].prompt_tokens])
    assert torch.allclose(tokens, mine, atol=1e-5)
    assert second[-1].prompt_token is not None
    # And not as if nothing had been said.
    alone = Conversation(model, visual)
    list(alone.ask("which one turns back ?", rule=script(model, "<p> it </p> [SEG] <|end|>")))
    assert not torch.allclose(alone.turns[0].prompt_tokens, talk.turns[1].prompt_tokens, atol=1e-3)


def test_an_answer_that_nobody_reads_to_its_end_can_be_asked_about(model: VideoGlamm, frames: list[np.ndarray]) -> None:
    talk = Conversation(model, model.encode_video(frames))
    answer = talk.ask("what is happening here ?", rule=script(model, WRITTEN))
    next(answer)
    answer.close()
    assert talk.turns[0].answer.text == "the red circle"
    talk.ask("which one ?")  # never read at all
    list(talk.ask("and then ?", rule=script(model, "it stays <|end|>")))
    assert talk.turns[1].answer.text == "it stays"


def test_a_conversation_that_is_too_long_is_one_sentence(model: VideoGlamm, frames: list[np.ndarray]) -> None:
    talk = Conversation(model, model.encode_video(frames))
    with pytest.raises(PromptError, match=r"10\d\d\d tokens.*takes at most 512"):
        talk.ask("red " * 10_000)
    list(talk.ask("what is this ?", rule=script(model, "it moves <|end|>")))
    with pytest.raises(PromptError, match="takes at most 512"):
        talk.ask("red " * 10_000)
    list(talk.ask("and then ?", rule=script(model, "it stays <|end|>")))  # which the one before did not spoil
    assert talk.turns[1].answer.text == "it stays"


def test_an_answer_ends_where_the_model_can_read_no_further(frames: list[np.ndarray]) -> None:
    short = random_model(replace(MINIATURE, phi=replace(MINIATURE.phi, positions=240)))
    talk = Conversation(short, short.encode_video(frames))
    list(talk.ask("what is this ?", rule=lambda written, logits: script(short, "red " * 500)(written, logits)))
    assert 0 < len(talk.turns[0].ids) < 32


def test_text_alone_and_questions_about_an_image(model: VideoGlamm, frames: list[np.ndarray]) -> None:
    alone = Conversation(model, None)
    list(alone.ask("what is this ?", rule=script(model, "it is red <|end|>")))
    assert alone.turns[0].answer.text == "it is red"
    assert alone.turns[0].prompt_tokens.shape == (0, MINIATURE.sam2.hidden)
    image = model.encode_image(frames[0])
    assert (len(image.tokens), image.placeholders) == (MINIATURE.clip.grid**2, 1)
    shown = Conversation(model, image)
    list(shown.ask("what is this ?", rule=script(model, "[SEG] <|end|>")))
    assert len(shown.turns[0].prompt_tokens) == 1


def test_images_in_two_places_are_refused(model: VideoGlamm, frames: list[np.ndarray]) -> None:
    visual = model.encode_video(frames)
    run = [IMAGE] * visual.placeholders
    with pytest.raises(PromptError, match="one place"):
        model.start([1, *run, 5, *run], visual)
    with pytest.raises(PromptError, match="has 3 images; 16 were given"):
        model.start([1, *run[:3], 5], visual)
    with pytest.raises(PromptError, match="no placeholder for the images"):
        model.start([1, 5], visual)
    with pytest.raises(PromptError, match="images that were not given"):
        model.start([1, *run], None)
    context = model.start([1, *run], visual)
    with pytest.raises(PromptError, match="start of a conversation"):
        model.add(context, [IMAGE])


def test_sampling_follows_its_seed_and_greedy_needs_none(model: VideoGlamm, frames: list[np.ndarray]) -> None:
    visual = model.encode_video(frames)
    ids = opening_ids(model.tokenizer, "what is this ?", visual.placeholders)

    def written(sampling: Sampling | None) -> list[int]:
        return [token.id for token in model.generate(model.start(ids, visual), limit=12, sampling=sampling)]

    assert written(None) == written(None)
    assert written(Sampling(seed=1)) == written(Sampling(seed=1))
    assert len({tuple(written(Sampling(seed=seed))) for seed in range(4)}) > 1
    assert written(Sampling(top_k=1, seed=1)) == written(None)
    assert written(Sampling(top_k=0, top_p=1e-9, seed=2)) == written(None)
    assert written(Sampling(top_k=0, temperature=1e-4, seed=3)) == written(None)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_sampling_out_of_range_is_one_sentence(wrong: dict[str, float]) -> None:
    with pytest.raises(PromptError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_a_model_without_a_tokenizer_cannot_be_asked() -> None:
    with pytest.raises(PromptError, match="no tokenizer"):
        Conversation(random_model(tokenizer=False), None)

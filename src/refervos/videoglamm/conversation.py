"""Asking with text: the prompt template, a tokenizer, and conversations whose answers come as they are written."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refervos.checkpoints.weight_files import read_settings
from refervos.errors import CheckpointError, PromptError, is_out_of_memory, require_installed
from refervos.videoglamm.answers import SEG, Answer, Phrase, parse_answer, stable
from refervos.videoglamm.language import IMAGE, Context, Sampling

if TYPE_CHECKING:
    from refervos.videoglamm.model import Rule, VideoGlamm, VisualTokens

SYSTEM = "You are a helpful AI assistant."
END = "<|end|>"
OPENING = "<|system|>\n{system}<|end|>\n<|user|>\n"
QUESTION = "{question}<|end|>\n<|assistant|>\n"
NEXT_USER = "\n<|user|>\n"

RESERVED = ("<|system|>", "<|user|>", "<|assistant|>", END, "<image>", "<video>", SEG)
"""What no question may contain: it would end the question, or stand for an image or a mask."""

_WITHOUT_CLASS = ("PreTrainedTokenizerFast", "TokenizersBackend")

LONGEST_QUESTION = 100_000
"""Characters of a question that are tokenised at all."""

DESCRIBE = (
    "Could you please give me a detailed description of the video? Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer."
)
"""The question of the published evaluation of grounded conversations."""


def referring_question(expression: str) -> str:
    """Ask for the object that an expression refers to, as in the published evaluation."""
    return f"What is {expression.lower()} in this video? Please respond with segmentation masks."


def grounding_question(caption: str, *, interrogative: bool = False) -> str:
    """Ask for the object of a caption, as in the published evaluation of visual grounding.

    Args:
        caption: A declarative sentence, or a question of VidSTG.
        interrogative: Whether it is a question.
    """
    if interrogative:
        return f"{caption} Please respond with segmentation masks."
    return f"Can you segment {caption} in this video?"


class ChatTokenizer:
    """Turns text into token ids and back, by any tokenizer of transformers that knows the template's tokens.

    Args:
        tokenizer: A fast or slow tokenizer of transformers.

    Raises:
        CheckpointError: When it lacks one of the template's tokens or ``[SEG]``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        known = tokenizer.get_vocab()
        missing = [token for token in ("<|system|>", "<|user|>", "<|assistant|>", END, SEG) if token not in known]
        if missing:
            raise CheckpointError(
                f"the tokenizer does not know {', '.join(missing)}; give the one that lies beside the checkpoint."
            )
        self.end, self.seg = known[END], known[SEG]

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> ChatTokenizer:
        """Read the tokenizer of a model folder.

        Args:
            folder: A folder with a tokenizer's files, or a hub id.

        Raises:
            CheckpointError: When it has none that can be read.
            MissingDependencyError: When transformers is not installed.
        """
        require_installed("VideoGLaMM", "videoglamm", "transformers")
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            file = Path(folder) / "tokenizer_config.json"
            settings = read_settings(file) if file.is_file() else None
            named = settings.get("tokenizer_class") if isinstance(settings, dict) else None
            # A tokenizer without a class of its own needs no search by the model's type, which transformers warns of.
            reader: Any = PreTrainedTokenizerFast if named in _WITHOUT_CLASS else AutoTokenizer
            return cls(reader.from_pretrained(str(folder), trust_remote_code=False))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises that itself for a damaged file
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{folder} has no tokenizer that can be read ({reason}).") from error

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.tokenizer)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write its files."""
        self.tokenizer.save_pretrained(str(folder))

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        """Turn a piece of a conversation into token ids.

        Args:
            text: The piece, with the template's tokens written out.
            first: Whether it is the first, which alone keeps the token that begins a text, if the tokenizer has one.
        """
        ids: list[int] = list(self.tokenizer(text)["input_ids"])
        begins = self.tokenizer.bos_token_id
        return ids[1:] if not first and begins is not None and ids[:1] == [begins] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text, ``[SEG]`` included and the template's tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.removesuffix(END)


def check_question(question: str) -> str:
    """Check that a question can be put into a prompt.

    Args:
        question: What a person asks.

    Returns:
        It, without spaces around it.

    Raises:
        PromptError: When it is no text, empty, much too long, or contains a mark of the prompt's template.
    """
    if not isinstance(question, str):
        raise PromptError(f"the question is a {type(question).__name__}; give text.")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise PromptError("the question is not valid Unicode (it has a lone surrogate).") from error
    if not question.strip():
        raise PromptError("the question is empty; ask something about the video.")
    if len(question) > LONGEST_QUESTION:
        raise PromptError(f"the question has {len(question)} characters; at most {LONGEST_QUESTION} are read.")
    found = [mark for mark in RESERVED if mark in question]
    if found:
        raise PromptError(
            f"the question contains {found[0]}, which the prompt's template keeps for itself; leave it out."
        )
    return question.strip()


def opening_ids(tokenizer: ChatTokenizer, question: str, frames: int, *, system: str = SYSTEM) -> list[int]:
    """Tokenise the prompt of a conversation's first question.

    Args:
        tokenizer: Of the model.
        question: What a person asks, checked.
        frames: Image sentinels before it: ``VisualTokens.sentinels``, or 0.
        system: What the model is told to be.
    """
    asked = QUESTION.format(question=question)
    if not frames:
        return tokenizer.encode(OPENING.format(system=system) + asked, first=True)
    before = tokenizer.encode(OPENING.format(system=system), first=True)
    return [*before, *[IMAGE] * frames, *tokenizer.encode("\n" + asked)]


def next_ids(tokenizer: ChatTokenizer, question: str, *, ended: bool) -> list[int]:
    """Tokenise what comes between an answer and the next one.

    Args:
        tokenizer: Of the model.
        question: What a person asks next, checked.
        ended: Whether the answer before closed itself.
    """
    return tokenizer.encode(("" if ended else END) + NEXT_USER + QUESTION.format(question=question))


@dataclass(frozen=True)
class AnswerPiece:
    """What is new of an answer that is being written.

    Attributes:
        text: More text to show; may be empty.
        phrase: A phrase whose ``[SEG]`` was written now, None where there is none.
        prompt_token: The prompt token of its mask (C,), None where there is no phrase.
    """

    text: str
    phrase: Phrase | None = None
    prompt_token: Tensor | None = None


Pieces = Generator[AnswerPiece, None, None]


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question: What was asked.
        answer: Text and phrases.
        prompt_tokens: The prompt tokens of all ``[SEG]`` (N, C); ``Phrase.segments`` are its rows.
        ids: Token ids of the answer.
    """

    question: str
    answer: Answer
    prompt_tokens: Tensor
    ids: tuple[int, ...]


class Conversation:
    """Questions and answers about one video, each with all that was said before.

    What was read before is not read again: keys and values are kept.

    Args:
        model: With a tokenizer.
        visual: The video or image; None for text alone.
        system: What the model is told to be.

    Raises:
        PromptError: When the model has no tokenizer.
    """

    def __init__(self, model: VideoGlamm, visual: VisualTokens | None, *, system: str = SYSTEM) -> None:
        if model.tokenizer is None:
            raise PromptError("this model has no tokenizer files, so it cannot read questions; give it a tokenizer.")
        self.model = model
        self.visual = visual
        self.system = system
        self.turns: list[Turn] = []
        self._tokenizer: ChatTokenizer = model.tokenizer
        self._context: Context | None = None
        self._ended = False  # whether the last answer closed itself

    def ask(
        self, question: str, *, limit: int = 512, sampling: Sampling | None = None, rule: Rule | None = None
    ) -> Pieces:
        """Ask a question, and follow the answer as it is written.

        The turn is recorded when the answer ends, or when nobody takes more of it.

        Args:
            question: About the video.
            limit: Tokens of the answer at most.
            sampling: Draw tokens; default the likeliest each time.
            rule: Changes the logits before a token is chosen.

        Returns:
            An iterator over what is new.

        Raises:
            PromptError: At once, before anything is read, when the question is empty or cannot be read, or the
                conversation becomes too long.
        """
        asked = check_question(question)
        if self._context is None:
            frames = 0 if self.visual is None else self.visual.sentinels
            ids = opening_ids(self._tokenizer, asked, frames, system=self.system)
            self._context = self.model.start(ids, self.visual)
        else:
            self.model.add(self._context, next_ids(self._tokenizer, asked, ended=self._ended))
        self._ended = False
        return self._write(self._context, asked, limit, sampling, rule)

    def _write(
        self, context: Context, question: str, limit: int, sampling: Sampling | None, rule: Rule | None
    ) -> Pieces:
        ids: list[int] = []
        prompts: list[Tensor] = []
        shown = 0
        try:
            for token in self.model.generate(context, limit=limit, sampling=sampling, rule=rule):
                ids.append(token.id)
                so_far = parse_answer(stable(self._tokenizer.decode(ids)))
                phrase = None
                if token.prompt_token is not None:
                    prompts.append(token.prompt_token)
                    phrase = next((each for each in so_far.phrases if len(prompts) - 1 in each.segments), None)
                text, shown = so_far.text[shown:], max(shown, len(so_far.text))
                if text or phrase is not None:
                    yield AnswerPiece(text, phrase, token.prompt_token)
            whole = parse_answer(self._tokenizer.decode(ids)).text
            if whole[shown:]:
                yield AnswerPiece(whole[shown:])
        finally:
            self._ended = ids[-1:] == [self._tokenizer.end]
            answer = parse_answer(self._tokenizer.decode(ids))
            width = self.model.config.sam2.hidden
            stacked = torch.stack(prompts) if prompts else torch.zeros(0, width, device=self.model.device)
            self.turns.append(Turn(question, answer, stacked, tuple(ids)))

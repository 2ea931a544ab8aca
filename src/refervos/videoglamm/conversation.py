"""Prompt template, tokenizer, and multi-turn conversations with streamed answers."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.models import WordLevel
from torch import Tensor

from refervos.checkpoints.weight_files import read_settings
from refervos.errors import CheckpointError, PromptError, is_out_of_memory, require_installed
from refervos.text.grounded import SEG, Answer, Phrase, parse_answer, stable
from refervos.text.vocabulary import word_level_words
from refervos.videoglamm.language import IMAGE, Context, Sampling

if TYPE_CHECKING:
    from refervos.videoglamm.model import Rule, VideoGlamm, VisualTokens

SYSTEM = "You are a helpful AI assistant."
END = "<|end|>"
OPENING = "<|system|>\n{system}<|end|>\n<|user|>\n"
QUESTION = "{question}<|end|>\n<|assistant|>\n"
NEXT_USER = "\n<|user|>\n"

RESERVED = ("<|system|>", "<|user|>", "<|assistant|>", END, "<image>", "<video>", SEG)
"""Markup that a question must not contain, because it would end the turn or insert an image or a mask."""

_WITHOUT_CLASS = ("PreTrainedTokenizerFast", "TokenizersBackend")

LONGEST_QUESTION = 100_000
"""Maximum length of a question in characters."""

UNKNOWN_WORDS = (
    "it cannot read these words, and its answer is a guess. For questions about real videos convert the published "
    "VideoGLaMM, see 'refervos models'."
)
"""Consequence of words in a question that are not in a closed vocabulary."""

DESCRIBE = (
    "Could you please give me a detailed description of the video? Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer."
)
"""Prompt of the published evaluation of grounded conversation generation."""


def referring_question(expression: str) -> str:
    """Return the prompt of the published evaluation for a referring expression."""
    return f"What is {expression.lower()} in this video? Please respond with segmentation masks."


def grounding_question(caption: str, *, interrogative: bool = False) -> str:
    """Return the prompt of the published evaluation of visual grounding for a caption.

    Args:
        caption: A declarative sentence, or a question of VidSTG.
        interrogative: Whether it is a question.
    """
    if interrogative:
        return f"{caption} Please respond with segmentation masks."
    return f"Can you segment {caption} in this video?"


class ChatTokenizer:
    """Wrapper of a transformers tokenizer that has the tokens of the prompt template.

    Args:
        tokenizer: A fast or slow tokenizer of transformers.

    Raises:
        CheckpointError: When it lacks a token of the template or ``[SEG]``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        known = tokenizer.get_vocab()
        missing = [token for token in ("<|system|>", "<|user|>", "<|assistant|>", END, SEG) if token not in known]
        if missing:
            raise CheckpointError(
                f"the tokenizer has no token {', '.join(missing)}; give the tokenizer of the checkpoint."
            )
        self.end, self.seg = known[END], known[SEG]
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)  # slow tokenizers have none
        word_level = isinstance(getattr(backend, "model", None), WordLevel)
        self._unknown: str | None = backend.model.unk_token if word_level else None

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> ChatTokenizer:
        """Read the tokenizer of a model folder.

        Args:
            folder: A folder with a tokenizer's files, or a hub id.

        Raises:
            CheckpointError: When it has no readable tokenizer.
            MissingDependencyError: When transformers is not installed.
        """
        require_installed("VideoGLaMM", "videoglamm", "transformers")
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            file = Path(folder) / "tokenizer_config.json"
            settings = read_settings(file) if file.is_file() else None
            named = settings.get("tokenizer_class") if isinstance(settings, dict) else None
            # AutoTokenizer would look up the model type in config.json, and warn about ours.
            reader: Any = PreTrainedTokenizerFast if named in _WITHOUT_CLASS else AutoTokenizer
            return cls(reader.from_pretrained(str(folder), trust_remote_code=False))
        except CheckpointError:
            raise
        except Exception as error:  # tokenizers raises it for a damaged file
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{folder} has no readable tokenizer ({reason}).") from error

    def __len__(self) -> int:
        """Return the vocabulary size."""
        return len(self.tokenizer)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer files to a folder."""
        self.tokenizer.save_pretrained(str(folder))

    def encode(self, text: str, *, first: bool = False) -> list[int]:
        """Tokenise a part of a conversation.

        Args:
            text: The text, including tokens of the template.
            first: Whether it is the first part; a beginning-of-sequence token is removed from all others.
        """
        ids: list[int] = list(self.tokenizer(text)["input_ids"])
        begins = self.tokenizer.bos_token_id
        return ids[1:] if not first and begins is not None and ids[:1] == [begins] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids to text, with ``[SEG]`` and without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.removesuffix(END)

    @property
    def words(self) -> tuple[str, ...]:
        """Words of a word-level vocabulary, without markup; empty for other tokenizers, which read any word."""
        return word_level_words(self.tokenizer.get_vocab()) if self._unknown is not None else ()

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """List the words of a text that a word-level tokenizer reads as its unknown token, each once and in order."""
        if self._unknown is None:
            return ()
        encoded = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        spans = [span for token, span in zip(encoded.tokens, encoded.offsets, strict=True) if token == self._unknown]
        read = [text[start:stop].lower() for start, stop in spans]
        return tuple(dict.fromkeys(word for word in read if any(letter.isalnum() for letter in word)))


def check_question(question: str) -> str:
    """Check a question of the user.

    Args:
        question: The question.

    Returns:
        The question without surrounding spaces.

    Raises:
        PromptError: When it is not text, empty, too long, or contains markup of the prompt template.
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
        raise PromptError(f"the question has {len(question)} characters; the maximum is {LONGEST_QUESTION}.")
    found = [mark for mark in RESERVED if mark in question]
    if found:
        raise PromptError(f"the question contains {found[0]}, which is reserved by the prompt template; remove it.")
    return question.strip()


def opening_ids(tokenizer: ChatTokenizer, question: str, frames: int, *, system: str = SYSTEM) -> list[int]:
    """Tokenise the prompt of a conversation's first question.

    Args:
        tokenizer: Of the model.
        question: The question, checked.
        frames: Image placeholders before it: ``VisualTokens.placeholders``, or 0.
        system: System prompt.
    """
    user_turn = QUESTION.format(question=question)
    if not frames:
        return tokenizer.encode(OPENING.format(system=system) + user_turn, first=True)
    before = tokenizer.encode(OPENING.format(system=system), first=True)
    return [*before, *[IMAGE] * frames, *tokenizer.encode("\n" + user_turn)]


def next_ids(tokenizer: ChatTokenizer, question: str, *, ended: bool) -> list[int]:
    """Tokenise a follow-up question, which comes between two answers.

    Args:
        tokenizer: Of the model.
        question: The next question, checked.
        ended: Whether the previous answer ended with the end token.
    """
    return tokenizer.encode(("" if ended else END) + NEXT_USER + QUESTION.format(question=question))


@dataclass(frozen=True)
class AnswerPiece:
    """Increment of a streamed answer.

    A phrase comes as a whole, when its ``[SEG]`` is generated: until then it could also be plain text.

    Attributes:
        text: Text to append: that of the phrase, or plain text. It may be empty.
        phrase: The phrase whose ``[SEG]`` was just generated, or None.
        prompt_token: SAM2 prompt token of the phrase (C,), or None.
    """

    text: str
    phrase: Phrase | None = None
    prompt_token: Tensor | None = None


Pieces = Generator[AnswerPiece, None, None]


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question: The question.
        answer: The parsed answer.
        prompt_tokens: SAM2 prompt tokens (N, C), one for each of the answer's phrases.
        ids: Token ids of the answer.
    """

    question: str
    answer: Answer
    prompt_tokens: Tensor
    ids: tuple[int, ...]


class Conversation:
    """Multi-turn conversation about one video.

    Follow-up questions have all earlier turns as context. The key-value cache is kept between turns.

    Args:
        model: A model with a tokenizer.
        visual: The encoded video or image; None for a conversation about text.
        system: System prompt.

    Raises:
        PromptError: When the model has no tokenizer.
    """

    def __init__(self, model: VideoGlamm, visual: VisualTokens | None, *, system: str = SYSTEM) -> None:
        if model.tokenizer is None:
            raise PromptError(
                "this model has no tokenizer, so it cannot take text questions; load it with tokenizer files."
            )
        self.model = model
        self.visual = visual
        self.system = system
        self.turns: list[Turn] = []
        self._tokenizer: ChatTokenizer = model.tokenizer
        self._context: Context | None = None
        self._ended = False  # whether the last answer ended with the end token

    def ask(
        self, question: str, *, limit: int = 512, sampling: Sampling | None = None, rule: Rule | None = None
    ) -> Pieces:
        """Generate the answer to a question as a stream.

        The turn is appended to ``turns`` when the answer ends or the iterator is closed.

        Args:
            question: The question.
            limit: Maximum number of generated tokens.
            sampling: Sampling of tokens; default greedy decoding.
            rule: Processor of the logits.

        Returns:
            An iterator over the increments of the answer.

        Raises:
            PromptError: Immediately, before any computation, when the question is invalid or the conversation becomes
                too long.
        """
        question = check_question(question)
        if self._context is None:
            frames = 0 if self.visual is None else self.visual.placeholders
            ids = opening_ids(self._tokenizer, question, frames, system=self.system)
            self._context = self.model.start(ids, self.visual)
        else:
            self.model.add(self._context, next_ids(self._tokenizer, question, ended=self._ended))
        self._ended = False
        return self._write(self._context, question, limit, sampling, rule)

    def _write(
        self, context: Context, question: str, limit: int, sampling: Sampling | None, rule: Rule | None
    ) -> Pieces:
        ids: list[int] = []
        prompts: list[Tensor] = []
        phrases: list[Phrase] = []  # of tokens: a model may also write "[SEG]" letter by letter
        shown = 0
        try:
            for token in self.model.generate(context, limit=limit, sampling=sampling, rule=rule):
                ids.append(token.id)
                so_far = parse_answer(stable(self._tokenizer.decode(ids)))
                if token.prompt_token is not None:
                    prompts.append(token.prompt_token)
                    phrase = so_far.phrases[-1]
                    phrases.append(phrase)
                    if so_far.text[shown : phrase.start]:
                        yield AnswerPiece(so_far.text[shown : phrase.start])
                    shown = max(shown, phrase.start)
                    yield AnswerPiece(so_far.text[shown : phrase.end], phrase, token.prompt_token)
                    shown = max(shown, phrase.end)
                if so_far.text[shown : so_far.settled]:
                    yield AnswerPiece(so_far.text[shown : so_far.settled])
                shown = max(shown, so_far.settled)
            whole = parse_answer(self._tokenizer.decode(ids)).text
            if whole[shown:]:
                yield AnswerPiece(whole[shown:])
        finally:
            self._ended = ids[-1:] == [self._tokenizer.end]
            answer = replace(parse_answer(self._tokenizer.decode(ids)), phrases=tuple(phrases))
            width = self.model.config.sam2.hidden
            stacked = torch.stack(prompts) if prompts else torch.zeros(0, width, device=self.model.device)
            self.turns.append(Turn(question, answer, stacked, tuple(ids)))

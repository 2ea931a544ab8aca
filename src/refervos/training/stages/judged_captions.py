"""Captions that the model samples, judged by the facts of the scene. Not published.

Cross-entropy teaches a small model to write the most usual sentence about an object even when it cannot see what the
object does. Here the model writes captions itself, each sentence is judged by the facts of its clip, and the sentences
that turn out better than the others about the same clip become more likely (REINFORCE with the mean of the samples as
baseline; self-critical sequence training, Rennie et al. 2017, is the same with another baseline). A vague sentence that
is true is worth less than a specific one and more than a wrong one, so that the model learns to say what it is sure of;
to end a caption is worth nothing, so that it mentions the objects that it can name.

Shapes: B videos, N samples of each, S positions of the prompt, D = the language model's width, V = vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refervos.worlds.facts import Facts
from refervos.worlds.judge import JudgedSentence, Verdict, judge
from refervos.worlds.nouns import plural
from refervos.worlds.wording import GENERIC

MENTIONED = 0.8
"""Reward of each object that a true sentence mentions first."""

SPECIFIC, MOVING, PRESENT = 1.0, 0.6, 0.4
"""Rewards of such a sentence in addition: with a specific claim, with "moves", and with "there is" alone."""

REPEATED = -0.4
"""Reward of a true sentence that mentions no other objects than those before it."""

WRONG = -1.8
"""Reward of a sentence that is not true beyond doubt, names no kind of object or is bad English; of an empty caption,
and of the last sentence of one that does not end. A claim is worth its risk, in comparison with "there is", if it is
right in more than nine of ten cases ("moves") or in five of six (a specific one)."""

DISCOUNT = 0.5
"""Factor of the rewards of each later sentence."""

_GENERIC = re.compile(rf"\b(?:{'|'.join((*GENERIC, *map(plural, GENERIC)))})\b")

_WRONG_ARTICLE = re.compile(r"\ba (?=[aeiou])|\ban (?=[^aeiou])")

_VAGUE = ((" moves.", MOVING), (" move.", MOVING))


@dataclass(frozen=True)
class Sampled:
    """Sampled caption.

    Attributes:
        ids: Its token ids, including the one that ends it unless it is unfinished.
        rewards: Reward of each token: that of its sentence; of the last one that of ending.
        sentences: Index of the sentence of each token; -1 for the end.
    """

    ids: tuple[int, ...]
    rewards: tuple[float, ...]
    sentences: tuple[int, ...]

    @property
    def steps(self) -> dict[int, float]:
        """Reward of each sentence by its index, in order, and last of the end by -1 unless it is unfinished."""
        return dict(zip(self.sentences, self.rewards, strict=True))

    @property
    def all_true(self) -> bool:
        """Whether it has sentences, and each is true and new."""
        own = [reward for number, reward in self.steps.items() if number >= 0]
        return bool(own) and min(own) > 0


@torch.no_grad()
def sample_answers(
    model: Any, prompts: Tensor, count: int, limit: int, end: Sequence[int], generators: Sequence[torch.Generator]
) -> list[list[list[int]]]:
    """Sample answers to prompts of equal length, all at once.

    Args:
        model: The language model, a causal model of transformers.
        prompts: Embeddings of the prompts (B, S, D).
        count: Answers N to each prompt.
        limit: Maximum number of tokens of an answer.
        end: Ids of the tokens that end an answer.
        generators: Source of random numbers of each prompt, so that its answers do not depend on the other prompts.

    Returns:
        For each prompt the token ids of N answers; the last id is in ``end`` unless the limit ended the answer.
    """
    table = model.get_input_embeddings()
    output = model.model(inputs_embeds=prompts, use_cache=True)
    cache = output.past_key_values
    cache.batch_repeat_interleave(count)
    states = output.last_hidden_state[:, -1].repeat_interleave(count, 0)  # (B * N, D)
    drawn: list[Tensor] = []
    ended = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    ends = torch.tensor(list(end), device=states.device)
    while len(drawn) < limit and not bool(ended.all()):
        odds = model.lm_head(states).float().softmax(-1).unflatten(0, (-1, count))  # (B, N, V)
        parts = [torch.multinomial(own, 1, generator=source) for own, source in zip(odds, generators, strict=True)]
        token = torch.cat(parts)[:, 0]  # (B * N,)
        drawn.append(token)
        ended = ended | torch.isin(token, ends)
        states = model.model(
            inputs_embeds=table(token).unsqueeze(1), past_key_values=cache, use_cache=True
        ).last_hidden_state[:, 0]
    rows = torch.stack(drawn, dim=1).tolist()
    answers = [_until_end(row, end) for row in rows]
    return [answers[start : start + count] for start in range(0, len(answers), count)]


def _until_end(ids: Sequence[int], end: Sequence[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in end:
            return list(ids[: place + 1])
    return list(ids)


def reward_caption(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], end: Sequence[int], facts: Facts
) -> Sampled:
    """Judge a caption sentence by sentence.

    Args:
        ids: Token ids of the caption.
        decode: Joins token ids into a text.
        end: Ids of the tokens that end an answer.
        facts: Facts of the clip.

    Returns:
        The caption with the reward of each token.
    """
    finished = bool(ids) and ids[-1] in end
    words = list(ids[:-1] if finished else ids)
    mentioned: set[int] = set()
    steps: list[tuple[int, float]] = []  # number of tokens and reward of each sentence, and of the end
    start = 0
    for place, token in enumerate(words, 1):
        if place < len(words) and not decode([token]).strip().endswith((".", "!", "?")):
            continue
        reward = WRONG
        judged = judge(decode(words[start:place]), facts).sentences
        if len(judged) == 1 and (finished or place < len(words)):
            reward = _reward(judged[0], mentioned)
        steps.append((place - start, reward))
        start = place
    if finished:
        steps.append((1, 0.0 if words else WRONG))
    sentences = [number for number, (length, _) in enumerate(steps) for _ in range(length)]
    if finished:
        sentences[-1] = -1
    return Sampled(tuple(ids), tuple(reward for length, reward in steps for _ in range(length)), tuple(sentences))


def _reward(sentence: JudgedSentence, mentioned: set[int]) -> float:
    """Reward a sentence and, unless it is wrong, add the objects that it mentions to ``mentioned``."""
    objects = {index for phrase in sentence.phrases for index in phrase.objects or ()}
    grounded = all(phrase.has_mask and phrase.objects for phrase in sentence.phrases)
    unsound = _GENERIC.search(sentence.text) or _WRONG_ARTICLE.search(sentence.text)
    if sentence.verdict is not Verdict.TRUE or not objects or not grounded or unsound:
        return WRONG
    if objects <= mentioned:
        return REPEATED
    reward = MENTIONED * len(objects - mentioned)
    mentioned |= objects
    if sentence.text.startswith("there "):
        return reward + PRESENT
    return reward + next((value for ending, value in _VAGUE if sentence.text.endswith(ending)), SPECIFIC)


def advantages(samples: Sequence[Sampled]) -> list[list[float]]:
    """Compare what each sentence leads to, its own reward and all later ones, with the other captions of the clip.

    Wherever captions go on or end, the return from there is compared with the mean over the captions that have come so
    far. So a sentence that is worth little is still better than an early end that is worth less.

    Args:
        samples: Captions of the same clip.

    Returns:
        The advantage of each token of each caption.
    """
    returns = []
    for sample in samples:
        own = list[float]()
        for reward in reversed(sample.steps.values()):
            own.insert(0, reward + DISCOUNT * (own[0] if own else 0.0))
        returns.append(own)
    longest = max(map(len, returns), default=0)
    columns = [[own[place] for own in returns if place < len(own)] for place in range(longest)]
    means = [sum(column) / len(column) for column in columns]
    return [
        [own[number] - means[number % len(own)] for number in sample.sentences]
        for own, sample in zip(returns, samples, strict=True)
    ]

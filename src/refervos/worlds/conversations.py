"""Grounded conversations about drawn clips: captions with a phrase for each object, questions, and true answers.

In an answer a phrase such as ``<p> the red circle </p> [SEG]`` refers to objects of the clip; the union of their masks
is the ground truth of its ``[SEG]``. Every statement is TRUE by the clip's facts, and every phrase identifies its
objects beyond doubt. ``judge.py`` evaluates any other text by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refervos.errors import ConfigError
from refervos.worlds.conversation_writer import MOTION_ONLY, Conversation, ConversationWriter, Turn
from refervos.worlds.facts import Facts
from refervos.worlds.render import Clip, draw_clip
from refervos.worlds.scene import WorldConfig

CONVERSATION_WORLD = WorldConfig(frames=16)
"""Default world of conversations; its clips have as many frames as VideoGLaMM's encoders read."""

CONVERSATION_SEED = 241104923
"""First number of every seed of the held-out conversations; training must not use it as a first number."""

CASES = 320
"""Number of held-out clips."""

KIND_WEIGHTS: dict[str, float] = {
    "description": 0.34,
    "referring": 0.26,
    "absent": 0.0,
    "which": 0.1,
    "count": 0.04,
    "colour": 0.03,
    "shape": 0.03,
    "pattern": 0.02,
    "place": 0.04,
    "action": 0.05,
    "whether": 0.09,
}
"""Default weight of each kind of question; "absent" asks for the object of an expression without a target."""

FAMILY_WEIGHTS: dict[str, float] = {"motion": 0.5, "place": 0.2, "relation": 0.2, "size": 0.1}
"""Default weight of each family of claims in questions of the kinds "which" and "whether"."""

_MAX_ATTEMPTS = 100  # clips drawn to find one that shows its objects well enough


@dataclass(frozen=True, eq=False)
class ConversationClip:
    """Clip with conversations about it.

    Attributes:
        clip: Frames, masks and the scene.
        conversations: Conversations that are independent of each other.
    """

    clip: Clip
    conversations: tuple[Conversation, ...]

    @property
    def caption(self) -> Turn:
        """Caption of the clip.

        Raises:
            ConfigError: When no conversation is a description.
        """
        for conversation in self.conversations:
            if conversation[0].kind == "description":
                return conversation[0]
        raise ConfigError("this clip has no caption; give the kind 'description' a weight.")

    def masks(self, turn: Turn) -> npt.NDArray[np.bool_]:
        """Return the ground truth of each ``[SEG]`` of a turn.

        Args:
            turn: A turn about this clip.

        Returns:
            The union of the objects' masks (N, T, H, W).
        """
        masks = np.zeros((len(turn.targets), *self.clip.masks.shape[1:]), np.bool_)
        for mask, objects in zip(masks, turn.targets, strict=True):
            np.any(self.clip.masks[list(objects)], axis=0, out=mask)
        return masks


def draw_conversation(
    seed: int | Sequence[int],
    config: WorldConfig = CONVERSATION_WORLD,
    count: int = 3,
    *,
    kinds: Mapping[str, float] = KIND_WEIGHTS,
    families: Mapping[str, float] = FAMILY_WEIGHTS,
    variety: float = 0.3,
    detail: int = 2,
) -> ConversationClip:
    """Draw a random clip and conversations about it, determined by the arguments.

    Args:
        seed: Seed of the random number generators.
        config: The world; drawn shapes only.
        count: Maximum number of conversations.
        kinds: Weight of each kind of question, see ``KIND_WEIGHTS``.
        families: Weight of each family of claims in "which" and "whether", see ``FAMILY_WEIGHTS``.
        variety: See ``conversations``.
        detail: See ``conversations``.

    Returns:
        The clip and at most ``count`` conversations.

    Raises:
        ConfigError: When the world has sprites, for which conversations have no words.
    """
    if config.sprites is not None:
        raise ConfigError(
            f"world: sprites is {config.sprites!r}; conversations are about drawn shapes, so leave sprites out."
        )
    start = [seed] if isinstance(seed, int) else list(seed)
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        clip = draw_clip([*start, attempt, 1], config)
        facts = Facts.of(clip)
        if facts.recognisable.any():
            break
    writer = ConversationWriter(facts, np.random.default_rng([*start, attempt, 2]), variety, families, detail)
    return ConversationClip(clip, writer.conversations(count, kinds))


def conversations(
    clip: Clip,
    rng: np.random.Generator,
    count: int = 3,
    *,
    kinds: Mapping[str, float] = KIND_WEIGHTS,
    families: Mapping[str, float] = FAMILY_WEIGHTS,
    variety: float = 0.3,
    detail: int = 2,
) -> tuple[Conversation, ...]:
    """Generate conversations about a clip.

    Args:
        clip: A clip of drawn shapes.
        rng: Chooses the statements and their wording.
        count: Maximum number of conversations; questions do not repeat.
        kinds: Weight of each kind of question; kinds without a question about the clip are skipped.
        families: Weight of each family of claims in "which" and "whether".
        variety: Probability of another wording than the plainest, in [0, 1]. At 0 the scene alone determines its
            caption, which goes from left to right in fixed words.
        detail: Content of captions for each object: 0, one movement; 1, two movements; 2, also the place of objects
            that stand still.

    Returns:
        At most ``count`` conversations, at least one.
    """
    return ConversationWriter(Facts.of(clip), rng, variety, families, detail).conversations(count, kinds)


def caption(
    clip: Clip,
    rng: np.random.Generator,
    *,
    variety: float = 0.3,
    detail: int = 2,
    vague: float = 0.0,
    patterns: float = 0.0,
) -> Turn:
    """Describe a clip, with a phrase for every recognisable object and its movement.

    Args:
        clip: A clip of drawn shapes.
        rng: Chooses the wording.
        variety: See ``conversations``.
        detail: See ``conversations``.
        vague: Share of objects of which it says only that they are there, or that they move, and of objects that look
            like another one of which it describes both together.
        patterns: Share of captions that name the pattern of every object, also where nothing else looks like it.

    Returns:
        A turn with the request for a description and the description.
    """
    return ConversationWriter(Facts.of(clip), rng, variety, FAMILY_WEIGHTS, detail, vague, patterns).caption()


def held_out_conversation(index: int, config: WorldConfig = CONVERSATION_WORLD) -> ConversationClip:
    """Draw a held-out clip with its plainest caption and a question of each kind.

    Args:
        index: Index below ``CASES``.
        config: The world. Other worlds give other clips.

    Returns:
        A clip whose visible objects are all recognisable, with its caption and then the questions: "which", "whether"
        and "referring" once about motion and once about anything else, the other kinds once; kinds without a question
        about the clip are left out.

    Raises:
        ConfigError: When no such clip is found.
    """
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        # No zeros, because numpy ignores zeros at the end of a seed.
        seed = (CONVERSATION_SEED, index + 1, attempt)
        clip = draw_clip((*seed, 1), config)
        facts = Facts.of(clip)
        if (facts.ever_visible == facts.recognisable).all():
            break
    else:
        raise ConfigError(
            f"world: none of {_MAX_ATTEMPTS} clips shows all its objects well; use a larger frame, or fewer or larger "
            "objects."
        )
    rng = np.random.default_rng((*seed, 2))
    rest = {family: weight for family, weight in FAMILY_WEIGHTS.items() if family != "motion"}
    found: list[Conversation] = []
    for families in (rest, MOTION_ONLY):
        writer = ConversationWriter(facts, rng, 0.0, families)
        kinds = (
            [kind for kind, weight in KIND_WEIGHTS.items() if weight]
            if families is rest
            else ["which", "whether", "referring"]
        )
        for kind in kinds:
            conversation = writer.conversation(kind)
            if conversation is not None and all(conversation[0].question != other[0].question for other in found):
                found.append(conversation)
    return ConversationClip(clip, tuple(found))

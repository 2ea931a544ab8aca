"""Procedural clips with exact masks and verified referring expressions, for training and diagnosis.

>>> import numpy as np
>>> from refervos.worlds import WorldConfig, draw_clip, referring_expressions
>>> clip = draw_clip(7, WorldConfig(frames=8))
>>> expression = referring_expressions(clip, np.random.default_rng(7))[0]
>>> clip.target_masks(expression).shape
(8, 128, 128)
"""

from refervos.worlds.descriptions import FAMILIES, Claim, Description, Expression, Noun, Pair
from refervos.worlds.facts import Facts
from refervos.worlds.motion import Motion
from refervos.worlds.render import Clip, draw_clip, draw_scene
from refervos.worlds.scene import BACKGROUNDS, Scene, Thing, WorldConfig, random_scene
from refervos.worlds.sentences import decidable_from, referring_expressions, sample_expressions
from refervos.worlds.shapes import COLOURS, KINDS, TEXTURES
from refervos.worlds.sprites import Sprite, Sprites
from refervos.worlds.wording import all_sentences, known_words

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FAMILIES",
    "KINDS",
    "TEXTURES",
    "Claim",
    "Clip",
    "Description",
    "Expression",
    "Facts",
    "Motion",
    "Noun",
    "Pair",
    "Scene",
    "Sprite",
    "Sprites",
    "Thing",
    "WorldConfig",
    "all_sentences",
    "decidable_from",
    "draw_clip",
    "draw_scene",
    "known_words",
    "random_scene",
    "referring_expressions",
    "sample_expressions",
]

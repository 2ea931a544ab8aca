"""Procedural clips with exact masks and sentences that are checked against them: for training and for diagnosis.

>>> import numpy as np
>>> from refervos.worlds import WorldConfig, draw_clip, referrals
>>> clip = draw_clip(7, WorldConfig(frames=8))
>>> sentence = referrals(clip, np.random.default_rng(7))[0]
>>> clip.target_masks(sentence).shape
(8, 128, 128)
"""

from refervos.worlds.descriptions import FAMILIES, Claim, Description, Noun, Pair, Referral
from refervos.worlds.facts import Facts
from refervos.worlds.motion import Motion
from refervos.worlds.render import Clip, draw_clip, draw_scene
from refervos.worlds.scene import BACKGROUNDS, Scene, Thing, WorldConfig, random_scene
from refervos.worlds.sentences import decidable_from, referrals, some_referrals
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
    "Facts",
    "Motion",
    "Noun",
    "Pair",
    "Referral",
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
    "referrals",
    "some_referrals",
]

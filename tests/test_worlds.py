"""Drawn clips: determinism, sizes, exact masks, movements, sprites and invalid recipes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from refervos.errors import ConfigError
from refervos.typed_config import config_from_mapping
from refervos.worlds import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    TEXTURES,
    Clip,
    Expression,
    Motion,
    Scene,
    Sprites,
    Thing,
    WorldConfig,
    all_sentences,
    draw_clip,
    draw_scene,
    referring_expressions,
)
from refervos.worlds.descriptions import Description
from refervos.worlds.motion import CAMERA_REACH, camera_path, simulate
from refervos.worlds.shapes import signed_distance
from refervos.worlds.sprites import subject_of
from refervos.worlds.wording import with_article


def digest(clip: Clip) -> str:
    return hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes() + clip.centres.tobytes()).hexdigest()


# Determinism and sizes.


def test_a_seed_and_a_config_give_the_same_bytes() -> None:
    config = WorldConfig(height=64, width=80)
    assert digest(draw_clip(5, config)) == digest(draw_clip(5, config))
    assert digest(draw_clip((5, 1), config)) == digest(draw_clip([5, 1], config))
    assert len({digest(draw_clip((5, index), config)) for index in range(1, 9)}) == 8


def test_a_clip_and_a_generator_determine_the_expressions() -> None:
    clip = draw_clip(3, WorldConfig(height=64, width=64))
    once, again, other = (referring_expressions(clip, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.mark.parametrize(("height", "width", "frames"), [(96, 128, 8), (128, 96, 3), (16, 16, 2), (180, 320, 1)])
def test_clips_have_the_requested_size_and_length(height: int, width: int, frames: int) -> None:
    clip = draw_clip(11, WorldConfig(height=height, width=width, frames=frames, objects=(3, 3)))
    assert clip.frames.shape == (frames, height, width, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.masks.shape == (3, frames, height, width)
    assert clip.masks.dtype == np.bool_
    assert clip.centres.shape == (3, frames, 2)
    assert clip.areas.shape == clip.radii.shape == clip.angles.shape == (3, frames)
    expressions = referring_expressions(clip, np.random.default_rng(0))
    assert sum(expression.family == "none" for expression in expressions) >= 2


def test_one_scene_at_two_sizes_is_the_same_scene() -> None:
    small, large = (draw_clip(8, WorldConfig(height=64 * n, width=96 * n, pan=1.0)) for n in (1, 2))
    assert small.scene == large.scene
    np.testing.assert_allclose(small.centres, large.centres)
    np.testing.assert_allclose(4 * small.areas, large.areas, rtol=0.12, atol=60)


def test_an_image_has_no_motion_expressions() -> None:
    for seed in range(20):
        clip = draw_clip(seed, WorldConfig(height=64, width=64, frames=1))
        assert "motion" not in {
            expression.family for expression in referring_expressions(clip, np.random.default_rng(seed))
        }


# Masks.


def test_masks_are_disjoint_and_agree_with_the_counts() -> None:
    for seed in range(20):
        clip = draw_clip(seed, WorldConfig(height=80, width=64, objects=(3, 6), occlude=1.0))
        assert clip.masks.sum(axis=0).max() <= 1
        np.testing.assert_array_equal(clip.masks.sum(axis=(2, 3)), clip.visible)
        assert (clip.covered >= 0).all()


def test_pixels_inside_a_plain_object_have_its_colour() -> None:
    for kind in KINDS:
        for name, colour in COLOURS.items():
            clip = draw_scene(Scene((Thing(kind, name, 0.3, Motion((0.5, 0.5))),), shadows=False), 1, (96, 96))
            pixels = clip.frames[0][clip.masks[0, 0]].astype(float)
            # Lit from above and darker at the rim: the hue is kept, the brightness varies a little.
            direction = np.asarray(colour) / np.linalg.norm(colour)
            cosine = pixels @ direction / np.linalg.norm(pixels, axis=1)
            assert np.quantile(cosine, 0.1) > 0.98, (kind, name)
            np.testing.assert_allclose(np.median(pixels, axis=0), colour, atol=32)


def test_a_mask_holds_the_pixels_whose_centre_is_inside_the_outline() -> None:
    scene = Scene((Thing("circle", "white", 0.35, Motion((0.503, 0.497))),), background_seed=3, shadows=False)
    clip = draw_scene(scene, 1, (128, 128))
    y, x = np.mgrid[:128, :128] + 0.5
    inside = np.hypot(x - 0.503 * 128, y - 0.497 * 128) <= 0.95 * 0.35 * 128
    np.testing.assert_array_equal(clip.masks[0, 0], inside)
    assert clip.areas[0, 0] == pytest.approx(np.pi * (0.95 * 0.35 * 128) ** 2, rel=0.01)


def test_silhouettes_are_distinct_and_inside_their_circle() -> None:
    y, x = (np.mgrid[:81, :81] - 40.0).astype(np.float32)
    shapes = {kind: signed_distance(kind, x, y, 36.0) <= 0 for kind in KINDS}
    for kind, inside in shapes.items():
        assert 0.2 < inside.sum() / (np.pi * 36**2) < 1, kind
        assert not (inside & (np.hypot(x, y) > 37)).any(), kind
        for other, area in shapes.items():
            if other != kind:
                assert (inside & area).sum() / (inside | area).sum() < 0.85, (kind, other)


def test_textures_can_be_seen_at_sixteen_pixels() -> None:
    pixels = {}
    for texture in TEXTURES:
        thing = Thing("square", "blue", 16 / 128, Motion((0.5, 0.5)), texture=texture)
        clip = draw_scene(Scene((thing,), shadows=False), 1, (128, 128))
        pixels[texture] = clip.frames[0].astype(float).mean(axis=2)[clip.masks[0, 0]]
    assert np.std(pixels["plain"]) < 15
    for texture in ("striped", "dotted"):
        dark = (pixels[texture] < 0.7 * np.median(pixels["plain"])).mean()
        assert 0.15 < dark < 0.6, texture


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_dull(background: str) -> None:
    for seed in range(20):
        scene = Scene(
            (Thing("circle", "red", 0.1, Motion((5.0, 5.0))),),
            background,
            seed,
            background_strength=18.0,
            pan=(0.02, 0.01),
        )
        pixels = draw_scene(scene, 3, (48, 64)).frames.astype(int)
        assert np.ptp(pixels, axis=-1).max() < 95  # the least saturated colour, pink, has 104
        assert pixels.max() <= 200
        assert pixels.min() >= 30


def test_the_ground_truth_is_the_union_of_the_targets_masks() -> None:
    clip = draw_clip(1, WorldConfig(height=64, width=64, objects=(3, 3)))
    of = [clip.target_masks(Expression("", targets, "group", Description())) for targets in ((), (1,), (0, 2))]
    assert of[0].shape == (8, 64, 64)
    assert not of[0].any()
    np.testing.assert_array_equal(of[1], clip.masks[1])
    np.testing.assert_array_equal(of[2], clip.masks[0] | clip.masks[2])


# Movements.


def path_of(motion: Motion, frames: int = 12, radius: float = 0.1) -> np.ndarray:
    """Centres of a simulated movement (frames, 2)."""
    return simulate(motion, radius, frames, (1.0, 1.0), np.zeros((frames, 2))).centres


def test_movements_follow_their_parameters() -> None:
    straight = path_of(Motion((0.2, 0.5), (0.05, 0.0)))
    np.testing.assert_allclose(np.diff(straight[:, 0]), 0.05)
    back = path_of(Motion((0.2, 0.5), (0.05, 0.0), pace=((6, -1.0),)))
    np.testing.assert_allclose(back[7:], back[5:0:-1])
    stop = path_of(Motion((0.2, 0.5), (0.05, 0.0), pace=((5, 0.0),)))
    np.testing.assert_allclose(stop[5:], stop[5:6].repeat(7, 0))
    circle = path_of(Motion((0.5, 0.3), (0.05, 0.0), turn=2 * np.pi / 12), frames=13)
    np.testing.assert_allclose(circle[12], circle[0], atol=1e-9)


def test_a_moving_object_stays_in_the_frame_of_a_long_clip() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        velocity = rng.uniform(-0.05, 0.05, 2)
        path = path_of(Motion((0.5, 0.5), (float(velocity[0]), float(velocity[1]))), frames=500)
        assert path.min() > 0.02
        assert path.max() < 0.98


def test_growth_ends_at_twice_the_radius() -> None:
    trajectory = simulate(Motion((0.5, 0.5), growth=1.1), 0.1, 200, (1.0, 1.0), np.zeros((200, 2)))
    assert trajectory.radii.max() == pytest.approx(0.2)


def test_a_still_object_moves_with_the_background_under_a_moving_camera() -> None:
    thing = Thing("square", "red", 0.15, Motion((0.7, 0.7)))
    scene = Scene((thing,), "blobs", 4, 18.0, pan=(4 / 64, 2 / 64), shadows=False)
    clip = draw_scene(scene, 5, (64, 64))
    np.testing.assert_allclose(np.diff(clip.centres[0], axis=0), [[-4 / 64, -2 / 64]] * 4)
    np.testing.assert_array_equal(clip.frames[0, 2:, 4:], clip.frames[1, :-2, :-4])


def test_the_camera_swings_back() -> None:
    path = camera_path((0.05, 0.0), 200)
    assert path[:, 0].max() <= CAMERA_REACH + 1e-9
    assert path[:, 0].min() >= 0
    assert (np.abs(np.diff(path[:, 0])) <= 0.05 + 1e-9).all()


def test_the_probabilities_of_a_recipe_show_in_its_clips() -> None:
    config = WorldConfig(height=32, width=32, frames=12, objects=(2, 4))
    late = [draw_clip(seed, replace(config, still=0.0, late=0.6, occlude=0.0)) for seed in range(30)]
    assert np.mean([(clip.areas[:, 0] == 0).any() for clip in late]) > 0.6
    gone = [
        draw_clip(seed, replace(config, still=0.0, leave_and_return=0.6, late=0.0, leave=0.0, occlude=0.0))
        for seed in range(30)
    ]
    away = [((clip.areas == 0).any(axis=1) & (clip.areas[:, -1] > 0)).any() for clip in gone]
    assert np.mean(away) > 0.6
    hidden = [draw_clip(seed, replace(config, occlude=1.0)) for seed in range(30)]
    assert np.mean([(clip.covered > 0.6 * clip.areas[:, None]).any() for clip in hidden]) > 0.5
    alike = [draw_clip(seed, replace(config, alike=1.0)).scene.objects for seed in range(10)]
    assert all(len({thing.colour for thing in things}) == 1 for things in alike)


# Recipes.


def test_a_config_comes_from_a_mapping() -> None:
    config = config_from_mapping(WorldConfig, {"height": 96, "objects": [3, 4], "twins": 0.5, "backgrounds": ["noise"]})
    assert (config.height, config.objects, config.twins, config.backgrounds) == (96, (3, 4), 0.5, ("noise",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"height": 8}, "height is 8"),
        ({"objects": (0, 2)}, "between 1 and 16"),
        ({"objects": (4, 2)}, "a minimum and a maximum are needed"),
        ({"radius": (0.1, 0.9)}, "at most 0.5"),
        ({"late": 1.5}, "late is 1.5; a probability lies between 0 and 1"),
        ({"still": 0.9, "curve": 0.5}, "add up to .*; they exclude each other"),
        ({"grow": 0.8}, "as many objects shrink"),
        ({"backgrounds": ("lava",)}, "choose from gradient"),
    ],
)
def test_an_invalid_config_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorldConfig(**changes)  # type: ignore[arg-type]


# Words.


def test_phrases_get_the_right_article() -> None:
    phrases = ("red circle", "orange one", "object that is red", "one that is red")
    assert [with_article(phrase) for phrase in phrases] == [
        *("a red circle", "an orange one", "an object that is red", "the one that is red")
    ]


def test_every_word_of_the_expressions_is_in_the_vocabulary() -> None:
    known = {word for sentence in all_sentences() for word in sentence.split()}
    for seed in range(60):
        clip = draw_clip(seed, WorldConfig(height=64, width=64, frames=12))
        for expression in referring_expressions(clip, np.random.default_rng(seed)):
            assert set(expression.text.split()) <= known, expression.text
            assert expression.text == expression.text.lower()


# Sprites.


@pytest.fixture
def sprite_folder(tmp_path: Path) -> Path:
    """A folder with a wide bar, an L and, in a folder of its own, a disc."""
    bar = Image.new("RGBA", (80, 60))
    ImageDraw.Draw(bar).rectangle((10, 20, 69, 39), fill=(200, 30, 30, 255))
    bar.save(tmp_path / "bar.png")
    corner = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(corner).polygon([(0, 0), (20, 0), (20, 44), (63, 44), (63, 63), (0, 63)], fill=(20, 160, 60, 255))
    corner.save(tmp_path / "Iron_angle-02.png")
    disc = Image.new("RGBA", (50, 50))
    ImageDraw.Draw(disc).ellipse((0, 0, 49, 49), fill=(40, 60, 220, 255))
    (tmp_path / "blue coin").mkdir()
    disc.save(tmp_path / "blue coin" / "0001.webp", lossless=True)
    return tmp_path


def test_file_names_give_the_subjects_of_sprites(sprite_folder: Path) -> None:
    assert Sprites.open(sprite_folder).subjects == ("bar", "blue coin", "iron angle")
    assert [subject_of(name) for name in ("cat", "cat_2", "red fox", "Red_Fox-01")] == ["cat", "cat", *["red fox"] * 2]


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2])
def test_a_sprites_mask_is_its_cut_out(sprite_folder: Path, angle: float) -> None:
    bar = Sprites.open(sprite_folder).cutouts[1]
    assert bar.subject == "bar"
    # The cut-out is 60 x 20 pixels, so its radius of 31.6 pixels at 1:1 is half the diagonal.
    radius = 0.5 * np.hypot(60, 20) / 128
    thing = Thing("bar", "", radius, Motion((0.5, 0.5)), texture="", angle=angle, sprite=bar)
    clip = draw_scene(Scene((thing,), shadows=False), 1, (128, 128))
    y, x = np.mgrid[:128, :128] + 0.5 - 64
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    expected = (np.abs(along) < 30) & (np.abs(across) < 10)
    assert (clip.masks[0, 0] ^ expected).sum() <= 40  # the outline is 160 pixels long
    inner = (np.abs(along) < 28) & (np.abs(across) < 8)
    np.testing.assert_allclose(clip.frames[0][inner], [[200, 30, 30]] * int(inner.sum()), atol=1)


def test_a_mirrored_sprite_is_the_mirror_image(sprite_folder: Path) -> None:
    corner = next(sprite for sprite in Sprites.open(sprite_folder).cutouts if sprite.subject == "iron angle")
    plain, mirrored = (
        draw_scene(
            Scene(
                (Thing("l", "", 0.3, Motion((0.5, 0.5)), texture="", angle=turn, sprite=corner, mirrored=swapped),),
                background_strength=0.0,
                shadows=True,
            ),
            1,
            (96, 96),
        )
        for swapped, turn in ((False, 0.3), (True, -0.3))
    )
    assert np.array_equal(mirrored.masks[0, 0], plain.masks[0, 0][:, ::-1])
    assert not np.array_equal(mirrored.masks, plain.masks)


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 3.0])
def test_sprites_are_drawn_at_any_scale(sprite_folder: Path, scale: float) -> None:
    bar = Sprites.open(sprite_folder).cutouts[1]
    radius = scale * 0.5 * np.hypot(60, 20) / 256
    thing = Thing("bar", "", float(radius), Motion((0.5, 0.5)), texture="", sprite=bar)
    clip = draw_scene(Scene((thing,), shadows=False), 1, (256, 256))
    assert clip.areas[0, 0] == pytest.approx(60 * 20 * scale**2, rel=0.15)


def test_sprites_are_named_by_subject_and_by_unambiguous_colour(sprite_folder: Path) -> None:
    stripes = Image.new("RGBA", (60, 60), (210, 30, 30, 255))
    ImageDraw.Draw(stripes).rectangle((0, 0, 59, 29), fill=(40, 60, 220, 255))
    stripes.save(sprite_folder / "flag.png")
    sprites = Sprites.open(sprite_folder)
    named = {sprite.subject: sprite.colour for sprite in sprites.cutouts}
    assert named == {"bar": "red", "blue coin": "blue", "iron angle": "green", "flag": ""}
    config = WorldConfig(height=64, width=64, sprites=str(sprite_folder), sprite_share=0.6)
    assert digest(draw_clip(2, config)) == digest(draw_clip(2, config, sprites))
    families = set()
    for seed in range(60):
        clip = draw_clip(seed, config, sprites)
        flag = any(t.kind == "flag" and v.any() for t, v in zip(clip.scene.objects, clip.visible, strict=True))
        for expression in referring_expressions(clip, np.random.default_rng(seed), sprites.subjects):
            shown = [clip.scene.objects[target] for target in expression.targets]
            if not isinstance(expression.description, Description):
                continue
            noun = expression.description.noun
            if len(shown) == 1 and shown[0].sprite is not None:
                families.add(expression.family)
                assert noun.colour in ("", named[shown[0].kind])
                assert not noun.texture
            # The colour of a two-coloured flag is unclear, so a colour alone identifies nothing beside it.
            assert not flag or noun.kind or expression.description.claim or noun.colour not in ("red", "blue")
    assert families >= {"kind", "colour+kind", "place", "size", "relation", "motion"}


def test_a_sprite_with_the_name_of_a_shape_makes_the_noun_ambiguous(sprite_folder: Path) -> None:
    (sprite_folder / "bar.png").rename(sprite_folder / "ball.png")
    sprite = next(sprite for sprite in Sprites.open(sprite_folder).cutouts if sprite.subject == "ball")
    things = (
        Thing("circle", "red", 0.15, Motion((0.25, 0.5))),
        Thing("ball", "", 0.15, Motion((0.7, 0.5)), texture="", sprite=sprite),
    )
    expressions = [
        expression
        for seed in range(10)
        for expression in referring_expressions(draw_scene(Scene(things), 4, (96, 96)), np.random.default_rng(seed))
    ]
    assert expressions
    assert "kind" not in {expression.family for expression in expressions}


def test_unusable_sprites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Sprites.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no PNG or WebP"):
        Sprites.open(tmp_path)
    cases = {
        "opaque.png": (Image.new("RGB", (8, 8)), "no alpha channel"),
        "nothing.png": (Image.new("RGBA", (8, 8)), "transparent everywhere"),
        "12.png": (Image.new("RGBA", (8, 8), (1, 2, 3, 255)), "its name has no subject"),
    }
    for name, (image, message) in cases.items():
        image.save(tmp_path / name)
        with pytest.raises(ConfigError, match=message):
            Sprites.open(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(ConfigError, match="is not an image in a supported format"):
        Sprites.open(tmp_path)

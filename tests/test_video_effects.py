"""Effects change exactly the area that they are meant for."""

from __future__ import annotations

import numpy as np
import pytest

from refervos.errors import VideoError
from refervos.video.effects import Effect, apply_effects, border

RED = (255, 0, 0)


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:40, :60]
    return (rows - 20) ** 2 + (columns - 30) ** 2 < 100


@pytest.mark.parametrize("kind", ["blur", "pixelate"])
@pytest.mark.parametrize("area", ["object", "background"])
def test_hiding_changes_one_area_and_leaves_the_other(kind: str, area: str) -> None:
    image, mask = frame(), disc()
    out = apply_effects(image, [mask], [RED], [Effect(kind, area)])  # type: ignore[arg-type]
    hidden = mask if area == "object" else ~mask
    assert np.array_equal(out[~hidden], image[~hidden])
    assert (out[hidden] != image[hidden]).any(axis=-1).mean() > 0.9
    assert out[hidden].std() < 0.6 * image[hidden].std()  # noise is averaged away


def test_a_colour_tints_the_object() -> None:
    image, mask = frame(), disc()
    out = apply_effects(image, [mask], [RED], [Effect("colour", strength=1.0)])
    assert (out[mask] == RED).all()
    assert np.array_equal(out[~mask], image[~mask])
    half = apply_effects(image, [mask], [RED], [Effect("colour", strength=0.5)])
    assert np.array_equal(half[mask][:, 1], (image[mask][:, 1].astype(np.float32) * 0.5).round())


def test_an_outline_is_the_border_of_the_object() -> None:
    image, mask = frame(), disc()
    out = apply_effects(image, [mask], [RED], [Effect("outline", strength=0.0)])
    changed = (out != image).any(axis=-1)
    assert not changed[~mask].any()
    assert (out[border(mask, 1)] == RED).all()
    assert not changed[mask & ~border(mask, 1)].any()


def test_the_edge_of_the_frame_is_no_border() -> None:
    assert not border(np.ones((5, 5), bool), 2).any()
    half = np.zeros((6, 6), bool)
    half[:, :3] = True
    assert np.array_equal(border(half, 1), np.tile(np.arange(6) == 2, (6, 1)))


def test_a_spotlight_darkens_and_a_cutout_replaces_the_background() -> None:
    image, mask = frame(), disc()
    dark = apply_effects(image, [mask], [RED], [Effect("spotlight", strength=1.0)])
    assert (dark[~mask] == 0).all()
    assert np.array_equal(dark[mask], image[mask])
    cut = apply_effects(image, [mask], [RED], [Effect("cutout", background=(1, 2, 3))])
    assert (cut[~mask] == (1, 2, 3)).all()


def test_effects_follow_one_another_and_do_not_modify_the_frame() -> None:
    image = frame()
    before = image.copy()
    both = [Effect("spotlight", strength=1.0), Effect("colour", strength=1.0)]
    out = apply_effects(image, [disc()], [RED], both)
    assert (out[disc()] == RED).all()
    assert (out[~disc()] == 0).all()
    assert np.array_equal(image, before)


def test_no_object_is_all_background() -> None:
    image = frame()
    assert (apply_effects(image, [], [], [Effect("cutout")]) == 0).all()
    assert np.array_equal(apply_effects(image, [], [], [Effect("blur", "object")]), image)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kind": "sepia"}, "the effect 'sepia' is unknown"),
        ({"kind": "blur", "area": "sky"}, "the area 'sky' is unknown"),
        ({"kind": "blur", "strength": 2.0}, "must be from 0 to 1"),
        ({"kind": "blur", "strength": float("nan")}, "must be from 0 to 1"),
        ({"kind": "cutout", "background": (0, 0, 300)}, "three numbers from 0 to 255"),
    ],
)
def test_an_effect_out_of_range_is_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(VideoError, match=sentence):
        Effect(**values)


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(VideoError, match="must be"):
        apply_effects(frame(), [np.zeros((2, 2), bool)], [RED], [])
    with pytest.raises(VideoError, match="one colour for each"):
        apply_effects(frame(), [disc()], [], [])

"""Writers of small data sets in the published layouts of the video benchmarks, rendered by ``refervos.worlds``.

Each writer adds one split to a folder and returns the folder. Its content follows from `drawn_videos`, which renders
the same videos again from the same arguments, so a test knows every mask: expression k of video n has the target of
``drawn_videos(...)[n].expressions[k]`` (Ref-DAVIS17 differs, see `write_ref_davis17`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refervos.worlds import Clip, Expression, WorldConfig, draw_clip, sample_expressions
from video_files import write_video


class DrawingOptions(TypedDict, total=False):
    """Number of videos, frames per video, height and width, and random seed."""

    videos: int
    frames: int
    size: tuple[int, int]
    seed: int


@dataclass(frozen=True, eq=False)
class DrawnVideo:
    """A rendered video.

    Attributes:
        id: Name of the video.
        clip: Frames and the mask of each object.
        expressions: Two with one target, one with several targets, one without target.
    """

    id: str
    clip: Clip
    expressions: tuple[Expression, ...]

    def masks(self, expression: int) -> np.ndarray:
        """Return the target masks of an expression, bool (T, H, W)."""
        return self.clip.target_masks(self.expressions[expression])


@lru_cache(maxsize=64)
def drawn_videos(
    split: str, *, videos: int = 2, frames: int = 6, size: tuple[int, int] = (48, 64), seed: int = 0
) -> list[DrawnVideo]:
    """Render the videos of a split; equal arguments give equal videos."""
    drawn = []
    for number in range(videos):
        for attempt in range(1, 200):
            key = (seed + 1, *split.encode(), number + 1, attempt)
            config = WorldConfig(height=size[0], width=size[1], frames=frames, objects=(3, 4), late=0.3)
            clip = draw_clip(key, config)
            found = sample_expressions(
                clip, np.random.default_rng(key), 8, {"colour": 1, "kind": 1, "group": 1, "none": 1}
            )
            single = {expression.targets: expression for expression in found if len(expression.targets) == 1}
            several = [expression for expression in found if len(expression.targets) > 1]
            none = [expression for expression in found if not expression.targets]
            if len(single) > 1 and several and none:
                chosen = (*sorted(single.values(), key=lambda expression: expression.targets)[:2], several[0], none[0])
                drawn.append(DrawnVideo(f"{split}{number:02d}", clip, chosen))
                break
    assert len(drawn) == videos
    return drawn


def write_mevis(folder: Path, split: str = "valid_u", **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of MeViS version 2; ``valid`` and ``test`` have no masks."""
    drawn = drawn_videos(split, **options)
    secret = split in ("valid", "test")
    numbers = _annotation_ids(drawn)
    videos: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for number, one in enumerate(drawn):
        names = write_frames(folder / split / "JPEGImages" / one.id, one.clip)
        expressions: dict[str, dict[str, Any]] = {}
        for index, expression in enumerate(one.expressions):
            expressions[str(index)] = {"exp": expression.text}
            if not secret:
                meant = [numbers[one.id, target] for target in expression.targets]
                expressions[str(index)] |= {"obj_id": list(expression.targets), "anno_id": meant}
        videos[one.id] = {"expressions": expressions, "vid_id": number, "frames": names}
        masks |= {str(numbers[one.id, k]): rle_track(track) for k, track in enumerate(one.clip.masks)}
    write_json(folder / split / "meta_expressions.json", {"videos": videos})
    if not secret:
        write_json(folder / split / "mask_dict.json", masks)
    return folder


def write_ref_youtube_vos(folder: Path, split: str = "train", **options: Unpack[DrawingOptions]) -> Path:
    """Add ``train`` of Ref-YouTube-VOS, or ``valid`` and ``test``: the file of ``valid`` lists the videos of both."""
    train = split == "train"
    listed = {}
    for part in ("train",) if train else ("valid", "test"):
        videos, objects = {}, {}
        for one in drawn_videos(part, **options):
            names = write_frames(folder / part / "JPEGImages" / one.id, one.clip, step=5)
            about = [expression for expression in one.expressions if len(expression.targets) == 1]
            if train:
                write_index_masks(folder / part / "Annotations" / one.id, one.clip, names)
                objects[one.id] = {
                    "objects": {str(k + 1): {"category": "shape", "frames": names} for k in range(len(one.clip.masks))}
                }
            videos[one.id] = {
                "expressions": {
                    str(index): {"exp": expression.text} | ({"obj_id": str(expression.targets[0] + 1)} if train else {})
                    for index, expression in enumerate(about)
                },
                "frames": names,
            }
        listed[part] = videos
        if train:
            write_json(folder / part / "meta.json", {"videos": objects})
    if not train:
        listed["valid"] = {**listed["test"], **listed["valid"]}
    for part, videos in listed.items():
        write_json(folder / "meta_expressions" / part / "meta_expressions.json", {"videos": videos})
    return folder


DAVIS_VIDEOS = {"train": ("classic-car", "dogs-scale", "motorbike", "bear"), "val": ("blackswan", "bmx-trees", "camel")}
DAVIS_MISSPELT = {"classic-car": "clasic-car", "dogs-scale": "dog-scale", "motorbike": "motor-bike"}
DAVIS_ANNOTATORS = ("annot1", "annot1_full_video", "annot2", "annot2_full_video")
DAVIS_VOID = (slice(0, 3), slice(0, 3))


def davis_text(annotator: int, expression: Expression) -> str:
    """Return the expression of an annotator of Ref-DAVIS17; two of the published files are in Latin-1."""
    return expression.text if annotator < 2 else f"voil\u00e0 {expression.text}"


def write_ref_davis17(
    folder: Path, split: str = "val", *, converted: bool = False, **options: Unpack[DrawingOptions]
) -> Path:
    """Add a split of Ref-DAVIS17: the unpacked archives, or ReferFormer's conversion of them.

    Video n is named ``DAVIS_VIDEOS[split][n]``. Its expression 4 k + a is annotator a's about the target of
    ``drawn_videos(...)[n].expressions[k]``, for k 0 and 1; the masks have more objects. The pixels ``DAVIS_VOID`` of
    each mask are void.
    """
    davis, part = folder / "DAVIS", "valid" if split == "val" else split
    images, annotations = davis / "JPEGImages" / "480p", davis / "Annotations_unsupervised" / "480p"
    if converted:
        images, annotations = folder / part / "JPEGImages", folder / part / "Annotations"
    videos: dict[str, Any] = {}
    lines: dict[str, list[str]] = {annotator: [] for annotator in DAVIS_ANNOTATORS}
    for name, one in zip(DAVIS_VIDEOS[split], drawn_videos(split, **options), strict=False):
        names = write_frames(images / name, one.clip)
        write_index_masks(annotations / name, one.clip, names, void=DAVIS_VOID)
        expressions = {}
        for position, expression in enumerate(one.expressions[:2]):
            number = expression.targets[0] + 1
            for index, annotator in enumerate(DAVIS_ANNOTATORS):
                text = davis_text(index, expression)
                lines[annotator].append(f'{DAVIS_MISSPELT.get(name, name)} {number} "{text}"')
                expressions[str(4 * position + index)] = {"exp": text, "obj_id": str(number)}
        videos[name] = {"expressions": expressions, "frames": names}
    if converted:
        write_json(folder / "meta_expressions" / part / "meta_expressions.json", {"videos": videos})
        return folder
    add_text(davis / "ImageSets" / "2017" / f"{split}.txt", videos)
    for index, annotator in enumerate(DAVIS_ANNOTATORS):
        file = folder / "davis_text_annotations" / f"Davis17_{annotator}.txt"
        add_text(file, lines[annotator], "utf-8" if index < 2 else "latin-1")
    return folder


def write_revos(folder: Path, split: str = "valid", **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of ReVOS; the masks of both splits are in the same files. Video names have slashes."""
    drawn = drawn_videos(split, **options)
    masks, foregrounds = (read_json_object(folder / f"mask_dict{name}.json") for name in ("", "_foreground"))
    first = len(masks)
    numbers = {key: first + number for key, number in _annotation_ids(drawn).items()}
    videos = {}
    for one in drawn:
        name = f"UVO/all/{one.id}"
        names = write_frames(folder / "JPEGImages" / name, one.clip)
        expressions = {}
        for index, expression in enumerate(one.expressions):
            meant = [numbers[one.id, target] for target in expression.targets]
            kind = 2 if not meant else index % 2
            expressions[str(index)] = {
                "exp": expression.text,
                "obj_id": list(expression.targets),
                "anno_id": meant,
                "type_id": kind,
            }
        height, width = one.clip.frames.shape[1:3]
        videos[name] = {"expressions": expressions, "frames": names, "height": height, "width": width, "vid_id": 0}
        masks |= {str(numbers[one.id, k]): rle_track(track) for k, track in enumerate(one.clip.masks)}
        foreground = list(np.any(one.clip.masks, axis=0))
        foregrounds[name] = {
            "masks_rle": [compressed_rle(mask) for mask in foreground],
            "foreground_ratio": [float(mask.mean()) for mask in foreground],
        }
    write_json(folder / f"meta_expressions_{split}_.json", {"videos": videos})
    write_json(folder / "mask_dict.json", masks)
    write_json(folder / "mask_dict_foreground.json", foregrounds)
    return folder


def write_long_rvos(folder: Path, split: str = "valid", **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of Long-RVOS; ``test`` has no masks. A frame without the object has no mask file."""
    root = folder / split
    videos = {}
    for one in drawn_videos(split, **options):
        names = write_frames(root / "JPEGImages" / one.id, one.clip)
        expressions: dict[str, Any] = {}
        for index, expression in enumerate(one.expressions[:2]):
            (target,) = expression.targets
            for kind in ("static", "dynamic", "static+dynamic"):
                record = {"exp": f"{expression.text}, {kind}", "obj_id": target + 1, "type": kind}
                expressions[str(len(expressions))] = record
            if split == "test":
                continue
            for name, mask in zip(names, one.masks(index), strict=True):
                if mask.any():
                    write_image(root / "Annotations" / one.id / str(target + 1) / f"{name}.png", mask * np.uint8(255))
        videos[one.id] = {"expressions": expressions, "frames": names}
    write_json(root / "meta_expressions.json", {"videos": videos})
    return folder


A2D_ANNOTATED = (1, 3)
"""Indices of the frames annotated by `write_a2d_sentences`."""


def write_a2d_sentences(
    folder: Path, split: str = "test", *, images: bool = False, **options: Unpack[DrawingOptions]
) -> Path:
    """Add a split of A2D-Sentences, with MP4 clips or, if ``images``, with their frames.

    The expression about instance ``drawn_videos(...)[n].expressions[k].targets[0] + 1`` is expression k, for k 0 and 1.
    The HDF5 files list the visible instances; the mask of a single one has two dimensions.
    """
    import h5py

    release, texts = folder / "Release", folder / "text_annotations"
    rows, lines = [], []
    for one in drawn_videos(split, **options):
        count, height, width = one.clip.frames.shape[:3]
        rows.append(f"{one.id},12,0:01,0:03,{height},{width},{count},{len(A2D_ANNOTATED)},{int(split == 'test')}")
        if images:
            write_frames(release / "pngs320H" / one.id, one.clip, "{:05d}.png", first=1)
        else:
            clip = release / "clips320H" / f"{one.id}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            write_video(clip, count, width=width, height=height, images=list(one.clip.frames))
        for expression in one.expressions[:2]:
            lines.append(f'{one.id},{expression.targets[0] + 1},"{expression.text}, moving"')
        for index in (index for index in A2D_ANNOTATED if index < count):
            visible = [k for k in range(len(one.clip.masks)) if one.clip.masks[k, index].any()]
            masks = one.clip.masks[visible, index].transpose(0, 2, 1).astype(np.uint8)
            path = texts / "a2d_annotation_with_instances" / one.id / f"{index + 1:05d}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["instance"] = np.array([k + 1 for k in visible], np.float64)
                file["reMask"] = masks if len(masks) > 1 else masks[0]
    add_text(release / "videoset.csv", rows)
    if not (texts / "a2d_annotation.txt").exists():
        add_text(texts / "a2d_annotation.txt", ["video_id,instance_id,query"])
        add_text(texts / "a2d_missed_videos.txt", ["unasked"])
        add_text(release / "videoset.csv", ["unasked,12,0:01,0:03,48,64,6,0,0"])
    add_text(texts / "a2d_annotation.txt", lines)
    return folder


JHMDB_SCORED = (0, 2, 3)
"""Indices of the frames that `write_jhmdb_sentences` lists as scored."""


def write_jhmdb_sentences(folder: Path, *, scored: bool = True, **options: Unpack[DrawingOptions]) -> Path:
    """Write JHMDB-Sentences, optionally with the list of scored frames; the last frame of each video has no mask.

    The expression of video n is ``drawn_videos("jhmdb", ...)[n].expressions[0]``.
    """
    import scipy.io

    lines, metadata = ["video_id,query"], []
    for one in drawn_videos("jhmdb", **options):
        names = write_frames(folder / "Rename_Images" / "wave" / one.id, one.clip, "{:05d}.png", first=1)
        masks = folder / "puppet_mask" / "wave" / one.id / "puppet_mask.mat"
        masks.parent.mkdir(parents=True)
        scipy.io.savemat(masks, {"part_mask": one.masks(0)[:-1].transpose(1, 2, 0).astype(np.uint8)})
        lines.append(f"{one.id},{one.expressions[0].text}")
        for index in JHMDB_SCORED:
            image = f"./jhmdb_sentences/Rename_Images/wave/{one.id}/{names[index]}.png"
            mat = f"./jhmdb_sentences/puppet_mask/wave/{one.id}/puppet_mask.mat"
            metadata.append([one.id, image, mat, len(names) - 1, one.expressions[0].text])
    add_text(folder / "jhmdb_annotation.txt", lines)
    if scored:
        write_json(folder / "jhmdb_sentences_samples_metadata.json", metadata)
    return folder


WRITERS: dict[str, Callable[..., Path]] = {
    "mevis": write_mevis,
    "ref-youtube-vos": write_ref_youtube_vos,
    "ref-davis17": write_ref_davis17,
    "revos": write_revos,
    "long-rvos": write_long_rvos,
    "a2d-sentences": write_a2d_sentences,
    "jhmdb-sentences": write_jhmdb_sentences,
}
"""Writers by benchmark name; each writes an annotated split by default."""


def _annotation_ids(drawn: Sequence[DrawnVideo]) -> dict[tuple[str, int], int]:
    """Number all objects of all videos, by video and object."""
    keys = [(one.id, k) for one in drawn for k in range(len(one.clip.masks))]
    return {key: number for number, key in enumerate(keys)}


def compressed_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as compressed COCO run lengths."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def rle_track(masks: Iterable[np.ndarray]) -> list[dict[str, Any] | None]:
    """Encode the masks of an object like MeViS, with null for frames without the object."""
    return [compressed_rle(mask) if mask.any() else None for mask in masks]


def write_frames(folder: Path, clip: Clip, name: str = "{:05d}.jpg", *, first: int = 0, step: int = 1) -> list[str]:
    """Write the frames of a clip and return their names without suffix.

    Args:
        folder: The folder, created if missing.
        clip: The clip.
        name: Format of the file names.
        first: Number of the first frame.
        step: Difference between frame numbers.
    """
    names = [name.format(first + step * index) for index in range(len(clip.frames))]
    for file, frame in zip(names, clip.frames, strict=True):
        write_image(folder / file, frame)
    return [Path(file).stem for file in names]


def write_index_masks(
    folder: Path, clip: Clip, names: Iterable[str], void: tuple[slice, slice] | None = None, *, step: int = 1
) -> None:
    """Write a palette image for each ``step``-th frame: object k has the value k + 1, void pixels 255."""
    for index, name in zip(range(0, len(clip.frames), step), names, strict=False):
        numbers = np.zeros(clip.frames.shape[1:3], np.uint8)
        for k, masks in enumerate(clip.masks):
            numbers[masks[index]] = k + 1
        if void is not None:
            numbers[void] = 255
        write_image(folder / f"{name}.png", numbers, palette=[value for k in range(256) for value in (k, 255 - k, 99)])


def write_image(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> None:
    """Write an image file, optionally with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path, quality=95)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty when the file is missing."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    """Edit the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def add_text(path: Path, lines: Iterable[str] | Mapping[str, Any], encoding: str = "utf-8") -> None:
    """Add lines to a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding=encoding) as file:
        file.writelines(f"{line}\n" for line in lines)

"""Writers of small data sets in the layouts of the image benchmarks and of your own data, rendered by worlds."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from layouts import compressed_rle, write_frames, write_index_masks
from refervos.worlds import (
    Clip,
    Expression,
    Motion,
    Scene,
    Thing,
    WorldConfig,
    draw_clip,
    draw_scene,
    referring_expressions,
)
from video_files import write_video

SIZE = HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True)
class Written:
    """An expression that was written, with its target masks."""

    video: str
    id: str
    text: str
    split: str
    masks: np.ndarray | None  # bool (T, H, W)


# Images: RefCOCO and its kin.


@dataclass(frozen=True)
class ReferringImages:
    """Content of all layouts of RefCOCO, in the form of ``refs(unc).p`` and ``instances.json``."""

    refs: list[dict[str, Any]]
    instances: dict[str, Any]
    clips: dict[str, Clip]  # by file name
    written: list[Written]


def referring_images(splits: Sequence[str], general: bool = False) -> ReferringImages:
    """Render an image for each split given, with up to three expressions about each object.

    Args:
        splits: Split of each image.
        general: Like gRefCOCO: also expressions about several objects and about none.
    """
    drawn = ReferringImages([], {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": []}, {}, [])
    drawn.instances["categories"].append({"supercategory": "shape", "id": 1, "name": "shape"})
    sent_id = 100
    for number, split in enumerate(splits):
        image_id = 318219 + 7 * number
        name = f"COCO_train2014_{image_id:012d}.jpg"
        clip, by_targets = _image(number)
        drawn.clips[name] = clip
        drawn.instances["images"].append(
            {"license": 3, "file_name": name, "coco_url": "", "height": HEIGHT, "width": WIDTH, "id": image_id}
        )
        for index, mask in enumerate(clip.masks[:, 0]):
            drawn.instances["annotations"].append(
                {
                    "segmentation": uncompressed_rle(mask) if index == 0 else row_polygons(mask),
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "image_id": image_id,
                    "bbox": [0.0, 0.0, 1.0, 1.0],
                    "category_id": 1,
                    "id": image_id * 10 + index,
                }
            )
        for targets, expressions in by_targets.items():
            if len(targets) != 1 and not general:
                continue
            ann_ids = [image_id * 10 + index for index in targets]
            ref: dict[str, Any] = {
                "ref_id": len(drawn.refs) + 1,
                "image_id": image_id,
                "ann_id": (ann_ids or [-1]) if general else ann_ids[0],
                "category_id": [1] * len(targets) or [-1] if general else 1,
                "file_name": name.replace(".jpg", f"_{len(drawn.refs)}.jpg"),  # as published, without such a file
                "split": split,
                "sentences": [],
                "sent_ids": [],
            }
            if general:
                ref["no_target"] = not targets
            for expression in expressions:
                ref["sentences"].append(
                    {
                        "tokens": expression.text.split(),
                        "raw": expression.text.capitalize() + ".",
                        "sent_id": sent_id,
                        "sent": expression.text,
                    }
                )
                ref["sent_ids"].append(sent_id)
                drawn.written.append(
                    Written(str(image_id), str(sent_id), expression.text, split, clip.target_masks(expression))
                )
                sent_id += 1
            drawn.refs.append(ref)
    return drawn


@cache
def _image(number: int) -> tuple[Clip, dict[tuple[int, ...], list[Expression]]]:
    """Render an image, with up to three expressions for each set of target objects."""
    clip = draw_clip((41, number), WorldConfig(height=HEIGHT, width=WIDTH, frames=1, objects=(3, 4), same_kind=1.0))
    by_targets: dict[tuple[int, ...], list[Expression]] = {}
    for expression in referring_expressions(clip, np.random.default_rng(number)):
        by_targets.setdefault(expression.targets, []).append(expression)
    return clip, {targets: found[:3] for targets, found in by_targets.items()}


def write_refcoco(
    root: Path,
    name: str = "refcoco",
    splits: Sequence[str] = ("train", "train", "val", "testA", "testB"),
    partition: str = "unc",
    images: str = "images/mscoco/images/train2014",
) -> list[Written]:
    """Write the layout of lichengunc/refer: pickles of Python 2, polygons, images of COCO train2014."""
    drawn = referring_images(splits)
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    (home / f"refs({partition}).p").write_bytes(python2_pickle(drawn.refs))
    (home / "instances.json").write_text(json.dumps(drawn.instances))
    _write_images(root / images, drawn)
    return drawn.written


def write_converted_refcoco(
    root: Path, name: str = "refcoco", splits: Sequence[str] = ("train", "train", "val")
) -> list[Written]:
    """Write the layout of ReferFormer's conversion: an image entry and an annotation for each expression."""
    drawn = referring_images(splits)
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    images = {image["id"]: image for image in drawn.instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in drawn.instances["annotations"]}
    masks = {one.id: one.masks for one in drawn.written}
    written = []
    for split in dict.fromkeys(splits):
        content: dict[str, Any] = {**drawn.instances, "images": [], "annotations": []}
        for ref in drawn.refs:
            for sentence in ref["sentences"] if ref["split"] == split else ():
                id = len(content["images"]) + 1
                image, annotation = images[ref["image_id"]], annotations[ref["ann_id"]]
                content["images"].append(
                    {
                        "file_name": image["file_name"],
                        "height": image["height"],
                        "width": image["width"],
                        "original_id": image["id"],
                        "id": id,
                        "caption": sentence["sent"],
                        "dataset_name": name,
                    }
                )
                content["annotations"].append({**annotation, "image_id": id, "id": id, "original_id": annotation["id"]})
                mask = masks[str(sentence["sent_id"])]
                written.append(Written(str(image["id"]), str(id), sentence["sent"], split, mask))
        (home / f"instances_{name}_{split}.json").write_text(json.dumps(content))
    _write_images(root / "train2014", drawn)
    return written


def write_grefcoco(root: Path, splits: Sequence[str] = ("train", "val", "testA", "testB")) -> list[Written]:
    """Write the layout of gRefCOCO: lists of annotations, which are [-1] without a target."""
    drawn = referring_images(splits, general=True)
    home = root / "grefcoco"
    home.mkdir(parents=True, exist_ok=True)
    (home / "grefs(unc).json").write_text(json.dumps(drawn.refs))
    (home / "instances.json").write_text(json.dumps(drawn.instances))
    _write_images(root / "images" / "train2014", drawn)
    return drawn.written


def _write_images(folder: Path, drawn: ReferringImages) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in drawn.clips.items():
        Image.fromarray(clip.frames[0]).save(folder / name)


_PurePickler: Any = pickle._Pickler  # not typed in typeshed


class _Python2Pickler(_PurePickler):
    """Pickler that writes text like ``str`` of Python 2: bytes without an encoding."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, str) and id(obj) not in self.memo:
            data = obj.encode("latin1")
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
            self.memoize(obj)
        else:
            super().save(obj, save_persistent_id)


def python2_pickle(content: Any) -> bytes:
    """Pickle like Python 2, with protocol 2."""
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


# Masks in the forms of the field.


def row_polygons(mask: np.ndarray) -> list[list[float]]:
    """Convert a mask to polygons that enclose exactly its pixels: a rectangle for each run of a row."""
    polygons = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]]))).tolist()
        for left, right in zip(edges[::2], edges[1::2], strict=True):
            polygons.append([float(v) for v in (left, y, right, y, right, y + 1, left, y + 1)])
    return polygons


def uncompressed_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as uncompressed COCO run lengths: down the columns, starting with a run of zeros."""
    return {"size": list(mask.shape), "counts": _runs(mask.T.ravel())}


def _runs(pixels: np.ndarray) -> list[int]:
    changes = np.flatnonzero(np.diff(pixels.astype(np.int8))) + 1
    bounds = [0, *changes.tolist(), len(pixels)]
    runs = [end - start for start, end in pairwise(bounds)]
    return [0, *runs] if pixels[0] else runs


def outline(mask: np.ndarray) -> list[tuple[float, float]]:
    """Convert a mask with one run per row to the polygon that encloses exactly its pixels."""
    left, right = [], []
    for y in np.flatnonzero(mask.any(axis=1)).tolist():
        xs = np.flatnonzero(mask[y])
        assert len(xs) == xs[-1] - xs[0] + 1
        left += [(float(xs[0]), float(y)), (float(xs[0]), y + 1.0)]
        right += [(xs[-1] + 1.0, float(y)), (xs[-1] + 1.0, y + 1.0)]
    return left + right[::-1]


# Your own data.


@cache
def own_clip(frames: int = 5) -> Clip:
    """Render a red circle that moves right, and a blue square that leaves after the third frame."""
    things = (
        Thing("circle", "red", 0.2, Motion((0.3, 0.3), (0.06, 0.0), walls=False)),
        Thing("square", "blue", 0.15, Motion((1.0, 0.75), (0.18, 0.0), walls=False)),
    )
    return draw_scene(Scene(things, shadows=False), frames, SIZE)


def write_json_lines(root: Path) -> list[Written]:
    """Write lines in every form, about a folder of frames, a video file and an image."""
    clip = own_clip()
    frames = len(clip.frames)
    write_frames(root / "clips" / "shapes", clip)
    write_index_masks(root / "masks" / "shapes", clip, ("00000", "00002", "00004"), step=2)
    write_video(root / "street.mp4", frames, width=WIDTH, height=HEIGHT, images=list(clip.frames))
    Image.fromarray(clip.frames[0]).save(root / "photo.png")
    Image.fromarray(clip.masks[1, 0]).save(root / "photo-mask.png")
    circle, square = clip.masks
    none = np.zeros((frames, *SIZE), bool)
    folder, video = {"video": "clips/shapes"}, {"video": "street.mp4"}
    every_second = {"masks": "masks/shapes"}
    lines: list[tuple[dict[str, Any], np.ndarray | None]] = [
        ({**folder, "expression": "the circle", **every_second, "value": 1, "split": "train"}, circle[::2]),
        (
            {**folder, "expression": "everything", **every_second, "value": [2, 1], "split": "val"},
            (circle | square)[::2],
        ),
        ({**folder, "expression": "both", **every_second, "value": [1, 2]}, (circle | square)[::2]),
        ({**folder, "expression": "a triangle", "no_target": True, "kind": "absent"}, none),
        ({**folder, "expression": "whatever comes next"}, None),
        (
            {
                **video,
                "expression": "the blue square",
                "masks": [compressed_rle(mask) if mask.any() else None for mask in square],
                "expression_id": "blue",
            },
            square,
        ),
        (
            {**video, "expression": "red", "masks": {"3": uncompressed_rle(circle[3]), "0": None}},
            circle[[0, 3]] & [[[0]], [[1]]],
        ),
        ({"video": "photo.png", "expression": "the square", "masks": "photo-mask.png"}, square[:1]),
        ({"video": "photo.png", "expression": "it", "masks": ["photo-mask.png"]}, square[:1]),
    ]
    (root / "expressions.jsonl").write_text("".join(json.dumps(record) + "\n" for record, _ in lines))
    written = []
    numbers: dict[str, int] = {}
    for record, masks in lines:
        name = Path(record["video"]).stem
        number = numbers[name] = numbers.get(name, -1) + 1
        id = record.get("expression_id", str(number))
        written.append(Written(name, id, record["expression"], record.get("split", ""), masks))
    return written


def write_coco_video(root: Path, source: str = "listed") -> list[Written]:
    """Write the layout of YouTube-VIS.

    Args:
        root: Output folder.
        source: Source of the expressions: ``listed`` in the export, in the ``annotations`` or their ``attributes``, or
            the name of the ``category``.
    """
    clip = own_clip()
    write_frames(root / "train" / "JPEGImages" / "ab12", clip)
    circle, square = clip.masks
    names = [f"ab12/{index:05d}.jpg" for index in range(len(clip.frames))]
    annotations: list[dict[str, Any]] = [
        {"id": 1, "category_id": 3, "segmentations": [compressed_rle(mask) for mask in circle]},
        {"id": 2, "category_id": 4, "segmentations": [row_polygons(mask) if mask.any() else None for mask in square]},
    ]
    for annotation in annotations:
        annotation.update(video_id=7, iscrowd=0, areas=[], bboxes=[], width=WIDTH, height=HEIGHT)
    content: dict[str, Any] = {
        "info": {},
        "licenses": [],
        "videos": [{"id": 7, "width": WIDTH, "height": HEIGHT, "length": len(names), "file_names": names}],
        "categories": [{"id": 3, "name": "circle"}, {"id": 4, "name": "square"}],
        "annotations": annotations,
    }
    both, none = circle | square, np.zeros_like(circle)
    if source == "listed":
        texts = [("a", "both shapes", [1, 2], both), ("b", "a star", [], none), ("c", "the circle", [1], circle)]
        content["expressions"] = [
            {"id": id, "video_id": 7, "expression": text, "annotation_ids": ids} for id, text, ids, _ in texts
        ]
        written = [Written("7", id, text, "train", masks) for id, text, _, masks in texts]
    elif source == "annotations":
        annotations[0]["expressions"] = ["the round one", "a shape"]
        annotations[1]["attributes"] = {"expression": "a shape"}
        written = [
            Written("7", "0", "the round one", "train", circle),
            Written("7", "1", "a shape", "train", both),
        ]
    else:
        written = [
            Written("7", "0", "circle", "train", circle),
            Written("7", "1", "square", "train", square),
        ]
    (root / "train" / "instances.json").write_text(json.dumps(content))
    return written


def write_cvat(root: Path, *, brush: bool = False, expressions: bool = True, video: bool = False) -> list[Written]:
    """Write a "CVAT for video 1.1" export.

    Args:
        root: Output folder.
        brush: Write a brush mask in the first and the third frame, each in its own track, instead of polygon tracks.
        expressions: Give tracks the attribute ``expression``.
        video: Write a video file, of which the task uses every second frame from the second on, instead of images.
    """
    clip = own_clip(4)
    shown = len(clip.frames)
    root.mkdir(parents=True, exist_ok=True)
    start, step = (1, 2) if video else (0, 1)
    numbers = [start + step * index for index in range(shown)]
    if video:
        images = [clip.frames[max(0, number - start) // step] for number in range(numbers[-1] + 2)]
        write_video(root / "filmed.mp4", len(images), width=WIDTH, height=HEIGHT, images=images)
    else:
        write_frames(root / "images", clip, "frame_{:06d}.png")
    texts = ["the circle that moves", "the square"] if expressions else ["", ""]
    labels = ["circle", "square"]
    drawn = [0, 2] if brush else list(range(shown))
    tracks = []
    for obj, masks in enumerate(clip.masks):
        visible = [index for index in drawn if masks[index].any()]
        shapes = [_shape(masks[index], brush, numbers[index], False, texts[obj]) for index in visible]
        ends = [_shape(masks[index], brush, numbers[index] + step, True, texts[obj]) for index in visible]
        if brush:
            tracks += [(labels[obj], shape + end) for shape, end in zip(shapes, ends, strict=True)]
        else:
            gone = ends[-1] if visible[-1] + 1 < shown else ""
            tracks.append((labels[obj], "".join(shapes) + gone))
    body = "".join(
        f'<track id="{id}" label="{label}" source="manual">{shapes}</track>'
        for id, (label, shapes) in enumerate(tracks)
    )
    size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>" if video else ""
    filter = f"<frame_filter>step={step}</frame_filter>" if video else "<frame_filter></frame_filter>"
    (root / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><id>5</id>'
        f"<name>shapes</name><size>{shown}</size><mode>interpolation</mode><start_frame>{start}</start_frame>"
        f"<stop_frame>{numbers[-1]}</stop_frame>{filter}{size}</task></meta>{body}</annotations>\n"
    )
    return [
        Written(root.name, str(obj), texts[obj] or labels[obj], "all", masks[drawn])
        for obj, masks in enumerate(clip.masks)
    ]


def _shape(mask: np.ndarray, brush: bool, frame: int, outside: bool, text: str) -> str:
    common = f'frame="{frame}" keyframe="1" outside="{int(outside)}" occluded="0"'
    if brush:
        ys, xs = np.nonzero(mask)
        box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        rle = ", ".join(map(str, _runs(box.ravel())))
        place = f'left="{xs.min()}" top="{ys.min()}" width="{box.shape[1]}" height="{box.shape[0]}"'
        tag, form = "mask", f'rle="{rle}" {place}'
    else:
        tag, form = "polygon", f'points="{";".join(f"{x:.2f},{y:.2f}" for x, y in outline(mask))}"'
    attribute = f"<attribute name={quoteattr('expression')}>{text}</attribute>"
    return f'<{tag} {common} {form} z_order="0">{attribute}</{tag}>'

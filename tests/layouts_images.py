"""Small data sets of exactly the published layouts of the image benchmarks and of your own data, drawn by worlds."""

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

from layouts import run_lengths as compressed
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
class Asked:
    """An expression that was written, and what it means."""

    video: str
    id: str
    text: str
    split: str
    masks: np.ndarray | None  # bool (T, H, W)


# Images: RefCOCO and its kin.


@dataclass(frozen=True)
class Referring:
    """What all layouts of RefCOCO are written from, as ``refs(unc).p`` and ``instances.json`` hold it."""

    refs: list[dict[str, Any]]
    instances: dict[str, Any]
    clips: dict[str, Clip]  # by file name
    asked: list[Asked]


def referring_images(splits: Sequence[str], general: bool = False) -> Referring:
    """Draw an image for each split named, with up to three sentences about each object.

    Args:
        splits: The split of each image.
        general: As gRefCOCO: sentences about several objects and about none too.
    """
    drawn = Referring([], {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": []}, {}, [])
    drawn.instances["categories"].append({"supercategory": "shape", "id": 1, "name": "shape"})
    sent_id = 100
    for number, split in enumerate(splits):
        image_id = 318219 + 7 * number
        name = f"COCO_train2014_{image_id:012d}.jpg"
        clip, sentences_by_targets = _image(number)
        drawn.clips[name] = clip
        drawn.instances["images"].append(
            {"license": 3, "file_name": name, "coco_url": "", "height": HEIGHT, "width": WIDTH, "id": image_id}
        )
        for index, mask in enumerate(clip.masks[:, 0]):
            drawn.instances["annotations"].append(
                {
                    "segmentation": run_lengths(mask) if index == 0 else run_polygons(mask),
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "image_id": image_id,
                    "bbox": [0.0, 0.0, 1.0, 1.0],
                    "category_id": 1,
                    "id": image_id * 10 + index,
                }
            )
        for targets, sentences in sentences_by_targets.items():
            if len(targets) != 1 and not general:
                continue
            ann_ids = [image_id * 10 + index for index in targets]
            ref: dict[str, Any] = {
                "ref_id": len(drawn.refs) + 1,
                "image_id": image_id,
                "ann_id": (ann_ids or [-1]) if general else ann_ids[0],
                "category_id": [1] * len(targets) or [-1] if general else 1,
                "file_name": name.replace(".jpg", f"_{len(drawn.refs)}.jpg"),  # published so; no such file
                "split": split,
                "sentences": [],
                "sent_ids": [],
            }
            if general:
                ref["no_target"] = not targets
            for expression in sentences:
                ref["sentences"].append(
                    {
                        "tokens": expression.text.split(),
                        "raw": expression.text.capitalize() + ".",
                        "sent_id": sent_id,
                        "sent": expression.text,
                    }
                )
                ref["sent_ids"].append(sent_id)
                drawn.asked.append(
                    Asked(str(image_id), str(sent_id), expression.text, split, clip.target_masks(expression))
                )
                sent_id += 1
            drawn.refs.append(ref)
    return drawn


@cache
def _image(number: int) -> tuple[Clip, dict[tuple[int, ...], list[Expression]]]:
    """Draw an image, and tell up to three sentences for each set of objects that sentences mean."""
    clip = draw_clip((41, number), WorldConfig(height=HEIGHT, width=WIDTH, frames=1, objects=(3, 4), same_kind=1.0))
    together: dict[tuple[int, ...], list[Expression]] = {}
    for expression in referring_expressions(clip, np.random.default_rng(number)):
        together.setdefault(expression.targets, []).append(expression)
    return clip, {targets: sentences[:3] for targets, sentences in together.items()}


def write_refcoco(
    root: Path,
    name: str = "refcoco",
    splits: Sequence[str] = ("train", "train", "val", "testA", "testB"),
    partition: str = "unc",
    images: str = "images/mscoco/images/train2014",
) -> list[Asked]:
    """Write the layout of lichengunc/refer: pickles of Python 2, polygons, images of COCO train2014."""
    drawn = referring_images(splits)
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    (home / f"refs({partition}).p").write_bytes(python2_pickle(drawn.refs))
    (home / "instances.json").write_text(json.dumps(drawn.instances))
    _write_images(root / images, drawn)
    return drawn.asked


def write_converted_refcoco(
    root: Path, name: str = "refcoco", splits: Sequence[str] = ("train", "train", "val")
) -> list[Asked]:
    """Write the layout into which ReferFormer converts it: an image entry and an annotation for each sentence."""
    drawn = referring_images(splits)
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    images = {image["id"]: image for image in drawn.instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in drawn.instances["annotations"]}
    masks = {asked.id: asked.masks for asked in drawn.asked}
    asked = []
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
                asked.append(Asked(str(image["id"]), str(id), sentence["sent"], split, mask))
        (home / f"instances_{name}_{split}.json").write_text(json.dumps(content))
    _write_images(root / "train2014", drawn)
    return asked


def write_grefcoco(root: Path, splits: Sequence[str] = ("train", "val", "testA", "testB")) -> list[Asked]:
    """Write the layout of gRefCOCO: lists of annotations, which are [-1] where nothing is meant."""
    drawn = referring_images(splits, general=True)
    home = root / "grefcoco"
    home.mkdir(parents=True, exist_ok=True)
    (home / "grefs(unc).json").write_text(json.dumps(drawn.refs))
    (home / "instances.json").write_text(json.dumps(drawn.instances))
    _write_images(root / "images" / "train2014", drawn)
    return drawn.asked


def _write_images(folder: Path, drawn: Referring) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in drawn.clips.items():
        Image.fromarray(clip.frames[0]).save(folder / name)


_PurePickler: Any = pickle._Pickler  # typeshed does not know what it is made of


class _Python2Pickler(_PurePickler):
    """Writes text as Python 2 wrote ``str``: bytes without an encoding."""

    def save(self, thing: Any, save_persistent_id: bool = True) -> None:
        if isinstance(thing, str) and id(thing) not in self.memo:
            data = thing.encode("latin1")
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
            self.memoize(thing)
        else:
            super().save(thing, save_persistent_id)


def python2_pickle(content: Any) -> bytes:
    """Pickle as Python 2 did, protocol 2."""
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


# Masks in the forms of the field.


def run_polygons(mask: np.ndarray) -> list[list[float]]:
    """A mask as polygons that enclose exactly its pixels: a rectangle for each run of a row."""
    polygons = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]]))).tolist()
        for left, right in zip(edges[::2], edges[1::2], strict=True):
            polygons.append([float(v) for v in (left, y, right, y, right, y + 1, left, y + 1)])
    return polygons


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's run lengths, not compressed: down the columns, beginning with those that are off."""
    return {"size": list(mask.shape), "counts": _runs(mask.T.ravel())}


def _runs(pixels: np.ndarray) -> list[int]:
    changes = np.flatnonzero(np.diff(pixels.astype(np.int8))) + 1
    bounds = [0, *changes.tolist(), len(pixels)]
    runs = [end - start for start, end in pairwise(bounds)]
    return [0, *runs] if pixels[0] else runs


def outline(mask: np.ndarray) -> list[tuple[float, float]]:
    """A mask whose rows are one run each as the polygon around it, which encloses exactly its pixels."""
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
    """A red circle that moves right, and a blue square that leaves the frame after the third frame."""
    things = (
        Thing("circle", "red", 0.2, Motion((0.3, 0.3), (0.06, 0.0), walls=False)),
        Thing("square", "blue", 0.15, Motion((1.0, 0.75), (0.18, 0.0), walls=False)),
    )
    return draw_scene(Scene(things, shadows=False), frames, SIZE)


def write_frames(folder: Path, clip: Clip, pattern: str = "{:05d}.jpg") -> None:
    """Write a clip as image files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(folder / pattern.format(index))


def write_palette_masks(folder: Path, clip: Clip, frames: Sequence[int]) -> None:
    """Write a palette PNG for each frame named: 1 is the first object, 2 the second."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in frames:
        values = (clip.masks[:, index] * np.arange(1, len(clip.masks) + 1)[:, None, None]).max(axis=0)
        image = Image.fromarray(values.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        image.save(folder / f"{index:05d}.png")


def write_json_lines(root: Path) -> list[Asked]:
    """Write every form that a line can have: a folder of frames, a video file and an image."""
    clip = own_clip()
    frames = len(clip.frames)
    write_frames(root / "clips" / "shapes", clip)
    write_palette_masks(root / "masks" / "shapes", clip, (0, 2, 4))
    write_video(root / "street.mp4", frames, width=WIDTH, height=HEIGHT, images=list(clip.frames))
    Image.fromarray(clip.frames[0]).save(root / "photo.png")
    Image.fromarray(clip.masks[1, 0]).save(root / "photo-mask.png")
    circle, square = clip.masks
    none = np.zeros((frames, *SIZE), bool)
    folder, video = {"video": "clips/shapes"}, {"video": "street.mp4"}
    every_second = {"masks": "masks/shapes"}
    told: list[tuple[dict[str, Any], np.ndarray | None]] = [
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
                "masks": [compressed(mask) if mask.any() else None for mask in square],
                "expression_id": "blue",
            },
            square,
        ),
        (
            {**video, "expression": "red", "masks": {"3": run_lengths(circle[3]), "0": None}},
            circle[[0, 3]] & [[[0]], [[1]]],
        ),
        ({"video": "photo.png", "expression": "the square", "masks": "photo-mask.png"}, square[:1]),
        ({"video": "photo.png", "expression": "it", "masks": ["photo-mask.png"]}, square[:1]),
    ]
    (root / "expressions.jsonl").write_text("".join(json.dumps(record) + "\n" for record, _ in told))
    asked = []
    numbers: dict[str, int] = {}
    for record, masks in told:
        name = Path(record["video"]).stem
        number = numbers[name] = numbers.get(name, -1) + 1
        id = record.get("expression_id", str(number))
        asked.append(Asked(name, id, record["expression"], record.get("split", ""), masks))
    return asked


def write_coco_video(root: Path, sentences: str = "listed") -> list[Asked]:
    """Write the layout of YouTube-VIS.

    Args:
        root: Where to.
        sentences: Where they are: ``listed`` in the export, ``told`` by annotations or their ``attributes``, or only
            the ``category`` is known.
    """
    clip = own_clip()
    write_frames(root / "train" / "JPEGImages" / "ab12", clip)
    circle, square = clip.masks
    names = [f"ab12/{index:05d}.jpg" for index in range(len(clip.frames))]
    annotations: list[dict[str, Any]] = [
        {"id": 1, "category_id": 3, "segmentations": [compressed(mask) for mask in circle]},
        {"id": 2, "category_id": 4, "segmentations": [run_polygons(mask) if mask.any() else None for mask in square]},
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
    if sentences == "listed":
        texts = [("a", "both shapes", [1, 2], both), ("b", "a star", [], none), ("c", "the circle", [1], circle)]
        content["expressions"] = [
            {"id": id, "video_id": 7, "expression": text, "annotation_ids": ids} for id, text, ids, _ in texts
        ]
        asked = [Asked("7", id, text, "train", masks) for id, text, _, masks in texts]
    elif sentences == "told":
        annotations[0]["expressions"] = ["the round one", "a shape"]
        annotations[1]["attributes"] = {"expression": "a shape"}
        asked = [Asked("7", "0", "the round one", "train", circle), Asked("7", "1", "a shape", "train", both)]
    else:
        asked = [Asked("7", "0", "circle", "train", circle), Asked("7", "1", "square", "train", square)]
    (root / "train" / "instances.json").write_text(json.dumps(content))
    return asked


def write_cvat(root: Path, *, brush: bool = False, expressions: bool = True, video: bool = False) -> list[Asked]:
    """Write a "CVAT for video 1.1" export.

    Args:
        root: Where to.
        brush: Draw a mask in the first and the third frame, each a track of its own, instead of tracks of polygons.
        expressions: Give tracks the attribute ``expression``.
        video: Put a video file beside the annotations, of which the task takes every second frame from the second on.
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
    for thing, masks in enumerate(clip.masks):
        visible = [index for index in drawn if masks[index].any()]
        shapes = [_shape(masks[index], brush, numbers[index], False, texts[thing]) for index in visible]
        ends = [_shape(masks[index], brush, numbers[index] + step, True, texts[thing]) for index in visible]
        if brush:
            tracks += [(labels[thing], shape + end) for shape, end in zip(shapes, ends, strict=True)]
        else:
            gone = ends[-1] if visible[-1] + 1 < shown else ""
            tracks.append((labels[thing], "".join(shapes) + gone))
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
        Asked(root.name, str(thing), texts[thing] or labels[thing], "all", masks[drawn])
        for thing, masks in enumerate(clip.masks)
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

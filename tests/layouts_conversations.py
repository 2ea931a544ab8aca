"""Writers of small data sets in the layouts of grounded conversations and visual grounding, rendered by worlds.

Like the writers of `layouts`, each adds one split to a folder and returns the folder; its content follows from
``layouts.drawn_videos`` with the same arguments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from layouts import (
    DrawingOptions,
    DrawnVideo,
    drawn_videos,
    read_json_object,
    rle_track,
    write_frames,
    write_image,
    write_json,
    write_mevis,
    write_ref_youtube_vos,
)
from video_files import write_video

CAPTION = "In this scene, there is [the first](0), and [two more](1, 2) follow."
"""Caption about objects 0, 1 and 2; ids are one higher in sets that number objects from 1."""

PLAIN_CAPTION = "In this scene, there is the first, and two more follow."
PHRASES = {"the first": (0,), "two more": (1, 2)}
"""Objects of each phrase of the caption."""


def write_mevis_gcg(folder: Path, split: str = "valid_u", **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of MeViS-GCG and its split of MeViS, in which every object is a target of some expression."""
    write_mevis(folder / "mevis", split, **options)
    meta = folder / "mevis" / split / "meta_expressions.json"
    content = json.loads(meta.read_text())
    masks = read_json_object(folder / "mevis" / split / "mask_dict.json")
    first = 0
    for one in drawn_videos(split, **options):
        count = len(one.clip.masks)
        everything = {"exp": "everything", "obj_id": list(range(count)), "anno_id": list(range(first, first + count))}
        content["videos"][one.id]["expressions"]["9"] = everything
        first += count
        write_json(folder / "mevis_gcg" / split / f"{one.id}.json", {"caption": CAPTION})
    assert first == len(masks)
    write_json(meta, content)
    return folder


def write_ytvos_gcg(folder: Path, **options: Unpack[DrawingOptions]) -> Path:
    """Write Refer-YouTube-VOS-GCG and its split of Refer-YouTube-VOS."""
    write_ref_youtube_vos(folder / "refer_youtube_vos", "train", **options)
    for one in drawn_videos("train", **options):
        caption = CAPTION.replace("(1, 2)", "(2, 3)").replace("(0)", "(1)")
        write_json(folder / "ytvos_gcg" / "train" / f"{one.id}.json", {"caption": caption})
    return folder


def write_segmented_gcg(folder: Path, name: str, split: str = "val", **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of VidSTG-GCG (``vidstg_gcg``) or HC-STVG-GCG (``hcstvg_gcg``)."""
    for number, one in enumerate(drawn_videos(split, **options)):
        id = f"{number:06d}"
        root = folder / name / split / id
        names = [f"{13 + 4 * index:06d}.png" for index in range(len(one.clip.frames))]
        for index, frame_name in enumerate(names):
            write_image(root / "frames" / frame_name, one.clip.frames[index])
            for k, masks in enumerate(one.clip.masks):
                write_image(root / "masks" / f"{k:03d}" / frame_name, masks[index] * np.uint8(255))
        write_json(folder / name / f"{split}_captions" / f"{id}.json", {"caption": CAPTION})
    return folder


def write_video_gcg(folder: Path, split: str = "test", **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of the grounded captions of BURST and YouTube-VIS, in turn, and a video without caption.

    The captions are ``A shape, and other shapes.``; ``shape,`` is object 0 and ``shapes.`` are objects 1 and 2.
    """
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(drawn_videos(split, **options)):
        youtube = number % 2 == 1
        root = folder / "burst" / "frames" / ("train" if split == "train" else "val")
        if youtube:
            root = folder / "ytvis" / "vos" / "train" / "JPEGImages"
        names = write_frames(root / one.id, one.clip)
        height, width = one.clip.frames.shape[1:3]
        ids = [100 * number + k for k in range(len(one.clip.masks))]
        for k, masks in enumerate(one.clip.masks):
            annotations.append({"id": ids[k], "video_id": number, "segmentations": rle_track(masks)})
        caption = {
            "v_id2o_id": {str(k): id for k, id in enumerate(ids)},
            "token_pos": [1, 4, 4],
            "mask_id": [ids[0], ids[2], ids[1]],
            "caption": "A shape, and other shapes.",
        }
        record = {
            "id": number,
            "width": width,
            "height": height,
            "length": len(names),
            "file_names": [f"{one.id}/{name}.jpg" for name in names],
            "dense_cap": caption,
        }
        record |= {"dataset_split": "yt19"} if youtube else {"metadata": {"dataset": "LaSOT"}}
        videos.append(record)
    bare = {**videos[0], "id": 99, "dense_cap": dict.fromkeys(("v_id2o_id", "token_pos", "mask_id", "caption"))}
    content = {"videos": [*videos, bare], "annotations": annotations, "categories": []}
    write_json(folder / "video_gcg" / "instruction_data" / f"{split}.json", content)
    return folder


def write_gcg(folder: Path, **options: Unpack[DrawingOptions]) -> Path:
    """Write the three data sets of the published test set."""
    write_video_gcg(folder, "test", **options)
    write_mevis_gcg(folder, "valid_u", **options)
    return write_segmented_gcg(folder, "vidstg_gcg", "val", **options)


ANET_FRAME = 2
"""Index of the frame annotated by `write_anet_gcg`."""


def write_anet_gcg(folder: Path, **options: Unpack[DrawingOptions]) -> Path:
    """Write ActivityNet-Entities-GCG: object k is ``[SEG:k]``; the first is named twice."""
    root = folder / "activitynet_entities_gcg"
    for one in drawn_videos("anet", **options):
        video, segment = f"v_{one.id}", "3"
        for index, frame in enumerate(one.clip.frames):
            write_image(root / "video_frames" / video / segment / f"{index:02d}.jpg", frame)
        for k in (0, 1):
            mask = one.clip.masks[k, ANET_FRAME] * np.uint8(255)
            write_image(root / "masks" / f"{video}____{segment}" / f"{k:02d}" / "mask.png", mask)
        caption = "<p> One thing </p> [SEG:0] is near <p> another </p> [SEG:1]. <p> It </p> [SEG:0] moves."
        objects = {f"[SEG:{k}]": {"frame_id": ANET_FRAME, "bbox": [0, 0, 1, 1]} for k in (0, 1)}
        content = {"refined_caption": caption, "seg_token_to_obj": objects}
        write_json(root / "anns" / f"{video}____{segment}.json", content)
    return folder


RATE = 3
"""Frame rate of the videos of visual grounding, of which every third frame is scored."""


def boxes_of(one: DrawnVideo, k: int) -> list[list[int] | None]:
    """Return the box of an object in each frame, left, top, right, bottom; None when it is not visible."""
    boxes: list[list[int] | None] = []
    for mask in one.clip.masks[k]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append([int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1] if len(rows) else None)
    return boxes


def always_visible(one: DrawnVideo) -> list[int]:
    """Return the objects that are visible in every frame, as HC-STVG requires."""
    return [k for k in range(len(one.clip.masks)) if one.clip.masks[k].any(axis=(1, 2)).all()]


def write_vidstg(folder: Path, split: str = "test", **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of VidSTG: a moment from the second frame on, with a declarative expression and two questions.

    Video n of the split is ``1000 + n``; the declarative expression and the second question are about the first of
    ``always_visible``, the first question about object 0.
    """
    part = "validation" if split == "test" else "training"
    annotations = []
    for number, one in enumerate(drawn_videos(split, **options)):
        count, height, width = one.clip.frames.shape[:3]
        id = str(1000 + number)
        clip = folder / "video" / "0007" / f"{id}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        write_video(clip, count, width=width, height=height, fps=RATE, images=list(one.clip.frames))
        target = always_visible(one)[0]
        shared = {"fps": RATE, "frame_count": count, "width": width, "height": height}
        objects = [{"tid": k, "category": "shape"} for k in range(len(one.clip.masks))]
        trajectories: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        for k in range(len(one.clip.masks)):
            for index, box in enumerate(boxes_of(one, k)):
                if box is not None:
                    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
                    trajectories[index].append({"tid": k, "bbox": sides, "generated": 0, "tracker": "none"})
        vidor = {"video_id": id, "video_path": f"0007/{id}.mp4", **shared, "subject/objects": objects}
        vidor |= {"trajectories": trajectories, "relation_instances": [], "version": "VERSION 1.0"}
        write_json(folder / "vidor_annotations" / part / "0007" / f"{id}.json", vidor)
        moment = {"begin_fid": 1, "end_fid": count}
        relation = {"subject_tid": target, "object_tid": 0, "predicate": "towards", **moment}
        annotations.append(
            {"vid": id, **shared, "subject/objects": objects, "used_relation": relation, "temporal_gt": moment}
            | {"used_segment": {"begin_fid": 0, "end_fid": count - 1}}
            | {"captions": [{"description": "a shape moves.", "type": "object", "target_id": target}]}
            | {
                "questions": [
                    {"description": "what is there?", "type": "object", "target_id": 0},
                    {"description": "what moves?", "type": "object", "target_id": target},
                ]
            }
        )
    write_json(folder / "vidstg_annotations" / f"{split}_annotations.json", annotations)
    write_json(folder / "vidstg_annotations" / f"{split}_files.json", [one["vid"] for one in annotations])
    return folder


def write_hcstvg(folder: Path, split: str = "val", *, version: int = 2, **options: Unpack[DrawingOptions]) -> Path:
    """Add a split of HC-STVG: the frames of a video repeated to 20 seconds at three frames per second.

    The moment starts with the second frame; its person is the first of ``always_visible``. The second clip of version 2
    also has a question.
    """
    content: dict[str, Any] = {}
    for number, one in enumerate(drawn_videos(split, **options)):
        count, height, width = one.clip.frames.shape[:3]
        frames = [one.clip.frames[index % count] for index in range(20 * RATE)]
        name = f"{number}_clip.{'mkv' if number else 'mp4'}"
        clip = folder / "Video" / "0" / name
        clip.parent.mkdir(parents=True, exist_ok=True)
        write_video(clip, len(frames), width=width, height=height, fps=RATE, images=frames)
        boxes = boxes_of(one, always_visible(one)[0])
        stored: list[Sequence[int]] = []
        for index in range(1, 20 * RATE - 1):
            box = boxes[index % count]
            assert box is not None
            left, top, right, bottom = box
            stored.append([left, top, right - left, bottom - top])
        times = {"st_time": 0.4, "ed_time": 19.6}
        record: dict[str, Any] = {"bbox": stored, "st_frame": 2, "img_num": len(frames), **times}
        if version == 2:
            record |= {"English": "The person walks.", "img_size": [height, width]}
        else:
            record |= {"caption": "The person walks.", "height": height, "width": width}
        content[name] = record
    if version == 2:
        write_json(folder / "anno_v2" / f"{split}_v2.json", content)
        for number, question in enumerate(("", "Who walks?")):
            write_json(folder / "qa" / f"{number}.json", {"Q": question, "A": "The person."})
    else:
        write_json(folder / f"{split}.json", content)
    return folder

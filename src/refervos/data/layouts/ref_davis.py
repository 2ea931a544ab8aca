"""Ref-DAVIS17: four expressions per object of DAVIS 2017, by two annotators, for the first frame and the full video.

Layout of the unpacked archives (https://davischallenge.org/davis2017/code.html, the 480p archives; text annotations of
Khoreva et al., ACCV 2018, at the Max Planck Institute for Informatics)::

    DAVIS/JPEGImages/480p/<video>/00000.jpg
    DAVIS/Annotations_unsupervised/480p/<video>/00000.png   a palette; the index is the object number, 255 is void
    DAVIS/ImageSets/2017/{train,val}.txt                    names of the videos
    davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt    lines: video, object, "expression"

When ``Annotations_unsupervised`` is missing, ``Annotations`` (semi-supervised) is read. Published results use the
former, the re-annotation of DAVIS from 2019. It has objects without expressions; whether it numbers the others like
``Annotations``, for which the expressions were written, could not be established.

ReferFormer's conversion (``tools/data/convert_davis_to_ytvos.py`` of https://github.com/wjn922/ReferFormer) is read as
well; its ``valid`` is ``val`` here::

    {train,valid}/JPEGImages, {train,valid}/Annotations, meta_expressions/{train,valid}/meta_expressions.json

Both number the expressions of a video in the same way: four in a row per object, one of each annotator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refervos.data.files import PUBLISHED_ENCODINGS, Problems, read_lines, read_text, report_missing
from refervos.data.frames import ImageFrames, image_files
from refervos.data.ground_truth import IndexedMasks
from refervos.data.layouts.meta_expressions import ListedExpression, read_meta_expressions
from refervos.data.records import as_id, as_number, require_id
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "ref-davis17"

ANNOTATORS = ("annot1", "annot1_full_video", "annot2", "annot2_full_video")
"""Files of the annotators "0" to "3", in the order in which ReferFormer numbers their expressions."""

KINDS = ("first frame", "full video", "first frame", "full video")
"""Part of the video that each annotator had seen."""

VOID = 255
"""Value of void pixels."""

_MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
"""Misspelt video names in the text annotations, with DAVIS's spelling."""


@dataclass(frozen=True)
class _Expression:
    """Expression about an object, with the object's number and the annotator's position."""

    id: str
    text: str
    number: int
    annotator: int


def read_ref_davis17(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of Ref-DAVIS17, in either layout.

    Args:
        folder: Folder of ``DAVIS`` and ``davis_text_annotations``, or of ``meta_expressions``.
        split: ``train`` or ``val``.
        problems: Collects problems with single videos, frames and expressions.

    Returns:
        A sample for each expression of each annotator; its ground truth is ``IndexedMasks``, which include all objects.

    Raises:
        DataError: When neither layout is present, or a file that lists all videos is missing or damaged.
    """
    samples: tuple[Sample, ...]
    if (folder / "DAVIS").is_dir() and (folder / "davis_text_annotations").is_dir():
        samples = tuple(_distributed(folder, split, problems))
    elif (folder / "meta_expressions").is_dir():
        samples = tuple(_converted(folder, "valid" if split == "val" else split, problems))
    else:
        raise DataError(f"{folder} contains neither 'DAVIS' and 'davis_text_annotations' nor 'meta_expressions'.")
    return Dataset(NAME, split, samples)


def _distributed(folder: Path, split: str, problems: Problems) -> Iterator[Sample]:
    """Read the layout of the unpacked archives."""
    davis, texts = folder / "DAVIS", folder / "davis_text_annotations"
    masks = davis / "Annotations_unsupervised" / "480p"
    if not masks.is_dir():
        masks = davis / "Annotations" / "480p"
    files = [texts / f"Davis17_{annotator}.txt" for annotator in ANNOTATORS]
    by_annotator = [_read_expressions(file, problems) for file in files]
    for name in read_text(davis / "ImageSets" / "2017" / f"{split}.txt").split():
        with problems.collect():
            as_id(name, f"{davis / 'ImageSets' / '2017' / split}.txt: a video")
            # Sorted as text, like ReferFormer, so that ids agree between layouts also for ten objects or more.
            numbers = sorted({number for expressions in by_annotator for number in expressions.get(name, {})}, key=str)
            if not numbers:
                raise DataError(f"{texts} has no expression about the video {name} of split {split}.")
            listed = []
            for position, number in enumerate(numbers):
                for annotator, expressions in enumerate(by_annotator):
                    if number not in expressions.get(name, {}):
                        problems.report(f"{files[annotator]} has no expression about object {number} of {name}.")
                        continue
                    id = str(position * len(by_annotator) + annotator)
                    listed.append(_Expression(id, expressions[name][number], number, annotator))
            images = davis / "JPEGImages" / "480p" / name
            # Every frame is annotated, so a mask without a frame shows that the frame is missing.
            names = sorted({Path(file).stem for folder in (images, masks / name) for file in image_files(folder)})
            yield from _samples(name, images, masks / name, names, listed, problems)


def _read_expressions(file: Path, problems: Problems) -> dict[str, dict[int, str]]:
    """Read the expressions of an annotator, by video and object number."""
    expressions: dict[str, dict[int, str]] = {}
    for count, line in enumerate(read_lines(file, PUBLISHED_ENCODINGS), start=1):
        if not line.strip():
            continue
        words = line.split()
        with problems.collect():
            number = as_number(words[1]) if len(words) > 2 else None
            if number is None or not 0 < number < VOID:
                raise DataError(f'{file}, line {count}, must be a video, an object number, and "an expression".')
            objects = expressions.setdefault(_MISSPELT.get(words[0], words[0]), {})
            if number in objects:
                raise DataError(f"{file}, line {count}: object {words[1]} of {words[0]} has an expression already.")
            objects[number] = " ".join(words[2:]).strip('"')
    return expressions


def _converted(folder: Path, split: str, problems: Problems) -> Iterator[Sample]:
    """Read ReferFormer's converted layout."""
    listed = read_meta_expressions(folder / "meta_expressions" / split / "meta_expressions.json", problems)
    root = folder / split
    for video in listed.values():
        with problems.collect():
            expressions = [_expression(listed) for listed in video.expressions]
            rows: dict[int, set[int]] = {}
            for expression in expressions:
                rows.setdefault(int(expression.id) // len(ANNOTATORS), set()).add(expression.number)
            if any(len(numbers) > 1 for numbers in rows.values()):
                raise DataError(f"{video.where}: four expressions in a row must be about the same object.")
            masks = root / "Annotations" / video.id
            images = root / "JPEGImages" / video.id
            yield from _samples(video.id, images, masks, sorted(video.frames), expressions, problems)


def _expression(listed: ListedExpression) -> _Expression:
    number = as_number(require_id(listed.fields, "obj_id", listed.where))
    position = as_number(listed.id)
    if position is None or number is None or not 0 < number < VOID:
        raise DataError(f"{listed.where}: its id and 'obj_id' must be numbers.")
    return _Expression(listed.id, listed.text, number, position % len(ANNOTATORS))


def _samples(
    name: str, images: Path, masks: Path, names: list[str], expressions: list[_Expression], problems: Problems
) -> Iterator[Sample]:
    """Combine the expressions about a video with its frames and masks."""
    frames = ImageFrames(images, tuple(f"{frame}.jpg" for frame in names))
    if not report_missing(images, frames.files, problems):
        return
    if not report_missing(masks, [f"{frame}.png" for frame in names], problems):
        return
    video = Video(name, frames)
    numbers = {expression.number for expression in expressions}
    objects = {number: IndexedMasks(masks, frames, number, VOID) for number in numbers}
    for expression in expressions:
        yield Sample(
            video,
            expression.id,
            expression.text,
            objects[expression.number],
            has_target=True,
            kind=KINDS[expression.annotator],
            object_ids=(str(expression.number),),
            annotator=str(expression.annotator),
        )

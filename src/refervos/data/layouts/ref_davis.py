"""Ref-DAVIS17: four expressions about each object of DAVIS 2017, by two people, of the first frame and the whole video.

Layout, as the archives unpack (https://davischallenge.org/davis2017/code.html, the 480p archives; text annotations of
Khoreva et al., ACCV 2018, at the Max Planck Institute for Informatics)::

    DAVIS/JPEGImages/480p/<video>/00000.jpg
    DAVIS/Annotations_unsupervised/480p/<video>/00000.png   a palette; the index is the object, 255 does not count
    DAVIS/ImageSets/2017/{train,val}.txt                    names of the videos
    davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt    lines: video, object, "expression"

Where ``Annotations_unsupervised`` is missing, ``Annotations`` (the semi-supervised ones) are read. Published numbers
are over the former, in which DAVIS annotated its videos anew in 2019. They have objects without expressions; whether
they number the others as ``Annotations`` does, for which the expressions were written, could not be established.

The form into which ReferFormer converts this (``tools/data/convert_davis_to_ytvos.py`` of
https://github.com/wjn922/ReferFormer) is read as well, ``valid`` there being ``val`` here::

    {train,valid}/JPEGImages, {train,valid}/Annotations, meta_expressions/{train,valid}/meta_expressions.json

Both number the expressions of a video alike: four in a row about each object, one of each annotator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refervos.data.files import PUBLISHED_ENCODINGS, Problems, read_lines, read_text, report_missing
from refervos.data.frames import ImageFrames, image_files
from refervos.data.ground_truth import NumberedPixels
from refervos.data.layouts.meta_expressions import ListedExpression, read_meta_expressions
from refervos.data.records import as_id, as_number, take_id
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "ref-davis17"

ANNOTATORS = ("annot1", "annot1_full_video", "annot2", "annot2_full_video")
"""Files of the annotators "0" to "3", in the order in which ReferFormer numbers their expressions."""

KINDS = ("first frame", "full video", "first frame", "full video")
"""What each of them had seen."""

VOID = 255
"""The number of pixels that do not count."""

_MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
"""Names of videos in the text annotations that DAVIS spells otherwise."""


@dataclass(frozen=True)
class _Asked:
    """An expression about an object, by number, and the position of its annotator."""

    id: str
    text: str
    number: int
    annotator: int


def read_ref_davis17(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of Ref-DAVIS17, in either layout.

    Args:
        folder: The folder that holds ``DAVIS`` and ``davis_text_annotations``, or ``meta_expressions``.
        split: ``train`` or ``val``.
        problems: Told what is wrong with single videos, frames and expressions.

    Returns:
        A sample for each expression of each annotator; truths are ``NumberedPixels``, which know all
        objects.

    Raises:
        DataError: When neither layout is there, or a file that tells of all videos is missing or damaged.
    """
    samples: tuple[Sample, ...]
    if (folder / "DAVIS").is_dir() and (folder / "davis_text_annotations").is_dir():
        samples = tuple(_distributed(folder, split, problems))
    elif (folder / "meta_expressions").is_dir():
        samples = tuple(_converted(folder, "valid" if split == "val" else split, problems))
    else:
        raise DataError(
            f"{folder} holds neither 'DAVIS' with 'davis_text_annotations' beside it nor 'meta_expressions'."
        )
    return Dataset(NAME, split, samples)


def _distributed(folder: Path, split: str, problems: Problems) -> Iterator[Sample]:
    """Read what the archives unpack to."""
    davis, texts = folder / "DAVIS", folder / "davis_text_annotations"
    masks = davis / "Annotations_unsupervised" / "480p"
    if not masks.is_dir():
        masks = davis / "Annotations" / "480p"
    files = [texts / f"Davis17_{annotator}.txt" for annotator in ANNOTATORS]
    told = [_read_expressions(file, problems) for file in files]
    for name in read_text(davis / "ImageSets" / "2017" / f"{split}.txt").split():
        with problems.collect():
            as_id(name, f"{davis / 'ImageSets' / '2017' / split}.txt: a video")
            # As text, like ReferFormer, so that both layouts have the same ids where there are ten objects.
            numbers = sorted({number for expressions in told for number in expressions.get(name, {})}, key=str)
            if not numbers:
                raise DataError(f"{texts} has no expression about the video {name} of split {split}.")
            asked = []
            for position, number in enumerate(numbers):
                for annotator, expressions in enumerate(told):
                    if number not in expressions.get(name, {}):
                        problems.report(f"{files[annotator]} has no expression about object {number} of {name}.")
                        continue
                    id = str(position * len(told) + annotator)
                    asked.append(_Asked(id, expressions[name][number], number, annotator))
            images = davis / "JPEGImages" / "480p" / name
            # Every frame is annotated, so a mask without a frame tells that the frame is missing.
            names = sorted({Path(file).stem for place in (images, masks / name) for file in image_files(place)})
            yield from _samples(name, images, masks / name, names, asked, problems)


def _read_expressions(file: Path, problems: Problems) -> dict[str, dict[int, str]]:
    """Read what an annotator wrote, by video and object."""
    told: dict[str, dict[int, str]] = {}
    for count, line in enumerate(read_lines(file, PUBLISHED_ENCODINGS), start=1):
        if not line.strip():
            continue
        words = line.split()
        with problems.collect():
            number = as_number(words[1]) if len(words) > 2 else None
            if number is None or not 0 < number < VOID:
                raise DataError(f'{file}, line {count}, must be a video, the number of an object, and "an expression".')
            objects = told.setdefault(_MISSPELT.get(words[0], words[0]), {})
            if number in objects:
                raise DataError(f"{file}, line {count}: object {words[1]} of {words[0]} has an expression already.")
            objects[number] = " ".join(words[2:]).strip('"')
    return told


def _converted(folder: Path, split: str, problems: Problems) -> Iterator[Sample]:
    """Read what ReferFormer makes of it."""
    listed = read_meta_expressions(folder / "meta_expressions" / split / "meta_expressions.json", problems)
    root = folder / split
    for video in listed.values():
        with problems.collect():
            asked = [_asked(expression) for expression in video.expressions]
            rows: dict[int, set[int]] = {}
            for expression in asked:
                rows.setdefault(int(expression.id) // len(ANNOTATORS), set()).add(expression.number)
            if any(len(numbers) > 1 for numbers in rows.values()):
                raise DataError(f"{video.where}: four expressions in a row must be about the same object.")
            masks = root / "Annotations" / video.id
            yield from _samples(video.id, root / "JPEGImages" / video.id, masks, sorted(video.frames), asked, problems)


def _asked(expression: ListedExpression) -> _Asked:
    number = as_number(take_id(expression.fields, "obj_id", expression.where))
    position = as_number(expression.id)
    if position is None or number is None or not 0 < number < VOID:
        raise DataError(f"{expression.where}: its id and 'obj_id' must be numbers.")
    return _Asked(expression.id, expression.text, number, position % len(ANNOTATORS))


def _samples(
    name: str, images: Path, masks: Path, names: list[str], asked: list[_Asked], problems: Problems
) -> Iterator[Sample]:
    """Put the expressions about a video together with its frames and masks."""
    frames = ImageFrames(images, tuple(f"{frame}.jpg" for frame in names))
    if not report_missing(images, frames.files, problems):
        return
    if not report_missing(masks, [f"{frame}.png" for frame in names], problems):
        return
    video = Video(name, frames)
    truths = {expression.number: NumberedPixels(masks, frames, expression.number, VOID) for expression in asked}
    for expression in asked:
        yield Sample(
            video,
            expression.id,
            expression.text,
            truths[expression.number],
            has_target=True,
            kind=KINDS[expression.annotator],
            object_ids=(str(expression.number),),
            annotator=str(expression.annotator),
        )

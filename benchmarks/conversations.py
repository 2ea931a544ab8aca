"""Let VideoGLaMM answer the held-out conversations about drawn clips, score it, and compare it with its controls.

    python benchmarks/conversations.py MODEL --out results/conversations [--split captions] [--videos 320]

Three sets of answers: of the model; of the same model with another clip (``other``), so that nothing but luck and habit
is left; and of the same model without the tokens of its video encoder (``image``). Each is scored against the clip that
was asked about, and the differences are over the same clips. Stop it at any time: the same call goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refervos import load
from refervos.data.sample import Video
from refervos.evaluation.bootstrap import paired_difference, span
from refervos.evaluation.conversation_inference import Ask, SpokenAnswer, answer_conversations
from refervos.evaluation.conversation_scores import AnswerResult, score_conversations
from refervos.evaluation.datasets import Part
from refervos.videoglamm.conversation import Conversation, Turn
from refervos.videoglamm.frames import video_pixels
from refervos.videoglamm.model import VideoGlamm
from refervos.videoglamm.video_conversation import follow_answer

LONGEST_ANSWER = 96
"""Tokens of an answer at most; captions of held-out clips have up to 62."""

VARIANTS = ("model", "other", "image")


def begin(model: VideoGlamm, other: dict[str, Video], *, image_only: bool, video: Video) -> Ask:
    """Begin a conversation about a clip, or about another one in its place."""
    shown = other.get(video.id, video)
    frames = [shown.frames.read(index) for index in range(len(shown))]
    pixels = video_pixels(frames, model.config)
    if image_only:
        pixels = replace(pixels, internvideo=None)
    with torch.inference_mode():
        talk = Conversation(model, model.encode_pixels(pixels))

    def ask(question: str) -> SpokenAnswer:
        for _ in talk.ask(question, limit=LONGEST_ANSWER):
            pass
        turn = talk.turns[-1]
        spans = tuple((phrase.start, phrase.end) for phrase in turn.answer.phrases)
        return SpokenAnswer(turn.answer.text, spans, masks_of(model, frames, turn))

    return ask


def masks_of(model: VideoGlamm, frames: list[Any], turn: Turn) -> Iterator[npt.NDArray[np.bool_]]:
    """Follow the phrases of an answer through a clip, as ``refervos ask`` does: bool (N, H, W) for each frame."""
    session = model.open()
    follow_answer(session, model, turn)
    for segmentation in session.stream(frames):
        yield segmentation.masks


def by_clip(results: tuple[AnswerResult, ...], measure: str) -> dict[str, float]:
    """Mean of a measure over the answers about each clip, in percent."""
    clips: dict[str, list[float]] = {}
    for result in results:
        value = {
            "set mIoU": result.set_miou,
            "true": float(result.is_true is True),
            "recall": result.found / result.phrases if result.phrases else np.nan,
        }[measure]
        if not np.isnan(value):
            clips.setdefault(result.video, []).append(100 * value)
    return {clip: float(np.mean(values)) for clip, values in clips.items()}


def main() -> None:
    """Answer, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("captions", "questions", "motion", "all"), default="captions")
    parser.add_argument("--videos", type=int, default=None)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--captions", action="store_true", help="CIDEr and METEOR as well")
    options = parser.parse_args()
    model: Any = load(options.model, device="cpu")
    if not isinstance(model, VideoGlamm):
        parser.error(f"{options.model} is no VideoGLaMM")
    part = Part("world-conversations", split=options.split, videos=options.videos)
    videos = list(dict.fromkeys(conversation.video for conversation in part.open().dataset.conversations))
    videos = videos[: options.videos]
    other = {video.id: videos[(place + 1) % len(videos)] for place, video in enumerate(videos)}
    summaries = {}
    for variant in options.variants:
        folder = options.out / options.split / variant
        start = time.process_time()
        starter = partial(begin, model, other if variant == "other" else {}, image_only=variant == "image")
        answer_conversations(lambda video, starter=starter: starter(video=video), part, folder)  # type: ignore[misc]
        seconds = time.process_time() - start
        summary = score_conversations(folder, part, captions=options.captions)
        summaries[variant] = summary
        (options.out / options.split / f"{variant}.json").write_text(json.dumps(summary.to_json()))
        print(f"\n## {variant} ({seconds:.0f} s)\n\n{summary.markdown()}\n", flush=True)
    for variant in options.variants[1:]:
        for measure in ("set mIoU", "recall", "true"):
            first, second = (by_clip(summaries[name].results, measure) for name in (options.variants[0], variant))
            clips = [clip for clip in first if clip in second]
            difference = paired_difference([first[clip] for clip in clips], [second[clip] for clip in clips])
            print(
                f"{options.variants[0]} - {variant}, {measure}: {difference.mean:.1f} ({span(difference)}), "
                f"means of {len(clips)} clips"
            )


if __name__ == "__main__":
    main()

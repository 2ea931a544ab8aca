"""A Hugging Face Space: upload a video, write sentences, and get the video with the masks drawn over it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio

import refervos
from refervos.errors import RefervosError
from refervos.pipeline import segment
from refervos.video import OverlaySink, RleSink, Sink

MOST_FRAMES = 300
"""Longer videos are cut, because a free Space has two cores."""

EXAMPLE = Path(__file__).with_name("shapes.mp4")
"""Example video; the page has no example without it."""

Outcome = tuple[str, str, list[list[Any]]]


def segment_video(model: Any, video: str | None, text: str) -> Iterator[Outcome]:
    """Segment a video.

    Args:
        model: A loaded model.
        video: Path of the uploaded video.
        text: Sentences, one per line.

    Yields:
        Once: the overlay video, the run-length encoded masks, and for each sentence the number of frames in which its
        object is visible. The files are deleted afterwards; Gradio copies them when they are yielded.

    Raises:
        gradio.Error: The input is invalid; with the sentence that says why.
    """
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not video or not sentences:
        raise gradio.Error("Upload a video and write at least one sentence.", print_exception=False)
    with tempfile.TemporaryDirectory() as folder:
        overlay, masks = Path(folder) / "overlay.mp4", Path(folder) / "masks.jsonl"
        try:
            with refervos.open_source(video, stop=MOST_FRAMES) as source:
                sinks: list[Sink] = [OverlaySink(overlay, source.info), RleSink(masks)]
                report = segment(source, model.open(sentences), sinks, show_progress=True)
        except RefervosError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        rows = [[sentence, f"{seen} of {report.frames}"] for sentence, seen in report.visible.items()]
        yield str(overlay), str(masks), rows


def make_page(model: Any) -> gradio.Blocks:
    """Make the page.

    Args:
        model: A loaded model.

    Returns:
        The page, to be launched.
    """
    tracked = gradio.Progress(track_tqdm=True)  # the progress of the run, shown on the page

    def run(video: str | None, text: str, progress: gradio.Progress = tracked) -> Iterator[Outcome]:
        yield from segment_video(model, video, text)

    # Uploads and results are deleted after an hour.
    with gradio.Blocks(title="refervos", delete_cache=(600, 3600)) as page:
        gradio.Markdown("# refervos\nUpload a video and describe objects, one sentence per line.")
        with gradio.Row():
            with gradio.Column():
                video = gradio.Video(label="Video")
                text = gradio.Textbox(label="Sentences", lines=3, placeholder="the red circle")
                button = gradio.Button("Segment", variant="primary")
            with gradio.Column():
                overlay = gradio.Video(show_label=False)  # a label would cover the legend
                table = gradio.Dataframe(headers=["sentence", "visible in frames"], label="Visible")
                masks = gradio.File(label="Run-length encoded masks")
        button.click(
            run,
            [video, text],
            [overlay, masks, table],
            concurrency_limit=1,
            show_progress_on=overlay,
            api_name="segment",
        )
        if EXAMPLE.exists():
            gradio.Examples([[str(EXAMPLE), "the red circle\nthe blue star"]], [video, text])
    return page


if __name__ == "__main__":
    make_page(refervos.load("miniature")).launch()

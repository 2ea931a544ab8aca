"""transformers' ``pipeline`` for videos and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image
from transformers import Pipeline

from refervos.errors import PromptError
from refervos.pipeline import segment_frames
from refervos.segmentation import Segmentation
from refervos.session.session import Session
from refervos.video import Source, open_source

Answer = list[dict[str, Any]]


class ReferringVideoSegmentationPipeline(Pipeline):
    """Segment the objects that sentences refer to, frame by frame.

    ``pipeline(video, text=...)`` takes a file, folder or stream as for ``refervos.open_source``, or frames as uint8
    arrays (H, W, 3), and one sentence or a list of sentences. It returns a generator with the answer for each frame as
    soon as it is computed: for each sentence ``{"label": sentence, "score": presence in [0, 1], "mask": image}``, as
    in image segmentation. The mask is a grey image of the frame's size, 255 on the object, empty when it is not there.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(self, inputs: Any, text: str | Iterable[str] | None = None, **options: Any) -> Any:
        """Segment one video, or each of a list of videos.

        Args:
            inputs: The video.
            text: One sentence, or several.
            **options: Arguments of ``Session``, such as ``on_cut="forget"``.

        Returns:
            A generator over frames; for a list of videos, a list of them.

        Raises:
            PromptError: When there is no sentence, or the model does not take sentences.
            VideoError: When the video cannot be read; the generator raises it at the frame concerned.
        """
        if text is None:
            raise PromptError("there is no sentence; call the pipeline with text='the dog', or a list of sentences.")
        return super().__call__(inputs, text=text, **options)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Pass the sentences and all options to the session."""
        return {}, options, {}

    def preprocess(self, input_: Any, **_: Any) -> Source:
        """Open the video."""
        return open_source(input_)

    def _forward(self, input_tensors: Source, text: str | Iterable[str] = (), **options: Any) -> Iterator[Segmentation]:
        """Segment the frames, as ``refervos segment`` does."""
        session = self.model.open(text, **options)  # before the first frame, so that bad input is refused at once
        return _segment(input_tensors, session)

    def postprocess(self, model_outputs: Iterator[Segmentation], **_: Any) -> Iterator[Answer]:
        """Turn segmentations into answers."""
        return (_answer(segmentation) for segmentation in model_outputs)


def _segment(source: Source, session: Session) -> Iterator[Segmentation]:
    with source:
        for _, segmentation in segment_frames(source, session):
            yield segmentation


def _answer(segmentation: Segmentation) -> Answer:
    """Return the answer for one frame."""
    each = zip(segmentation.expressions, segmentation.presence, segmentation.masks, strict=True)
    return [
        {"label": label, "score": float(presence), "mask": Image.fromarray(mask.astype("uint8") * 255)}
        for label, presence, mask in each
    ]

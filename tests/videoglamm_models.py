"""Small VideoGLaMM models for tests, with a tokenizer of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, VideoGlammConfig
from refervos.videoglamm.conversation import ChatTokenizer
from refervos.videoglamm.language import Context
from refervos.videoglamm.model import GeneratedToken, Rule, VideoGlamm

Model = TypeVar("Model", bound=VideoGlamm)

MINIATURE = VIDEOGLAMM_PRESETS["miniature"]
MARKS = ["<|system|>", "<|user|>", "<|assistant|>"]
SAID = """
you are a helpful ai assistant what is happening here the red blue circle square passes behind moves left right which
one turns back it <p> </p> . , ? and then stays in this video please respond with segmentation masks
"""


def small_tokenizer(config: VideoGlammConfig = MINIATURE) -> ChatTokenizer:
    """A tokenizer of whole words and single letters whose ids fit a configuration."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = dict.fromkeys(["<pad>", "<unk>", "<|end|>", *MARKS, *SAID.split(), *letters])
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary["[SEG]"] = config.seg
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in [*MARKS, "<|end|>"]])
    tokenizer.add_tokens([AddedToken("[SEG]", normalized=False)])
    return ChatTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|end|>")
    )


def random_model(config: VideoGlammConfig = MINIATURE, *, seed: int = 0, tokenizer: bool = True) -> VideoGlamm:
    """A model with random weights whose objects are present."""
    torch.manual_seed(seed)
    return present(VideoGlamm(config, small_tokenizer(config) if tokenizer else None))


def see_nothing(model: VideoGlamm) -> None:
    """Let SAM2 predict that no object is present."""
    head: Any = model.tracker.sam.mask_decoder.pred_obj_score_head
    torch.nn.init.constant_(head.proj_out.bias, -20.0)


def script(model: VideoGlamm, text: str) -> Rule:
    """Return a rule under which the model generates a text."""
    ids = model.tokenizer.encode(text)

    def rule(generated: Sequence[int], logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -torch.inf)
        forced[ids[len(generated)]] = 0
        return forced

    return rule


FOUND = "it is [SEG] . <|end|>"
NOT_FOUND = "which one ? <|end|>"


class ScriptedModel(VideoGlamm):
    """A model that generates given texts, whatever it is asked; its prompt tokens depend on question and frames.

    Attributes:
        texts: The texts of its answers in turn; the last one is repeated.
        lengths: Length of the prompt of each answer so far, in tokens.
    """

    texts: Sequence[str] = (FOUND,)

    def generate(self, context: Context, **options: Any) -> Iterator[GeneratedToken]:
        self.lengths: list[int] = [*getattr(self, "lengths", ()), context.length]
        text = self.texts[min(len(self.lengths), len(self.texts)) - 1]
        options["rule"] = script(self, text)
        return super().generate(context, **options)


SMALL = replace(MINIATURE, sam2=replace(MINIATURE.sam2, image_size=64, hiera_windows=(4, 4, 4, 2)))
"""The miniature with smaller images for SAM2, for tests with many frames."""


def scripted_model(*texts: str, seed: int = 0, **changes: Any) -> ScriptedModel:
    """Return a small scripted model with random weights whose objects are present."""
    config = replace(SMALL, **changes)
    torch.manual_seed(seed)
    model = ScriptedModel(config, small_tokenizer(config))
    model.texts = texts or (FOUND,)
    # Larger weights than usual, so that masks differ between prompts.
    for name, value in [*model.tracker.named_parameters(), *model.seg_projector.named_parameters()]:
        if value.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return present(model)


def present(model: Model) -> Model:
    """Make objects present whatever a model sees, and masks neither empty nor full."""
    decoder = model.tracker.sam.mask_decoder
    assert decoder.pred_obj_score_head is not None
    torch.nn.init.constant_(decoder.pred_obj_score_head.proj_out.bias, 5.0)
    return model

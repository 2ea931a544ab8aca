"""Small VideoGLaMM models for tests, with a tokenizer of words."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refervos.videoglamm.config import VIDEOGLAMM_PRESETS, VideoGlammConfig
from refervos.videoglamm.conversation import ChatTokenizer
from refervos.videoglamm.model import VideoGlamm

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
    model = VideoGlamm(config, small_tokenizer(config) if tokenizer else None)
    head = model.tracker.sam.mask_decoder.pred_obj_score_head
    assert head is not None
    torch.nn.init.constant_(head.proj_out.bias, 5.0)
    return model

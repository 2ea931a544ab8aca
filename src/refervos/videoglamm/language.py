"""The language model: Phi-3 with low-rank adaptation, the splice of visual tokens, and reading with a cache.

Shapes: B rows, L ids, P visual tokens, S positions after the splice, D = width, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from refervos.errors import PromptError, require_installed
from refervos.videoglamm.config import LoraConfig, PhiConfig

IMAGE = -200
"""Stands among token ids for a frame; a run of them is replaced by the visual tokens."""

IGNORED = -100
"""Label of positions that are not supervised."""

ADAPTED = "qkv_proj"
"""The linear layers that have low-rank adaptation: Phi-3 projects to queries, keys and values by one."""

ADAPTER = "default"
"""Name under which peft keeps the adaptation."""

POSITION_BUFFERS = ("inv_freq", "original_inv_freq")
"""Buffers of Phi-3 that positions are computed from."""


def build_phi(config: PhiConfig, lora: LoraConfig | None) -> nn.Module:
    """Build the language model, with its adaptation if there is one.

    Args:
        config: Its shape.
        lora: Its adaptation, None for none.

    Returns:
        A ``Phi3ForCausalLM`` of transformers.

    Raises:
        MissingDependencyError: When there is an adaptation and peft is not installed.
    """
    from transformers import Phi3Config, Phi3ForCausalLM

    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.feedforward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.positions,
            original_max_position_embeddings=config.positions,
            sliding_window=config.window,
            pad_token_id=config.pad,
            bos_token_id=None,
            eos_token_id=list(config.end),
        )
    )
    if lora is not None:
        add_lora(model, lora)
    return model


def add_lora(model: nn.Module, lora: LoraConfig) -> None:
    """Add a low-rank adaptation to the fused projections; until it is trained it changes nothing.

    Args:
        model: A language model without one, changed in place.
        lora: Rank, scale and dropout.

    Raises:
        MissingDependencyError: When peft is not installed.
    """
    require_installed("low-rank adaptation of the language model", "videoglamm", "peft")
    import peft

    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=[ADAPTED], bias="none"
    )
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)


def merge_lora(model: nn.Module) -> None:
    """Add the low-rank adaptation to the weights that it adapts, and remove it.

    Args:
        model: A language model with one, changed in place.
    """
    for name, module in list(model.named_modules()):
        if not name.endswith(ADAPTED) or not hasattr(module, "lora_A"):
            continue
        adapted: Any = module
        with torch.no_grad():
            adapted.base_layer.weight += adapted.get_delta_weight(ADAPTER)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapted.base_layer)


# The splice.


def find_run(ids: Sequence[int]) -> range:
    """Find the one run of image sentinels among token ids.

    Args:
        ids: Token ids with sentinels, or without.

    Returns:
        Its positions; empty where there is none.

    Raises:
        PromptError: When there are several runs.
    """
    places = [place for place, token in enumerate(ids) if token == IMAGE]
    if not places:
        return range(0)
    run = range(places[0], places[-1] + 1)
    if len(run) != len(places):
        raise PromptError(
            "the prompt has text between its images; VideoGLaMM reads one video or one image, in one place of a prompt."
        )
    return run


def splice(ids: Sequence[int], values: Tensor, visual: Tensor | None, filling: Tensor | float) -> Tensor:
    """Put what stands for the visual tokens in the place of the image sentinels.

    Args:
        ids: Token ids (L,) with one run of sentinels, or none.
        values: What each id stands for, (L, ...); values at sentinels are dropped.
        visual: Visual tokens (P, D), of which the count is read; None where there are no sentinels.
        filling: What stands for them: (P, ...), or one number for all.

    Returns:
        (S, ...), with S = L - sentinels + P.

    Raises:
        PromptError: When there are sentinels and no visual tokens, or the other way round, or several runs.
    """
    run = find_run(ids)
    if bool(len(run)) != (visual is not None):
        raise PromptError(
            "the prompt has images that were not given."
            if visual is None
            else "the prompt has no place for the images."
        )
    if visual is None:
        return values
    if not isinstance(filling, Tensor):
        filling = values.new_full((len(visual), *values.shape[1:]), filling)
    return torch.cat([values[: run.start], filling.to(values.dtype), values[run.stop :]])


def embed(model: nn.Module, ids: Sequence[int], visual: Tensor | None) -> Tensor:
    """Look token ids up and put the visual tokens in the place of the image sentinels.

    Args:
        model: The language model.
        ids: Token ids (L,) with one run of sentinels, or none.
        visual: Visual tokens (P, D), None where there are no sentinels.

    Returns:
        (S, D).
    """
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    looked_up = torch.tensor([max(token, 0) for token in ids], device=table.weight.device, dtype=torch.int64)
    return splice(ids, table(looked_up), visual, 0.0 if visual is None else visual)


# Reading.


@dataclass
class Context:
    """What the language model has read of one conversation, and what it is yet to read; its caller holds it.

    Attributes:
        cached: Whether keys and values are kept; otherwise all is read anew for each token.
        length: Positions so far, read or not.
        unread: Embeddings of what was added and not read yet, (n, D) each.
        read: Without a cache, embeddings of all that was read, (n, D) each.
        cache: Keys and values, once something was read.
        state: The final hidden state of the last position that was read (D,).
    """

    cached: bool = True
    length: int = 0
    unread: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)
    cache: Any = None
    state: Tensor | None = None

    def add(self, embeddings: Tensor) -> None:
        """Add embeddings (n, D) to what is to be read."""
        if len(embeddings):
            self.unread.append(embeddings)
            self.length += len(embeddings)


def read_on(model: Any, context: Context) -> Tensor:
    """Read what a context has unread.

    Args:
        model: The language model.
        context: Moves on; something must be unread.

    Returns:
        Final hidden states of what was read now, after the last norm (n, D).
    """
    fresh = torch.cat(context.unread)
    if context.cached:
        if context.cache is None:
            from transformers import DynamicCache

            context.cache = DynamicCache(config=model.config)
        output = model.model(inputs_embeds=fresh.unsqueeze(0), past_key_values=context.cache, use_cache=True)
        states: Tensor = output.last_hidden_state[0]
    else:
        context.read.append(fresh)
        states = model.model(inputs_embeds=torch.cat(context.read).unsqueeze(0), use_cache=False).last_hidden_state[0]
        states = states[-len(fresh) :]
    context.unread = []
    context.state = states[-1]
    return states


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn instead of taking the likeliest.

    Attributes:
        temperature: Logits are divided by it; above 0.
        top_k: Only so many of the likeliest tokens are drawn from; 0 for all. The released configuration says 50.
        top_p: Only the likeliest tokens that together have this probability are drawn from.
        seed: Of the random numbers; None for others each time.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 100:
            raise PromptError(f"temperature is {self.temperature}; it must be above 0 and at most 100.")
        if self.top_k < 0:
            raise PromptError(f"top_k is {self.top_k}; it must be 0 or more.")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")

    def generator(self, device: torch.device) -> torch.Generator:
        """Make the source of random numbers."""
        source = torch.Generator(device)
        if self.seed is None:
            source.seed()
        else:
            source.manual_seed(self.seed)
        return source

    def draw(self, logits: Tensor, source: torch.Generator) -> int:
        """Draw a token.

        Args:
            logits: (V,).
            source: Random numbers.
        """
        scaled = logits.float() / self.temperature
        if self.top_k:
            least = scaled.topk(min(self.top_k, len(scaled))).values[-1]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        if self.top_p < 1:
            probabilities, order = scaled.softmax(0).sort(descending=True)
            beyond = probabilities.cumsum(0) - probabilities >= self.top_p
            scaled = scaled.index_fill(0, order[beyond], -torch.inf)
        return int(torch.multinomial(scaled.softmax(0), 1, generator=source))

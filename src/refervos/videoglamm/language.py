"""The language model: Phi-3 with LoRA, insertion of visual tokens, decoding with a key-value cache, sampling.

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
"""Placeholder id of a frame; a run of them is replaced by the visual tokens."""

IGNORED = -100
"""Label of unsupervised positions."""

ADAPTED = "qkv_proj"
"""Linear layers with LoRA: Phi-3 has one fused projection for queries, keys and values."""

ADAPTER = "default"
"""Name of the LoRA adapter in peft."""

POSITION_BUFFERS = ("inv_freq", "original_inv_freq")
"""Buffers of Phi-3's rotary position encoding, which stay in float32."""


def build_phi(config: PhiConfig, lora: LoraConfig | None) -> nn.Module:
    """Build the language model.

    Args:
        config: Its shape.
        lora: Its LoRA configuration, or None.

    Returns:
        A ``Phi3ForCausalLM`` of transformers.

    Raises:
        MissingDependencyError: When LoRA is configured and peft is not installed.
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
    """Add LoRA to the fused projections; its initial update is zero.

    Args:
        model: The language model, changed in place.
        lora: Rank, scale and dropout.

    Raises:
        MissingDependencyError: When peft is not installed.
    """
    require_installed("LoRA", "videoglamm", "peft")
    import peft

    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=[ADAPTED], bias="none"
    )
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)


def merge_lora(model: nn.Module) -> None:
    """Merge the LoRA update into the weights and remove the adapters.

    Args:
        model: The language model, changed in place; nothing happens without LoRA.
    """
    for name, module in list(model.named_modules()):
        if not name.endswith(ADAPTED) or not hasattr(module, "lora_A"):
            continue
        adapted: Any = module
        with torch.no_grad():
            adapted.base_layer.weight += adapted.get_delta_weight(ADAPTER)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapted.base_layer)


# Insertion of visual tokens.


def find_run(ids: Sequence[int]) -> range:
    """Find the run of image placeholders among token ids.

    Args:
        ids: Token ids.

    Returns:
        Its positions; an empty range without placeholders.

    Raises:
        PromptError: When there is more than one run.
    """
    places = [place for place, token in enumerate(ids) if token == IMAGE]
    if not places:
        return range(0)
    run = range(places[0], places[-1] + 1)
    if len(run) != len(places):
        raise PromptError(
            "the prompt has text between its images; VideoGLaMM takes one video or one image, in one place of a prompt."
        )
    return run


def splice(ids: Sequence[int], values: Tensor, visual: Tensor | None, filling: Tensor | float) -> Tensor:
    """Replace the image placeholders in a sequence by entries for the visual tokens.

    Args:
        ids: Token ids (L,) with at most one run of placeholders.
        values: Sequence to change, such as embeddings or labels (L, ...).
        visual: Visual tokens (P, D), which determine P; None for a sequence without placeholders.
        filling: Entries for the visual tokens (P, ...), or one number for all of them.

    Returns:
        (S, ...), with S = L - placeholders + P.

    Raises:
        PromptError: When placeholders and visual tokens do not go together, or there is more than one run.
    """
    run = find_run(ids)
    if bool(len(run)) != (visual is not None):
        missing = "images that were not given" if visual is None else "no placeholder for the images"
        raise PromptError(f"the prompt has {missing}.")
    if visual is None:
        return values
    if not isinstance(filling, Tensor):
        filling = values.new_full((len(visual), *values.shape[1:]), filling)
    return torch.cat([values[: run.start], filling.to(values.dtype), values[run.stop :]])


def embed(model: nn.Module, ids: Sequence[int], visual: Tensor | None) -> Tensor:
    """Embed token ids and insert the visual tokens.

    Args:
        model: The language model.
        ids: Token ids (L,) with at most one run of placeholders.
        visual: Visual tokens (P, D); None for a sequence without placeholders.

    Returns:
        (S, D).
    """
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    looked_up = torch.tensor([max(token, 0) for token in ids], device=table.weight.device, dtype=torch.int64)
    return splice(ids, table(looked_up), visual, 0.0 if visual is None else visual)


# Packing.


def read_packed(model: Any, beginnings: Sequence[Tensor], tails: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Read several conversations that begin alike as one row each, the beginning only once.

    A tail attends to its beginning and to itself, and its positions follow the beginning's, so that the states are
    those of conversations read one by one.

    Args:
        model: The language model.
        beginnings: Embeddings of the beginning of each of B rows, (P, D) each.
        tails: For each row the embeddings of what follows in each conversation, (n, D) each, at least one.

    Returns:
        For each row the final hidden states of each conversation, the beginning included (P + n, D).
    """
    rows, places, owners = [], [], []
    for beginning, own in zip(beginnings, tails, strict=True):
        lengths = [len(tail) for tail in own]
        rows.append(torch.cat([beginning, *own]))
        start = len(beginning)
        places.append(torch.cat([torch.arange(start), *[torch.arange(start, start + length) for length in lengths]]))
        owners.append(torch.repeat_interleave(torch.arange(len(own) + 1), torch.tensor([start, *lengths])))
    pad = nn.utils.rnn.pad_sequence
    padded = pad(rows, batch_first=True)  # (B, S, D)
    place = pad(places, batch_first=True).to(padded.device)  # (B, S)
    owner = pad(owners, batch_first=True, padding_value=-1).to(padded.device)  # (B, S), 0 for the beginning
    distance = place.unsqueeze(2) - place.unsqueeze(1)  # (B, S, S), of a query from a key
    seen = (distance >= 0) & ((owner.unsqueeze(1) == 0) | (owner.unsqueeze(1) == owner.unsqueeze(2)))
    window = model.config.sliding_window
    if window is not None:
        seen &= distance < window
    states = model.model(
        inputs_embeds=padded, attention_mask=seen.unsqueeze(1), position_ids=place, use_cache=False
    ).last_hidden_state  # (B, S, D)
    found = []
    for row, beginning, own in zip(states, beginnings, tails, strict=True):
        shared, *parts = row[: len(beginning) + sum(map(len, own))].split([len(beginning), *map(len, own)])
        found.append([torch.cat([shared, part]) for part in parts])
    return found


# Decoding.


@dataclass
class Context:
    """State of the language model for one conversation, held by the caller.

    Attributes:
        cached: Whether to keep keys and values; otherwise the whole sequence is recomputed for each token.
        length: Number of positions, processed or pending.
        unread: Pending embeddings, (n, D) each.
        read: Without a cache, embeddings of all processed positions, (n, D) each.
        cache: Key-value cache of transformers; None before the first step.
        state: Final hidden state of the last processed position (D,).
    """

    cached: bool = True
    length: int = 0
    unread: list[Tensor] = field(default_factory=list)
    read: list[Tensor] = field(default_factory=list)
    cache: Any = None
    state: Tensor | None = None

    def add(self, embeddings: Tensor) -> None:
        """Append pending embeddings (n, D)."""
        if len(embeddings):
            self.unread.append(embeddings)
            self.length += len(embeddings)


def read_on(model: Any, context: Context) -> Tensor:
    """Process the pending embeddings of a context.

    Args:
        model: The language model.
        context: A context with pending embeddings; changed in place.

    Returns:
        Their final hidden states, after the last norm (n, D).
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
    """Parameters of token sampling.

    Attributes:
        temperature: Divisor of the logits, above 0.
        top_k: Sample from this many of the most likely tokens; 0 for all. The released configuration has 50.
        top_p: Sample from the most likely tokens with this total probability (nucleus sampling).
        seed: Random seed; None for a different one each time.
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
        """Create the random generator."""
        source = torch.Generator(device)
        if self.seed is None:
            source.seed()
        else:
            source.manual_seed(self.seed)
        return source

    def draw(self, logits: Tensor, source: torch.Generator) -> int:
        """Sample a token.

        Args:
            logits: (V,).
            source: Random generator.
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

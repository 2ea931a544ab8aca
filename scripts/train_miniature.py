"""Train the miniature model from nothing: a tiny SAMWISE on procedurally drawn clips.

    python scripts/train_miniature.py

draws its own data, trains a tokenizer and the model, evaluates on clips that training never draws, and writes the
checkpoint folder (``--out``), in about 70 minutes on one CPU core. It resumes from ``--state`` when stopped. See
``PHASES`` for what it goes through and ``docs/miniature.md`` for what comes out.

Unlike the published recipe, which trains adapters over a frozen, pretrained SAM2 and RoBERTa, this demo model has
nothing pretrained to freeze: ALL its parameters train here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from toy_clips import (
    CATEGORIES,
    COLOURS,
    DEMO_SIZE,
    KINDS,
    Bools,
    Clip,
    Question,
    Taste,
    demo_scene,
    draw,
    questions,
    random_clip,
    vocabulary_sentences,
)

from refervos import __version__
from refervos.frames import letterbox
from refervos.prompts import Prompt
from refervos.sam2.config import Sam2Config
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.text.encoder import TextConfig, pad_tokens
from refervos.text.tokenizer import Tokenizer
from refervos.training.losses import dice_loss, sigmoid_focal_loss

SIDE = 128
SIZES = ((128, 128), (128, 128), (96, 128), (85, 128), (72, 128), (128, 96), (128, 80))
"""Heights and widths of training clips; all but the square are padded, as letterboxed videos are."""

HELD_OUT = 1_000_000
"""First number of the seeds of evaluation clips; training seeds are lists and never meet them."""

LEAST_AREA = 12
"""Pixels from which on an object counts as visible; with fewer (but some), the object score is not taught."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: What it is called in the log.
        steps: How many.
        rate: Learning rate at its start, after a short warm-up.
        final_rate: Learning rate at its end (cosine).
        frames: Lengths of the clips, drawn anew at each step.
        batch: Frames in a batch, over all clips.
        weights: How often each category of sentences is asked, in the order of ``CATEGORIES``.
        alike: Share of scenes in one colour.
        naming: Weight of an auxiliary loss: name the shape in each cell of the third Hiera stage. Colours are learnt
            in minutes, shapes are not: seeing them and reading their names help only together. What stands for
            pretraining elsewhere does here: the image encoder learns shapes by themselves.
        freeze_norms: Keep the running statistics of the adapters' batch norms.
        pictures_only: Only name cells, without sentences; only the image encoder trains.
    """

    name: str
    steps: int
    rate: float
    final_rate: float
    frames: tuple[int, ...]
    batch: int
    weights: tuple[float, ...]
    alike: float = 0.0
    naming: float = 0.0
    freeze_norms: bool = False
    pictures_only: bool = False


PHASES = (
    Phase("colours", 1200, 1e-3, 6.4e-4, (1,), 32, (0.42, 0.12, 0.2, 0.08, 0.0, 0.06, 0.12)),
    Phase("naming", 1800, 1e-3, 3e-4, (1,), 32, (), alike=0.3, pictures_only=True),
    Phase("shapes", 800, 1e-3, 6e-4, (1,), 32, (0.4, 0.35, 0.08, 0.05, 0.0, 0.02, 0.1), alike=0.4, naming=1.0),
    Phase("clips", 1000, 6e-4, 2e-4, (1, 1, 4, 4, 8), 32, (0.34, 0.14, 0.06, 0.1, 0.14, 0.06, 0.16), 0.25, 0.5),
    Phase("settling", 500, 2e-4, 1e-5, (4, 8, 8), 32, (0.3, 0.08, 0.08, 0.12, 0.16, 0.08, 0.18), freeze_norms=True),
    Phase("longer", 2200, 5e-4, 5e-6, (1, 4, 8), 32, (0.36, 0.16, 0.06, 0.1, 0.1, 0.06, 0.16), 0.25, 0.25, True),
    Phase("tracking", 550, 2.5e-4, 5e-6, (8, 8, 16), 32, (0.36, 0.14, 0.06, 0.1, 0.1, 0.06, 0.18), freeze_norms=True),
)


# Building.


def train_tokenizer(folder: Path) -> Tokenizer:
    """Train a byte-level BPE on the sentences' words and write it as a RoBERTa tokenizer.

    Args:
        folder: Where its files go.

    Returns:
        The tokenizer, read back.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    words = ByteLevelBPETokenizer()
    words.train_from_iterator(
        vocabulary_sentences(),
        vocab_size=640,
        min_frequency=2,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    words.save_model(str(folder))
    fast = RobertaTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    fast.save_pretrained(str(folder))
    return Tokenizer.from_pretrained(folder)


def miniature_config(vocabulary: int) -> SamwiseConfig:
    """The miniature's shape: about 1.4 million parameters, images of 128 x 128."""
    return SamwiseConfig(
        sam2=Sam2Config(
            image_size=SIDE,
            hiera_width=16,
            hiera_heads=1,
            hiera_blocks=(1, 2, 3, 1),
            hiera_windows=(8, 4, 8, 4),
            hiera_global_blocks=(4,),
            hiera_background=4,
            hidden=64,
            memory_layers=2,
            memory_feedforward=256,
            fuser_feedforward=128,
            decoder_heads=2,
            decoder_feedforward=256,
            decoder_downsample=1,
            pointer_limit=8,  # as many as a training clip has, so that long videos hold nothing new
            occlusion_embedding=True,
            pointer_time_encoding=True,
        ),
        text=TextConfig(
            vocabulary=vocabulary,
            width=64,
            layers=4,
            heads=4,
            feedforward=128,
            positions=66,
            segment_ends=(1, 2, 3, 4),
        ),
        adapter_width=64,
        adapter_heads=4,
        short_side=SIDE,
        cme=False,
    )


@torch.no_grad()
def initialise(model: Samwise) -> None:
    """Draw weights from which a narrow model learns.

    transformers draws normals of 0.02, far too small for layers 64 wide: training then sits for long where every
    object is selected whatever the sentence.

    Args:
        model: Changed in place.
    """
    for part in model.frozen_parts():
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm | nn.Embedding):
                module.reset_parameters()
        for name, parameter in part.named_parameters():
            if name.endswith("memory_temporal_positional_encoding"):
                parameter.normal_(std=0.5)
            elif name.endswith(("pos_embed", "pos_embed_window", "no_object_pointer")):
                parameter.normal_(std=0.2)
            elif name.endswith(("no_memory_embedding", "no_mask_embed.weight", "spatial_embedding_parameter")):
                parameter.normal_(std=0.02)
            elif name.endswith(".scale"):
                parameter.fill_(0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.03  # small batches: a longer average


# Data.


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        pixels: Placed frames (N, T, 3, S, S).
        ids: Token ids (N, L).
        masks: Visible parts of the targets in {0, 1} (N, T, S, S).
        categories: What each sentence tells its object by.
        names: int64 (N, T, S/16, S/16, 2), see ``cell_names``.
    """

    pixels: Tensor
    ids: Tensor
    masks: Tensor
    categories: list[str]
    names: Tensor


def cell_names(clip: Clip) -> Tensor:
    """Which object fills each cell of stride 16.

    Args:
        clip: The clip.

    Returns:
        int64 (T, S/16, S/16, 2): position of its shape in ``KINDS``, ``len(KINDS)`` for background, and of its colour
        in ``COLOURS``; -100 where there is none or it is unclear.
    """
    height, width = clip.frames.shape[1:3]
    masks = F.pad(torch.from_numpy(clip.masks).float(), (0, SIDE - width, 0, SIDE - height))
    cover = F.avg_pool2d(masks, 16)  # (K, T, S/16, S/16)
    most, which = cover.max(dim=0)
    things = clip.scene.things
    kinds = torch.tensor([list(KINDS).index(thing.kind) for thing in things])[which]
    colours = torch.tensor([list(COLOURS).index(thing.colour) for thing in things])[which]
    clear = most > 0.35
    kinds = torch.where(cover.sum(0) < 0.02, len(KINDS), torch.where(clear, kinds, -100))
    return torch.stack([kinds, torch.where(clear, colours, -100)], dim=-1)


def naming_loss(answers: Tensor, names: Tensor) -> Tensor:
    """Cross-entropy of shape and colour of each cell; there is much background, so it counts little.

    Args:
        answers: (..., len(KINDS) + 1 + len(COLOURS)).
        names: (..., 2), see ``cell_names``.

    Returns:
        A scalar.
    """
    answers, names = answers.flatten(0, -2), names.flatten(0, -2)
    weight = torch.ones(len(KINDS) + 1)
    weight[-1] = 0.1
    kinds, colours = answers.split([len(KINDS) + 1, len(COLOURS)], dim=1)
    return F.cross_entropy(kinds, names[:, 0], weight) + 0.3 * F.cross_entropy(colours, names[:, 1])


def place(clip: Clip) -> Tensor:
    """Frames of a clip as the model sees them, float32 (T, 3, S, S)."""
    placement = letterbox((clip.frames.shape[1], clip.frames.shape[2]), SIDE, SIDE)
    return torch.stack([placement.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in clip.frames])


def choose(asked: Sequence[Question], weights: Sequence[float], rng: np.random.Generator) -> list[Question]:
    """Two sentences about a clip, by category; about different objects where possible.

    Two sentences over the same picture leave nothing but the words to tell the masks apart.
    """
    chosen: list[Question] = []
    for _ in range(2):
        fresh = [q for q in asked if not chosen or q.target != chosen[0].target]
        pool: dict[str, list[Question]] = defaultdict(list)
        for question in fresh or asked:
            pool[question.category].append(question)
        names = [c for c in CATEGORIES if c in pool]
        odds = np.array([weights[CATEGORIES.index(c)] for c in names])
        if odds.sum() == 0:
            odds = np.ones(len(names))
        candidates = pool[names[int(rng.choice(len(names), p=odds / odds.sum()))]]
        chosen.append(candidates[int(rng.integers(len(candidates)))])
    return chosen


def draw_batch(seed: list[int], frames: int, phase: Phase, tokenizer: Tokenizer) -> Batch:
    """Draw a batch: every clip is shown with two sentences.

    Args:
        seed: The batch follows from it.
        frames: T.
        phase: How many frames and which sentences.
        tokenizer: Reads the sentences.

    Returns:
        The batch.
    """
    rng = np.random.default_rng(seed)
    pixels, ids, masks, categories, names = [], [], [], [], []
    taste = Taste(alike=phase.alike)
    for index in range(max(2, phase.batch // frames // 2)):
        clip = random_clip([*seed, index], frames, SIZES[int(rng.integers(len(SIZES)))], taste)
        placed, named = place(clip), cell_names(clip)
        for question in choose(questions(clip, rng), phase.weights, rng):
            target = clip.masks[question.target or 0] & (question.target is not None)
            height, width = clip.frames.shape[1:3]
            masks.append(F.pad(torch.from_numpy(target).float(), (0, SIDE - width, 0, SIDE - height)))
            pixels.append(placed)
            ids.append(torch.tensor(tokenizer.encode(question.text)[0]))
            categories.append(question.category)
            names.append(named)
    return Batch(torch.stack(pixels), pad_tokens(ids, pad=1), torch.stack(masks), categories, torch.stack(names))


def draw_pictures(seed: list[int], phase: Phase) -> tuple[Tensor, Tensor]:
    """Pictures alone, with what is in their cells.

    Args:
        seed: They follow from it.
        phase: How many and what kind.

    Returns:
        Placed frames (N, 3, S, S) and ``cell_names`` (N, S/16, S/16, 2).
    """
    rng = np.random.default_rng(seed)
    sizes = [SIZES[int(rng.integers(len(SIZES)))] for _ in range(phase.batch)]
    clips = [random_clip([*seed, i], 1, size, Taste(alike=phase.alike)) for i, size in enumerate(sizes)]
    return torch.cat([place(clip) for clip in clips]), torch.cat([cell_names(clip) for clip in clips])


# Training.


def unroll(model: Samwise, pixels: Tensor, ids: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run a clip in chunks that the adapters see at once, with one memory throughout, as at inference.

    Args:
        model: The model, in training mode.
        pixels: (N, T, 3, S, S).
        ids: (N, L).
        chunk: Frames in a chunk.

    Returns:
        Mask logits (N, T, S/4, S/4), object score logits (N, T), and the output of the third Hiera stage
        (N, T, S/16, S/16, C).
    """
    verbs = torch.zeros_like(ids, dtype=torch.bool)
    tracks = [model.begin_tokens(row.tolist()) for row in ids]
    masks, scores, stages = [], [], []
    for part in pixels.split(chunk, dim=1):
        clip = model.encode(part, ids, verbs)
        stages.append(clip.stages[2])
        for moment in range(part.shape[1]):
            frame = model.track_frame(clip, moment, tracks)
            masks.append(frame.mask_logits[:, 0])
            if frame.score is not None:
                scores.append(frame.score)
    return torch.stack(masks, dim=1), torch.stack(scores, dim=1), torch.cat(stages, dim=1)


def name_cells(model: Samwise, namer: nn.Module, pixels: Tensor, names: Tensor) -> Tensor:
    """The naming loss of the image encoder by itself, without sentences or adapters.

    Args:
        model: The model.
        namer: The auxiliary head.
        pixels: (N, 3, S, S).
        names: (N, S/16, S/16, 2).

    Returns:
        A scalar.
    """
    tokens = model.tracker.embed_patches(pixels)
    for stage in range(3):
        tokens = model.tracker.encode_stage(stage, tokens)
    return naming_loss(namer(tokens), names)


def loss_of(mask_logits: Tensor, score: Tensor, masks: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Focal and dice loss on masks, binary cross-entropy on the object score.

    Args:
        mask_logits: (N, T, S/4, S/4).
        score: (N, T).
        masks: (N, T, S, S).

    Returns:
        The loss, and its parts for the log.
    """
    logits = F.interpolate(mask_logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
    rows, truth = logits.flatten(0, 1).flatten(1), masks.flatten(0, 1).flatten(1)  # (N*T, S*S)
    area = truth.sum(1)
    seen = area >= LEAST_AREA
    # Where nothing is to be seen only the focal loss speaks: memories of such frames should be empty.
    focal = sigmoid_focal_loss(rows, truth, len(rows))
    dice = dice_loss(rows[seen], truth[seen], max(1, int(seen.sum())))
    taught = seen | (area == 0)
    presence = F.binary_cross_entropy_with_logits(score.flatten()[taught], seen[taught].float())
    parts = {"focal": focal.item(), "dice": dice.item(), "presence": presence.item()}
    return 20 * focal + dice + 0.5 * presence, parts


def clip_loss(
    model: Samwise, namer: nn.Module, batch: Batch, chunk: int, phase: Phase, history: dict[str, list[float]]
) -> Tensor:
    """The loss of a batch of clips.

    Args:
        model: The model, in training mode.
        namer: The auxiliary head.
        batch: The batch.
        chunk: Frames that the adapters see at once.
        phase: Tells the weight of the naming loss.
        history: What the log tells; added to.

    Returns:
        A scalar.
    """
    mask_logits, score, stage = unroll(model, batch.pixels, batch.ids, chunk)
    loss, parts = loss_of(mask_logits, score, batch.masks)
    if phase.naming:
        naming = naming_loss(namer(stage), batch.names)
        loss, parts["naming"] = loss + phase.naming * naming, naming.item()
    for name, value in parts.items():
        history[name].append(value)
    with torch.no_grad():
        guess = F.interpolate(mask_logits, size=(SIDE, SIDE), mode="bilinear") > 0
        ious = frame_ious(guess, batch.masks > 0)
        seen = batch.masks.flatten(2).sum(2) >= LEAST_AREA
        for index, category in enumerate(batch.categories):
            if seen[index].any():
                history[category].append(float(ious[index][seen[index]].mean()))
        history["score"].append(float(((score > 0) == seen).float().mean()))
    return loss


def frame_ious(predicted: Tensor, truth: Tensor) -> Tensor:
    """IoU of masks, 1 where both are empty.

    Args:
        predicted: bool (..., H, W).
        truth: bool (..., H, W).

    Returns:
        (...).
    """
    union = (predicted | truth).flatten(-2).sum(-1)
    return torch.where(union == 0, 1.0, (predicted & truth).flatten(-2).sum(-1) / union.clamp(min=1))


def set_training(model: Samwise, freeze_norms: bool) -> None:
    """Training mode; there is no dropout to switch on, only the adapters' batch norms take part."""
    model.train()
    if freeze_norms:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def learning_rate(phase: Phase, step: int) -> float:
    """Cosine from the phase's first to its last rate, after a warm-up of 60 steps."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / phase.steps)
    return (phase.final_rate + (phase.rate - phase.final_rate) * cosine) * min(1.0, (step + 1) / 60)


def save_state(
    path: Path, model: Samwise, namer: nn.Module, optimizer: torch.optim.Optimizer, phase: int, step: int
) -> None:
    """Write everything that training needs to go on, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    state = {"model": model.state_dict(), "namer": namer.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"phase": phase, "step": step}, temporary)
    os.replace(temporary, path)


def train(model: Samwise, tokenizer: Tokenizer, state: Path, seed: int, out: Path) -> None:
    """Go through all phases, from ``state`` on if it is there; the checkpoint is written after each phase.

    Args:
        model: Changed in place.
        tokenizer: Reads the sentences.
        state: Where the training state is kept.
        seed: Data and weights follow from it.
        out: The checkpoint folder.
    """
    model.requires_grad_(True)
    model.cme.requires_grad_(model.config.cme)
    width = model.config.sam2.stage_widths[2]
    namer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(KINDS) + 1 + len(COLOURS)))  # leaves after training
    parameters = [p for p in [*model.parameters(), *namer.parameters()] if p.requires_grad]
    first_phase, first_step = 0, 0
    saved = None
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        namer.load_state_dict(saved["namer"])
        first_phase, first_step = saved["phase"], saved["step"]
        print(f"resumed {PHASES[min(first_phase, len(PHASES) - 1)].name} at step {first_step}", flush=True)
    for number in range(first_phase, len(PHASES)):
        phase = PHASES[number]
        set_training(model, phase.freeze_norms)
        optimizer = torch.optim.AdamW(parameters, lr=phase.rate, weight_decay=0.01)  # every phase warms up afresh
        if saved is not None and first_step:
            optimizer.load_state_dict(saved["optimizer"])
        history: dict[str, list[float]] = defaultdict(list)
        started = time.monotonic()
        for step in range(first_step, phase.steps):
            rng = np.random.default_rng([seed, number, step])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, step)
            if phase.pictures_only:
                loss = name_cells(model, namer, *draw_pictures([seed, number, step, 1], phase))
                history["naming"].append(loss.item())
            else:
                frames = int(rng.choice(phase.frames))
                # Mostly whole clips; sometimes shorter looks over one memory, as a camera or a video's end gives.
                chunk = frames if rng.random() < 0.75 else int(rng.choice((1, 2, 4)))
                batch = draw_batch([seed, number, step, 1], frames, phase, tokenizer)
                loss = clip_loss(model, namer, batch, chunk, phase, history)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if (step + 1) % 100 == 0 or step + 1 == phase.steps:
                told = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in sorted(history.items()))
                print(f"{phase.name} {step + 1}  {time.monotonic() - started:.0f} s  {told}", flush=True)
                history.clear()
                save_state(state, model, namer, optimizer, number, step + 1)
        first_step = 0
        save_state(state, model, namer, optimizer, number + 1, 0)
        export(model, tokenizer, out)


# The checkpoint.


def export(model: Samwise, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint folder, half precision; the whole folder appears at once.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        folder: Replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".miniature-"))
    temporary.chmod(0o755)
    tokenizer.save_pretrained(temporary)
    config = {
        "model_type": "samwise",
        "refervos_version": __version__,
        "name": "refervos-miniature",
        "config": dataclasses.asdict(model.config),
    }
    (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # Clones, because safetensors refuses tensors that share memory (the two names of the Fourier features do).
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, str(temporary / "model.safetensors"), metadata={"format": "pt"})
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def load(folder: Path) -> Samwise:
    """Read the checkpoint folder back, in single precision and evaluation mode."""
    from safetensors.torch import load_file

    tokenizer = Tokenizer.from_pretrained(folder)
    model = Samwise(miniature_config(len(tokenizer.fast)), tokenizer)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return model.eval()


# Evaluation.


def predict(model: Samwise, clip: Clip, sentences: Sequence[str], chunk: int = 8) -> Bools:
    """Ask a clip through inference.

    Args:
        model: The model, in evaluation mode.
        clip: The clip.
        sentences: N of them.
        chunk: Frames in a look.

    Returns:
        Masks (N, T, H, W).
    """
    size = (clip.frames.shape[1], clip.frames.shape[2])
    placement = model.placement(size)
    tracks = [model.begin(Prompt(expression=sentence)) for sentence in sentences]
    masks = []
    for start in range(0, len(clip.frames), chunk):
        frames = [torch.from_numpy(frame).permute(2, 0, 1) for frame in clip.frames[start : start + chunk]]
        pixels = torch.stack([placement.place(frame) for frame in frames])
        for prediction in model.segment_clip(pixels, tracks, [placement] * len(pixels)):
            masks.append(placement.restore(prediction.mask_logits) > 0)
    return torch.stack(masks, dim=1).numpy()


Table = dict[str, tuple[float, int]]


def evaluate(model: Samwise, clips: int, frames: int = 16, size: tuple[int, int] = (192, 256)) -> Table:
    """Mean IoU of each category on clips that training never drew.

    Args:
        model: The model, in evaluation mode.
        clips: How many.
        frames: Their length.
        size: Their height and width.

    Returns:
        For each category the mean over sentences (of the mean over frames) and the number of sentences; for ``none``
        the share of sentences with no pixel in any frame; for ``control`` the IoU when the sentence of another
        object of the same clip is asked instead.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for index in range(clips):
        rng = np.random.default_rng(HELD_OUT + index)
        clip = random_clip(HELD_OUT + index, frames, size, Taste())
        asked = questions(clip, rng)
        masks = torch.from_numpy(predict(model, clip, [q.text for q in asked]))
        truths = torch.from_numpy(clip.masks)
        for question, mask in zip(asked, masks, strict=True):
            if question.target is None:
                found["none"].append(float(not mask.any()))
                continue
            truth = truths[question.target]
            found[question.category].append(float(frame_ious(mask, truth).mean()))
            wrong = [m for q, m in zip(asked, masks, strict=True) if q.target not in (None, question.target)]
            if wrong:
                found["control"].append(float(frame_ious(wrong[int(rng.integers(len(wrong)))], truth).mean()))
    return {name: (float(np.mean(found[name])), len(found[name])) for name in (*CATEGORIES, "control") if found[name]}


def print_table(results: Table) -> None:
    """Print what ``evaluate`` found."""
    print(f"{'sentence':<14}{'J':>8}{'count':>8}")
    for name, (value, count) in results.items():
        label = {"none": "none (empty)", "control": "other sentence"}.get(name, name)
        print(f"{label:<14}{value:>8.3f}{count:>8}")


def check_demo(model: Samwise, video: Path, pictures: Path | None) -> None:
    """Ask the demo video its sentences and compare with the exact masks.

    Args:
        model: The model, in evaluation mode.
        video: The demo video, written by ``toy_clips.py``; its sentences lie beside it.
        pictures: Folder for overlays of every tenth frame, or None.
    """
    import av
    from PIL import Image

    with av.open(str(video)) as container:
        frames = np.array([f.to_ndarray(format="rgb24") for f in container.decode(video=0)], np.uint8)
    drawn = draw(demo_scene(), len(frames), DEMO_SIZE)
    wanted = json.loads(video.with_suffix(".json").read_text())
    sentences = [*wanted["sentences"], wanted["absent"]]
    masks = predict(model, dataclasses.replace(drawn, frames=frames), sentences)
    for sentence, mask in zip(sentences, masks, strict=True):
        kinds = [f"the {thing.colour} {thing.kind}" for thing in drawn.scene.things]
        truth = drawn.masks[kinds.index(sentence)] if sentence in kinds else np.zeros_like(mask)
        ious = frame_ious(torch.from_numpy(mask), torch.from_numpy(truth))
        print(f"{sentence:<24} J {float(ious.mean()):.3f}, worst frame {int(ious.argmin())}: {float(ious.min()):.3f}")
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            shown = frames[::10].copy()
            on = mask[::10]
            shown[on] = shown[on] // 2 + np.array([0, 127, 0], np.uint8)
            rows = [np.concatenate(list(shown[start : start + 4]), axis=1) for start in (0, 4, 8)]
            Image.fromarray(np.concatenate(rows)).save(pictures / f"{sentence.replace(' ', '-')}.png")


def rounding(exact: Samwise, rounded: Samwise, clips: int = 10) -> float:
    """Mean IoU between the masks of two models, for the effect of half precision."""
    ious = []
    for index in range(clips):
        clip = random_clip(HELD_OUT + index, 8, (128, 128), Taste())
        texts = [q.text for q in questions(clip, np.random.default_rng(index))]
        one, other = (torch.from_numpy(predict(model, clip, texts)) for model in (exact, rounded))
        ious.append(float(frame_ious(one, other).mean()))
    return float(np.mean(ious))


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/refervos/assets/miniature"), help="checkpoint folder")
    parser.add_argument("--state", type=Path, default=Path("build/miniature/state.pt"), help="training state")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, default=100, help="clips to evaluate on")
    parser.add_argument("--demo", type=Path, default=Path("examples/data/shapes.mp4"), help="video to check it on")
    parser.add_argument("--pictures", type=Path, help="folder for overlays of the demo video")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate the checkpoint in --out")
    parser.add_argument("--export", action="store_true", help="write the checkpoint of --state as it is, and evaluate")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if not args.evaluate:
        tokenizer = train_tokenizer(args.state.parent / "tokenizer")
        model = Samwise(miniature_config(len(tokenizer.fast)), tokenizer)
        initialise(model)
        if args.export:
            model.load_state_dict(torch.load(args.state, weights_only=True)["model"])
            export(model, tokenizer, args.out)
        else:
            train(model, tokenizer, args.state, args.seed, args.out)
        print(f"IoU between single and half precision: {rounding(model.eval(), load(args.out)):.4f}")
    model = load(args.out)
    print_table(evaluate(model, args.clips))
    if args.demo.exists():
        check_demo(model, args.demo, args.pictures)


if __name__ == "__main__":
    main()

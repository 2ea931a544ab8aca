"""Memory and time of training steps of the published sizes on this device."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch

from on_gpu.context import ROOT, Context, Values, clear_memory, table

RECIPES = (
    "samwise-refcoco",
    "samwise-mevis",
    "samwise-ref-youtube-vos",
    "refsam-refcoco",
    "refsam-ref-youtube-vos",
)

FRAME = (480, 854)
"""Height and width of the frames of random clips."""


def training(context: Context) -> Values:
    """Make one optimiser step of each published recipe at its size, with random weights and random clips."""
    rows: list[list[str]] = []
    values: Values = {"recipes": {}}
    wrong: list[str] = []
    for name in RECIPES:
        try:
            found = training_step(name, context)
        except Exception as error:
            wrong.append(f"{name}: " + " ".join(f"{type(error).__name__}: {error}".split())[:200])
            found = {"error": wrong[-1]}
        else:
            fits = f"{found['at once']} of {found['recipe at once']}"
            step = f"{found['step seconds']:.2f}"
            peak = "-" if found["peak megabytes"] is None else f"{found['peak megabytes']:.0f}"
            rows.append([name, str(found["batch"]), fits, step, peak, f"{found['loss']:.3f}"])
            if not (math.isfinite(found["loss"]) and math.isfinite(found["gradient norm"])):
                wrong.append(f"{name}: loss {found['loss']}, gradient norm {found['gradient norm']}")
        values["recipes"][name] = found
        values["short"] = f"{len(rows)} recipes made a step, {len(wrong)} are wrong"
        columns = ["recipe", "clips a step", "at once (that fit)", "s a step", "peak GPU MB", "loss"]
        values["markdown"] = "\n".join([table(columns, rows), *(f"- {line}" for line in wrong)])
        context.keep(values)
        clear_memory(context)
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return values


def training_step(name: str, context: Context) -> Values:
    """Make a step of a recipe, with more gradient accumulation if the GPU runs out of memory.

    Args:
        name: Name of the recipe.
        context: Options of the part.

    Returns:
        Seconds of a step, peak memory, loss and gradient norm.

    Raises:
        OutOfMemoryError: When not even one clip fits.
    """
    from refervos.training.recipe import read_recipe
    from refervos.training.trainer import optimiser_for

    (recipe,) = read_recipe(ROOT / "recipes" / f"{name}.yaml").stages
    stage = published_stage(recipe, context).train()
    rule = recipe.optimiser
    optimiser = optimiser_for(stage, lr=rule.rate, betas=rule.betas, weight_decay=rule.weight_decay)
    batch, accumulate = (1, 1) if context.quick else (recipe.batch, recipe.accumulate)
    recipe_at_once = at_once = batch // accumulate
    while True:
        try:
            clear_memory(context)
            for _ in range(1 if context.quick else 2):  # the first one also chooses kernels
                seconds, loss, norm = make_step(stage, optimiser, recipe, at_once, batch // at_once, context.device)
            break
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
        # Outside of the handler, which keeps the tensors of the step alive.
        optimiser.zero_grad(set_to_none=True)
        at_once //= 2
    return {
        "batch": batch,
        "recipe at once": recipe_at_once,
        "at once": at_once,
        "precision": recipe.precision or "float32",
        "step seconds": seconds,
        "peak megabytes": torch.cuda.max_memory_allocated() / 1e6 if context.on_gpu else None,
        "loss": loss,
        "gradient norm": norm,
    }


def make_step(
    stage: Any, optimiser: torch.optim.Optimizer, recipe: Any, at_once: int, accumulate: int, device: str
) -> tuple[float, float, float]:
    """Make an optimiser step of random clips like the trainer.

    Returns:
        Seconds, loss, and norm of the gradient before clipping.
    """
    from refervos.training.sampler import to_device

    batches = [to_device(random_batch(stage, at_once), torch.device(device)) for _ in range(accumulate)]
    start = time.perf_counter()
    loss = torch.zeros((), device=device)
    for batch in batches:
        part = stage(batch)["loss"] / accumulate
        part.backward()
        loss += part.detach()
    clip_norm = math.inf if recipe.optimiser.clip_norm is None else recipe.optimiser.clip_norm
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    total = float(loss)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, total, norm


def published_stage(recipe: Any, context: Context) -> Any:
    """Build a recipe's stage over frozen parts of the published size with random weights, on the device.

    Args:
        recipe: The stage's recipe.
        context: Options of the part; with ``quick`` the frozen parts have the size of the packaged models.
    """
    from refervos import load
    from refervos.bench.families import FAMILIES
    from refervos.refsam.config import REFSAM_PRESETS
    from refervos.samwise.config import SAMWISE_PRESETS
    from refervos.training.stage import stage_class
    from refervos.typed_config import config_from_mapping

    kind = stage_class(recipe.stage)
    settings: Any = config_from_mapping(kind.Settings, recipe.settings, f"settings of stage {recipe.name!r}")
    torch.manual_seed(0)
    if recipe.stage == "refsam":
        family = FAMILIES["refsam"]
        size: Any = load("refsam-miniature", device="cpu").config if context.quick else REFSAM_PRESETS["vit-b"]
        config: Any = dataclasses.replace(settings.model, sam=size.sam, text=size.text)
    else:
        family = FAMILIES["samwise"]
        size = load("miniature", device="cpu").config if context.quick else SAMWISE_PRESETS["base-plus"]
        images = recipe.stage == "images"
        sam2 = dataclasses.replace(size.sam2, object_score=settings.object_score if images else True)
        config = dataclasses.replace(
            settings.model,
            sam2=sam2,
            text=size.text,
            cme=settings.model.cme and not images,
            adapter_width=size.adapter_width,
            adapter_heads=size.adapter_heads,
            short_side=size.short_side,
        )
    with torch.device(context.device):  # drawing all weights takes long on a CPU
        model = family.random(config)
    if recipe.stage == "refsam":
        model.gradient_checkpointing = settings.gradient_checkpointing
    stage: Any = kind(settings, model.to(context.device))
    return stage.to(context.device)


def random_batch(stage: Any, clips: int) -> Any:
    """Make a batch of random clips of the stage's length, each with a box as ground truth, on the CPU."""
    from refervos.training.stages.referring import ReferringSource

    settings, model = stage.settings, stage.model
    frames, side = max(settings.frames), model.image_size
    height, width = model.placement(FRAME).resized
    ground_truth = torch.zeros(settings.sentences, frames, side, side, dtype=torch.bool)
    ground_truth[..., height // 4 : height // 2, width // 4 : width // 2] = True
    ids, verbs = model.read("the large dog on the left that jumps over the fence")
    sample = {
        "ids": [torch.tensor(ids)] * settings.sentences,
        "verbs": [torch.tensor(verbs)] * settings.sentences,
        "ground_truth": ground_truth,  # (M, T, S, S)
        "frame_sizes": [(height, width)] * settings.sentences,
        "families": ["random"] * settings.sentences,
        "decidable": torch.zeros(settings.sentences, dtype=torch.long),
        "chunk": None,
        "kind": 0,
    }
    source = ReferringSource(settings, {}, model)
    return source.collate([[{**sample, "pixels": torch.randn(frames, 3, side, side)}] for _ in range(clips)])

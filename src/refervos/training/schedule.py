"""Learning rate as a pure function of the step, so that it has no state to save."""

from __future__ import annotations

import math

from refervos.training.recipe import StageRecipe


def learning_rate(recipe: StageRecipe, step: int) -> float:
    """Compute the learning rate of an optimiser step: a linear warm-up, then the recipe's schedule.

    Args:
        recipe: The stage's recipe.
        step: Number of steps made before this one.

    Returns:
        The rate; ``rate`` at the first step after the warm-up and, unless constant, ``final_rate`` at the last step.
    """
    optimiser = recipe.optimiser
    if step < optimiser.warmup:
        return optimiser.rate * (step + 1) / (optimiser.warmup + 1)
    if recipe.schedule == "constant":
        return optimiser.rate
    progress = (step - optimiser.warmup) / max(1, recipe.steps - 1 - optimiser.warmup)  # 0 ... 1
    share = (1 + math.cos(math.pi * progress)) / 2 if recipe.schedule == "cosine" else 1 - progress
    return optimiser.final_rate + (optimiser.rate - optimiser.final_rate) * share

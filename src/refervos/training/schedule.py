"""The learning rate as a pure function of the step, so that nothing about it needs to be saved."""

from __future__ import annotations

import math

from refervos.training.recipe import StageRecipe


def learning_rate(recipe: StageRecipe, step: int) -> float:
    """The rate of an optimiser step: a linear warm-up, then the recipe's schedule.

    Args:
        recipe: The stage's recipe.
        step: Steps made before it, from 0.

    Returns:
        The rate; ``rate`` at the first step after the warm-up and, unless constant, ``final_rate`` at the last step.
    """
    optimiser = recipe.optimiser
    if step < optimiser.warmup:
        return optimiser.rate * (step + 1) / (optimiser.warmup + 1)
    if recipe.schedule == "constant":
        return optimiser.rate
    gone = (step - optimiser.warmup) / max(1, recipe.steps - 1 - optimiser.warmup)  # 0 ... 1
    left = (1 + math.cos(math.pi * gone)) / 2 if recipe.schedule == "cosine" else 1 - gone
    return optimiser.final_rate + (optimiser.rate - optimiser.final_rate) * left

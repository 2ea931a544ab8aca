"""Average the trained weights of two models of the same shape, such as two stages of one recipe.

    python -m refervos.training.weight_mean IMAGES_MODEL CLIPS_MODEL --share 0.6 --out MEAN_MODEL

A stage on clips makes a model forget part of what a stage on images taught it. The mean of both keeps most of either
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from refervos.errors import ConfigError
from refervos.loading import load
from refervos.model_base import TrainableModel


def average_into(model: TrainableModel, other: TrainableModel, share: float) -> None:
    """Replace a model's trained weights, and the statistics of their norms, by a mean with those of another model.

    Parts that only one of the models trains keep the weights of ``model``: a stage on images has no CME.

    Args:
        model: Changed in place.
        other: A model of the same class with the same frozen parts.
        share: Share of ``other`` in the mean, from 0 to 1.

    Raises:
        ConfigError: When the models do not fit each other, or the share is none.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share is {share}; it must be between 0 and 1.")
    if type(other) is not type(model):
        raise ConfigError(f"a {type(model).__name__} and a {type(other).__name__} have no mean; give two of one class.")
    for own, theirs in zip(model.frozen_parts(), other.frozen_parts(), strict=True):
        known = theirs.state_dict()
        same = [name in known and torch.equal(value, known[name]) for name, value in own.state_dict().items()]
        if not all(same):
            raise ConfigError("the models have different frozen parts; only models over the same ones have a mean.")
    trained = other.trained_parts()
    with torch.no_grad():
        for part, module in model.trained_parts().items():
            if part not in trained:
                continue
            theirs_by_name = trained[part].state_dict()
            for name, value in module.state_dict().items():
                theirs_value = theirs_by_name.get(name)
                if theirs_value is None or theirs_value.shape != value.shape:
                    raise ConfigError(f"the models' {part} have different shapes; only equal ones have a mean.")
                if value.is_floating_point():
                    value.lerp_(theirs_value.to(value), share)


def main() -> None:
    """Average two model folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", help="model folder whose share is given")
    parser.add_argument("model", help="model folder that provides the rest and everything that is not averaged")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, other = (load(folder, device="cpu") for folder in (options.model, options.other))
    if not isinstance(model, TrainableModel) or not isinstance(other, TrainableModel):
        raise SystemExit("give two models that can be trained on sentences.")
    try:
        average_into(model, other, options.share)
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    model.save_pretrained(options.out)


if __name__ == "__main__":
    main()

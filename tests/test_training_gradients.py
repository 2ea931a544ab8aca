"""Which parameters get gradients, and which numbers losses are averaged over, in every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from refervos.training.plan import make_plans
from refervos.training.stage import TRAIN, Stage
from refervos.training.trainer import optimiser_for
from small_stages import SETTINGS, small_recipe, small_stage


def built(name: str, **settings: Any) -> Stage:
    """Build a stage with its data, in training mode."""
    (plan,) = make_plans(small_recipe(small_stage(name, settings=settings)), Path("unused"))
    torch.manual_seed(0)
    stage = plan.kind.build(plan.settings, plan.init, 5)
    stage.prepare_data(4, 1)
    return stage.train()


def batch_of(stage: Stage, step: int, size: int = 2) -> Any:
    source = stage.source()
    return source.collate([source.draw(step, index, (5, 0, TRAIN)) for index in range(size)])


VARIANTS: list[tuple[str, dict[str, Any], bool]] = [
    *((name, {}, name != "track") for name in SETTINGS),
    ("video", {"frames": [6]}, True),  # the first length at which the CME runs
    ("video", {"frames": [1, 6]}, False),
    ("refsam", {"frames": [1]}, True),
    ("refsam", {"frames": [1, 2]}, False),
    ("vision", {"learns": ["image"]}, True),
    ("conversation", {"trained": []}, True),
    ("conversation", {"image_only": 1.0}, False),
    ("conversation", {"trained": ["mask decoder"]}, False),
]


@pytest.mark.parametrize(("name", "settings", "expected"), VARIANTS, ids=lambda value: str(value))
def test_a_stage_knows_whether_every_parameter_gets_a_gradient(
    name: str, settings: dict[str, Any], expected: bool
) -> None:
    stage = built(name, **settings)
    learnt = [parameter for group in optimiser_for(stage).param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in stage.named_parameters()}
    missing: set[str] = set()
    for step in range(2):
        stage.zero_grad(set_to_none=True)
        stage(batch_of(stage, step))["loss"].backward()
        missing |= {names[parameter] for parameter in learnt if parameter.grad is None}
    assert stage.trains_everything_always() is expected
    assert expected is (not missing), sorted(missing)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("conversation", {}),
        ("conversation", {"padded_masks": 4}),
        ("conversation-first", {}),
        ("images", {"published_losses": True}),
        ("refsam", {"published_losses": True}),
    ],
    ids=lambda value: str(value),
)
def test_numbers_of_items_are_known_without_the_model(name: str, settings: dict[str, Any]) -> None:
    stage = built(name, **settings)
    batch = batch_of(stage, 0)
    counts = stage.counts(batch)
    assert counts is not None
    with stage.mean.recording() as recorded:
        stage(batch)
    for mean, count in counts.items():
        assert recorded[mean] == count, mean
    # Others may be means for the log only; the loss has no gradient from them.
    with stage.mean.recording():
        loss = stage(batch)["loss"]
    if not counts:
        assert loss != 0  # it does not consist of such means, which are zero while they are recorded
    else:
        assert counts.keys() == recorded.keys()

"""Write the model card: the ``README.md`` of a model folder, which the hub shows and by which it finds the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.errors import CheckpointError, ConfigError
from refervos.markdown import markdown_table, number
from refervos.safe_text import one_line
from refervos.typed_config import config_from_mapping

CARD = "README.md"

LIBRARY = "refervos"

PIPELINE = "mask-generation"
"""The hub's task for models that return masks; it has none for referring segmentation."""

_MARK = "<!-- Written by refervos. Delete this line, and saving the model again keeps this file. -->"

_USAGE = """\
```python
import refervos

model = refervos.load("{repository}")
session = model.open([{prompt}])
for frame in refervos.open_source("video.mp4"):
    masks = session.step(frame.image).masks  # bool (1, H, W)
```"""

_SAFETY = (
    "The weights are safetensors and the repository has no code: loading it executes nothing, and `trust_remote_code` "
    "is never needed. After `import refervos.hf; refervos.hf.register()` it also loads with transformers' "
    '`AutoConfig`, `AutoModel` and `pipeline("referring-video-segmentation")`.'
)

_DRAWINGS = (
    "> **Drawings only.** This model was trained on synthetic drawings and knows {count} words. For other words and "
    "for real videos its masks are guesses, however confident they look."
)


@dataclass(frozen=True)
class CardDetails:
    """Facts about a model that do not follow from its weights, named as in the hub's metadata.

    They are kept in ``config.json``, so that a model that is loaded and saved again keeps them.

    Attributes:
        license: Identifier of the licence in the hub's spelling, such as ``apache-2.0``, or ``other``.
        license_name: Name of another licence.
        license_link: Address of its text.
        base_model: Hub ids of the models that it was made from.
        datasets: Data sets on which it was trained.
        language: Languages of the expressions.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ("en",)


@dataclass(frozen=True)
class MeasuredResult:
    """A measured value with its interval.

    Attributes:
        dataset: Name of the data set.
        split: Its split.
        measure: Name of the measure.
        value: Mean in percent.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        command: Command that measured it, if known.
        weights: SHA-256 of the measured weights, see ``weights_digest``.
    """

    dataset: str
    split: str
    measure: str
    value: float
    low: float
    high: float
    command: str | None
    weights: str


def read_details(header: Mapping[str, Any], where: str) -> CardDetails:
    """Read the details in a model's ``config.json``.

    Args:
        header: Its content.
        where: Its path, for error messages.

    Returns:
        The details; those of folders without them are empty.

    Raises:
        CheckpointError: When they are malformed.
    """
    values = header.get("card", {})
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} has a field 'card' that is not an object; correct or delete it.")
    try:
        details: CardDetails = config_from_mapping(CardDetails, values, f"the card in {where}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return details


def details_for_header(details: CardDetails) -> dict[str, Any]:
    """Return the details as plain values for ``config.json``, without empty ones."""
    return {name: value for name, value in dataclasses.asdict(details).items() if value}


def is_edited(card: Path) -> bool:
    """Return whether a card was written or edited by a person, and so must be kept."""
    return card.is_file() and _MARK not in card.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class CardText:
    """What a card says about a model besides its details and results.

    Attributes:
        description: The model's ``describe()``.
        tags: Tags by which the hub finds the model.
        prompt: Python expression of a prompt, for the example.
        words: Closed vocabulary of a model that was trained on drawings; empty for an open vocabulary.
        repository: Hub id, if it is known.
    """

    description: Mapping[str, Any]
    tags: Sequence[str]
    prompt: str
    words: Sequence[str] = ()
    repository: str | None = None


def write_card(folder: Path, text: CardText, details: CardDetails, results: Sequence[MeasuredResult] = ()) -> None:
    """Write the card of a model.

    Args:
        folder: An existing folder.
        text: Description of the model.
        details: Licence, origin and data.
        results: Results of exactly these weights.
    """
    family = str(text.description["family"])
    name = family if text.repository is None else text.repository.rpartition("/")[2]
    parts = [
        f"---\n{_metadata(name, text.tags, details, results)}\n---",
        f"# {name}",
        f"{family} with {text.description['total'] / 1e6:,.1f} million parameters, for video object segmentation with "
        f"`{LIBRARY}`: a video and a prompt in, the masks of the object in every frame out.",
        _DRAWINGS.format(count=len(text.words)) if text.words else "",
        _USAGE.format(repository=text.repository or "path/to/this/folder", prompt=text.prompt),
        _SAFETY,
        _origin(details),
        _results(results),
        _MARK,
    ]
    (folder / CARD).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _metadata(name: str, tags: Sequence[str], details: CardDetails, results: Sequence[MeasuredResult]) -> str:
    """Return the metadata that the hub reads, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    measured = [
        EvalResult(
            task_type=PIPELINE,
            task_name="video object segmentation",
            dataset_type=each.dataset,
            dataset_name=each.dataset,
            dataset_split=each.split,
            metric_type=each.measure,
            metric_name=each.measure,
            metric_value=round(each.value, 2),
            metric_args={"interval_95": [round(each.low, 2), round(each.high, 2)], "command": each.command},
        )
        for each in results
    ]
    data = ModelCardData(
        license=details.license,
        license_name=details.license_name,
        license_link=details.license_link,
        library_name=LIBRARY,
        pipeline_tag=PIPELINE,
        tags=list(tags),
        base_model=list(details.base_model) or None,
        datasets=list(details.datasets) or None,
        language=list(details.language) or None,
        eval_results=measured or None,
        model_name=name if measured else None,
    )
    return data.to_yaml().strip()


def _origin(details: CardDetails) -> str:
    """Return sentences on licence, base models and training data."""
    licence = details.license_name or details.license or "not stated"
    if details.license_link:
        licence = f"[{licence}]({details.license_link})"
    sentences = [f"Licence of the weights: {licence}."]
    if details.base_model:
        sentences.append(f"Made from {', '.join(details.base_model)}.")
    if details.datasets:
        sentences.append(f"Trained on {', '.join(details.datasets)}.")
    return " ".join(map(one_line, sentences))


def _results(results: Sequence[MeasuredResult]) -> str:
    """Return the results as a section with a table and the commands that measured them."""
    if not results:
        return ""
    rows = [
        [f"{each.dataset} {each.split}", each.measure, number(each.value), f"{number(each.low)} to {number(each.high)}"]
        for each in results
    ]
    commands = dict.fromkeys(each.command for each in results if each.command)
    table = markdown_table(["data", "measure", "value", "95 % interval"], rows)
    measured = "\n".join(["Measured by:", "", "```", *map(one_line, commands), "```"]) if commands else ""
    paragraphs = ["## Results", "In percent; intervals are bootstrapped over videos.", table, measured]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)

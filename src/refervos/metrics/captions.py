"""CIDEr and METEOR of generated texts, by the scorers of published numbers.

Published scores of VideoGLaMM are pycocoevalcap's: texts are tokenised by Stanford's PTB tokenizer, CIDEr is the
package's (CIDEr-D: clipped counts and a length penalty, Vedantam et al. 2015, section 7), METEOR is version
1.5 (Denkowski and Lavie 2014). The tokenizer and METEOR are Java programs inside the package.

Without ``java`` on the path, NLTK replaces both: its Treebank tokenizer, and its METEOR with the weights of
version 1.5 (alpha 0.85, beta 0.2, gamma 0.6), which matches words and stems but neither synonyms nor paraphrases, and
has no list of function words. Such scores have names of their own. On 595 pairs of expressions about synthetic objects
(two wordings per object) the tokens and therefore CIDEr (0.765) were the same; METEOR was 0.146 on average, against
0.143 of version 1.5, with a correlation of 0.85 and a mean absolute difference of 0.039 per pair.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refervos.errors import EvaluationError, require_installed

LONGEST_TEXT = 2000
"""Number of characters of a text that the released script scores."""

TAGS = re.compile(r"<.*?>|\[SEG\]")
"""Markup to remove: ``<p>``, ``</p>``, roles of the chat template, and the segmentation token."""

METEOR_WEIGHTS = {"alpha": 0.85, "beta": 0.2, "gamma": 0.6}
"""Weights of METEOR 1.5 for English that NLTK supports."""

EXTRA = "captions"


@dataclass(frozen=True)
class CaptionScores:
    """Similarity of generated texts to their references.

    Attributes:
        cider: CIDEr of all texts, 0 to 10; None for fewer than two texts, where word weights are undefined.
        ciders: CIDEr of each text, with the mean ``cider``; empty where that is None.
        meteor: METEOR of all texts, in [0, 1]: version 1.5 pools its counts, NLTK's is the mean over the texts.
        meteors: METEOR of each text.
        published: True for the Java scorers of published numbers, False for NLTK.
    """

    cider: float | None
    ciders: tuple[float, ...]
    meteor: float
    meteors: tuple[float, ...]
    published: bool

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two scores in tables."""
        return ("CIDEr", "METEOR") if self.published else ("CIDEr (NLTK tokens)", "METEOR (NLTK)")


def cleaned(text: str) -> str:
    """Return a text without tags and the segmentation token, with single spaces, cut to 2000 characters.

    This follows the released script, except that line breaks separate words. For Phi-3, the script also keeps the
    question before the answer (it searches for ``ASSISTANT:``, which Phi-3 never writes); this is not reproduced.

    Args:
        text: Text with or without tags, such as ``<p> a dog </p> [SEG] runs.``
    """
    return " ".join(TAGS.sub("", text).split()).strip("'").strip()[:LONGEST_TEXT]


def caption_scores(references: Sequence[str], texts: Sequence[str], *, published: bool | None = None) -> CaptionScores:
    """Score texts, each against one reference.

    Args:
        references: The reference of each text; tags are removed (``cleaned``).
        texts: The generated texts, likewise; a text without words scores 0.
        published: True for the Java scorers of published numbers, False for NLTK; default True if ``java`` is on the
            path.

    Returns:
        The scores.

    Raises:
        EvaluationError: When there are no texts, the number of references differs, or Java is required and fails.
        MissingDependencyError: When a package is not installed.
    """
    if len(references) != len(texts) or not texts:
        raise EvaluationError(
            f"there are {len(texts)} texts and {len(references)} references; give one reference per text."
        )
    require_installed("scoring captions", EXTRA, "pycocoevalcap")
    if published is None:
        published = shutil.which("java") is not None
    if not published:
        require_installed("scoring captions without Java", EXTRA, "nltk")
    cleaned_texts = [cleaned(text) for text in (*references, *texts)]
    tokens = _ptb_tokens(cleaned_texts) if published else _nltk_tokens(cleaned_texts)
    reference_tokens, text_tokens = tokens[: len(references)], tokens[len(references) :]
    ciders = _ciders(reference_tokens, text_tokens)
    meteor, meteors = (
        _meteor(reference_tokens, text_tokens) if published else _nltk_meteor(reference_tokens, text_tokens)
    )
    return CaptionScores(float(np.mean(ciders)) if ciders else None, ciders, meteor, meteors, published)


def _ciders(references: Sequence[str], texts: Sequence[str]) -> tuple[float, ...]:
    """Return CIDEr of each tokenised text; empty if word weights are undefined."""
    if len(texts) < 2 or not any(references):
        return ()
    from pycocoevalcap.cider.cider import Cider

    _, scores = Cider().compute_score(*_numbered(references, texts))
    return tuple(float(score) for score in scores)


def _meteor(references: Sequence[str], texts: Sequence[str]) -> tuple[float, tuple[float, ...]]:
    """Return METEOR 1.5 of all tokenised texts and of each."""
    from pycocoevalcap.meteor.meteor import Meteor

    try:
        total, scores = Meteor().compute_score(*_numbered(references, texts))
    except (OSError, ValueError) as error:  # a crashed program prints nothing, which is not a number
        raise _java_failed("METEOR 1.5", error) from error
    return float(total), tuple(float(score) for score in scores)


def _numbered(references: Sequence[str], texts: Sequence[str]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return ({number: [text] for number, text in enumerate(side)} for side in (references, texts))  # type: ignore[return-value]


def _ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Tokenise texts as pycocoevalcap does, but without writing a file into its installation."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    try:
        run = subprocess.run(
            [*command, "-preserveLines", "-lowerCase"],
            input="\n".join(texts) + "\n",
            encoding="utf-8",
            errors="replace",
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise _java_failed("the PTB tokenizer", error) from error
    lines = run.stdout.split("\n")[: len(texts)]
    return [_without_punctuation(line.split()) for line in (*lines, *[""] * (len(texts) - len(lines)))]


def _nltk_tokens(texts: Sequence[str]) -> list[str]:
    from nltk.tokenize import TreebankWordTokenizer

    tokenizer = TreebankWordTokenizer()
    return [_without_punctuation(tokenizer.tokenize(text.lower())) for text in texts]


def _without_punctuation(tokens: Sequence[str]) -> str:
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    # METEOR's input uses three bars as separator.
    return " ".join(token for token in tokens if token not in PUNCTUATIONS and "|||" not in token)


class _NoSynonyms:
    """Empty dictionary in place of WordNet, which NLTK would have to download."""

    def synsets(self, word: str) -> list[str]:
        """Return no synonyms."""
        return []


def _nltk_meteor(references: Sequence[str], texts: Sequence[str]) -> tuple[float, tuple[float, ...]]:
    from nltk.translate.meteor_score import single_meteor_score

    scores = tuple(
        # Version 1.5 takes a text that equals its reference for one without fragments, NLTK for one of one fragment.
        1.0
        if reference and reference == text
        else float(single_meteor_score(reference.split(), text.split(), wordnet=_NoSynonyms(), **METEOR_WEIGHTS))
        for reference, text in zip(references, texts, strict=True)
    )
    return float(np.mean(scores)), scores


def _java_failed(program: str, error: Exception) -> EvaluationError:
    return EvaluationError(
        f"{program} could not be run by 'java' ({error}); install Java 8 or newer, or score without it."
    )

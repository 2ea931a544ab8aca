"""CIDEr and METEOR of generated texts, by the scorers that the field's published numbers come from.

Published scores of VideoGLaMM are pycocoevalcap's: texts are tokenised by Stanford's PTB tokenizer, CIDEr is what the
package calls so (CIDEr-D: clipped counts and a penalty on length, Vedantam et al. 2015, section 7), METEOR is version
1.5 (Denkowski and Lavie 2014). The tokenizer and METEOR are Java programs inside the package.

Where no ``java`` is on the path, NLTK stands in for both: its Treebank tokenizer, and its METEOR with the weights of
version 1.5 (alpha 0.85, beta 0.2, gamma 0.6), which matches words and stems but neither synonyms nor paraphrases, and
knows no function words. Such scores bear their own names. On 595 pairs of expressions of drawn objects (one wording of
an object against another) the tokens were the same, so CIDEr was (0.765); METEOR was 0.146 on average, where version
1.5 gives 0.143, with a correlation of 0.85 and a mean absolute difference of 0.039 per pair.
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
"""How many characters of a text the released script scores."""

TAGS = re.compile(r"<.*?>|\[SEG\]")
"""What is no part of the text: ``<p>``, ``</p>``, roles of the chat template, and the segmentation token."""

METEOR_WEIGHTS = {"alpha": 0.85, "beta": 0.2, "gamma": 0.6}
"""Of METEOR 1.5 for English, as far as NLTK's has them."""

EXTRA = "captions"


@dataclass(frozen=True)
class CaptionScores:
    """How alike generated texts and their references are.

    Attributes:
        cider: CIDEr of all texts, 0 to 10; None of fewer than two texts, among which no word is rare.
        ciders: Of each text, of which ``cider`` is the mean; empty where that is None.
        meteor: METEOR of all texts, in [0, 1]: version 1.5 pools its counts, NLTK's is the mean over the texts.
        meteors: Of each text.
        published: Whether the scorers are those of published numbers; False where NLTK stands in for Java programs.
    """

    cider: float | None
    ciders: tuple[float, ...]
    meteor: float
    meteors: tuple[float, ...]
    published: bool

    @property
    def names(self) -> tuple[str, str]:
        """What tables call the two scores."""
        return ("CIDEr", "METEOR") if self.published else ("CIDEr (NLTK tokens)", "METEOR (NLTK)")


def cleaned(text: str) -> str:
    """Return a text without tags and the segmentation token, with single spaces, cut to 2000 characters.

    As the released script does it, but that a line break separates words there no more. That script also leaves the
    question in front of the answer where the model is Phi-3 (it looks for ``ASSISTANT:``, which Phi-3 never writes);
    this is not reproduced.

    Args:
        text: A text with or without tags, such as ``<p> a dog </p> [SEG] runs.``
    """
    return " ".join(TAGS.sub("", text).split()).strip("'").strip()[:LONGEST_TEXT]


def caption_scores(references: Sequence[str], texts: Sequence[str], *, published: bool | None = None) -> CaptionScores:
    """Score texts against a reference each.

    Args:
        references: The reference of each text; tags are removed (``cleaned``).
        texts: The generated texts, likewise; one without a word scores 0.
        published: True for the Java programs of published numbers, False for NLTK; default the former where ``java`` is
            on the path.

    Returns:
        The scores.

    Raises:
        EvaluationError: When there are no texts or not one reference for each, or Java is wanted and fails.
        MissingDependencyError: When a package is not installed.
    """
    if len(references) != len(texts) or not texts:
        raise EvaluationError(f"there are {len(texts)} texts and {len(references)} references; give one for each text.")
    require_installed("scoring captions", EXTRA, "pycocoevalcap")
    if published is None:
        published = shutil.which("java") is not None
    if not published:
        require_installed("scoring captions without Java", EXTRA, "nltk")
    cleaned_texts = [cleaned(text) for text in (*references, *texts)]
    tokens = _ptb_tokens(cleaned_texts) if published else _nltk_tokens(cleaned_texts)
    wanted, given = tokens[: len(references)], tokens[len(references) :]
    ciders = _ciders(wanted, given)
    meteor, meteors = _meteor(wanted, given) if published else _nltk_meteor(wanted, given)
    return CaptionScores(float(np.mean(ciders)) if ciders else None, ciders, meteor, meteors, published)


def _ciders(references: Sequence[str], texts: Sequence[str]) -> tuple[float, ...]:
    """Return CIDEr of each tokenised text; none where the weights of words are undefined."""
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
    except (OSError, ValueError) as error:  # a program that ends says nothing, which is no number
        raise _java_failed("METEOR 1.5", error) from error
    return float(total), tuple(float(score) for score in scores)


def _numbered(references: Sequence[str], texts: Sequence[str]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return ({number: [text] for number, text in enumerate(side)} for side in (references, texts))  # type: ignore[return-value]


def _ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Tokenise texts as pycocoevalcap does, which itself would write a file into its own installation."""
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

    # METEOR's input separates texts by three bars.
    return " ".join(token for token in tokens if token not in PUNCTUATIONS and "|||" not in token)


class _NoSynonyms:
    """A dictionary without entries in place of WordNet, which NLTK would have to download."""

    def synsets(self, word: str) -> list[str]:
        """Return no synonyms."""
        return []


def _nltk_meteor(references: Sequence[str], texts: Sequence[str]) -> tuple[float, tuple[float, ...]]:
    from nltk.translate.meteor_score import single_meteor_score

    scores = tuple(
        float(single_meteor_score(reference.split(), text.split(), wordnet=_NoSynonyms(), **METEOR_WEIGHTS))
        for reference, text in zip(references, texts, strict=True)
    )
    return float(np.mean(scores)), scores


def _java_failed(program: str, error: Exception) -> EvaluationError:
    return EvaluationError(
        f"{program} could not be run by 'java' ({error}); install Java 8 or newer, or score without it."
    )

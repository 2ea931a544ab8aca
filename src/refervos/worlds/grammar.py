"""Grammar of conversations about drawn clips: word forms and a parser.

All forms derive from the phrases of the referring expressions (``wording.PHRASES``): "{} that moves left" gives "moves
left", "move left", "does not move left" and "does it move left". The parser replaces the nouns of a text by ``{}`` and
looks up the rest. It accepts wrong articles and numbers ("the circle move left"); anything else outside of the grammar
is not understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from refervos.worlds.descriptions import Claim, Description, Noun
from refervos.worlds.nouns import plural
from refervos.worlds.shapes import COLOURS, KINDS, TEXTURES
from refervos.worlds.statements import (
    Absence,
    Article,
    Assertion,
    Identification,
    Mention,
    Phrase,
    Polarity,
    Predicate,
    Question,
    Statement,
)
from refervos.worlds.wording import (
    COUNTS,
    GENERIC,
    PHRASES,
    PLURAL_PHRASES,
    TEXTURE_TAILS,
    pluralise_verbs,
    with_article,
)

DESCRIPTION_QUESTIONS = (
    "What is happening here?",
    "Could you please give me a detailed description of the video? Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer.",
    "What happens in this video?",
    "Please describe the video.",
    "Can you describe what happens?",
)
"""Requests for a caption; the second is the published one (VideoGLaMM's evaluation of grounded conversations)."""

REFERRING_QUESTIONS = (
    "What is {} in this video? Please respond with segmentation masks.",
    "Can you segment {} in this video?",
    "Please segment {} in this video.",
    "Where is {} in this video? Please respond with segmentation masks.",
)
"""Requests to segment an expression; the first two are the published ones."""

REFERRING_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
"""The published answers to them."""

ABSENT_ANSWER = "There is no such object."
"""Answer to an expression without a target."""

NAME_QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is {}?", "Which colour does {} have?"),
    "shape": ("What shape is {}?", "Which shape does {} have?"),
    "pattern": ("What pattern does {} have?", "Which pattern does {} have?"),
    "place": ("Where is {}?",),
    "action": ("What does {} do?", "What happens to {}?", "What is {} doing?"),
}
"""Questions about one object, by kind; ``{}`` is its name."""

COUNT_QUESTIONS = ("How many {} are there?", "How many {} can you see?")

NUMBERS = {1: "one", **COUNTS}

_PRONOUNS = ("it", "they")

_ADJECTIVES = (*COLOURS, *TEXTURES)

_HEADS: dict[str, tuple[str, bool]] = {
    **{name: (kind, False) for kind, names in KINDS.items() for name in names},
    **{plural(name): (kind, True) for kind, names in KINDS.items() for name in names},
    **dict.fromkeys(GENERIC, ("", False)),
    **{plural(name): ("", True) for name in GENERIC},
}
"""Kind of each noun, and whether it is a plural."""

_NOUN = re.compile(
    rf"(?P<slot>\{{(?:ref)?\}})|\b(?P<adjectives>(?:(?:{'|'.join(_ADJECTIVES)}) ){{0,2}})"
    rf"(?P<head>{'|'.join(sorted(_HEADS, key=len, reverse=True))})\b"
)

_ARTICLES: tuple[tuple[str, Article, bool, int | None], ...] = tuple(
    sorted(
        (
            ("the ", "the", False, None),
            ("all the ", "the", True, None),
            ("all ", "the", True, None),
            ("every ", "the", True, None),
            ("each ", "the", True, None),
            ("both ", "the", True, 2),
            ("a ", "a", False, None),
            ("an ", "a", False, None),
            ("no ", "no", False, None),
            ("one ", "a", False, 1),
            ("", "the", False, None),
            *((f"the {word} ", "the", True, number) for number, word in COUNTS.items()),
            *((f"{word} ", "a", True, number) for number, word in COUNTS.items()),
        ),
        key=lambda row: -len(row[0]),
    )
)
"""Beginnings of noun phrases with article, plural and count, longest first. Expressions may lack an article."""


@dataclass(frozen=True)
class VerbPhrase:
    """Verb phrase and its forms.

    Attributes:
        text: The third person singular, such as "moves left" or "is left of {ref}".
    """

    text: str

    @property
    def has_question_form(self) -> bool:
        """True if it has a negated form and a question form; "does not move" has neither."""
        return not self.text.startswith(("does not ", "is not "))

    def form(self, *, many: bool = False, negated: bool = False) -> str:
        """Return its singular or plural form, affirmative or negated."""
        verb, _, rest = self.text.partition(" ")
        if verb == "is":
            return " ".join(("are" if many else "is", *(["not"] if negated else []), rest))
        base = pluralise_verbs(self.text)
        if negated:
            return f"{'do' if many else 'does'} not {base}"
        return base if many else self.text

    def question(self, subject: str, *, many: bool = False) -> str:
        """Return the yes/no question about a subject, without a question mark."""
        verb, _, rest = self.text.partition(" ")
        if verb == "is":
            return f"{'are' if many else 'is'} {subject} {rest}"
        return f"{'do' if many else 'does'} {subject} {pluralise_verbs(self.text)}"


@cache
def verb_phrases(word: str) -> tuple[VerbPhrase, ...]:
    """List the verb phrases for a claim.

    Args:
        word: The claim's word, such as "moves left".

    Returns:
        The verb phrases, the plainest first.
    """
    found: dict[str, None] = {}
    for phrase in PHRASES[word]:
        if phrase.startswith("{} that "):
            found[phrase.removeprefix("{} that ")] = None
        elif phrase.startswith("{} "):
            found["is " + phrase.removeprefix("{} ")] = None
    return tuple(map(VerbPhrase, found))


def look_phrase(look: Noun) -> VerbPhrase:
    """Return the verb phrase for a look: "is striped" or "is a red circle"."""
    words = [word for word in (look.texture, look.colour, look.kind) if word]
    return VerbPhrase(f"is {with_article(' '.join(words)) if look.kind else ' '.join(words)}")


_SUBJECT, _REFERENCE = "subject", "reference"

_CACHE_SIZE = 8192
"""Number of cached parses; the same few phrases recur all the time."""

_MAX_WORDS = 120
"""Maximum number of words of a sentence or question that is parsed."""


@dataclass(frozen=True)
class _Entry:
    """Meaning of the words around the nouns of a phrase.

    Attributes:
        content: A claim's word, or a look.
        roles: Role of each noun: the subject, the reference, or a literal noun.
        negated: Whether the phrase is negated.
    """

    content: str | Noun
    roles: tuple[str | Noun, ...]
    negated: bool = False

    def assign(self, nouns: tuple[tuple[Noun, bool], ...]) -> tuple[Noun | None, bool, Claim | Noun] | None:
        """Assign nouns to the roles; returns the subject, whether it is a plural, and the claim or look."""
        subject, many, reference = None, False, None
        for role, (noun, several) in zip(self.roles, nouns, strict=True):
            if role == _SUBJECT:
                subject, many = noun, several
            elif role == _REFERENCE:
                reference = noun
            elif role != noun:
                return None
        content = self.content if isinstance(self.content, Noun) else Claim(self.content, reference)
        return subject, many, content


def _skeleton(text: str) -> tuple[str, tuple[tuple[Noun, bool], ...]]:
    """Replace nouns and their adjectives by ``{}``; also return each noun and whether it is a plural."""
    nouns: list[tuple[Noun, bool]] = []

    def replace_noun(match: re.Match[str]) -> str:
        noun = _noun(match["adjectives"].split(), _HEADS[match["head"]][0])
        if noun is None:
            return match.group()
        nouns.append((noun, _HEADS[match["head"]][1]))
        return "{}"

    return _NOUN.sub(replace_noun, text), tuple(nouns)


def _noun(adjectives: list[str], kind: str) -> Noun | None:
    colours = [word for word in adjectives if word in COLOURS]
    textures = [word for word in adjectives if word in TEXTURES]
    if len(colours) > 1 or len(textures) > 1:
        return None
    return Noun("".join(colours), "".join(textures), kind)


def _entry(template: str, content: str | Noun, negated: bool = False) -> tuple[str, _Entry]:
    """Return the words around the nouns of a template, and their meaning."""
    roles: list[str | Noun] = []

    def replace_noun(match: re.Match[str]) -> str:
        if match["slot"]:
            roles.append(_SUBJECT if match["slot"] == "{}" else _REFERENCE)
            return "{}" if match["slot"] == "{}" else "the {}"
        roles.append(Noun(kind=_HEADS[match["head"]][0]))
        return "{}"

    skeleton = _NOUN.sub(replace_noun, template)
    return skeleton, _Entry(content, tuple(roles), negated)


@cache
def _noun_phrases() -> dict[str, _Entry]:
    """Return the meanings of all noun phrases, by the words around their nouns."""
    entries = [("{}", _Entry(Noun(), (_SUBJECT,)))]
    for phrases in (PHRASES, PLURAL_PHRASES):
        entries += [_entry(phrase, word) for word, options in phrases.items() for phrase in options]
    for word in _ADJECTIVES:
        look = Noun(colour=word) if word in COLOURS else Noun(texture=word)
        entries += [_entry(f"{{}} {that} {be} {word}", look) for that in ("that", "which") for be in ("is", "are")]
    entries += [_entry(f"{{}} {tail}", Noun(texture=word)) for word, tail in TEXTURE_TAILS.items()]
    return _table(entries)


@cache
def _verb_phrases() -> dict[str, _Entry]:
    """Return the meanings of all forms of the verb phrases, by the words around their nouns."""
    entries = []
    forms = [(many, negated) for negated in (False, True) for many in (False, True)]
    for word in PHRASES:
        for phrase in verb_phrases(word):
            entries += [
                _entry(phrase.form(many=many, negated=negated), word, negated)
                for many, negated in forms
                if phrase.has_question_form or not negated
            ]
    for word in _ADJECTIVES:
        phrase = look_phrase(Noun(colour=word) if word in COLOURS else Noun(texture=word))
        look = Noun(colour=word) if word in COLOURS else Noun(texture=word)
        entries += [_entry(phrase.form(many=many, negated=negated), look, negated) for many, negated in forms]
    # "does not move" is a paraphrase of "stays still" first, and only then the negation of "moves".
    return _table(sorted(entries, key=lambda entry: entry[1].negated))


def _table(entries: list[tuple[str, _Entry]]) -> dict[str, _Entry]:
    table: dict[str, _Entry] = {}
    for skeleton, entry in entries:
        table.setdefault(skeleton, entry)
    return table


@cache
def _verbs() -> frozenset[str]:
    """Return the first words of all verb phrases."""
    return frozenset(skeleton.split(" ")[0] for skeleton in _verb_phrases()) | {"is", "are"}


@lru_cache(_CACHE_SIZE)
def parse_mention(text: str) -> Mention | None:
    """Parse a noun phrase, several joined by "and", or a pronoun.

    Args:
        text: Words in lower case without punctuation.

    Returns:
        The mention, or None when the text is not understood.
    """
    if text in _PRONOUNS:
        return Mention()
    single = _parse_phrase(text)
    if single is not None:
        return Mention((single,))
    for first, rest in _splits(text, " and "):
        one, others = _parse_phrase(first), parse_mention(rest)
        if one is not None and others is not None and others.phrases:
            return Mention((one, *others.phrases))
    return None


def _splits(text: str, joint: str) -> Iterator[tuple[str, str]]:
    """Yield the two sides of a text at each occurrence of a conjunction."""
    for match in re.finditer(re.escape(joint), text):
        yield text[: match.start()], text[match.end() :]


def _parse_phrase(text: str) -> Phrase | None:
    """Parse a noun phrase with its article."""
    if text == "nothing":
        return Phrase(Description(), "no")
    if text.startswith("everything"):
        text = text.replace("everything", "all objects", 1)
    text = _SOMETHING.sub(r"a \1 object", text)
    for start, article, many, count in _ARTICLES:
        if not text.startswith(start):
            continue
        found = _parse_description(text.removeprefix(start))
        if found is not None:
            description, several = found
            return Phrase(description, article, many or several, count)
    return None


_SOMETHING = re.compile(rf"^something ({'|'.join(_ADJECTIVES)})\b")


def _parse_description(text: str) -> tuple[Description, bool] | None:
    """Parse a noun phrase without its article; returns its meaning and whether it is a plural."""
    skeleton, nouns = _skeleton(text)
    entry = _noun_phrases().get(skeleton)
    parsed = None if entry is None else entry.assign(nouns)
    if parsed is None or parsed[0] is None:
        return None
    noun, many, content = parsed
    assert noun is not None
    if isinstance(content, Claim):
        return Description(noun, content), many
    for name in ("colour", "texture"):
        word = getattr(content, name)
        if word and getattr(noun, name) not in ("", word):
            return None
        noun = replace(noun, **{name: word or getattr(noun, name)})
    return Description(noun), many


@lru_cache(_CACHE_SIZE)
def parse_predicates(text: str) -> tuple[Predicate, ...] | None:
    """Parse one verb phrase, or several joined by "and".

    Args:
        text: Words in lower case without punctuation.

    Returns:
        The predicates, or None when the text is not understood.
    """
    single = _parse_predicate(text)
    if single is not None:
        return (single,)
    for first, rest in _splits(text, " and "):
        one, others = _parse_predicate(first), parse_predicates(rest)
        if one is not None and others is not None:
            return (one, *others)
    return None


def _parse_predicate(text: str) -> Predicate | None:
    skeleton, nouns = _skeleton(text)
    entry = _verb_phrases().get(skeleton)
    parsed = None if entry is None else entry.assign(nouns)
    if entry is not None and parsed is not None:
        return Predicate(parsed[2], entry.negated)
    if skeleton in ("is a {}", "is an {}", "are {}", "is not a {}", "is not an {}", "are not {}"):
        return Predicate(nouns[0][0], " not " in skeleton)
    return None


@lru_cache(_CACHE_SIZE)
def parse_clause(text: str) -> Assertion | None:
    """Parse one clause of a sentence.

    Args:
        text: Words in lower case without punctuation.

    Returns:
        The assertion, or None when the clause is not understood.
    """
    if text == "there is no such object":
        return Absence()
    for start in ("there is ", "there are "):
        if text.startswith(start):
            mention = parse_mention(text.removeprefix(start))
            return Statement(mention) if mention is not None and mention.phrases else None
    words = text.split(" ")
    for place in range(1, len(words)):
        if words[place] in _verbs():
            mention, predicates = parse_mention(" ".join(words[:place])), parse_predicates(" ".join(words[place:]))
            if mention is not None and predicates is not None:
                return Statement(mention, predicates)
    for start in ("it is ", "they are "):
        if text.startswith(start):
            mention = parse_mention(text.removeprefix(start))
            return Identification(mention) if mention is not None and mention.phrases else None
    return None


_MASK_ALONE = ("", "it is", "they are", "the segmentation result is")
"""Answers, without tags, that identify their objects by a mask alone."""

_OPENING = re.compile(r"^(yes|no|sure) ?(?:,|$) ?")
_TAGS = re.compile(r"</?p>|\[seg\]")


def normalise(text: str) -> str:
    """Remove tags and capitals from a text and normalise its spaces."""
    words = " ".join(_TAGS.sub(" ", text.lower()).split())
    return re.sub(r" ([,.?!])", r"\1", words)


def parse_sentence(sentence: str) -> tuple[Assertion | None, ...]:
    """Parse a sentence of an answer.

    Args:
        sentence: One sentence, with or without tags, capitals and a full stop.

    Returns:
        The assertion of each clause, None for each that is not understood; empty for an empty sentence.
    """
    assertions: list[Assertion | None] = []
    text = normalise(sentence).strip(" .!?")
    opening = _OPENING.match(text)
    if opening is not None:
        text = text[opening.end() :]
        if opening[1] != "sure":
            assertions.append(Polarity(opening[1] == "yes"))
    if text.count(" ") >= _MAX_WORDS:
        return (None,)
    if text in _MASK_ALONE:
        if "[seg]" in sentence.lower():
            assertions.append(Identification(None))
        elif text or not assertions:
            assertions.append(None)
        return tuple(assertions)
    text = re.sub(r",? while ", " while ", text)
    text = re.sub(r", (?:and )?", " and ", text)
    return (*assertions, *(clause for part in text.split(" while ") for clause in _parse_clauses(part)))


@lru_cache(_CACHE_SIZE)
def _parse_clauses(text: str) -> tuple[Assertion | None, ...]:
    """Parse clauses that are joined by "and"."""
    whole = parse_clause(text)
    if whole is not None:
        return (whole,)
    for first, rest in _splits(text, " and "):
        one = parse_clause(first)
        if one is not None:
            others = _parse_clauses(rest)
            if None not in others:
                return (one, *others)
    return (None,)


_DESCRIPTION_QUESTIONS = frozenset(re.sub(r"[,.?!]", "", question.lower()) for question in DESCRIPTION_QUESTIONS)


def _patterns(questions: tuple[str, ...]) -> list[re.Pattern[str]]:
    words = [re.sub(r"[,.?!]", "", question.lower()) for question in questions]
    return [re.compile(f"^{re.escape(text).replace(re.escape('{}'), '(.+)')}$") for text in words]


_REFERRING = _patterns(REFERRING_QUESTIONS)
_NAMING = {kind: _patterns(questions) for kind, questions in NAME_QUESTIONS.items()}
_COUNTING = _patterns(COUNT_QUESTIONS)


@lru_cache(_CACHE_SIZE)
def parse_question(question: str) -> Question | None:
    """Parse a question.

    Args:
        question: A question in the wording of the conversations; capitals and punctuation are ignored.

    Returns:
        The question, or None when it is not understood.
    """
    text = re.sub(r"[,.?!]", "", normalise(question)).removeprefix("and ")
    if text.count(" ") >= _MAX_WORDS:
        return None
    if text in _DESCRIPTION_QUESTIONS:
        return Question("description")
    for kind, patterns in (("referring", _REFERRING), *_NAMING.items()):
        for pattern in patterns:
            match = pattern.match(text)
            mention = None if match is None else parse_mention(match[1])
            if mention is not None:
                return Question(kind, Statement(mention))
    for parse in (_parse_count, _parse_which, _parse_whether):
        found = parse(text)
        if found is not None:
            return found
    return None


def _parse_count(text: str) -> Question | None:
    for pattern in _COUNTING:
        match = pattern.match(text)
        parsed = None if match is None else _parse_description(match[1])
        if parsed is not None:
            return Question("count", Statement(Mention((Phrase(parsed[0], "a", many=True),))))
    if not text.startswith("how many "):
        return None
    return _parse_object_question("count", text.removeprefix("how many "))


def _parse_which(text: str) -> Question | None:
    if text.startswith("which "):
        return _parse_object_question("which", text.removeprefix("which "))
    return _parse_object_question("which", f"object {text.removeprefix('what ')}") if text.startswith("what ") else None


def _parse_object_question(kind: str, text: str) -> Question | None:
    """Parse the rest of a question for objects, a noun and a verb phrase: "circle moves left"."""
    words = text.split(" ")
    for place in range(1, len(words)):
        if words[place] not in _verbs():
            continue
        parsed, predicate = _parse_description(" ".join(words[:place])), _parse_predicate(" ".join(words[place:]))
        if parsed is None or predicate is None or predicate.negated or parsed[0].claim is not None:
            continue
        noun, content = parsed[0].noun, predicate.content
        if isinstance(content, Claim):
            description = Description(noun, content)
        else:
            description = Description(
                Noun(noun.colour or content.colour, noun.texture or content.texture, noun.kind or content.kind)
            )
        return Question(kind, Statement(Mention((Phrase(description, "a", parsed[1]),))))
    return None


def _parse_whether(text: str) -> Question | None:
    verb, _, rest = text.partition(" ")
    if rest.startswith("there "):
        mention = parse_mention(rest.removeprefix("there "))
        return None if mention is None or not mention.phrases else Question("whether", Statement(mention))
    if verb not in ("is", "are", "do", "does"):
        return None
    words = rest.split(" ")
    for place in range(1, len(words)):
        mention = parse_mention(" ".join(words[:place]))
        if mention is None:
            continue
        rest = " ".join(words[place:])
        predicate = _parse_predicate(f"{verb} {rest}" if verb in ("is", "are") else rest)
        if predicate is not None:
            return Question("whether", Statement(mention, (predicate,)))
    return None

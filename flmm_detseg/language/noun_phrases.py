"""Noun phrases of an English text, by word lists alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flmm_detseg.language.words import is_mark
from flmm_detseg.structures import Phrase

Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_DETERMINERS = frozenset(
    """a an the this that these those some any each every another both all several many few no my your his her its
    our their""".split()
)
_NUMBERS = frozenset("one two three four five six seven eight nine ten eleven twelve dozen".split())
# Words that end a phrase: prepositions, conjunctions, pronouns, auxiliaries, adverbs, verbs of descriptions.
_BREAKS = frozenset(
    """of in on at by to from with without within into onto over under underneath above below behind beside besides
    between among amongst near next against along around across through towards toward upon off up down out about
    after before during for per than like inside outside atop via
    and or but nor so yet as if while because though although when where which who whom whose what how why not
    i you he she it we they me him them us there here something someone anything nothing everyone everything
    is are was were be been being am has have had do does did can could will would may might must shall should isn't
    aren't it's there's that's
    very quite rather too also just only even still then now together apart away again almost yes
    show shows shown depict depicts depicted contain contains feature features include includes see seen appear
    appears seem seems look looks sit sits sat stand stands stood lie lies lay wear wears wore hold holds held carry
    carries carried ride rides rode walk walks run runs play plays eat eats drink drinks hang hangs hung make makes
    made fill fills filled cover covers covered surround surrounds surrounded park parked locate located place placed
    face faces facing use uses used go goes get gets take takes took""".split()
)
# Not nouns by themselves: they belong to a phrase only in front of a noun.
_ADJECTIVES = frozenset(
    """red orange yellow green blue purple violet pink brown black white grey gray golden silver cyan magenta
    big bigger biggest small smaller smallest large larger largest tall taller short shorter long round
    bright dark light young old new empty full open closed wooden visible striped dotted same different other""".split()
)
# Places, not things.
_PLACES = frozenset("left right top bottom side front back middle center centre corner edge".split())
# What the answer is about as a whole.
_PICTURES = frozenset("image picture photo photograph scene".split())
_NOUNS_IN_ING = frozenset(
    """building painting ceiling railing clothing wedding evening morning crossing parking dining living earring
    awning topping icing lighting landing""".split()
)
_NOUNS_IN_LY = frozenset("family butterfly dragonfly jelly belly lily fly assembly".split())


def noun_phrases(text: str) -> tuple[Phrase, ...]:
    """Finds noun phrases of an English text to ground, with word lists alone.

    A phrase is a run of determiners, numbers, adjectives and nouns: it ends at punctuation, at a function word or a
    common verb, before a determiner or digits, and at words in -ing or -ly that do not follow a determiner. Words of
    place at its end are cut off ("a star left of ..."). Runs of determiners, numbers, adjectives and words of place
    only name nothing and are left out, as are words for the picture itself ("the image shows ..."). Verbs outside of
    the list stay in the phrase, and so do nouns that stand side by side; other languages give whole runs of words.

    Args:
        text: For example an answer.

    Returns:
        Phrases of one span each, in order, without overlap; maybe none.
    """
    phrases = []
    for run in _runs(text):
        words = [text[start:end].lower() for start, end in run]
        while words and words[-1] in _PLACES:
            words.pop()
        empty = _DETERMINERS | _NUMBERS | _ADJECTIVES | _PLACES
        if all(word in empty or word.isdigit() for word in words) or words[-1] in _PICTURES:
            continue
        phrases.append(Phrase(spans=((run[0][0], run[len(words) - 1][1]),)))
    return tuple(phrases)


def _runs(text: str) -> Iterator[list[Span]]:
    """Runs of words with only white space between them and nothing in them that ends a phrase."""
    # `\w` knows no combining marks: in the pattern's eyes they are letters. Positions stay.
    plain = text if text.isascii() else "".join("x" if is_mark(char) else char for char in text)
    run: list[Span] = []
    before = ""
    for match in _WORD.finditer(plain):
        start, end = match.span()
        word = text[start:end].lower()
        apart = bool(run) and not text[run[-1][1] : start].isspace()
        starts = (word in _DETERMINERS or word.isdigit()) and before not in _DETERMINERS
        ends = word in _BREAKS or (_modifies(word) and before not in _DETERMINERS)
        if run and (apart or starts or ends):
            yield run
            run = []
        if not ends:
            run.append((start, end))
        before = word if run else ""
    if run:
        yield run


def _modifies(word: str) -> bool:
    """Whether a word looks like a participle (its stem has a vowel: "sitting", not "ring") or an adverb."""
    if word.endswith("ing"):
        return word not in _NOUNS_IN_ING and any(letter in "aeiouy" for letter in word[:-3])
    return word.endswith("ly") and word not in _NOUNS_IN_LY

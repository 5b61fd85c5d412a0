"""Normalising short answers as the VQA challenge does."""

from __future__ import annotations

import re

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")  # not the point of a decimal number
_DIGIT_COMMA = re.compile(r"\d,\d")

# Words whose apostrophe people leave out; those that are words of their own without it ("its", "well") are not here.
_CONTRACTIONS_ONE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm i've
isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
_CONTRACTIONS_MORE = """
couldn't've hadn't've he'd've i'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


_CONTRACTIONS = {
    misspelt: word
    for word in (*_CONTRACTIONS_ONE, *_CONTRACTIONS_MORE)
    for misspelt in _without_one_apostrophe(word)
}


def normalise_answer(text: str) -> str:
    """Brings an answer into the form in which answers are compared.

    In this order: blanks, line ends and tabs become single blanks; punctuation; lower case; number words become
    digits; articles go; apostrophes are put back into contractions. A punctuation mark is deleted if it stands beside
    a blank somewhere in the text (or the text has a comma between digits), else replaced by a blank; full stops go
    unless a digit follows.

    Source: VQA evaluation, visualqa.org/evaluation.html; the challenge's script leaves an answer as it is where all
    annotators agree, while here every answer is normalised (as EvalAI's server does).
    """
    text = " ".join(text.split())
    has_digit_comma = _DIGIT_COMMA.search(text) is not None
    result = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank or has_digit_comma else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", result).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)

"""Texts as phrases: COCO labels with transcripts as the records that a phrase head is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flmm_detseg.utils.values import FieldError, check_words

PROMPT = "What is written in the image?"


def phrase_of(text: str) -> str:
    """What a line of text is called: ``the word X``, with blanks in it ``the text X Y``.

    Args:
        text: What it says, not empty.

    Returns:
        The phrase.

    Raises:
        FieldError: It has words in it that a language model takes for an image or for the end of a turn.
    """
    words = " ".join(check_words(text, "text").split())
    return f"the {'text' if ' ' in words else 'word'} {words}"


def text_phrases(content: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Lines for :class:`~flmm_detseg.datasets.JSONLDataset` (docs/own_data.md), one an image that has texts.

    The caption names the texts as people read them, from top to bottom and from left to right. What stands in an image
    twice is left out: its phrase would mean two places.

    Args:
        content: COCO dict of a labelling; annotations with ``text`` are lines of text, with their outline in
            ``segmentation``; where they have none it is their box.

    Returns:
        The lines, and the number of texts left out by reason.
    """
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for entry in content["annotations"]:
        if entry.get("pseudo") and "text" in entry:
            by_image.setdefault(entry["image_id"], []).append(entry)
    lines, left_out = [], Counter[str]()
    for image in content["images"]:
        named: list[tuple[str, Mapping[str, Any]]] = []
        for entry in in_reading_order(by_image.get(image["id"], [])):
            try:
                named.append((phrase_of(entry["text"]), entry))
            except FieldError:
                left_out["control words"] += 1
        counts = Counter(phrase.casefold() for phrase, _ in named)
        clear = [(phrase, entry) for phrase, entry in named if counts[phrase.casefold()] == 1]
        left_out["more than once in its image"] += len(named) - len(clear)
        if clear:
            lines.append(_line(image["file_name"], clear))
    return lines, +left_out


def in_reading_order(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """COCO annotations from top to bottom, and from left to right where they are beside each other.

    A box is beside the highest one that is left when its middle is not below that one's lower edge.
    """
    left = sorted(entries, key=lambda entry: entry["bbox"][1])
    ordered: list[Mapping[str, Any]] = []
    while left:
        _, top, _, height = left[0]["bbox"]
        row = [entry for entry in left if entry["bbox"][1] + entry["bbox"][3] / 2 <= top + height]
        row = row or left[:1]
        ordered += sorted(row, key=lambda entry: entry["bbox"][0])
        left = [entry for entry in left if not any(entry is other for other in row)]
    return ordered


def _line(name: str, named: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    caption, phrases = "", []
    for phrase, entry in named:
        start = len(caption)
        caption += f"{phrase} . "
        x, y, width, height = entry["bbox"]
        box = [x, y, x + width, y + height]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        phrases.append(
            {
                "span": [start, start + len(phrase)],
                "mask": {"polygon": entry.get("segmentation", [corners])},
                "box": box,
            }
        )
    return {"id": name, "image": name, "prompt": PROMPT, "caption": caption.rstrip(), "phrases": phrases}

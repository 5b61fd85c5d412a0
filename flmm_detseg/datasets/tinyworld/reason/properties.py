"""What kinds are good for: knowledge of the world that no caption and no picture of TinyWorld states."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Property:
    """A property of kinds.

    Attributes:
        predicate: Of one thing: ``"has sharp points"``.
        plural: The same of several: ``"have sharp points"``.
        question: Asked of ``{}``, a thing with its article: ``"does {} have sharp points"``.
        kinds: The kinds that have it; no other kind has.
    """

    predicate: str
    plural: str
    question: str
    kinds: tuple[str, ...]


PROPERTIES: dict[str, Property] = {
    "roll": Property("could roll", "could roll", "could {} roll", ("circle", "ring")),
    "sharp": Property(
        "has sharp points",
        "have sharp points",
        "does {} have sharp points",
        ("triangle", "star", "diamond", "arrow"),
    ),
    "wear": Property("could be worn", "could be worn", "could {} be worn", ("ring", "diamond", "cross")),
    "night": Property("shines at night", "shine at night", "does {} shine at night", ("star", "crescent")),
    "corners": Property(
        "has four corners", "have four corners", "does {} have four corners", ("square", "diamond")
    ),
    "bees": Property("belongs to bees", "belong to bees", "does {} belong to bees", ("hexagon", "flower")),
    "floor": Property(
        "could cover a floor",
        "could cover a floor",
        "could {} cover a floor",
        ("square", "hexagon", "triangle"),
    ),
    "cards": Property("is seen on cards", "are seen on cards", "is {} seen on cards", ("heart", "diamond")),
    "love": Property("speaks of love", "speak of love", "does {} speak of love", ("heart", "flower", "ring")),
    "help": Property("promises help", "promise help", "does {} promise help", ("cross", "crescent")),
    "way": Property("shows the way", "show the way", "does {} show the way", ("arrow", "star")),
    "eat": Property(
        "looks like food", "look like food", "does {} look like food", ("circle", "crescent", "triangle")
    ),
}

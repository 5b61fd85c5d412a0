"""The closed list of words of TinyWorld's language."""

from __future__ import annotations

from flmm_detseg.datasets.tinyworld.scene import COLOURS, KINDS, SIZES, STUFF, TEXTURES

COUNT_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven")
# Coordinates of the 1000-grid in steps of 10, one word each.
COORDINATE_WORDS: tuple[str, ...] = tuple(f"{value:03d}" for value in range(0, 1000, 10))
PLURALS: dict[str, str] = {kind: {"cross": "crosses"}.get(kind, f"{kind}s") for kind in (*KINDS, "object")}
_FUNCTION_WORDS = (
    "a an the and or of on in at is are there it its with behind what which where how many colour kind texture size "
    "box background left right top bottom centre above below larger smaller yes no no object objects image "
    "please give me description describe this everything else full"
).split()
_PUNCTUATION = (". , : ; ?").split()
# Roles of the prompt template and words of the structured answers later recipes use.
_TEMPLATE_WORDS = (
    "USER ASSISTANT Please answer detections segmentations score clock time shows app icon screen".split()
)


def vocabulary() -> list[str]:
    """Every word the language can produce, without duplicates, in a fixed order."""
    words = [
        *_PUNCTUATION,
        *_TEMPLATE_WORDS,
        *_FUNCTION_WORDS,
        *KINDS,
        *PLURALS.values(),
        *COLOURS,
        *SIZES,
        *TEXTURES,
        *STUFF,
        *COUNT_WORDS,
        *COORDINATE_WORDS,
    ]
    return list(dict.fromkeys(words))

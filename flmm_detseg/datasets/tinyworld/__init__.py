"""TinyWorld: a small synthetic world in which everything is real but small.

``make_scene`` draws a scene, ``narrate``, ``referring_expressions`` and ``make_questions`` say what is true of it,
and ``world.write_world`` stores it in the real formats of the field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.datasets.tinyworld.language import (
        GroundedPhrase,
        GroundedText,
        ReferringExpression,
        narrate,
        referring_expressions,
    )
    from flmm_detseg.datasets.tinyworld.questions import (
        QUESTION_KINDS,
        Question,
        format_box,
        make_questions,
        parse_box,
    )
    from flmm_detseg.datasets.tinyworld.render import make_scene
    from flmm_detseg.datasets.tinyworld.scene import (
        COLOURS,
        KINDS,
        SIZES,
        SPLITS,
        STUFF,
        TEXTURES,
        TINYWORLD_VERSION,
        Scene,
        SceneObject,
        StuffRegion,
    )
    from flmm_detseg.datasets.tinyworld.word_list import vocabulary

__all__ = [
    "COLOURS",
    "KINDS",
    "QUESTION_KINDS",
    "SIZES",
    "SPLITS",
    "STUFF",
    "TEXTURES",
    "TINYWORLD_VERSION",
    "GroundedPhrase",
    "GroundedText",
    "Question",
    "ReferringExpression",
    "Scene",
    "SceneObject",
    "StuffRegion",
    "format_box",
    "make_questions",
    "make_scene",
    "narrate",
    "parse_box",
    "referring_expressions",
    "vocabulary",
]

__getattr__, __dir__ = lazy_names(__name__)

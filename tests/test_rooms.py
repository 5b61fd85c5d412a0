"""Walls that import-linter cannot see: attributes."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "flmm_detseg"
# Rooms that may look into a model of transformers.
MAY = ("lmms", "pretrain")
# What a model of transformers has and no adapter of ours.
INSIDE = {
    "config",
    "get_input_embeddings",
    "get_output_embeddings",
    "language_model",
    "lm_head",
    "model",
    "multi_modal_projector",
    "vision_tower",
    "visual",
}
# DeepSpeed's engine is the `model` of its wrapper.
KNOWN = {
    ("engine/training/hooks.py", "runner.optim_wrapper.model.model"),
    ("engine/training/finite_steps.py", "wrapper.model.model"),
}


def reaches(source: str) -> list[str]:
    """Attributes of something called ``model`` that only a model of transformers has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in INSIDE:
            text = ast.unparse(node)
            if text.endswith(f".model.{node.attr}"):
                found.append(text)
    return found


def test_nobody_else_reaches_into_a_model_of_transformers():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name.split("/")[0] not in MAY:
            texts = [text for text in reaches(path.read_text()) if (name, text) not in KNOWN]
            found |= {name: texts} if texts else {}
    assert found == {}


def test_the_walls_are_seen():
    inner = "self.model.model"
    assert set(reaches(f"x = {inner}.language_model")) == {inner, f"{inner}.language_model"}
    assert reaches("y = lmm.model.lm_head(states)") == ["lmm.model.lm_head"]
    assert reaches("runner.model.lmm.prepare(sample)") == []

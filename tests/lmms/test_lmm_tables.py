"""The tables of docs/lmms.md are those of the code."""

from __future__ import annotations

from lmm_tables import PAGE, family_of, layers_read, marks, written
from published_models import PUBLISHED, RECIPES, recipe_config

from flmm_detseg.lmms import all_families
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS


def test_the_page_has_the_tables_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert marks(page) == ["version", "families", "recipes", "cache"]
    assert written(page) == page, "docs/lmms.md is not up to date: python tests/lmm_tables.py"
    assert written(page.replace("Qwen3VLAdapter", "another")) == page


def test_every_family_has_a_recipe() -> None:
    rooms = f"{all_families.families.__name__}."
    registered = {kind for kind in MODELS.module_dict.values() if kind.__module__.startswith(rooms)}
    assert all(issubclass(kind, LMM) for kind in registered)
    assert registered == {recipe_config(recipe).model.lmm.type.__self__ for recipe in RECIPES.values()}


def test_channels_in_the_table_are_those_of_the_built_model() -> None:
    for name, recipe in RECIPES.items():
        facts = family_of(recipe, PUBLISHED[name]).facts
        assert len(layers_read(facts)) * facts.num_heads * facts.num_levels == PUBLISHED[name].channels

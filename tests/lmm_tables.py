"""The tables of docs/lmms.md, made from the code: `python tests/lmm_tables.py` writes them into the page."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

from published_models import PUBLISHED, RECIPES, recipe_config

from flmm_detseg.lmms.family import Family, LMMFacts
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.published_images import cut_image
from flmm_detseg.lmms.published_sizes import Published
from flmm_detseg.structures import PatchGrid

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "lmms.md"
IMAGE_SIZE = (480, 640)  # (H, W) of a common photo of COCO
PHRASE_TOKENS = 30
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

_GRIDS: dict[tuple[Any, ...], PatchGrid] = {}


@cache
def tables() -> dict[str, str]:
    """Every table by the name in its mark."""
    models = [(recipe, PUBLISHED[name]) for name, recipe in RECIPES.items()]
    first: dict[type[Family], tuple[Path, Published]] = {}
    for recipe, published in models:
        first.setdefault(_adapter(recipe).family_class, (recipe, published))
    return {
        "families": _table(
            ("family", "adapter", "transformers' class", "an image becomes", "its language model"),
            [_family_row(recipe, published) for recipe, published in first.values()],
        ),
        "recipes": _table(
            (
                "recipe", "published model", "10^9 parameters", "layers read", "heads", "levels", "channels",
                "image tokens", "rows, MB",
            ),
            [_recipe_row(recipe, published) for recipe, published in models],
        ),
        "cache": _table(
            ("adapter", "background cache", "in the way"),
            [_cache_row(recipe, published) for recipe, published in first.values()],
        ),
        "version": _version() + "\n",
    }  # fmt: skip


def written(page: str) -> str:
    """The page with its tables as they are now."""
    made = tables()
    return _MARK.sub(lambda found: f"{found[1]}{made[found[2]]}{found[3]}", page)


def marks(page: str) -> list[str]:
    """Names of the tables that a page has, in order."""
    return [name for _, name, _ in _MARK.findall(page)]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _adapter(recipe: Path):
    return recipe_config(recipe).model.lmm.type.__self__


def family_of(recipe: Path, published: Published) -> Family:
    """The family of a recipe's LMM, with the published model's config."""
    family = _adapter(recipe).family_class
    fields = {name: value for name, value in published.config.items() if name != "model_type"}
    return family(family.config_class(**fields))


def _family_row(recipe: Path, published: Published) -> tuple[str, ...]:
    family, adapter = family_of(recipe, published), _adapter(recipe)
    file = Path(inspect.getfile(adapter)).relative_to(ROOT)
    return (
        f"[{file.stem}](../{file})",
        f"`{adapter.__name__}`",
        f"`{family.model_class.__name__}`",
        _grid_rule(family),
        ", ".join(_habits(family)) or "-",
    )


def _grid_rule(family: Family) -> str:
    """First paragraphs of the class that says where image tokens lie, and of what is special to the family."""
    owner = kind = type(family)
    if isinstance(family, HubFamily):
        owner = next(base for base in kind.__mro__ if "split_images" in vars(base))
    said = [(inspect.getdoc(one) or "").split("\n\n")[0] for one in dict.fromkeys((owner, kind))]
    return " ".join(" ".join(text.split()) for text in said if not text.startswith("See "))


def _habits(family: Family) -> list[str]:
    """What its decoder does beside causal attention at positions of one axis."""
    facts, found = family.facts, []
    if facts.axes > 1:
        found.append(f"positions of {facts.axes} axes")
    if type(family).decoder_arguments is not Family.decoder_arguments:
        found.append("tower features go into its first layers")
    if windows := [window for window in facts.windows.values() if window is not None]:
        found.append(f"layers that look back {max(windows)} tokens only")
    if facts.rowless_layers:
        found.append("layers without attention")
    if facts.image_attention == "both":
        found.append("tokens of an image see each other")
    return found


def layers_read(facts: LMMFacts) -> list[int]:
    """Decoder layers whose rows are read unless a config names others."""
    wanted = range(facts.num_layers) if facts.row_layers is None else facts.row_layers
    return [layer for layer in wanted if layer not in facts.rowless_layers]


def _recipe_row(recipe: Path, published: Published) -> tuple[str, ...]:
    name, family = recipe_config(recipe).model.lmm.pretrained, family_of(recipe, published)
    facts, layers, grid = family.facts, layers_read(family.facts), image_grid(family, name)
    cells = sum(level.rows * level.cols for level in grid.levels)
    megabytes = len(layers) * facts.num_heads * PHRASE_TOKENS * cells * 2 / 1e6
    read = f"all {len(layers)}" if len(layers) == facts.num_layers else ", ".join(map(str, layers))
    return (
        f"[{recipe.stem.removeprefix('frozen_').removesuffix('_refcoco_png')}](../{recipe.relative_to(ROOT)})",
        f"`{name}`",
        f"{published.billions:.1f}",
        read,
        str(facts.num_heads),
        str(facts.num_levels),
        str(len(layers) * facts.num_heads * facts.num_levels),
        " + ".join(f"{level.rows} x {level.cols}" for level in grid.levels),
        f"{megabytes:.0f}",
    )


def image_grid(family: Family, name: str) -> PatchGrid:
    """Where the tokens of an image of :data:`IMAGE_SIZE` lie, by the model's own processor."""
    # Sizes of a family that cut images alike: processors are what takes time here.
    key = type(family), name.partition("-")[0], repr(family.config.vision_config)
    if key not in _GRIDS:
        _GRIDS[key] = cut_image(family, name, IMAGE_SIZE).grid
    return _GRIDS[key]


def _cache_row(recipe: Path, published: Published) -> tuple[str, ...]:
    family = family_of(recipe, published)
    facts = family.facts
    name = f"`{_adapter(recipe).__name__}`"
    if type(family).grouped_tower is not Family.grouped_tower:
        return (
            name,
            "reads it in groups of patches, stores backgrounds",
            "a language model with a window, if it has one",
        )
    reasons = ["its tower reads whole images only"]
    if facts.num_levels > 1:
        reasons.append("a patch is in several views")
    if len(facts.parts["vision"]) > 1:
        reasons.append("a second tower")
    if facts.vision.grid is None:
        reasons.append("the grid follows the image")
    return name, "refused", ", ".join([*reasons, *_habits(family)])


def _version() -> str:
    """The release of transformers that the suite runs with."""
    lock = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
    (found,) = re.findall(r"^transformers==(\S+)", lock, re.MULTILINE)
    return f"Compared with transformers {found}."


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Rankings of attention heads as files."""

from __future__ import annotations

import json
from pathlib import Path

from flmm_detseg.structures import HeadRanking


def ranking_file(path: Path, num_layers: int, num_heads: int, heads: list[tuple[int, int]]) -> str:
    """Writes a ranking with these heads, best first."""
    scores = tuple(float(-place) for place in range(len(heads)))
    ranking = HeadRanking("tiny", num_layers, num_heads, "by hand", 1, tuple(heads), scores)
    path.write_text(json.dumps(ranking.to_dict()))
    return str(path)

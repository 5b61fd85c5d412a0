"""Which attention heads of an LMM point at things, best first; a small JSON file a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from flmm_detseg.errors import ConfigError

# What the file of a ranking is called in the folder of its LMM.
RANKING_NAME = "head_ranking.json"


@dataclass(frozen=True)
class HeadRanking:
    """Attention heads of one LMM in order of how well they localise.

    Attributes:
        lmm: Name of the model (hub name or folder), for people.
        num_layers: Decoder layers of it.
        num_heads: Query heads of a layer.
        method: How they were ranked.
        num_phrases: On how many phrases.
        heads: ``(layer, head)``, 0-based, best first, each once; those without rows are left out.
        scores: One a head, descending.
    """

    lmm: str
    num_layers: int
    num_heads: int
    method: str
    num_phrases: int
    heads: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.heads or len(self.heads) != len(self.scores):
            raise ConfigError(
                f"ranking of heads of {self.lmm}: {len(self.heads)} heads and {len(self.scores)} scores; one score a "
                "head is needed, and at least one head"
            )
        for layer, head in self.heads:
            if not (0 <= layer < self.num_layers and 0 <= head < self.num_heads):
                raise ConfigError(
                    f"ranking of heads of {self.lmm}: layer {layer}, head {head} does not exist; the model has "
                    f"{self.num_layers} layers of {self.num_heads} heads"
                )
        if len(set(self.heads)) < len(self.heads):
            raise ConfigError(f"ranking of heads of {self.lmm}: a head stands there twice")

    def top(self, count: int) -> tuple[tuple[int, int], ...]:
        """The best heads.

        Args:
            count: How many.

        Returns:
            ``(layer, head)``, best first.

        Raises:
            ConfigError: The ranking has fewer, or ``count`` is below 1.
        """
        if not 1 <= count <= len(self.heads):
            raise ConfigError(
                f"the best {count} heads were asked for; the ranking of {self.lmm} has {len(self.heads)}"
            )
        return self.heads[:count]

    def check(self, num_layers: int, num_heads: int) -> None:
        """Makes sure that it is of a model with these sizes.

        Args:
            num_layers: Decoder layers of the model.
            num_heads: Query heads of a layer.

        Raises:
            ConfigError: It is of another one.
        """
        if (self.num_layers, self.num_heads) != (num_layers, num_heads):
            raise ConfigError(
                f"the ranking of heads is of {self.lmm} with {self.num_layers} layers of {self.num_heads} heads, this "
                f"model has {num_layers} of {num_heads}; rank its own: flmm-detseg rank-heads"
            )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain containers for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any, source: str) -> Self:
        """Reads what :meth:`to_dict` gave.

        Args:
            content: From JSON.
            source: Names the file in messages.

        Returns:
            The ranking.

        Raises:
            ConfigError: It is something else.
        """
        remedy = "write it anew: flmm-detseg rank-heads"
        names = set(cls.__dataclass_fields__)
        if not isinstance(content, Mapping) or set(content) != names:
            raise ConfigError(
                f"{source} is no ranking of heads (its keys are {', '.join(sorted(names))}); {remedy}"
            )
        try:
            heads = tuple((_index(layer), _index(head)) for layer, head in content["heads"])
            scores = tuple(float(score) for score in content["scores"])
            layers, per_layer, phrases = (
                _index(content[name]) for name in ("num_layers", "num_heads", "num_phrases")
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{source}: the ranking of heads cannot be read ({error}); {remedy}") from error
        return cls(str(content["lmm"]), layers, per_layer, str(content["method"]), phrases, heads, scores)


def _index(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value

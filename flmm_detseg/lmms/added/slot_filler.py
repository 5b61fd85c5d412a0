"""Parts of an LMM that stand for regions of an image in the prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.lmm_part import LMMPart
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.structures import PatchGrid, Region


class SlotFiller(LMMPart):
    """A part that turns regions of an image into embeddings, which stand where its token stands in the prompt.

    Args:
        layers: Hidden states of the vision tower that it reads, joined; negative ones count from the last (-1).
        token: What stands for a region in prompts: signs that neither texts nor the tokenizer have otherwise.

    Attributes:
        layers: As the argument; counted from 0 once the part is attached.

    Raises:
        ConfigError: No layer, or a token that cannot be one.
    """

    token: str

    def __init__(self, layers: Sequence[int], token: str) -> None:
        super().__init__()
        kind = type(self).__name__
        if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(map(is_integer, layers)):
            raise ConfigError(f"{kind}: `layers` is {layers!r}; a list such as (-2,) is needed")
        if not layers:
            raise ConfigError(
                f"{kind}: `layers` is empty; name hidden states of the vision tower, such as (-2,)"
            )
        if not isinstance(token, str) or not token or any(character.isspace() for character in token):
            raise ConfigError(f"{kind}: `token` is {token!r}; a text without white space is needed")
        if token.isalnum():
            raise ConfigError(
                f"{kind}: `token` is {token!r}, a word that texts may have; one of signs is needed, such as "
                "'<region>'"
            )
        self.layers, self.token = tuple(layers), token

    def count_layers(self, facts: LMMFacts) -> int:
        """Counts its layers from 0.

        Args:
            facts: Of the model.

        Returns:
            Channels of the joined layers.

        Raises:
            ConfigError: The tower has no such layer.
        """
        count = facts.vision.num_layers
        if wrong := [layer for layer in self.layers if not -count - 1 <= layer <= count]:
            raise ConfigError(
                f"{type(self).__name__}: `layers` names {wrong}; the vision tower has hidden states 0 to {count}, or "
                f"from the last one -1 to {-count - 1}"
            )
        self.layers = tuple(dict.fromkeys(layer + count + 1 if layer < 0 else layer for layer in self.layers))
        return facts.vision.channels * len(self.layers)

    @abstractmethod
    def locate(self, region: Region, grid: PatchGrid) -> Tensor:
        """Where a region lies in its image, as :meth:`fill` reads it.

        Args:
            region: One that :meth:`Region.check` saw.
            grid: Geometry of its image.

        Returns:
            float32, on the CPU.
        """

    @abstractmethod
    def fill(self, maps: Sequence[Mapping[int, Tensor]], located: Sequence[Tensor]) -> Tensor:
        """Embeddings of n regions.

        Args:
            maps: Per region the maps ``[D, rows, cols]`` of its image, by layer; the same object for the same image.
            located: Per region what :meth:`locate` said, on the maps' device.

        Returns:
            ``[n, d]``.
        """


def by_image(maps: Sequence[Mapping[int, Tensor]]) -> list[list[int]]:
    """Places of the regions of each image.

    Args:
        maps: As of :meth:`SlotFiller.fill`.

    Returns:
        Of each image in the order of its first region.
    """
    groups: dict[int, list[int]] = {}
    for place, found in enumerate(maps):
        groups.setdefault(id(found), []).append(place)
    return list(groups.values())


def is_integer(value: object) -> bool:
    """Whether a value of a config is a number without fraction, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)

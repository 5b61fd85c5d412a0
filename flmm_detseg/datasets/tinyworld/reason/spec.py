"""Parameters that determine the files of the reasoning set."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from flmm_detseg.errors import ConfigError

REASON_SPLITS: tuple[str, ...] = ("train", "val", "test")
QUERIES_PER_IMAGE = 3


@dataclass(frozen=True)
class ReasonSpec:
    """Parameters that determine the files; every image is asked three queries.

    Attributes:
        train_images: Images to learn from.
        val_images: Images with the wordings and combinations of the training split.
        test_images: Images with held-out wordings and combinations as well.
        seed: Of the world.
    """

    train_images: int = 2500
    val_images: int = 150
    test_images: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        small = [name for name, value in asdict(self).items() if name != "seed" and value < 1]
        if small:
            raise ConfigError(f"{', '.join(small)} must be at least 1")

    def counts(self) -> dict[str, int]:
        """Images by split."""
        return dict(zip(REASON_SPLITS, (self.train_images, self.val_images, self.test_images), strict=True))

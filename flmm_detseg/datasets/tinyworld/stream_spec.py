"""Parameters that determine the files of TinyWorld's streams."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from flmm_detseg.errors import ConfigError


@dataclass(frozen=True)
class StreamSpec:
    """Parameters that determine the files.

    Attributes:
        train_streams: Streams of every kind of the split train.
        val_streams: Streams of every kind of the split val.
        num_frames: Frames of a stream.
        num_questions: Most questions about a frame of the split val.
        seed: Of the world.
        train_questions: The same of the split train.
    """

    train_streams: int = 300
    val_streams: int = 14
    num_frames: int = 10
    num_questions: int = 3
    seed: int = 0
    train_questions: int = 6

    def __post_init__(self) -> None:
        small = [name for name, value in asdict(self).items() if name != "seed" and value < 1]
        if small:
            raise ConfigError(f"{', '.join(small)} must be at least 1")

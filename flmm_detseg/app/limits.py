"""What one user, and all of them together, may use of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from flmm_detseg.errors import DataError


@dataclass(frozen=True)
class Limits:
    """Bounds of the app. They keep its memory flat, whoever uses it.

    Attributes:
        file_bytes: Largest file that is taken.
        folder_bytes: Of all files that were sent and not read yet; then the oldest are deleted.
        pixels: Most pixels of a picture, before it is decoded.
        side: A larger picture is worked on at this longer side; COCO files have its own size again.
        text: Most characters of a question.
        turns: Requests about one picture; the oldest are forgotten.
        phrases: Regions of a turn that are shown and kept.
        frames: Frames of a user's own stream.
        users: At the same time; then the one that has been idle longest is forgotten.
        user_bytes: Of all users together; then the same.
        idle_seconds: After which a user is forgotten.
        waiting: Requests in the queue; further ones are refused.
        new_tokens: Longest answer.
    """

    file_bytes: int = 20_000_000
    folder_bytes: int = 1_000_000_000
    pixels: int = 40_000_000
    side: int = 1536
    text: int = 2000
    turns: int = 12
    phrases: int = 24
    frames: int = 32
    users: int = 64
    user_bytes: int = 1_500_000_000
    idle_seconds: float = 3600.0
    waiting: int = 128
    new_tokens: int = 128

    def check_text(self, text: object) -> str:
        """A question that can be asked.

        Args:
            text: Whatever a client sent.

        Returns:
            The text, without white space around it.

        Raises:
            DataError: It is no text, empty, or too long.
        """
        if not isinstance(text, str) or not text.strip():
            raise DataError("there is no question; write one")
        if len(text) > self.text:
            raise DataError(f"the text has {len(text)} characters; at most {self.text} are read")
        return text.strip()

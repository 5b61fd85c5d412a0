"""What the app keeps of one user: a picture, its conversation, what was outlined, and a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from flmm_detseg.app import layers
from flmm_detseg.app.entry import Entry
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.marks import Marks
from flmm_detseg.app.uploads import Picture
from flmm_detseg.errors import DataError
from flmm_detseg.inference.chat import Chat, ChatTurn
from flmm_detseg.inference.outline import Outliner
from flmm_detseg.inference.regions import Region
from flmm_detseg.models.presence import MinPresence

if TYPE_CHECKING:
    from flmm_detseg.app.stream_view import StreamView
    from flmm_detseg.inference.grounder import Grounder


class User:
    """One browser tab. Its methods that run the model are called one at a time, under the app's lock.

    Args:
        grounder: The model, shared by all users.
        limits: Of what a user may ask and keep.
        can_outline: Whether the model has a SAM that outlines.
        min_presence: See :class:`~flmm_detseg.inference.chat.Chat`.

    Attributes:
        token: Secret part of the addresses of this user's pictures.
        seen: When the user last did something, seconds of ``time.monotonic``.
        warning: What to know of the picture before its masks are believed; empty where nothing is amiss.
        stream: The user's stream, once it was opened.
    """

    def __init__(
        self, grounder: Grounder, limits: Limits, *, can_outline: bool, min_presence: MinPresence = None
    ) -> None:
        self._grounder = grounder
        self._limits = limits
        self._min_presence = min_presence
        self.can_outline = can_outline
        self.token = secrets.token_urlsafe(24)
        self.seen = time.monotonic()
        self.picture: Picture | None = None
        self.picture_key = ""
        self.warning = ""
        self.entries: list[Entry] = []
        self.stream: StreamView | None = None
        self._file: tuple[bytes, str] = (b"", "")
        self._chat: Chat | None = None
        self._outliner: Outliner | None = None
        self._number = 0

    @property
    def num_bytes(self) -> int:
        """What the user's pictures and masks take; the SAM's encoding of the picture is not counted."""
        pixels = 0 if self.picture is None else self.picture.pixels.nbytes + len(self._file[0])
        stream = 0 if self.stream is None else self.stream.num_bytes
        return pixels + stream + sum(entry.num_bytes for entry in self.entries)

    def open(self, picture: Picture) -> None:
        """Begins anew with a picture; what was said about the one before is forgotten.

        Args:
            picture: Already checked.
        """
        self.picture = picture
        self._number += 1
        self.picture_key = f"picture{self._number}"
        self._file = layers.picture_file(picture.pixels)
        self.warning = self._grounder.warning(picture.pixels)
        self.entries = []
        self._chat = self._outliner = None

    def say(self, text: object, threshold: float = 0.3) -> Entry:
        """A question or an instruction about the picture.

        Args:
            text: What the user wrote.
            threshold: Least score of detected objects.

        Returns:
            The new turn, which is also the last of :attr:`entries`.

        Raises:
            DataError: There is no picture, or the text cannot be used.
            ConfigError: The model has no head for what is asked.
        """
        picture, request = self._picture(), self._limits.check_text(text)
        before = () if self._chat is None else self._chat.turns
        chat = Chat(
            self._grounder,
            picture.pixels,
            max_new_tokens=self._limits.new_tokens,
            keep_attention=True,
            score_threshold=threshold,
            min_presence=self._min_presence,
        )
        chat.turns = before
        turn = chat.say(request)
        # The words are what later turns read; masks are in the entry.
        chat.turns = (*before, replace(turn, phrases=()))[-self._limits.turns :]
        self._chat = chat
        return self._add(turn)

    def outline(self, data: Mapping[str, object]) -> Entry:
        """What SAM outlines where the user pointed. Marks that go on with those before replace their outline.

        Args:
            data: As :meth:`Marks.of <flmm_detseg.app.marks.Marks.of>` reads it; ``"again"`` where marks were added to
                those of the last outline.

        Returns:
            The entry, which is also the last of :attr:`entries`.

        Raises:
            DataError: There is no picture, or the marks cannot be used.
            ConfigError: The model has no SAM.
        """
        picture = self._picture()
        size = picture.pixels.shape[0], picture.pixels.shape[1]
        marks = Marks.of(data, size)
        if self._outliner is None:
            self._outliner = Outliner(self._grounder, picture.pixels)
        found = self._outliner.outline(
            points=marks.points, labels=marks.labels or None, box=marks.box, scribble=marks.scribble(size)
        )
        phrase = Region("segment", "outline", found.score, found.box_xyxy, found.mask, found.score_of)
        if data.get("again") and self.entries and self.entries[-1].key.startswith("o"):
            self.entries.pop()
        return self._add(ChatTurn(f"(pointed: {marks})", "instruction", "", (phrase,), picture.pixels), "o")

    def file(self, path: str, threshold: float = 0.0) -> tuple[bytes, str, str] | None:
        """What the page and the downloads show of this user.

        Args:
            path: Below the user's address.
            threshold: Least score of detected objects in a download.

        Returns:
            Bytes, media type, and the name under which it is saved (empty: it is shown); None where there is none.

        Raises:
            RunError: What was found is no number, so that no file can hold it.
        """
        parts = path.split("/")
        if parts == [self.picture_key] and self.picture is not None:
            return *self._file, ""
        if parts[0] == "stream" and len(parts) == 2 and self.stream is not None:
            picture = self.stream.file(parts[1])
            return None if picture is None else (picture, "image/png", "")
        entry = next((entry for entry in self.entries if entry.key == parts[0]), None)
        if entry is None or self.picture is None:
            return None
        if parts[1:] == ["overlay.png"]:
            return entry.overlay(threshold), "image/png", f"overlay_{entry.key}.png"
        if parts[1:] == ["coco.json"]:
            from flmm_detseg.utils.whole_files import dump_json

            content = dump_json(entry.coco(self.picture.name, threshold)).encode()
            return content, "application/json", f"coco_{entry.key}.json"
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].endswith(".png"):
            layer = entry.layer(int(parts[1]), parts[2].removesuffix(".png"))
            return None if layer is None else (layer, "image/png", "")
        return None

    def _picture(self) -> Picture:
        if self.picture is None:
            raise DataError("there is no picture yet; choose one first")
        return self.picture

    def _add(self, turn: ChatTurn, letter: str = "t") -> Entry:
        self._number += 1
        entry = Entry.of(f"{letter}{self._number}", turn, self._picture().size, self._limits.phrases)
        self.entries = [*self.entries, entry][-self._limits.turns :]
        return entry

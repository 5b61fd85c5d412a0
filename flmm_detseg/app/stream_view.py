"""A user's stream: frames, what was asked about them, and what the background cache did for each answer."""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np

from flmm_detseg.app import layers
from flmm_detseg.app.frames import Frames
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.uploads import Picture
from flmm_detseg.cache import StreamSession
from flmm_detseg.cache.regions.partition import letterbox_tiles
from flmm_detseg.errors import DataError
from flmm_detseg.structures import PatchGrid, Sample
from flmm_detseg.structures.partition import OBJ, PatchPartition

LEVELS = {
    "miss": "nothing of this background was stored: everything is computed",
    "L1": "the background's vision features came from the cache; the language model read all of it",
    "L2": "the language model's keys and values of the background came from the cache; only objects and text were read",
    "L3": "a nearly equal background came from the cache; what differs was computed",
    "off": "the cache was not asked",
}
_MOST_REQUESTS = 40
# A frame of the folder, or one that the user sent.
_OWN = "yours: "


@dataclass(frozen=True, eq=False)
class StreamRequest:
    """One question about one frame.

    Attributes:
        number: From 1.
        frame: Name of the frame.
        question: As asked.
        answer: The model's.
        level: A key of :data:`LEVELS`.
        first_token_ms: From the request to the first token.
        total_ms: From the request to the end of the answer.
        background: Patches of the background group.
        patches: Patches that show the image.
        source: Who drew the boundary between the groups.
        picture: PNG: the frame with its groups.
    """

    number: int
    frame: str
    question: str
    answer: str
    level: str
    first_token_ms: float
    total_ms: float
    background: int
    patches: int
    source: str
    picture: bytes


class StreamView:
    """One user's stream.

    Args:
        session: Of the user, who shares the cache's memory with others and none of its entries.
        frames: To choose from, for all users.
        limits: Of the user's own frames.
    """

    EMPTY = (
        '<div class="flmm-empty">Ask about a frame, then about the next one. What the model computed for a '
        "background that stays is used again: look at the level and the milliseconds.</div>"
    )

    def __init__(self, session: StreamSession, frames: Frames, limits: Limits) -> None:
        self._session = session
        self._frames = frames
        self._limits = limits
        self._own: dict[str, Picture] = {}
        self.requests: list[StreamRequest] = []
        self._count = 0

    @property
    def num_bytes(self) -> int:
        """Of the user's frames and pictures."""
        own = sum(picture.pixels.nbytes for picture in self._own.values())
        return own + sum(len(request.picture) for request in self.requests)

    @property
    def names(self) -> list[str]:
        """Frames to choose from; the user's own, where there are some."""
        return list(self._own) or self._frames.names

    def take(self, pictures: list[Picture]) -> None:
        """The user's own frames, in their order; they replace earlier ones.

        Args:
            pictures: Already checked.

        Raises:
            DataError: There are none, or too many.
        """
        if not pictures:
            raise DataError("no frame came; choose pictures")
        if len(pictures) > self._limits.frames:
            raise DataError(f"{len(pictures)} frames; at most {self._limits.frames} are taken at a time")
        self._own = {f"{_OWN}{number}. {picture.name}": picture for number, picture in enumerate(pictures, 1)}

    def ask(self, name: object, question: object) -> StreamRequest:
        """Asks about a frame.

        Args:
            name: One of :attr:`names`.
            question: What the user wrote.

        Returns:
            The answer and how it was computed; also the last of :attr:`requests`.

        Raises:
            DataError: There is no such frame, or the question cannot be used.
        """
        text = self._limits.check_text(question)
        picture = (
            self._own[name] if isinstance(name, str) and name in self._own else self._frames.picture(name)
        )
        model = self._session.model
        grid = model.prepare_text(Sample("stream", picture.pixels, "", (), prompt=text)).grid
        answer = self._session.ask(picture.pixels, text, max_new_tokens=self._limits.new_tokens)
        partition = answer.partition
        # Groups that came from the cache do not name the padding.
        shown = ~letterbox_tiles(grid).ravel()
        objects = partition.group == OBJ
        self._count += 1
        request = StreamRequest(
            self._count, picture.name, text, answer.text, answer.level,
            answer.milliseconds["first_token"], answer.milliseconds["total"],
            int((shown & ~objects).sum()), int(shown.sum()), partition.source,
            layers.png(layers.groups_picture(picture.pixels, object_pixels(partition, grid))),
        )  # fmt: skip
        self.requests = [*self.requests, request][-_MOST_REQUESTS:]
        return request

    def after(self, name: object) -> str:
        """The frame that follows another one; the first after the last."""
        names = self.names
        place = names.index(name) + 1 if name in names else 0
        return names[place % len(names)]

    def file(self, name: str) -> bytes | None:
        """A picture of the page, ``NUMBER.png``; None where there is none."""
        return next((one.picture for one in self.requests if f"{one.number}.png" == name), None)

    def html(self, home: str) -> str:
        """The last frame with its groups, and a line for each request.

        Args:
            home: The user's address.

        Returns:
            HTML without scripts.
        """
        if not self.requests:
            return self.EMPTY
        last = self.requests[-1]
        share = last.background / max(last.patches, 1)
        rows = "".join(
            f'<tr class="flmm-level-{one.level.lower()}"><td>{one.number}</td><td>{html.escape(one.frame)}</td>'
            f"<td>{html.escape(one.question)}</td><td>{html.escape(one.answer)}</td>"
            f'<td><b title="{html.escape(LEVELS.get(one.level, ""))}">{html.escape(one.level)}</b></td>'
            f"<td>{one.first_token_ms:.0f}</td><td>{one.total_ms:.0f}</td>"
            f"<td>{one.background} of {one.patches}</td></tr>"
            for one in reversed(self.requests)
        )
        return (
            '<div class="flmm-stream"><figure><img src="'
            f'{home}/stream/{last.number}.png" alt="groups of patches of {html.escape(last.frame)}">'
            f"<figcaption><b>{html.escape(last.level)}</b>: {html.escape(LEVELS.get(last.level, ''))}. "
            f"Faded: the background, {share:.0%} of the patches. In its own colours, with a red border: the object "
            f"group, which is always computed (drawn by: {html.escape(last.source)}).</figcaption></figure>"
            '<div class="flmm-table"><table><thead><tr><th></th><th>frame</th><th>question</th><th>answer</th>'
            "<th>level</th><th>first token, ms</th><th>all, ms</th><th>background</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div></div>"
        )


def object_pixels(partition: PatchPartition, grid: PatchGrid) -> np.ndarray:
    """The object group in pixels of the original image.

    Args:
        partition: Groups of patches over the padded frame.
        grid: Geometry of the image.

    Returns:
        bool ``[H, W]``.
    """
    rows, cols = partition.grid
    tiles = (partition.group == OBJ).reshape(rows, cols)
    height, width = grid.image_size

    def places(length: int, resized: int, pad: int, padded: int, count: int) -> np.ndarray:
        centres = (np.arange(length) + 0.5) * resized / length + pad
        return np.clip((centres * count / padded).astype(np.int64), 0, count - 1)

    down = places(height, grid.resized_size[0], grid.pad_top, grid.padded_size[0], rows)
    across = places(width, grid.resized_size[1], grid.pad_left, grid.padded_size[1], cols)
    return tiles[down[:, None], across[None, :]]

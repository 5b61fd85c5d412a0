"""What the app does, without its page: every action of a user, one at a time on the model."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flmm_detseg.app.board import board
from flmm_detseg.app.entry import Entry
from flmm_detseg.app.frames import Frames
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.stream_view import StreamRequest, StreamView
from flmm_detseg.app.uploads import Picture, Uploads
from flmm_detseg.app.user import User
from flmm_detseg.app.users import Users
from flmm_detseg.cache import BackgroundCache, StreamSession
from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import head_of, named_heads
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.models.presence import MinPresence, check_presence, tasks_of_answer
from flmm_detseg.utils.values import number

# Makes the model of the stream tab at its first use: a session on it, and what to say about it.
StreamMaker = Callable[[], StreamSession]


@dataclass(frozen=True)
class About:
    """What the page says of the model.

    Attributes:
        model: Its name, plain text.
        knows: What it was trained on, in a sentence; Markdown.
        example: A picture to begin with; None without one.
        question: Something to ask.
        stream: What to know of the stream's model, in a sentence.
        stream_question: Something to ask about its frames.
    """

    model: str
    knows: str = ""
    example: Picture | None = None
    question: str = ""
    stream: str = ""
    stream_question: str = ""

    @property
    def headline(self) -> str:
        """The first lines of the page, as Markdown."""
        return f"## flmm_detseg: an LMM that points\n{plain_markdown(self.model)}. {self.knows}"


def plain_markdown(text: str) -> str:
    """Text that others wrote, so that Markdown shows it as it is: no link, no picture, no HTML.

    Args:
        text: Any.

    Returns:
        One line of Markdown.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


class Service:
    """Users, their pictures, and the models that serve them.

    Args:
        grounder: For the conversation and for pointing.
        stream: Makes the stream's session; None where the app has no stream.
        frames: Of the stream, for all users.
        limits: What users may use.
        about: The model in words.
        min_presence: See :class:`~flmm_detseg.inference.chat.Chat`.

    Raises:
        ConfigError: ``min_presence``, see :class:`~flmm_detseg.inference.chat.Chat`.
    """

    def __init__(
        self,
        grounder: Grounder,
        stream: StreamMaker | None,
        frames: Frames,
        limits: Limits,
        about: About,
        min_presence: MinPresence = None,
    ) -> None:
        self._grounder = grounder
        # Now, not when the first user comes; each head has a stored threshold of its own.
        plain = grounder.model.retention.mode != "always"
        check_presence(grounder.model, min_presence, tasks_of_answer(grounder.model, plain=plain))
        self._min_presence = min_presence
        self._make_stream = stream
        self._stream: StreamSession | None = None
        self.frames = frames
        self.limits = limits
        self.about = about
        self.uploads = Uploads(limits)
        self.users = Users(self._new_user, limits)
        # Models keep state for one request at a time, and memory for one.
        self._lock = threading.Lock()
        heads = named_heads(grounder.model.heads)
        self.detects = head_of(grounder.model.heads, "detection") is not None
        self._outlines = any(head.refiner is not None for head in heads.values())
        self.requests = 0

    def _new_user(self) -> User:
        return User(self._grounder, self.limits, can_outline=self._outlines, min_presence=self._min_presence)

    def enter(self, session: str | None) -> User:
        """The user of a session, who has come to the page.

        Args:
            session: The browser's.

        Returns:
            The user.

        Raises:
            DataError: There is no session.
        """
        return self.users.get(session)

    def open(self, session: str | None, path: object) -> User:
        """Begins with a picture that was sent.

        Args:
            session: The browser's.
            path: The file, which is gone afterwards.

        Returns:
            The user.

        Raises:
            DataError: It is no picture that can be used.
        """
        user = self.users.get(session)
        user.open(self.uploads.take(path))
        self.users.trim()
        return user

    def open_example(self, session: str | None) -> User:
        """Begins with the model's own example.

        Args:
            session: The browser's.

        Returns:
            The user.

        Raises:
            ConfigError: The model has none.
        """
        if self.about.example is None:
            raise ConfigError("this model has no example picture; choose one of your own")
        user = self.users.get(session)
        user.open(self.about.example)
        return user

    def say(self, session: str | None, text: object, threshold: object = 0.3) -> tuple[User, Entry]:
        """A question or an instruction.

        Args:
            session: The browser's.
            text: What the user wrote.
            threshold: Least score of detected objects, 0 to 1.

        Returns:
            The user and the new turn.

        Raises:
            DataError: There is no picture, or the text cannot be used.
            ConfigError: The model has no head for what is asked.
        """
        least = number(threshold, "threshold", 0, 1)
        user = self.users.get(session)
        with self._lock:
            self.requests += 1
            entry = user.say(text, least)
        self.users.trim()
        return user, entry

    def outline(self, session: str | None, data: Mapping[str, object]) -> tuple[User, Entry]:
        """What SAM outlines where the user pointed.

        Args:
            session: The browser's.
            data: As :meth:`Marks.of <flmm_detseg.app.marks.Marks.of>` reads it.

        Returns:
            The user and the entry.

        Raises:
            DataError: There is no picture, or the marks cannot be used.
            ConfigError: The model has no SAM.
        """
        user = self.users.get(session)
        with self._lock:
            self.requests += 1
            entry = user.outline(data)
        self.users.trim()
        return user, entry

    def send_frames(self, session: str | None, paths: object) -> StreamView:
        """Frames of the user's own stream.

        Args:
            session: The browser's.
            paths: Files, in their order; they are gone afterwards.

        Returns:
            The user's stream.

        Raises:
            DataError: One of them is no picture that can be used, or there are too many.
        """
        files = paths if isinstance(paths, Sequence) and not isinstance(paths, str) else []
        pictures: list[Picture] = []
        stream = self._stream_of(self.users.get(session))
        try:
            for file in files[: self.limits.frames + 1]:
                pictures.append(self.uploads.take(file))
            stream.take(pictures)
        finally:
            for file in files[len(pictures) :]:
                self.uploads.drop(file)
        self.users.trim()
        return stream

    def ask_stream(self, session: str | None, frame: object, question: object) -> tuple[User, StreamRequest]:
        """A question about a frame.

        Args:
            session: The browser's.
            frame: Its name.
            question: What the user wrote.

        Returns:
            The user and the answer.

        Raises:
            ConfigError: The app has no stream.
            DataError: There is no such frame, or the question cannot be used.
        """
        user = self.users.get(session)
        stream = self._stream_of(user)
        with self._lock:
            self.requests += 1
            request = stream.ask(frame, question)
        return user, request

    def file(self, token: str, path: str, threshold: float = 0.0) -> tuple[bytes, str, str] | None:
        """What the page and the downloads show of a user.

        Args:
            token: Secret part of the user's addresses.
            path: Below them.
            threshold: Least score of detected objects in a download, 0 to 1.

        Returns:
            See :meth:`User.file <flmm_detseg.app.user.User.file>`; None for an unknown token as well.

        Raises:
            DataError: The threshold is none.
            RunError: What was found is no number, so that no file can hold it.
        """
        least = number(threshold, "threshold", 0, 1)
        user = self.users.by_token(token)
        return None if user is None else user.file(path, least)

    def board(self, user: User) -> str:
        """The user's picture and conversation as HTML."""
        return board(user)

    def close(self) -> None:
        """Deletes what was sent, and closes the cache."""
        self.uploads.close()
        if self._stream is not None and self._stream.cache is not None:
            self._stream.cache.close()

    @property
    def stream_text(self) -> str:
        """What the tab of the stream says first, as Markdown."""
        text = (
            "Questions about a screen, slides or a fixed camera. What the model computed for a background that stays "
            "is used again."
        )
        return " ".join(part for part in (text, self.about.stream, self.frames.note) if part)

    @property
    def has_stream(self) -> bool:
        """Whether there is a stream to ask."""
        return self._make_stream is not None

    def _stream_of(self, user: User) -> StreamView:
        """The user's stream; the model is built at the first use by anyone."""
        if self._make_stream is None:
            raise ConfigError("this app was started without a stream (flmm-detseg app --stream CONFIG)")
        with self._lock:
            if self._stream is None:
                self._stream = self._make_stream()
            if user.stream is None:
                cache: BackgroundCache | None = self._stream.cache
                # A tenant of its own: what is stored for one user is never found by another.
                session = StreamSession(self._stream.model, cache, tenant=f"user-{user.token}")
                user.stream = StreamView(session, self.frames, self.limits)
        return user.stream

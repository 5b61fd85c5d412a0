"""Records that cannot be used: an error that names the record, or a counted and listed skip."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flmm_detseg.errors import ConfigError, DataError, FlmmError
from flmm_detseg.utils.values import FieldError, printable

POLICIES = ("raise", "skip")


@dataclass(frozen=True)
class Problem:
    """One unusable record.

    Attributes:
        file: Annotation or image file where it was found.
        record: Record inside the file (``"line 7"``, ``"ref-12"``); empty when the file itself is at fault.
        message: What is wrong.
        remedy: What to do about it.
        kind: Short name that reports count by, e.g. ``"broken image"``.
    """

    file: str
    record: str
    message: str
    remedy: str
    kind: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.record}" if self.record else self.file
        return f"{where}: {self.message}. {self.remedy}"


class RecordError(DataError):
    """A :class:`DataError` about one record; carries its :class:`Problem`.

    Constructible from the message alone, because DataLoader workers re-raise errors that way.
    """

    def __init__(self, message: str, problem: Problem | None = None) -> None:
        super().__init__(message)
        self.problem = problem


def record_error(file: str, record: str, message: str, remedy: str, kind: str) -> RecordError:
    """Builds the error of one unusable record (see :class:`Problem` for the arguments).

    Whatever stands in the file can be printed: control characters are escaped, long values are cut short.
    """
    problem = Problem(
        file=printable(str(file)),
        record=printable(record, 300),
        message=printable(message),
        remedy=remedy,
        kind=kind,
    )
    return RecordError(str(problem), problem)


def as_record_error(error: Exception, file: str, record: str, remedy: str) -> RecordError:
    """The error of one record, from whatever reading it raised.

    Values are checked where they are read, and a fault found there says what is wrong. Which other exceptions a value
    can cause is not listed here: any of them is this record's problem, under the name of its type.

    Args:
        error: What was raised.
        file: Where the record is from.
        record: The record, if the error does not name one itself.
        remedy: What to do about it.

    Returns:
        ``error`` itself where it is one already, else a new one that names file, record and remedy.

    Raises:
        MemoryError, FlmmError: ``error`` is no fault of the record: a wrong config, a missing package.
    """
    if isinstance(error, RecordError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, FlmmError) and not isinstance(error, DataError)):
        raise error
    if isinstance(error, FieldError):
        message = f"malformed ({error})" if error.kind == "malformed" else str(error)
        return record_error(file, record, message, remedy, error.kind)
    message = str(error) if isinstance(error, DataError) else f"malformed ({type(error).__name__}: {error})"
    return record_error(file, record, message, remedy, "malformed")


class ProblemLog:
    """Applies a policy to unusable records and remembers the skipped ones, in file order.

    Args:
        policy: ``"raise"``: the first unusable record is an error; ``"skip"``: it is left out, counted and
            listed.

    Attributes:
        problems: Skipped records (always empty with ``"raise"``).
        dropped: Records left out because there is nothing to learn from them (not faulty), by reason.

    Raises:
        ConfigError: There is no such policy.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"`policy` is {policy!r}; allowed: {', '.join(POLICIES)}")
        self.policy = policy
        self.problems: list[Problem] = []
        self.dropped: dict[str, list[str]] = {}

    def handle(self, error: RecordError) -> None:
        """Raises or records one problem.

        Args:
            error: What is wrong with a record.

        Raises:
            RecordError: Under the policy ``"raise"``.
        """
        if self.policy == "raise" or error.problem is None:
            raise error
        self.problems.append(error.problem)

    def drop(self, reason: str, record: str) -> None:
        """Counts a record that is well-formed but has nothing to learn from."""
        self.dropped.setdefault(reason, []).append(record)

    def counts(self) -> dict[str, int]:
        """Number of skipped records by kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

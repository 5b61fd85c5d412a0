"""What happens to a record that cannot be used: an error that names it, or a counted and listed skip."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flmm_detseg.errors import ConfigError, DataError

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
    """Builds the error of one unusable record (see :class:`Problem` for the arguments)."""
    problem = Problem(file=str(file), record=record, message=message, remedy=remedy, kind=kind)
    return RecordError(str(problem), problem)


class ProblemLog:
    """Applies a policy to unusable records and remembers the skipped ones, in file order.

    Args:
        policy: ``"raise"``: the first unusable record is an error; ``"skip"``: it is left out, counted and
            listed.

    Attributes:
        problems: Skipped records (always empty with ``"raise"``).
        dropped: Records left out because there is nothing to learn from them (not faulty), by reason.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"`policy` is {policy!r}; allowed: {', '.join(POLICIES)}")
        self.policy = policy
        self.problems: list[Problem] = []
        self.dropped: dict[str, list[str]] = {}

    def handle(self, error: RecordError) -> None:
        """Raises or notes one problem.

        Raises:
            RecordError: Under the policy ``"raise"``.
        """
        if self.policy == "raise" or error.problem is None:
            raise error
        self.problems.append(error.problem)

    def drop(self, reason: str, record: str) -> None:
        """Notes a record that is well-formed but has nothing to offer."""
        self.dropped.setdefault(reason, []).append(record)

    def counts(self) -> dict[str, int]:
        """Number of skipped records by kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

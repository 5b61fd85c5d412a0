"""Which stored backgrounds may an image show? Proposals from hashes; the comparison of pixels accepts or refuses."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np

from flmm_detseg.cache.keys import KeyMaker, flat_tiles
from flmm_detseg.cache.types import BackgroundKey

# Tiles of an entry that vote. They only propose: the digest over all tiles and then the pixels are compared.
MAX_VOTERS = 16


@dataclass(eq=False)
class Record:
    """One stored background.

    Attributes:
        entry_id: Its name.
        bucket: Name of the images it can be compared with (tenant, vision fingerprint, grid, tile size).
        scope: Name of tenant and vision fingerprint.
        grid: ``(rows, cols)``.
        mask: ``[N]`` bool.
        voters: ``[v]`` uint64 hashes (with places) of the tiles that propose this entry.
        digest: Sum modulo 2^64 of the hashes of all mask tiles.
        pixels: ``[n, tile_bytes]`` uint8, None while they are only on disk or on another machine.
        values: Names of this background's stored units, by place (tier) of storage.
    """

    entry_id: str
    bucket: str
    scope: str
    grid: tuple[int, int]
    mask: np.ndarray
    voters: np.ndarray
    digest: int
    pixels: np.ndarray | None = None
    values: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.indices = np.flatnonzero(self.mask).astype(np.int64)
        self.voter_set = frozenset(self.voters.tolist())

    def num_live(self, live: np.ndarray) -> int:
        """Mask tiles that are no letterbox (``live`` is ``[N]`` bool)."""
        return int(np.count_nonzero(live[self.indices]))

    def drop(self, place: str, name: str) -> bool:
        """Forgets a stored unit; True when none is left anywhere."""
        names = self.values.get(place, set())
        names.discard(name)
        if not names:
            self.values.pop(place, None)
        return not self.values


def make_record(key: BackgroundKey, bucket: str, scope: str, hashes: np.ndarray) -> Record:
    """Index data of a background.

    Args:
        key: The background.
        bucket: See :class:`Record`.
        scope: See :class:`Record`.
        hashes: ``[n]`` uint64 hashes of its tiles, with their places in the image.
    """
    textured = np.flatnonzero(~flat_tiles(key.pixels))
    # A plain wallpaper has no other tiles than flat ones.
    chosen = textured if len(textured) else np.arange(len(hashes))
    spread = np.linspace(0, len(chosen) - 1, min(MAX_VOTERS, len(chosen))).round().astype(np.int64)
    digest = int(hashes.sum(dtype=np.uint64))
    return Record(key.entry_id, bucket, scope, key.grid, key.mask, hashes[chosen[spread]], digest)


def pack_record(record: Record) -> tuple[bytes, bytes, str]:
    """Mask, voters and digest in the form in which other processes and machines read them."""
    return np.packbits(record.mask).tobytes(), record.voters.astype("<u8").tobytes(), f"{record.digest:x}"


def sign_record(maker: KeyMaker, name: str, record: Record) -> str:
    """Signature of one row of an index: who has no secret cannot make one, and a flipped bit does not fit it."""
    return maker.digest(
        "row", name, record.entry_id, record.bucket, record.scope, str(record.grid), *pack_record(record)
    )  # fmt: skip


def unpack_record(
    maker: KeyMaker, name: str, entry: str, bucket: str, scope: str, rows: int, cols: int, mask: bytes,
    voters: bytes, digest: str, signature: str,
) -> Record:  # fmt: skip
    """A record without pixels, from one row of an index.

    Args:
        maker: Of the cache.
        name: Of the unit that the row is about.
        entry: See :class:`Record`.
        bucket: See :class:`Record`.
        scope: See :class:`Record`.
        rows: Of the grid.
        cols: Of the grid.
        mask: See :func:`pack_record`.
        voters: See :func:`pack_record`.
        digest: See :func:`pack_record`.
        signature: See :func:`sign_record`.

    Raises:
        ValueError: The row is damaged or forged.
        TypeError: As above.
    """
    if len(mask) != (rows * cols + 7) // 8:
        raise ValueError("mask and grid differ")
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=rows * cols).astype(bool)
    hashes = np.frombuffer(voters, "<u8").astype(np.uint64)
    record = Record(entry, bucket, scope, (rows, cols), bits, hashes, int(digest, 16))
    if sign_record(maker, name, record) != signature:
        raise ValueError("the signature does not fit")
    return record


@dataclass
class News:
    """What other processes and machines did to a tier.

    Attributes:
        cleared: Scopes that were cleared (None: everything), before ``records`` were stored.
        records: What was stored: record without pixels, and the unit's name.
        gone: What is not there any more: bucket, entry, unit.
    """

    cleared: list[str | None] = field(default_factory=list)
    records: list[tuple[Record, str]] = field(default_factory=list)
    gone: list[tuple[str, str, str]] = field(default_factory=list)


class TileIndex:
    """Votes of tile hashes for stored backgrounds, per bucket. Not thread-safe: the cache holds a lock."""

    def __init__(self) -> None:
        self._records: dict[str, dict[str, Record]] = {}
        # bucket -> hash -> records that have it among their voters.
        self._postings: dict[str, dict[int, list[Record]]] = {}
        # In the order in which they came; see `surplus`.
        self._order: OrderedDict[tuple[str, str], Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def get(self, bucket: str, entry_id: str) -> Record | None:
        """The record of that name."""
        return self._records.get(bucket, {}).get(entry_id)

    def records(self, bucket: str) -> list[Record]:
        """All records of a bucket."""
        return list(self._records.get(bucket, {}).values())

    def buckets(self) -> list[str]:
        """Names of all buckets."""
        return list(self._records)

    def add(self, record: Record) -> None:
        """Takes a record in; its name must be new in its bucket."""
        records = self._records.setdefault(record.bucket, {})
        assert record.entry_id not in records
        records[record.entry_id] = self._order[record.bucket, record.entry_id] = record
        postings = self._postings.setdefault(record.bucket, {})
        for voter in record.voter_set:
            postings.setdefault(voter, []).append(record)

    def remove(self, record: Record) -> None:
        """Forgets a record."""
        records = self._records.get(record.bucket, {})
        if records.get(record.entry_id) is not record:
            return
        del records[record.entry_id], self._order[record.bucket, record.entry_id]
        postings = self._postings[record.bucket]
        for voter in record.voter_set:
            postings[voter].remove(record)
            if not postings[voter]:
                del postings[voter]
        if not records:
            del self._records[record.bucket], self._postings[record.bucket]

    def surplus(self) -> Record | None:
        """The record that came first among those that no memory tier has values of; None when there is none."""
        for _ in range(len(self._order)):
            name, record = next(iter(self._order.items()))
            if record.pixels is None:
                return record
            # The memory tiers' budgets bound these.
            self._order.move_to_end(name)
        return None

    def candidates(self, bucket: str, hashes: np.ndarray) -> list[Record]:
        """Records whose voters all occur in an image and whose digest fits.

        Args:
            bucket: The image's.
            hashes: ``[N]`` uint64 of its tiles.
        """
        postings = self._postings.get(bucket)
        if not postings:
            return []
        votes: dict[int, int] = {}
        voted: dict[int, Record] = {}
        for value in set(hashes.tolist()).intersection(postings):
            for record in postings[value]:
                number = id(record)
                voted[number] = record
                votes[number] = votes.get(number, 0) + 1
        return [
            record
            for number, record in voted.items()
            if votes[number] == len(record.voter_set)
            and int(hashes[record.indices].sum(dtype=np.uint64)) == record.digest
        ]


class SessionHistory:
    """The last backgrounds of every stream: tried first, without any hash.

    Args:
        depth: Backgrounds remembered per stream (K).
        max_sessions: Streams remembered; the longest silent one is forgotten first.
    """

    def __init__(self, depth: int, max_sessions: int = 1024) -> None:
        self._depth, self._max = depth, max_sessions
        self._sessions: OrderedDict[tuple[str, str], deque[str]] = OrderedDict()

    def recent(self, bucket: str, session: str | None) -> list[str]:
        """Names of entries, the latest first."""
        if session is None:
            return []
        return list(reversed(self._sessions.get((bucket, session), ())))

    def push(self, bucket: str, session: str | None, entry_id: str) -> None:
        """The stream showed this background."""
        if session is None:
            return
        entries = self._sessions.setdefault((bucket, session), deque(maxlen=self._depth))
        self._sessions.move_to_end((bucket, session))
        if entry_id in entries:
            entries.remove(entry_id)
        entries.append(entry_id)
        while len(self._sessions) > self._max:
            self._sessions.popitem(last=False)

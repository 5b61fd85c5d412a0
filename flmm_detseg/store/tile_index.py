"""Which stored backgrounds may an image show? Proposals from hashes; the comparison of pixels accepts or refuses."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from flmm_detseg.store.keys import KeyMaker, flat_tiles
from flmm_detseg.store.records import BackgroundKey

# Tiles of an entry that vote. They only propose: the digest over all tiles and then the pixels are compared.
MAX_VOTERS = 16
# From here on one pass over all masks is faster than a sum per mask.
_MANY_MASKS = 64
# ``[256, 8]``: the bits of every byte, as `numpy.packbits` orders them.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.uint64)


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

    Returns:
        The record, with the hashes that vote for it.
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

    Returns:
        The record.

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


class _Group:
    """Records of one bucket that have one mask: one sum over an image tells which of them it may show."""

    def __init__(self, indices: np.ndarray) -> None:
        self.indices = indices
        # Tuples, not lists: readers outside of the lock see the old one or the new one.
        self.by_digest: dict[int, tuple[Record, ...]] = {}


class TileIndex:
    """Votes of tile hashes for stored backgrounds, per bucket. Not thread-safe: the cache holds a lock.

    A record can only be shown by an image that has all of its voters, so it is listed under one of them: the one that
    fewest masks are listed under. What all backgrounds share (a wallpaper, a task bar) then lists none, and a look-up
    takes as long with many records as with few.
    """

    def __init__(self) -> None:
        self._records: dict[str, dict[str, Record]] = {}
        # bucket -> voter -> mask (packed) -> records that are listed there.
        self._postings: dict[str, dict[int, dict[bytes, _Group]]] = {}
        # In the order in which they came, with the voter that lists it (None: it has none); see `surplus`.
        self._order: OrderedDict[tuple[str, str], tuple[Record, int | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def get(self, bucket: str, entry_id: str) -> Record | None:
        """The record of that name."""
        return self._records.get(bucket, {}).get(entry_id)

    def records(self, bucket: str) -> list[Record]:
        """All records of a bucket."""
        return list(self._records.get(bucket, {}).values())

    def latest(self, bucket: str, count: int, suits: Callable[[Record], bool]) -> list[Record]:
        """The last ``count`` records of a bucket that came and that suit, in the order in which they came."""
        suited = filter(suits, reversed(self._records.get(bucket, {}).values()))
        return list(islice(suited, count))[::-1]

    def buckets(self) -> list[str]:
        """Names of all buckets."""
        return list(self._records)

    def add(self, record: Record) -> None:
        """Takes a record in; its name must be new in its bucket."""
        records = self._records.setdefault(record.bucket, {})
        assert record.entry_id not in records
        records[record.entry_id] = record
        postings = self._postings.setdefault(record.bucket, {})
        mask = np.packbits(record.mask).tobytes()

        def cost(voter: int) -> tuple[int, bool]:
            """Other masks that are looked at with this one; a place where it is listed already is free."""
            listed = postings.get(voter, {})
            return len(listed) - (mask in listed), mask not in listed

        voter = min(record.voter_set, key=cost, default=None)
        self._order[record.bucket, record.entry_id] = record, voter
        if voter is not None:
            group = postings.setdefault(voter, {}).setdefault(mask, _Group(record.indices))
            group.by_digest[record.digest] = (*group.by_digest.get(record.digest, ()), record)

    def remove(self, record: Record) -> None:
        """Forgets a record."""
        records = self._records.get(record.bucket, {})
        if records.get(record.entry_id) is not record:
            return
        del records[record.entry_id]
        _, voter = self._order.pop((record.bucket, record.entry_id))
        postings = self._postings[record.bucket]
        if voter is not None:
            mask, groups = np.packbits(record.mask).tobytes(), postings[voter]
            listed = groups[mask].by_digest
            listed[record.digest] = tuple(other for other in listed[record.digest] if other is not record)
            if not listed[record.digest]:
                del listed[record.digest]
            if not listed:
                del groups[mask]
            if not groups:
                del postings[voter]
        if not records:
            del self._records[record.bucket], self._postings[record.bucket]

    def surplus(self) -> Record | None:
        """The record that came first among those that no memory tier has values of; None when there is none."""
        for _ in range(len(self._order)):
            name, (record, _voter) = next(iter(self._order.items()))
            if record.pixels is None:
                return record
            # The memory tiers' budgets bound these.
            self._order.move_to_end(name)
        return None

    def proposals(self, bucket: str, hashes: np.ndarray) -> Proposals:
        """Where to look for records that an image may show; the records are found without the lock.

        Args:
            bucket: The image's.
            hashes: ``[N]`` uint64 of its tiles.

        Returns:
            A snapshot: hashes that are in the index, and records by grid.
        """
        tiles = set(hashes.tolist())
        postings = self._postings.get(bucket, {})
        groups = [group for tile in tiles if (found := postings.get(tile)) for group in found.items()]
        return Proposals(hashes, tiles, groups)


class Proposals:
    """What :meth:`TileIndex.proposals` found for one image.

    Args:
        hashes: ``[N]`` uint64 of the image's tiles.
        tiles: The same as a set.
        groups: Masks (packed) with the records of each that a tile of the image lists.
    """

    def __init__(self, hashes: np.ndarray, tiles: set[int], groups: list[tuple[bytes, _Group]]) -> None:
        self._hashes, self._tiles, self._groups = hashes, tiles, groups

    def records(self) -> list[Record]:
        """Records whose voters all occur in the image and whose digest fits. Needs no lock."""
        found: list[Record] = []
        digests = self._digests()
        for mask, group in self._groups:
            found += group.by_digest.get(digests[mask], ())
        return [record for record in found if record.voter_set <= self._tiles]

    def _digests(self) -> dict[bytes, int]:
        """Sum modulo 2^64 of the image's hashes under each mask."""
        indices = {mask: group.indices for mask, group in self._groups}
        if len(indices) < _MANY_MASKS:
            return {mask: int(self._hashes[where].sum(dtype=np.uint64)) for mask, where in indices.items()}
        # Many masks (one wallpaper under moving objects): sums of all subsets of eight tiles, then a look-up per byte.
        padded = np.zeros(-(-len(self._hashes) // 8) * 8, np.uint64)
        padded[: len(self._hashes)] = self._hashes
        tables = (padded.reshape(-1, 1, 8) * _BITS).sum(axis=2, dtype=np.uint64)
        packed = np.frombuffer(b"".join(indices), np.uint8).reshape(len(indices), -1)
        sums = np.zeros(len(indices), np.uint64)
        for table, part in zip(tables, np.ascontiguousarray(packed.T), strict=True):
            sums += table[part]
        return dict(zip(indices, sums.tolist(), strict=True))


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

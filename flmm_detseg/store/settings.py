"""What an operator decides about the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import MODELS


def _check(where: str, key: str, value: object, valid: bool, wanted: str) -> None:
    if not valid:
        raise ConfigError(f"{where}: `{key}` is {value!r}: give {wanted}")


@MODELS.register_module()
@dataclass(frozen=True)
class ApproximateSettings:
    """Level L3: stored backgrounds that are nearly equal. Off unless given.

    Attributes:
        tau: Largest difference of a byte at which a tile still counts as equal.
        share: Largest share of mask tiles that may differ by more (they are recomputed).
        edge_step: Difference of neighbouring grey values that counts as an edge.
        edge_density: Share of edges from which a tile may contain text; such a tile must be equal to the byte. One
            stroke of a 14 pixel tile is 0.08, the dots of a colon are 0.04.
        shadow_rate: Share of L3 hits that are computed in full as well (spot checks, chosen at random).
        max_disagreement: L3 is switched off when the lower bound of the rate of disagreement exceeds this.
        confidence: Of the Clopper-Pearson bounds.
    """

    tau: int = 4
    share: float = 0.05
    edge_step: int = 32
    edge_density: float = 0.02
    shadow_rate: float = 0.05
    max_disagreement: float = 0.01
    confidence: float = 0.95

    def __post_init__(self) -> None:
        where = "ApproximateSettings"
        _check(where, "tau", self.tau, 0 <= self.tau <= 255, "a difference of bytes, 0 to 255")
        for key in ("share", "shadow_rate", "max_disagreement"):
            value = getattr(self, key)
            _check(where, key, value, 0 <= value <= 1, "a share, 0 to 1")
        _check(
            where, "edge_step", self.edge_step, self.edge_step >= 0, "a difference of grey values, 0 or more"
        )
        _check(where, "edge_density", self.edge_density, self.edge_density >= 0, "a share, 0 or more")
        _check(
            where, "confidence", self.confidence, 0 < self.confidence < 1, "a level between 0 and 1, say 0.95"
        )


@MODELS.register_module()
@dataclass(frozen=True)
class CacheSettings:
    """All settings of :class:`~flmm_detseg.store.background_cache.BackgroundCache`.

    Attributes:
        host_bytes: Budget in host memory.
        device_bytes: Budget on ``device``; 0: values are kept in host memory only.
        device: Where the device tier keeps its copies, for example ``"cuda:0"``; needed with ``device_bytes``.
        pin_host: Host copies in pinned memory (faster to copy to a GPU).
        levels: What is stored, ``"L1"`` (vision features), ``"L2"`` (keys and values) or both. Features alone are
            hundreds of times smaller, and all that Redis takes.
        folder: Of the disk tier; None: none.
        disk_bytes: Budget of the disk tier.
        disk_prefix: Also write keys and values (L2) to disk. Off: reading them takes longer than computing them on most
            disks (``docs/background_cache.md``).
        write_behind: Values that may wait for a thread that writes them to disk and Redis; more are not written. 0:
            they are written before :meth:`BackgroundCache.insert` returns, which adds an fsync to the request.
        redis_url: Shares L1 between machines; None: not.
        redis_ttl_s: Life of a value in Redis.
        secret: Key of all names and checksums, at least 16 characters. None: the folder's own, or a random one. With
            Redis it has to be given, the same on every machine.
        eviction: Registered policy, ``gdsf`` or ``lru``.
        admission: ``second_sighting``: a background is stored when an earlier image showed it too (or its stream was
            declared static); ``always``.
        ghost_images: Images remembered for that, per namespace.
        min_tiles: Backgrounds with fewer live tiles (no letterbox) are not worth storing.
        max_object_share: A background that leaves more than this share of an image's live tiles to compute is not
            stored, and serves no image.
        index_records: Backgrounds of which this process knows at most, beside those in its memory; the ones it heard
            of first are forgotten (their files stay).
        session_depth: Backgrounds of a stream that are tried first.
        tenant_bytes: Of each tier but Redis (whose server has its own limits), per tenant; None: the whole tier.
        tenant_inserts_per_s: Insertions per second and tenant (a burst of two seconds is allowed); None: any number.
        lease_s: Life of the lease of a computation whose process died; a living process renews it.
        flight_timeout_s: Longest wait for another thread's or process' computation.
        poll_s: How often rows of other processes and machines are looked for.
        approximate: Level L3; None: off.
    """

    host_bytes: int = 2 << 30
    device_bytes: int = 0
    device: str | None = None
    pin_host: bool = False
    levels: tuple[str, ...] = ("L1", "L2")
    folder: str | Path | None = None
    disk_bytes: int = 8 << 30
    disk_prefix: bool = False
    write_behind: int = 0
    redis_url: str | None = None
    redis_ttl_s: int = 86400
    secret: str | None = None
    eviction: str = "gdsf"
    admission: Literal["second_sighting", "always"] = "second_sighting"
    ghost_images: int = 256
    min_tiles: int = 64
    max_object_share: float = 0.6
    index_records: int = 200_000
    session_depth: int = 8
    tenant_bytes: int | None = None
    tenant_inserts_per_s: float | None = None
    lease_s: float = 30.0
    flight_timeout_s: float = 60.0
    poll_s: float = 1.0
    approximate: ApproximateSettings | None = None

    def __post_init__(self) -> None:
        # A config may give a list.
        object.__setattr__(self, "levels", tuple(self.levels))
        if isinstance(self.approximate, Mapping):
            object.__setattr__(self, "approximate", MODELS.build(self.approximate))
        self._check_numbers()
        where = "CacheSettings"
        choices = ("second_sighting", "always")
        _check(where, "admission", self.admission, self.admission in choices, " or ".join(map(repr, choices)))
        known = 0 < len(self.levels) == len(set(self.levels)) and set(self.levels) <= {"L1", "L2"}
        _check(where, "levels", self.levels, known, "('L1', 'L2'), ('L1',) or ('L2',)")
        if "L1" not in self.levels:
            idle = [
                *(["folder"] if self.folder is not None and not self.disk_prefix else []),
                *(["redis_url"] if self.redis_url is not None else []),
            ]
            if idle:
                raise ConfigError(
                    f"CacheSettings: with levels=('L2',) nothing is stored in {' and '.join(idle)}: add 'L1', leave it "
                    "out, or set disk_prefix=True for the folder"
                )
        if self.redis_url is not None and self.secret is None:
            raise ConfigError("a cache in Redis needs a secret (the same on every machine): set secret=")
        if self.secret is not None and len(self.secret) < 16:
            # Without the secret itself.
            raise ConfigError(
                f"the cache's secret has {len(self.secret)} characters, wanted at least 16: give a longer one, for "
                "example `openssl rand -hex 32`"
            )
        if self.device_bytes and self.device is None:
            raise ConfigError(
                f"CacheSettings: `device_bytes` is {self.device_bytes}, but `device` is not given: give the model's "
                "device, for example 'cuda:0', or device_bytes=0"
            )

    def _check_numbers(self) -> None:
        for key in ("host_bytes", "device_bytes", "disk_bytes", "write_behind", "min_tiles", "poll_s"):
            value = getattr(self, key)
            _check("CacheSettings", key, value, value >= 0, "0 or more")
        for key in ("redis_ttl_s", "ghost_images", "index_records", "session_depth"):
            value = getattr(self, key)
            _check("CacheSettings", key, value, value >= 1, "1 or more")
        for key in ("lease_s", "flight_timeout_s"):
            value = getattr(self, key)
            _check("CacheSettings", key, value, value > 0, "a time in seconds, more than 0")
        for key in ("tenant_bytes", "tenant_inserts_per_s"):
            value = getattr(self, key)
            _check(
                "CacheSettings", key, value, value is None or value > 0, "more than 0, or None for no limit"
            )
        share = self.max_object_share
        _check("CacheSettings", "max_object_share", share, 0 <= share <= 1, "a share, 0 to 1")

"""Sources of object regions: boxes or a mask of an image. Used on a miss only; a hit compares stored backgrounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np

from flmm_detseg.cache.regions.partition import box_tiles, mask_tiles, partition_tiles
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import PatchGrid, Sample
from flmm_detseg.structures.partition import PatchPartition

POLICIES = ("all", "top1")
GIVEN = ("boxes", "masks", "dense_masks", "meta")
# What a policy can select by.
BOXES, SCORES, LABELS = "boxes", "scores", "labels"
# Key of `Sample.meta`: which stream of images a sample belongs to.
SESSION = "session"
VISIT = "visit"


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Regions:
    """Objects of one image, in its original pixels.

    Attributes:
        boxes_xyxy: float32 ``[n, 4]``, half-open.
        scores: float32 ``[n]``; None where all count alike.
        labels: Class names of the boxes; None where they have none.
        mask: bool ``[H, W]``, further pixels that belong to objects.
    """

    boxes_xyxy: np.ndarray = field(default_factory=_no_boxes)
    scores: np.ndarray | None = None
    labels: Sequence[str] | None = None
    mask: np.ndarray | None = None


class RegionSource(ABC):
    """Finds objects. Subclasses may keep models; they are not part of the LMM and not saved with it.

    Attributes:
        name: Recorded with each partition.
        gives: What a policy can choose by, of ``"boxes"``, ``"scores"``, ``"labels"``; empty for sources of masks.
    """

    name: str
    gives: frozenset[str] = frozenset({BOXES, SCORES, LABELS})

    @abstractmethod
    def find(self, sample: Sample) -> Regions:
        """Objects of an image.

        Args:
            sample: The image and what is known about it.

        Returns:
            Boxes (xyxy, original pixels), or a mask at original size; both may be empty.

        Raises:
            DataError: The sample lacks what the source reads.
        """


@MODELS.register_module()
class NoRegions(RegionSource):
    """No objects: the whole image is background, so only exactly repeated images hit."""

    name = "none"
    gives = frozenset()

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        return Regions()


@MODELS.register_module()
class GivenRegions(RegionSource):
    """Objects that come with the sample.

    Args:
        kind: ``"boxes"``: ``Sample.dense.boxes_xyxy``; ``"masks"``: ``Sample.masks`` (of the phrases);
            ``"dense_masks"``: ``Sample.dense.masks``; ``"meta"``: ``Sample.meta["objects_xyxy"]``.
        otherwise: Asked for samples that have none of this kind (for data sets with and without); None: an error.

    Raises:
        ConfigError: Unknown kind.
    """

    name = "given"

    def __init__(
        self, kind: str = "boxes", otherwise: RegionSource | Mapping[str, Any] | None = None
    ) -> None:
        if kind not in GIVEN:
            raise ConfigError(f"`kind` is {kind!r}; allowed: {', '.join(GIVEN)}")
        self.kind = kind
        self.otherwise = MODELS.build(otherwise) if isinstance(otherwise, Mapping) else otherwise
        self.gives = frozenset({BOXES} if kind in ("boxes", "meta") else ())
        if self.otherwise is not None:
            self.gives &= self.otherwise.gives

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        dense = sample.dense
        found = {
            "boxes": None if dense is None else dense.boxes_xyxy,
            "masks": sample.masks,
            "dense_masks": None if dense is None else dense.masks,
            "meta": sample.meta.get("objects_xyxy"),
        }[self.kind]
        if found is None and self.otherwise is not None:
            return self.otherwise.find(sample)
        if found is None:
            raise DataError(
                f"{sample.record_id}: the partition wants given {self.kind}, the sample has none; add them, name a "
                "source for such samples (`otherwise`), or use a detector"
            )
        if self.kind in ("boxes", "meta"):
            return Regions(boxes_xyxy=np.asarray(found, dtype=np.float32).reshape(-1, 4))
        return Regions(mask=np.any(np.asarray(found, dtype=bool), axis=0))


@MODELS.register_module()
class FrameDifference(RegionSource):
    """What changes in a stream of images is object: screens with clocks, fixed cameras. Needs no detector.

    The first image of a scene is all background. From the second on, the pixels that differ from the scene's previous
    image, in this one or in one of the ``memory`` before it, are objects. (Images that hit the cache never come here.)
    ``Sample.meta["session"]`` names the stream; requests with a cache add the tenant to it. Images without one are all
    background, and nothing of them is remembered.

    Args:
        threshold: A pixel changed when a channel differs by more; 0 for lossless images.
        max_change: With a larger share of changed pixels the scene is a new one.
        max_streams: Streams remembered. Beyond, the one asked for least recently is forgotten, of the tenant that has
            most of them: a tenant with many streams pushes out its own.
        memory: Images (up to 254) for which a pixel stays object after the last one in which it changed; None: for the
            rest of the scene. With None, objects that cross a fixed camera's view in time leave no background;
            with a number, a clock's digits are background again when they did not change for so many images.

    Raises:
        ConfigError: A number cannot be used.
    """

    name = "difference"
    gives = frozenset()

    def __init__(
        self,
        threshold: int = 0,
        max_change: float = 0.5,
        max_streams: int = 256,
        memory: int | None = None,
    ) -> None:
        if not 0 <= threshold <= 255 or not 0 < max_change <= 1 or max_streams < 1:
            raise ConfigError(
                f"threshold={threshold} must be in 0..255, max_change={max_change} in (0, 1], "
                f"max_streams={max_streams} at least 1"
            )
        if memory is not None and not 0 <= memory <= 254:
            raise ConfigError(f"memory={memory} must be 0..254 images, or None for all of a scene")
        self.threshold = threshold
        self.max_change = max_change
        self.max_streams = max_streams
        self.memory = memory
        # stream -> (last image, images for which each pixel is object yet)
        self._streams: OrderedDict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._lock = Lock()

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`; remembers the image, where it belongs to a stream."""
        left: np.ndarray = np.zeros(sample.image_size, dtype=np.uint8)
        session = sample.meta.get(SESSION)
        if session is None:
            return Regions(mask=left > 0)
        # Requests with a cache say (tenant, name). Not `str`: a name must not look like a tenant and a name.
        stream = str(session[0]) if isinstance(session, tuple) else "", repr(session)
        with self._lock:
            before = self._streams.pop(stream, None)
        if before is not None and before[0].shape == sample.image.shape:
            changed = (np.abs(sample.image.astype(np.int16) - before[0]) > self.threshold).any(-1)
            if changed.mean() <= self.max_change:
                left = before[1] - (0 if self.memory is None else before[1] > 0)
                left[changed] = 1 if self.memory is None else self.memory + 1
        with self._lock:
            self._streams[stream] = sample.image.copy(), left
            while len(self._streams) > self.max_streams:
                counts = Counter(tenant for tenant, _ in self._streams)
                most = max(counts.values())
                del self._streams[next(key for key in self._streams if counts[key[0]] == most)]
        return Regions(mask=left > 0)


@MODELS.register_module()
class RandomRegions(RegionSource):
    """Random boxes, for training: the model has to read every partition, not one detector's.

    The same sample always gets the same boxes. Samples that :class:`~flmm_detseg.datasets.ImageMix` drew in one visit
    of their image (``Sample.meta["visit"]``) get the same ones, others at the next visit.

    Args:
        num_boxes: Most boxes of an image; also none at all is drawn.
        max_side: Longest side of a box, as a share of the image's.
        seed: Of the random boxes.

    Raises:
        ConfigError: A number cannot be used.
    """

    name = "random"
    gives = frozenset({BOXES})

    def __init__(self, num_boxes: int = 3, max_side: float = 0.6, seed: int = 0) -> None:
        if num_boxes < 1 or not 0 < max_side <= 1:
            raise ConfigError(f"num_boxes={num_boxes} must be at least 1, max_side={max_side} in (0, 1]")
        self.num_boxes = num_boxes
        self.max_side = max_side
        self.seed = seed

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        visit = sample.meta.get(VISIT)
        about = (
            f"{sample.record_id}/{sample.prompt}/{sample.text}"
            if visit is None
            else f"{visit}/{sample.image_id}"
        )
        name = f"{self.seed}/{about}"
        rng = np.random.default_rng(list(blake2b(name.encode(), digest_size=8).digest()))
        count = int(rng.integers(0, self.num_boxes + 1))
        sides = rng.uniform(0.02, self.max_side, (count, 2))
        corners = rng.uniform(0, 1, (count, 2)) * (1 - sides)
        height, width = sample.image_size
        boxes = np.concatenate([corners, corners + sides], axis=1) * (width, height, width, height)
        return Regions(boxes_xyxy=boxes.astype(np.float32))


@MODELS.register_module()
class PluginRegions(RegionSource):
    """A user's own detector: any function from an image to objects (the place for Ultralytics, an OCR engine, ...).

    Args:
        function: ``"package.module:name"`` of the function (code of the user's own, run as it is), or the function:
            RGB uint8 ``[H, W, 3]`` and the arguments to :class:`Regions`.
        arguments: Keyword arguments of the function.

    Raises:
        ConfigError: There is no such function.
    """

    name = "plugin"

    def __init__(
        self, function: str | Callable[..., Regions], arguments: Mapping[str, Any] | None = None
    ) -> None:
        self._function = _imported(function) if isinstance(function, str) else function
        self._arguments = dict(arguments or {})

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        found = self._function(sample.image, **self._arguments)
        if not isinstance(found, Regions):
            raise DataError(
                f"{sample.record_id}: the plug-in detector gave {type(found).__name__}, wanted Regions"
            )
        return found


def _imported(path: str) -> Callable[..., Regions]:
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"`function` {path!r} cannot be imported ({error}); write package.module:name"
        ) from error
    if not callable(function):
        raise ConfigError(f"`function` {path!r} is no function")
    return function


@MODELS.register_module()
class Partitioner:
    """From a sample to its groups of patches.

    Args:
        source: Who finds objects, or its config.
        policy: ``"all"`` boxes are objects, or only the best one (``"top1"``, by score, then area).
        labels: Only boxes of these classes count (for example those of a text detector); None for all.
        min_score: Boxes below are left out.
        dilate: Patches by which objects are widened; 1 for lossless images and large JPEGs, 2 for JPEGs near the size
            of the vision tower's input.

    Raises:
        ConfigError: Unknown policy; or one that the source gives nothing to choose by (``"top1"`` for masks, labels or
            least scores where there are none): it would do nothing.
    """

    def __init__(
        self,
        source: RegionSource | Mapping[str, Any],
        policy: str = "all",
        labels: Sequence[str] | None = None,
        min_score: float = 0.0,
        dilate: int = 1,
    ) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"`policy` is {policy!r}; allowed: {', '.join(POLICIES)}")
        self.source = source if isinstance(source, RegionSource) else MODELS.build(source)
        self.policy = policy
        self.labels = None if labels is None else frozenset(labels)
        self.min_score = min_score
        self.dilate = dilate
        # What was asked for, and what it chooses by.
        self._choices = {
            name: (value, by)
            for name, value, by, asked in (
                ("policy", policy, BOXES, policy != "all"),
                ("labels", labels, LABELS, labels is not None),
                ("min_score", min_score, SCORES, min_score > 0),
            )
            if asked
        }
        self._refuse({by: by in self.source.gives for by in (BOXES, SCORES, LABELS)})

    def _refuse(self, given: Mapping[str, bool]) -> None:
        """Says which choice has nothing to choose by."""
        for name, (value, by) in self._choices.items():
            if not given[by]:
                raise ConfigError(
                    f"`{name}` is {value!r}, but the source {self.source.name!r} gives no {by} to choose by; leave "
                    f"`{name}` out, or use a source that gives {by}"
                )

    def __call__(self, sample: Sample, grid: PatchGrid) -> PatchPartition:
        """Groups of an image's patches.

        Args:
            sample: Its image, and what a region source reads beside it.
            grid: Geometry of the prepared image.

        Returns:
            The group of each patch of ``grid``, raster order.

        Raises:
            ConfigError: The source gave less than it says, and there is a policy that needs it.
            DataError: The source cannot read the sample, or a box is no box.
        """
        regions = self.source.find(sample)
        none = not len(regions.boxes_xyxy)
        self._refuse(
            {
                BOXES: regions.mask is None,
                SCORES: none or regions.scores is not None,
                LABELS: none or regions.labels is not None,
            }
        )
        boxes = self._chosen(regions)
        tiles = box_tiles(grid, boxes)
        if regions.mask is not None:
            tiles = tiles | mask_tiles(grid, regions.mask)
        return partition_tiles(grid, tiles, dilate=self.dilate, source=self.source.name, boxes_xyxy=boxes)

    def _chosen(self, regions: Regions) -> np.ndarray:
        boxes = regions.boxes_xyxy
        kept = np.ones(len(boxes), dtype=bool)
        if self.labels is not None and regions.labels is not None:
            kept &= np.array([label in self.labels for label in regions.labels], dtype=bool)
        scores = np.ones(len(boxes)) if regions.scores is None else regions.scores
        kept &= scores >= self.min_score
        if self.policy == "top1" and kept.any():
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            best = max(np.flatnonzero(kept), key=lambda index: (scores[index], areas[index]))
            kept = np.arange(len(boxes)) == best
        return boxes[kept]

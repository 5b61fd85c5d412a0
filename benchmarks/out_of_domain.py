"""How often the warning about unknown pictures is wrong, and how often it is missing, for the shipped tiny heads.

- False alarms: TinyWorld scenes of a seed that nothing was fitted on; the same scenes as JPEG, enlarged and cropped.
- Photos: scikit-image's pictures that are in its package, and those of ``--photos``: whole, in four sizes, and twelve
  random crops of each, as they are and in TinyWorld's size.
- Neither: plain colours, noise, gradients, phone screens of TinyWorld, photos that are blurred or painted flat.

Beside each share stand those of plain rules, to tell what the statistics are worth: one number of a picture, whose
threshold is made as the domain's is, from the same training pictures (1.25 times the distance from their mean that all
but 0.25 % of them keep, of those that the mean has not seen).

Example: ``python benchmarks/out_of_domain.py --scenes 1500 --seed 987 --photos FOLDER``
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import skimage.data
from PIL import Image
from tqdm import tqdm

from flmm_detseg.datasets.images import load_image
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.datasets.tinyworld.screens import make_screens
from flmm_detseg.models.domain import Domain
from flmm_detseg.ops.picture_statistics import SIDE
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.whole_files import write_json

SIZES = (64, 112, 224, 448)
CROPS = 12
# Scans of text, drawings and microscope pictures count with the photos; these two are patterns, counted beside them.
PATTERNS = ("chessboard_RGB.png", "phantom.png")
SKIPPED = ("chessboard_GRAY.png", "multipage.tif", "multipage_rgb.tif")


def photos(folder: Path | None) -> dict[str, np.ndarray]:
    """RGB pictures by file name."""
    shipped = Path(skimage.data.__file__).parent
    files = [file for ending in ("png", "jpg", "gif") for file in sorted(shipped.glob(f"*.{ending}"))]
    if folder is not None:
        files += sorted(file for file in folder.iterdir() if file.suffix in (".jpg", ".png"))
    return {file.name: load_image(file) for file in files if file.name not in SKIPPED}


def variants(photo: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The whole picture, sizes of it, and crops of it."""
    yield photo
    for size in SIZES:
        yield cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)
    height, width = photo.shape[:2]
    for _ in range(CROPS):
        share = rng.uniform(0.25, 0.9)
        rows, columns = int(height * share), int(width * share)
        top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
        crop = photo[top : top + rows, left : left + columns]
        yield crop
        yield cv2.resize(crop, (112, 112), interpolation=cv2.INTER_AREA)


def jpeg(image: np.ndarray, quality: int = 90) -> np.ndarray:
    """The picture after JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def others(found: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """What is neither TinyWorld nor a photo, or a photo made to look like TinyWorld."""
    side, yy, xx = 112, *np.mgrid[:112, :112]
    colours = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (176, 206, 232), (124, 158, 108), (200, 40, 40)]
    real = [found[name] for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")]
    return {
        "plain colours": [np.full((side, side, 3), colour, np.uint8) for colour in colours],
        "uniform noise": [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(10)],
        "weak noise on grey": [
            np.clip(rng.normal(128, 8, (side, side, 3)), 0, 255).astype(np.uint8) for _ in range(10)
        ],
        "gradients": [np.stack([2 * xx, 2 * yy, 2 * np.full_like(xx, k * 11)], -1).astype(np.uint8) for k in range(10)],
        "TinyWorld's phone screens": [make_screens(5, k, 1, "val")[0].image for k in range(100)],
        "blurred photos": [cv2.GaussianBlur(p, (0, 0), p.shape[0] / 60) for p in real],
        "photos painted flat": [cv2.pyrMeanShiftFiltering(p, 20, 40) for p in real],
    }  # fmt: skip


def num_colours(picture: np.ndarray) -> float:
    """Logarithm of how many colours it has, at the domain's size."""
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST).astype(np.int64)
    return float(np.log(len(np.unique(small @ (65536, 256, 1)))))


def mean_saturation(picture: np.ndarray) -> float:
    """Mean distance between a pixel's largest and smallest channel, 0 to 255."""
    return float(np.mean(picture.max(-1).astype(int) - picture.min(-1)))


def num_pixels(picture: np.ndarray) -> float:
    """Logarithm of the picture's size."""
    return float(np.log(picture.shape[0] * picture.shape[1]))


class Measured(NamedTuple):
    """A picture's distance, and by which plain rules it is of another kind."""

    score: float
    plain: dict[str, bool]


class PlainRule:
    """Takes a picture for another kind where one number of it is far from its mean over training pictures.

    Args:
        number: Of a picture.
        pictures: Of the training.
        false_alarms: As in :meth:`Domain.fit`, and so are five folds and the margin.
    """

    def __init__(
        self, number: Callable[[np.ndarray], float], pictures: Sequence[np.ndarray], false_alarms: float
    ) -> None:
        self._number = number
        found = np.array([number(picture) for picture in pictures])
        fold = np.random.default_rng(0).permutation(len(found)) % 5
        unseen = [np.abs(found[fold == k] - found[fold != k].mean()) for k in range(5)]
        self._threshold = 1.25 * np.quantile(np.concatenate(unseen), 1 - false_alarms)
        self._mean = found.mean()

    def far(self, picture: np.ndarray) -> bool:
        """Whether it is taken for another kind."""
        return bool(abs(self._number(picture) - self._mean) > self._threshold)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Shares of pictures that are far, by kind."""
    domain = Domain.load(find(args.domain))
    rng = np.random.default_rng(args.seed)
    trained = [make_scene(0, index).image for index in tqdm(range(args.train), desc="training pictures")]
    numbers = {"colours": num_colours, "saturation": mean_saturation, "size": num_pixels}
    rules = {name: PlainRule(number, trained, domain.false_alarms) for name, number in numbers.items()}

    def far(pictures: Any, total: int | None = None, name: str = "") -> list[Measured]:
        return [
            Measured(domain.score(p).score, {rule: rules[rule].far(p) for rule in rules})
            for p in tqdm(pictures, desc=name, total=total)
        ]

    def share(found: list[Measured]) -> dict[str, Any]:
        scores = np.array([one.score for one in found])
        return {
            "n": len(found),
            "far": float(np.mean(scores > domain.threshold)),
            "least": round(float(scores.min()), 2),
            "largest": round(float(scores.max()), 2),
            "plain": {rule: round(float(np.mean([one.plain[rule] for one in found])), 3) for rule in rules},
        }

    figures: dict[str, Any] = {"threshold": round(domain.threshold, 2), "training_pictures": args.train}
    scenes = [make_scene(args.seed, index, "testA").image for index in range(args.scenes)]
    figures["scenes"] = share(far(scenes, name="scenes"))
    some = scenes[: args.scenes // 10]
    changed = {
        "scenes as JPEG 90": [jpeg(s) for s in some],
        "scenes twice as large": [cv2.resize(s, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for s in some],
        "scenes of 80 x 80 pixels cut out": [s[16:96, 16:96] for s in some],
    }  # fmt: skip
    for name, pictures in changed.items():
        figures[name] = share(far(pictures, name=name))
    found = photos(args.photos)
    by_photo = {name: far(variants(photo, rng), 5 + 2 * CROPS, name) for name, photo in found.items()}
    real = [score for name, scores in by_photo.items() if name not in PATTERNS for score in scores]
    figures["photos"] = {**share(real), "pictures": len(by_photo) - len(PATTERNS)}
    figures["photos not flagged"] = {
        name: round(1 - share(scores)["far"], 3) for name, scores in by_photo.items() if share(scores)["far"] < 1
    }  # fmt: skip
    figures["patterns"] = share([score for name in PATTERNS for score in by_photo[name]])
    faces = np.load(Path(skimage.data.__file__).parent / "lfw_subset.npy")
    figures["faces, 25 x 25"] = share(
        far([np.repeat((f * 255).astype(np.uint8)[..., None], 3, 2) for f in faces])
    )
    for name, pictures in others(found, rng).items():
        figures[name] = share(far(pictures, name=name))
    if args.out is not None:
        write_json(args.out, figures)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", default="data/models/tiny_heads/domain.safetensors")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=987)
    parser.add_argument(
        "--train",
        type=int,
        default=2050,
        help="training pictures that the plain rules see; the domain saw 2050",
    )
    parser.add_argument("--photos", type=Path, help="folder with more photos")
    parser.add_argument("--out", type=Path, help="file for the figures (JSON)")
    args = parser.parse_args()
    run_tool(lambda: measure(args))


if __name__ == "__main__":
    main()

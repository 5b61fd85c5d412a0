"""Images of the partition study: synthetic screens with one edit, scrolled screens, pairs of TinyWorld frames."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from flmm_detseg.datasets.tinyworld.streams import StreamItem, make_stream
from flmm_detseg.datasets.tinyworld.word_list import vocabulary
from flmm_detseg.lmms import LlavaProcessor
from flmm_detseg.pretrain.tiny_llava import build_tokenizer
from flmm_detseg.store.keys import cut_tiles
from flmm_detseg.structures import PatchGrid
from flmm_detseg.visualization import canvas

# (H, W) of the images that the reference's section 1.4 speaks of; the last is the tower's own size.
SIZES: dict[str, tuple[int, int]] = {
    "phone 1170x2532": (2532, 1170),
    "desktop 1920x1080": (1080, 1920),
    "native 336x336": (336, 336),
}
WORDS = ("meeting", "alarm", "weather", "12:45", "inbox", "7 new", "battery 81 %", "today", "music", "call")
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Encoding:
    """What an image went through on its way to the model.

    Attributes:
        name: In tables.
        quality: Of JPEG; None: lossless.
        block: Side of the blocks that JPEG codes as one, pixels: 16 with halved colour (4:2:0), 8 without (4:4:4).
    """

    name: str
    quality: int | None = None
    block: int = 16

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Writes and reads an image, RGB uint8 ``[H, W, 3]``; a lossless file gives the pixels themselves."""
        if self.quality is None:
            return image
        file = io.BytesIO()
        subsampling = "4:2:0" if self.block == 16 else "4:4:4"
        Image.fromarray(image).save(file, "jpeg", quality=self.quality, subsampling=subsampling)
        return np.array(Image.open(file).convert("RGB"))

    @property
    def reach(self) -> int:
        """Source pixels by which an edit may show beyond its box.

        A box that ends on a block's first pixel changes the rest of it; where colour is halved, the decoder's
        interpolation takes it one pixel further.
        """
        if self.quality is None:
            return 0
        return self.block - 1 + (self.block == 16)


PNG = Encoding("png")
ENCODINGS = (
    PNG,
    Encoding("jpeg 75", 75),
    Encoding("jpeg 85", 85),
    Encoding("jpeg 95", 95),
    Encoding("jpeg 85 4:4:4", 85, block=8),
)


@dataclass(frozen=True, eq=False)
class View:
    """An image as the model gets it.

    Attributes:
        pixels: Resized and padded, uint8 ``[S, S, 3]``.
        tiles: ``[N, tile_bytes]`` uint8, what the cache compares.
        grid: Geometry.
    """

    pixels: np.ndarray
    tiles: np.ndarray
    grid: PatchGrid


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images that differ inside of boxes, before they are processed.

    Attributes:
        before: RGB uint8 ``[H, W, 3]``.
        after: The same size.
        boxes_xyxy: int ``[n, 4]``, half-open, original pixels.
    """

    before: np.ndarray
    after: np.ndarray
    boxes_xyxy: np.ndarray


def make_processor(image_side: int, patch_size: int) -> LlavaProcessor:
    """The package's own processor of LLaVA-1.5 (mean colour of CLIP, bicubic); its text side is not used."""
    tokenizer = build_tokenizer(vocabulary())
    return LlavaProcessor(
        tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_side=image_side,
        patch_size=patch_size,
    )


def view(processor: LlavaProcessor, image: np.ndarray) -> View:
    """Processes an image and cuts it as the cache does: through normalised pixels and back."""
    values, grid = processor.process_image(image)
    pixels = processor.denormalise(values)
    return View(pixels, cut_tiles(pixels, processor.patch_size), grid)


def needed_dilation(grid: PatchGrid, reach: int) -> int:
    """Patches by which objects have to be widened so that no change of their boxes shows outside.

    Bicubic reduction looks two pixels of its result far to each side; half a pixel for the pixel's own centre and
    half a source pixel of rounding come on top, which makes three. An image that is not resized has none of them.

    Args:
        grid: Geometry; its images may only shrink.
        reach: See :attr:`Encoding.reach`.
    """
    scale = max(grid.resized_size) / max(grid.image_size)
    assert scale <= 1, "an enlarged image has a wider filter"
    spill = reach * scale + (0 if grid.resized_size == grid.image_size else 3)
    return int(np.ceil(spill / (grid.padded_size[0] / grid.levels[0].rows)))


def draw_screen(rng: np.random.Generator, size: tuple[int, int], extra_rows: int = 0) -> np.ndarray:
    """A screen: smooth wallpaper with fine texture, panels with text, round icons.

    The texture keeps JPEG from coding whole blocks as flat, which would hide how far a change reaches.

    Args:
        rng: Source of all choices.
        size: ``(H, W)``.
        extra_rows: Further rows below, to scroll to.
    """
    height, width = size[0] + extra_rows, size[1]
    coarse = rng.uniform(60, 200, (7, 5, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    image = image + rng.normal(0, 3, (height, width, 1)).astype(np.float32)
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    drawing, unit = ImageDraw.Draw(picture), min(size) / 100
    for _ in range(8):
        x, y = rng.uniform(0, 0.6) * width, rng.uniform(0, 0.92) * height
        w, h = rng.uniform(0.25, 0.4) * width, rng.uniform(8, 16) * unit
        drawing.rounded_rectangle((x, y, x + w, y + h), 2 * unit, fill=_colour(rng, 200, 255))
        drawing.text(
            (x + 2 * unit, y + 2 * unit), _words(rng), _colour(rng, 0, 90), canvas.font(int(5 * unit))
        )
    for _ in range(6):
        x, y = rng.uniform(5, 95) / 100 * width, rng.uniform(5, 95) / 100 * height
        drawing.ellipse((x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit), fill=_colour(rng, 0, 255))
    return np.array(picture)


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def _words(rng: np.random.Generator) -> str:
    return " ".join(str(word) for word in rng.choice(WORDS, 2))


def draw_edit(rng: np.random.Generator, image: np.ndarray) -> Pair:
    """Shows something else in one box: another plain panel with another text.

    The box changes up to its edges, the worst case. Its sides are 4 to 30 percent of the image's.
    """
    height, width = image.shape[:2]
    w, h = (max(4, round(float(rng.uniform(0.04, 0.3)) * side)) for side in (width, height))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    panel = Image.new("RGB", (w, h), _colour(rng, 0, 255))
    size = max(6, int(0.4 * min(w, h)))
    ImageDraw.Draw(panel).text((w // 8, h // 4), _words(rng), _colour(rng, 0, 255), canvas.font(size))
    after = image.copy()
    after[y : y + h, x : x + w] = np.asarray(panel)
    return Pair(image, after, np.array([(x, y, x + w, y + h)]))


def scrolled_screen(
    rng: np.random.Generator, size: tuple[int, int], step: int
) -> tuple[np.ndarray, np.ndarray]:
    """A screen and the same scrolled by so many pixels under its status bar (4 percent of the height)."""
    tall = draw_screen(rng, size, extra_rows=step)
    first, second = tall[: size[0]].copy(), tall[step:].copy()
    bar = size[0] // 25
    second[:bar] = first[:bar]
    return first, second


def stream_pairs(kind: str, encoding: str, seed: int, num_streams: int, num_frames: int) -> Iterator[Pair]:
    """Successive frames of the same scene with all boxes of both; in ``mixed`` only frames of unlike encodings.

    Frames that repeat the earlier one pixel by pixel show nothing and are left out. The two wallpapers of a screen
    stream are two scenes.
    """
    for index in range(num_streams):
        last: dict[int, StreamItem] = {}
        for item in make_stream(kind, seed, index, num_frames, encoding=encoding):
            scene = item.scene.scene_id if kind == "screen" else 0
            before = last.get(scene)
            last[scene] = item
            if before is None or (before.image == item.image).all():
                continue
            if encoding == "mixed" and before.encoding == item.encoding:
                continue
            boxes = sorted({*before.objects_xyxy, *item.objects_xyxy})
            yield Pair(before.image, item.image, np.array(boxes))

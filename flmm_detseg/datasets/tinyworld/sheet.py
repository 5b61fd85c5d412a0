"""A contact sheet of scenes to look at: picture, outlined masks, one sentence each."""

from __future__ import annotations

import textwrap

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flmm_detseg.datasets.tinyworld.language import narrate, referring_expressions
from flmm_detseg.datasets.tinyworld.scene import Scene

_ZOOM, _TEXT_HEIGHT, _COLUMNS = 2, 96, 4


def contact_sheet(scenes: list[Scene], seed: int) -> Image.Image:
    """Scenes four a row, enlarged, objects outlined, with a caption and a referring expression below each."""
    font = ImageFont.load_default(size=11)
    tiles = []
    for scene in scenes:
        height, width = (side * _ZOOM for side in scene.image.shape[:2])
        picture = cv2.resize(scene.image, (width, height), interpolation=cv2.INTER_NEAREST)
        for obj in scene.objects:
            mask = cv2.resize(obj.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
            contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, contours, -1, (255, 0, 255), 1)
        tile = Image.new("RGB", (width, height + _TEXT_HEIGHT), "white")
        tile.paste(Image.fromarray(picture), (0, 0))
        expressions = referring_expressions(scene, seed)
        lines = textwrap.wrap(narrate(scene, seed).text, width=36)[:6]
        lines += [f"> {expressions[-1].text}"] if expressions else []
        ImageDraw.Draw(tile).multiline_text((4, height + 3), "\n".join(lines), fill="black", font=font)
        tiles.append(tile)
    rows = -(-len(tiles) // _COLUMNS)
    width, height = tiles[0].size
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % _COLUMNS * width, number // _COLUMNS * height))
    return sheet

"""One HTML file that shows where an LMM looked: a word under the pointer lights its part of the picture up."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flmm_detseg.utils.whole_files import dump_json

Span = tuple[int, int]

_PICTURE_SIDE = 1024
_MAP_SIDE = 32

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #212529; background: #fff;
       max-width: 1080px; margin: 1.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } p { max-width: 75ch; margin: .4rem 0; }
.note { color: #6c757d; font-size: .9rem; }
#stage { position: relative; display: inline-block; max-width: 100%; margin: .8rem 0; }
#stage img { display: block; max-width: 100%; min-width: min(480px, 90vw); border: 1px solid #e9ecef; }
#stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; opacity: 0; }
#text { font-size: 1.25rem; line-height: 1.9; white-space: pre-wrap; }
#text button { font: inherit; border: 0; border-radius: .3rem; padding: .05rem .25rem; background: #f1f3f5;
               cursor: pointer; }
#text button.shown { background: #ffd43b; } #text button.kept { outline: 2px solid #e8590c; }
label { margin-right: 1.4rem; }
"""
_SCRIPT = """
const page = JSON.parse(document.getElementById("maps").textContent);
const [rows, cols] = page.size, cells = rows * cols, count = page.layers.length + 1;
const bytes = name => page[name].map(text => Uint8Array.from(atob(text), c => c.charCodeAt(0)));
const values = {absolute: bytes("absolute"), relative: bytes("relative")};
const canvas = document.querySelector("#stage canvas"), pen = canvas.getContext("2d");
const words = [...document.querySelectorAll("#text button")], slider = document.getElementById("layer");
const relative = document.getElementById("relative");
canvas.width = cols; canvas.height = rows;
let shown = -1, kept = -1;
function draw() {
  const which = Number(slider.value);
  document.getElementById("which").textContent = which ? "layer " + page.layers[which - 1] : "mean of all layers";
  words.forEach((word, index) => {
    word.classList.toggle("shown", Number(word.dataset.piece) === shown);
    word.classList.toggle("kept", Number(word.dataset.piece) === kept);
  });
  canvas.style.opacity = shown < 0 ? 0 : 1;
  document.body.dataset.shown = shown;
  if (shown < 0) return;
  const map = values[relative.checked ? "relative" : "absolute"][shown].subarray(which * cells, (which + 1) * cells);
  const picture = pen.createImageData(cols, rows);
  map.forEach((value, index) => picture.data.set([255, 60 + 0.5 * value, 0, 40 + 0.75 * value], 4 * index));
  pen.putImageData(picture, 0, 0);
}
function show(index) { shown = index; draw(); }
words.forEach(word => {
  const index = Number(word.dataset.piece);
  word.addEventListener("mouseenter", () => show(index));
  word.addEventListener("focus", () => show(index));
  word.addEventListener("mouseleave", () => show(kept));
  word.addEventListener("click", () => { kept = kept === index ? -1 : index; show(index); });
});
slider.addEventListener("input", draw);
relative.addEventListener("change", draw);
draw();
"""


def attention_page(
    image: np.ndarray,
    text: str,
    spans: Sequence[Sequence[Span]],
    maps: np.ndarray,
    layers: Sequence[int],
    *,
    title: str,
    notes: Sequence[str] = (),
) -> str:
    """A self-contained page: no network, no other file.

    Args:
        image: RGB, uint8, ``[H, W, 3]``.
        text: What was read or written.
        spans: Per piece its character ranges in the text, half-open; where pieces overlap, the first one has the
            characters.
        maps: Attention, float ``[K, L, rows, cols]``, over the whole image: of each piece, by layer.
        layers: The L layers.
        title: Heading, for example the question.
        notes: Lines below it.

    Returns:
        HTML.
    """
    small = _shrink(maps)
    means = np.concatenate([small.mean(axis=1, keepdims=True), small], axis=1)
    usual = np.maximum(means.mean(axis=0, keepdims=True), 1e-12)
    data = {
        "size": list(small.shape[2:]),
        "layers": list(layers),
        "absolute": _encode(means),
        "relative": _encode(means / usual if len(means) > 1 else means),
    }
    lines = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    # "</" would end the script element.
    content = dump_json(data).replace("</", "<\\/")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{lines}"
        f'<p id="text">{_words(text, spans)}</p>'
        '<p><label>layers <input type="range" id="layer" min="0" value="0" max="'
        f'{len(layers)}"> <span id="which"></span></label>'
        '<label><input type="checkbox" id="relative" checked> what a word looks at more than the others</label></p>'
        f'<div id="stage"><img src="{_picture(image)}" alt="the image"><canvas></canvas></div>'
        '<p class="note">Point at a word, or click it to keep it. Bright is where the model looked while it wrote that '
        "word; each map is scaled to its own range. Attention says where it looked, not why.</p>"
        f'<script type="application/json" id="maps">{content}</script><script>{_SCRIPT}</script></body></html>\n'
    )


def _words(text: str, spans: Sequence[Sequence[Span]]) -> str:
    """The text with a button for each piece."""
    ranges = sorted((start, end, index) for index, parts in enumerate(spans) for start, end in parts)
    shown, done = [], 0
    for start, end, index in ranges:
        if start < done:
            continue
        shown.append(html.escape(text[done:start]))
        shown.append(f'<button data-piece="{index}">{html.escape(text[start:end])}</button>')
        done = end
    return "".join([*shown, html.escape(text[done:])])


def _shrink(maps: np.ndarray) -> np.ndarray:
    """Maps of at most 32 cells a side, by area: a page of an answer stays within a few megabytes."""
    rows, cols = maps.shape[2:]
    factor = max(rows, cols) / _MAP_SIDE
    if factor <= 1:
        return maps.astype(np.float32)
    size = max(1, round(cols / factor)), max(1, round(rows / factor))
    flat = maps.reshape(-1, rows, cols).astype(np.float32)
    shrunk = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)) for one in flat]
    return np.stack(shrunk).reshape(*maps.shape[:2], size[1], size[0])


def _encode(maps: np.ndarray) -> list[str]:
    """Per piece its maps in one text, a byte a cell, each map scaled to its own range."""
    low = maps.min(axis=(2, 3), keepdims=True)
    span = np.maximum(maps.max(axis=(2, 3), keepdims=True) - low, 1e-12)
    scaled = ((maps - low) / span * 255).round().astype(np.uint8)
    return [base64.b64encode(one.tobytes()).decode("ascii") for one in scaled]


def _picture(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

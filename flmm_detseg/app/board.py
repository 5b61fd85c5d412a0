"""The picture with its conversation, as HTML: every text in it is escaped, every address is the user's own."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from flmm_detseg.visualization import canvas

if TYPE_CHECKING:
    from flmm_detseg.app.entry import Entry
    from flmm_detseg.app.user import User

# What a score is: in short beside it, in full under the pointer.
SCORES = {
    "mask": ("mask", "how sure the mask is of its pixels; not whether the thing is in the picture"),
    "detector": ("detector", "probability of the class, by the detection head"),
    "quality": ("SAM", "SAM's own estimate of how well the mask fits (IoU)"),
}
_TOOLS = (
    ("look", "look", "point at words; nothing is drawn"),
    ("point", "point", "click what is meant"),
    ("outside", "not this", "click what is not meant"),
    ("box", "box", "draw from corner to corner"),
    ("brush", "scribble", "draw over what is meant"),
)
_LAYERS = (("mask", "mask"), ("outline", "outline only"), ("attention", "attention"))
EMPTY = (
    '<div class="flmm-empty">Choose a picture above. Its masks, its attention and the conversation '
    "appear here.</div>"
)
_HINT = (
    '<div class="flmm-note">Ask a question, or give an instruction such as "segment the white ring". Words of the '
    "answer that name something can be pointed at and clicked.</div>"
)


def board(user: User) -> str:
    """The page's main part.

    Args:
        user: With or without a picture.

    Returns:
        HTML without scripts.
    """
    if user.picture is None:
        return EMPTY
    height, width = user.picture.pixels.shape[:2]
    home = f"flmm/{user.token}"
    turns = "".join(_turn(home, entry) for entry in user.entries)
    return (
        f'<div class="flmm-board" data-width="{width}" data-height="{height}" data-picture="{user.picture_key}">'
        f'<div class="flmm-left">{_warning(user)}'
        f'<div class="flmm-bar" role="group" aria-label="what the pointer does">{_tools(user)}</div>'
        f'<div class="flmm-stage" style="--wide: {width}; --high: {height}">'
        f'<img class="flmm-picture" src="{home}/{user.picture_key}" alt="{html.escape(user.picture.name)}" '
        'draggable="false"><div class="flmm-layers"></div>'
        f'<canvas width="{width}" height="{height}"></canvas></div>'
        f'<div class="flmm-bar" role="group" aria-label="what is shown">{_layers()}</div>'
        '<div class="flmm-what" aria-live="polite"></div>'
        f'<div class="flmm-note">{_size_note(user)}</div></div>'
        f'<div class="flmm-right"><ol class="flmm-turns">{turns}</ol>{"" if turns else _HINT}</div></div>'
    )


def _warning(user: User) -> str:
    if not user.warning:
        return ""
    return f'<div class="flmm-warning">{html.escape(user.warning[0].upper() + user.warning[1:])}.</div>'


def _size_note(user: User) -> str:
    assert user.picture is not None
    (height, width), shown = user.picture.size, user.picture.pixels.shape[:2]
    text = f"{html.escape(user.picture.name)}, {width} x {height} pixels"
    return text if shown == (height, width) else f"{text}, worked on at {shown[1]} x {shown[0]}"


def _tools(user: User) -> str:
    if not user.can_outline:
        return '<span class="flmm-note">This model has no SAM: nothing can be outlined by pointing.</span>'
    buttons = "".join(
        f'<button type="button" data-tool="{name}" title="{title}">{label}</button>'
        for name, label, title in _TOOLS
    )
    return f'{buttons}<button type="button" data-clear="1" title="forget what was drawn">clear</button>'


def _layers() -> str:
    return "".join(f'<button type="button" data-layer="{name}">{label}</button>' for name, label in _LAYERS)


def _turn(home: str, entry: Entry) -> str:
    turn = entry.turn
    parts = [f'<div class="flmm-said">{html.escape(turn.request)}</div>']
    if turn.text:
        parts.append(f'<div class="flmm-answer">{_words(entry)}</div>')
    if turn.phrases:
        lines = "".join(_line(home, entry, index) for index in range(len(turn.phrases)))
        parts.append(f'<div class="flmm-found">{lines}</div>')
    else:
        parts.append(_note("Nothing is named here that could be pointed at."))
    if entry.left_out:
        parts.append(_note(f"{entry.left_out} further regions are left out."))
    if turn.not_found:
        words = ", ".join(f'"{html.escape(phrase)}"' for phrase in turn.not_found)
        parts.append(_note(f"Not found in the picture: {words}"))
    if turn.uninterpreted:
        words = ", ".join(f'"{html.escape(word)}"' for word in turn.uninterpreted)
        parts.append(_note(f"Not understood: {words}"))
    if turn.phrases:
        parts.append(
            '<div class="flmm-downloads">Download '
            f'<a data-base="{home}/{entry.key}/overlay.png" href="{home}/{entry.key}/overlay.png" '
            f'download="overlay_{entry.key}.png">overlay (PNG)</a> '
            f'<a data-base="{home}/{entry.key}/coco.json" href="{home}/{entry.key}/coco.json" '
            f'download="coco_{entry.key}.json">masks (COCO JSON)</a></div>'
        )
    return f'<li class="flmm-turn" data-turn="{entry.key}">{"".join(parts)}</li>'


def _note(text: str) -> str:
    return f'<div class="flmm-note">{text}</div>'


def _line(home: str, entry: Entry, index: int) -> str:
    """A phrase with its colour and score; what the script needs to show its layers."""
    phrase = entry.turn.phrases[index]
    short, meaning = SCORES[phrase.score_of]
    colour = "rgb({}, {}, {})".format(*canvas.phrase_colour(index))
    layers = "".join(f' data-{kind}="{home}/{entry.key}/{index}/{kind}.png"' for kind in entry.kinds(index))
    empty = "" if any(phrase.box_xyxy) else '<span class="flmm-score">no pixel</span>'
    box = " ".join(f"{value:.1f}" for value in phrase.box_xyxy)
    return (
        f'<button type="button" class="flmm-phrase" data-key="{entry.key}p{index}" data-box="{box}" '
        f'data-score="{phrase.score:.6f}" data-of="{phrase.score_of}" title="{meaning}" '
        f'style="--colour: {colour}"{layers}><span class="flmm-chip"></span>'
        f'<span class="flmm-label">{html.escape(phrase.label)}</span>'
        f'<span class="flmm-score">{short} {phrase.score:.2f}</span>{empty}</button>'
    )


def _words(entry: Entry) -> str:
    """The answer; characters of phrases are elements that name all phrases they belong to."""
    text = entry.turn.text
    owners: list[tuple[int, ...]] = [()] * len(text)
    for index, phrase in enumerate(entry.turn.phrases):
        for start, end in phrase.spans:
            for place in range(max(start, 0), min(end, len(text))):
                owners[place] = (*owners[place], index)
    parts, start = [], 0
    for place in range(1, len(text) + 1):
        if place == len(text) or owners[place] != owners[start]:
            piece = html.escape(text[start:place])
            if owners[start]:
                keys = " ".join(f"{entry.key}p{index}" for index in owners[start])
                colour = "rgb({}, {}, {})".format(*canvas.phrase_colour(owners[start][0]))
                piece = (
                    f'<span class="flmm-word" role="button" tabindex="0" data-keys="{keys}" '
                    f'style="--colour: {colour}">{piece}</span>'
                )
            parts.append(piece)
            start = place
    return "".join(parts)

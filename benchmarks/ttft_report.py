"""Tables and chart of ``ttft.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Parts of a request, in the order of the chart; "language" has the copies of keys and values in it.
PARTS = ("prepare", "match", "detect", "vision", "language", "insert", "sample")
ROWS = (
    "hit L2", "hit L1", "miss", "split, no cache", "stock", "stock, no letterbox", "exact-image cache, hit",
    "exact-image cache, miss", "first-k recompute, reuse", "first-k recompute, miss", "EVS-style pruning",
    "EVS-style pruning, first frame",
)  # fmt: skip


@dataclass
class Request:
    """One measured request.

    Attributes:
        case: Kind of the stream, or background share.
        turn: Requests of one turn read the same item.
        label: One of ``ROWS``.
        exact_repeat: The image was shown before, pixel by pixel.
        wall: Milliseconds by part.
        processor: The same by the processor's clock.
        first_token: Milliseconds until the first token, from the beginning.
        new_tokens: See :class:`Prompted`.
        past_tokens: See :class:`Prompted`.
        token_ids: The answer.
        right: Whether it is the reference's; None where there is none.
    """

    case: str
    turn: int
    label: str
    exact_repeat: bool
    wall: dict[str, float]
    processor: dict[str, float]
    first_token: float
    new_tokens: int
    past_tokens: int
    token_ids: list[int] = field(default_factory=list)
    right: bool | None = None


def table(found: list[Request], answers: bool) -> list[dict[str, Any]]:
    """A row per case and label. Exact repeats count for the exact-image cache only.

    Args:
        found: All requests.
        answers: Also compare answers.
    """
    plain = {(done.case, done.turn): done for done in found if done.label == "stock"}
    rows = []
    for case in dict.fromkeys(done.case for done in found):
        for label in ROWS:
            mine = [
                done
                for done in found
                if (done.case, done.label) == (case, label)
                and (not done.exact_repeat or label == "exact-image cache, hit")
            ]
            if not mine:
                continue
            times = [done.first_token for done in mine]
            pairs = [(plain[case, done.turn], done) for done in mine]
            rows.append(
                {
                    "case": case,
                    "way": label,
                    "requests": len(mine),
                    "new_tokens_p50": median(done.new_tokens for done in mine),
                    "ttft_p50_ms": round(median(times), 2),
                    "ttft_p95_ms": round(float(np.percentile(times, 95)), 2),
                    "processor_p50_ms": round(median(map(_processor, mine)), 2),
                    "speed_up": round(median(a.first_token / b.first_token for a, b in pairs), 3),
                    "speed_up_processor": round(median(_processor(a) / _processor(b) for a, b in pairs), 3),
                    "parts_wall_ms": _parts([done.wall for done in mine]),
                    "parts_processor_ms": _parts([done.processor for done in mine]),
                }
            )
            if answers:
                rows[-1]["answers_as_stock"] = _share([a.token_ids == b.token_ids for a, b in pairs])
                rows[-1]["answers_right"] = _share([done.right for done in mine if done.right is not None])
    return rows


def _parts(times: list[dict[str, float]]) -> dict[str, float]:
    return {part: round(median(one[part] for one in times), 2) for part in PARTS}


def _processor(done: Request) -> float:
    return sum(done.processor.values())


def _share(values: list[bool]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def whole_streams(found: list[Request]) -> list[dict[str, Any]]:
    """Mean time over a stream with its real hits and misses, exact repeats left out."""
    groups = {
        "background cache": ("hit L2", "miss"),
        "stock": ("stock",),
        "exact-image cache": ("exact-image cache, hit", "exact-image cache, miss"),
        "first-k recompute": ("first-k recompute, reuse", "first-k recompute, miss"),
        "EVS-style pruning": ("EVS-style pruning", "EVS-style pruning, first frame"),
    }
    out = []
    for case in dict.fromkeys(done.case for done in found):
        no_repeats = [done for done in found if done.case == case and not done.exact_repeat]
        row: dict[str, Any] = {"case": case}
        for name, labels in groups.items():
            mine = [done for done in no_repeats if done.label in labels]
            row[f"{name}, mean ms"] = round(sum(d.first_token for d in mine) / max(1, len(mine)), 2)
            row[f"{name}, processor"] = round(sum(map(_processor, mine)) / max(1, len(mine)), 2)
            if name == "background cache":
                row["hit rate"] = _share([done.label == "hit L2" for done in mine])
        out.append(row)
    return out


def draw_chart(rows: list[dict[str, Any]], path: Path, title: str, clock: str) -> None:
    """Stacked bars: where the time to the first token goes, a panel per case.

    Args:
        rows: From :func:`table`.
        path: PNG file.
        title: Above the panels.
        clock: ``"wall"`` or ``"processor"``.
    """
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(11, 0.6 + 2.9 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, case in zip(figure.subplots(len(cases), squeeze=False)[:, 0], cases, strict=True):
        mine = [row for row in rows if row["case"] == case][::-1]
        left = np.zeros(len(mine))
        for part in PARTS:
            widths = np.array([row[f"parts_{clock}_ms"][part] for row in mine])
            axes.barh([row["way"] for row in mine], widths, left=left, label=part)
            left += widths
        axes.set_title(case, loc="left", fontsize=10)
        axes.set_xlabel(f"ms to the first token, {clock} clock (median of each part)")
    figure.axes[0].legend(ncols=len(PARTS), fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown, for people."""
    if not rows:
        return
    names = [name for name in rows[0] if not name.startswith("parts")]
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    print("\n" + "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines))

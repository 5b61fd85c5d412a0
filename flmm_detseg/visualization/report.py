"""A report as one HTML file: pictures inside, no network, no script."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #212529;
       background: #fff; max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 1px solid #dee2e6; padding-bottom: .3rem; }
p { max-width: 75ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #e9ecef; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
thead th { border-bottom: 2px solid #868e96; }
caption { caption-side: bottom; text-align: left; color: #6c757d; font-size: .85rem; padding-top: .4rem; }
.pass { color: #2b8a3e; } .fail { color: #c92a2a; font-weight: 600; }
figure { margin: 1rem 0; } figure img { max-width: 100%; border: 1px solid #e9ecef; }
figcaption { color: #6c757d; font-size: .85rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.row figure { margin: 0; max-width: 48%; }
pre { background: #f8f9fa; padding: .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.4; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; max-width: 85ch; font-size: .92rem; }
dt { font-weight: 600; } dd { margin: 0; color: #495057; }
nav { font-size: .9rem; } nav a { margin-right: 1rem; color: #1864ab; }
"""


class Report:
    """Collects sections and writes them as one self-contained HTML page.

    Args:
        title: Heading of the page.
        subtitle: A line below it.

    Example:
        >>> report = Report("Quickstart")
        >>> report.section("Numbers", "On the validation split.")
        >>> report.table(["run", "cIoU"], [["trained", 0.81]])
        >>> report.write("report.html")
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._parts: list[str] = []
        self._sections: list[str] = []

    def section(self, title: str, text: str = "") -> None:
        """Starts a section; ``text`` is plain text, an empty line starts a new paragraph."""
        self._parts.append(f'<h2 id="s{len(self._sections)}">{html.escape(title)}</h2>')
        self._sections.append(title)
        self.paragraph(text)

    def paragraph(self, text: str) -> None:
        """Adds plain text; an empty line starts a new paragraph."""
        self._parts.extend(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n") if part.strip())

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """Adds a table; floats get three decimals, None a dash, True and False "pass" and "FAIL"."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
        note = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        content = f"{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        self._parts.append(f'<div class="scroll"><table>{content}</table></div>')

    def terms(self, meanings: Mapping[str, str]) -> None:
        """Adds a list of terms with a sentence each, such as the columns of a table."""
        entries = "".join(
            f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in meanings.items()
        )
        self._parts.append(f"<dl>{entries}</dl>")

    def pictures(self, pictures: Mapping[str, np.ndarray]) -> None:
        """Adds pictures (caption -> RGB uint8 ``[H, W, 3]``) side by side where they fit."""
        self._parts.append(
            '<div class="row">' + "".join(map(_figure, pictures, pictures.values())) + "</div>"
        )

    def picture(self, picture: np.ndarray, caption: str = "") -> None:
        """Adds one picture (RGB uint8 ``[H, W, 3]``) over the full width."""
        self._parts.append(_figure(caption, picture))

    def code(self, text: str, summary: str = "") -> None:
        """Adds preformatted text, folded under ``summary`` when one is given."""
        block = f"<pre>{html.escape(text)}</pre>"
        self._parts.append(
            f"<details><summary>{html.escape(summary)}</summary>{block}</details>" if summary else block
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page (replacing an older one only when it is complete) and returns its path."""
        links = "".join(f'<a href="#s{i}">{html.escape(name)}</a>' for i, name in enumerate(self._sections))
        page = (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style></head><body>"
            f"<h1>{html.escape(self._title)}</h1><p>{html.escape(self._subtitle)}</p><nav>{links}</nav>"
            + "\n".join(self._parts)
            + "</body></html>\n"
        )
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
        os.replace(partial, path)
        return path


def _cell(value: object) -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, bool):
        return '<td class="pass">pass</td>' if value else '<td class="fail">FAIL</td>'
    return f"<td>{html.escape(f'{value:.3f}' if isinstance(value, float) else str(value))}</td>"


def _figure(caption: str, picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(caption, quote=True)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

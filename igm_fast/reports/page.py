"""The skeleton of a self-contained HTML page: style, script, tables, figures. Nothing in it asks the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

# The policy lets the page use what is inside it and nothing else; a stray link to the network would be an error.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters the page."""

    __slots__ = ()


def text(value: object) -> str:
    """Return a value as HTML: None as a dash, floats with three decimals, `Markup` as it is, anything else escaped."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return "–"
    return escape(f"{value:.3f}" if isinstance(value, float) else str(value))


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, words: Iterable[int] = (0,)
) -> Markup:
    """Return a table sortable by a click on its headings.

    Args:
        caption: what the table shows; read out by screen readers.
        columns: headings.
        rows: cells; numbers sort as numbers; a pair ``(shown, key)`` sorts by its key.
        words: columns that hold words: aligned left.
    """
    left = set(words)

    def cell(column: int, value: object) -> str:
        shown, key = value if isinstance(value, tuple) else (value, value)
        number = f' data-value="{key!r}"' if isinstance(key, (int, float)) else ""
        number = ' data-value=""' if key is None else number
        kind = ' class="words"' if column in left else ""
        kind = ' class="words wrap"' if column in left and len(str(shown)) > 40 else kind
        return f"<td{kind}{number}>{text(shown)}</td>"

    head = "".join(
        f'<th scope="col"{" class=words" if i in left else ""}><button type="button">{escape(name)}</button></th>'
        for i, name in enumerate(columns)
    )
    body = "\n".join(f"<tr>{''.join(cell(i, value) for i, value in enumerate(row))}</tr>" for row in rows)
    label = escape(caption)
    return Markup(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f'<table class="sortable" aria-label="{label}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def figure(source: str, alt: str, caption: str) -> Markup:
    """Return a figure that a click enlarges, with its sentence below.

    Args:
        source: ``data:`` address of the picture.
        alt: what the picture is, for those who do not see it.
        caption: what is to be seen.
    """
    label = escape(alt)
    return Markup(
        f'<figure><button type="button" aria-label="Enlarge: {label}"><img src="{source}" alt="{label}"></button>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def cards(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Return the headline numbers: (name, value, small print) each."""
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(small)}</small></dd></div>"
        for name, value, small in items
    )
    return Markup(f'<dl class="cards">{inner}</dl>')


def paragraph(content: str, kind: str = "") -> Markup:
    """Return one paragraph; ``kind`` is "", "soft" or "notice"."""
    return Markup(f"<p{f' class={kind}' if kind else ''}>{text(content)}</p>")


def preformatted(content: str) -> Markup:
    """Return text exactly as it is, in a scrollable box."""
    return Markup(f'<pre tabindex="0">{escape(content)}</pre>')


def folded(title: str, content: Markup) -> Markup:
    """Return a part that opens on a click."""
    return Markup(f"<details><summary>{escape(title)}</summary>{content}</details>")


def page(title: str, lead: str, sections: Mapping[str, Iterable[Markup]], closing: str) -> str:
    """Return the whole document; each section gets a heading and a place in the table of contents."""
    names = [("-".join(heading.lower().split()), heading) for heading in sections]
    contents = "".join(f'<li><a href="#{escape(anchor)}">{escape(heading)}</a></li>' for anchor, heading in names)
    body = "\n".join(
        f'<section id="{escape(anchor)}" aria-label="{escape(heading)}"><h2>{escape(heading)}</h2>\n'
        + "\n".join(sections[heading])
        + "</section>"
        for anchor, heading in names
    )
    here = resources.files("igm_fast.reports")
    style = here.joinpath("page.css").read_text(encoding="utf-8")
    script = here.joinpath("page.js").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
<p>{text(lead)}</p>
<nav aria-label="Contents"><ul>{contents}</ul></nav></header>
<main>
{body}
</main>
<footer><p>{text(closing)}</p></footer>
<dialog aria-label="Enlarged figure"><img src="data:," alt=""></dialog>
<script>{script}</script>
</body>
</html>
"""

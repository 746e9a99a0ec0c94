"""Pieces of HTML. Whatever is not `Markup` is text, and escaped: names and sentences come from anybody."""

import html
from collections.abc import Iterable, Sequence

_CHART_WIDTH, _CHART_HEIGHT = 600, 120


class Markup(str):
    """HTML that was made here."""

    __slots__ = ()


def text(content: object) -> Markup:
    """Make HTML of anything; `Markup` stays as it is."""
    return content if isinstance(content, Markup) else Markup(html.escape(_printable(str(content))))


def join(pieces: Iterable[object]) -> Markup:
    """Put pieces one after another."""
    return Markup("\n".join(map(text, pieces)))


def section(key: str, title: str, *content: object) -> Markup:
    """Make a part of the page with a heading."""
    return Markup(
        f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{text(title)}</h2>\n'
        f"{join(content)}\n</section>"
    )


def note(sentence: object) -> Markup:
    """Make a paragraph that says why there is no more."""
    return Markup(f'<p class="note">{text(sentence)}</p>')


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Make a table whose first column names its rows; a narrow screen shows each row as a card.

    Roles are given although they follow from the elements: some browsers forget them where `display` is another.
    """
    heads = "".join(f'<th scope="col" role="columnheader">{text(column)}</th>' for column in columns)
    lines = []
    for name, *cells in rows:
        first = f'<th scope="row" role="rowheader">{text(name)}</th>'
        others = "".join(
            f'<td role="cell" data-label="{text(column)}">{text(cell)}</td>'
            for column, cell in zip(columns[1:], cells, strict=True)
        )
        lines.append(f'<tr role="row">{first}{others}</tr>')
    return Markup(
        f'<table role="table">\n<caption>{text(caption)}</caption>\n<thead role="rowgroup"><tr role="row">{heads}</tr>'
        f'</thead>\n<tbody role="rowgroup">\n{chr(10).join(lines)}\n</tbody>\n</table>'
    )


def tile(name: str, value: object, unit: str, remark: object) -> Markup:
    """Make one large number with its name."""
    return Markup(
        f'<div class="tile"><dt>{text(name)}</dt><dd><span class="value">{text(value)}</span> '
        f'<span class="unit">{text(unit)}</span><span class="remark">{text(remark)}</span></dd></div>'
    )


def meter(name: str, value: float, most: float, words: object) -> Markup:
    """Make a bar that says how full something is."""
    share = value / most if most else 0.0
    return Markup(
        f'<div class="meter"><dt>{text(name)}</dt><dd><meter min="0" max="1" high="0.9" value="{share:.3f}" '
        f'aria-label="{text(name)}">{share:.0%}</meter> <span>{text(words)}</span></dd></div>'
    )


def chart(values: Sequence[float], num_places: int, description: str) -> Markup:
    """Draw numbers over time, the last one at the right.

    Args:
        values: the newest `num_places` at most.
        num_places: how many there can be.
        description: says in words what is seen.
    """
    top = max([*values, 1e-9])
    step = _CHART_WIDTH / max(num_places - 1, 1)
    left = _CHART_WIDTH - step * (len(values) - 1)
    points = [
        f"{left + step * place:.1f},{_CHART_HEIGHT - 4 - (_CHART_HEIGHT - 12) * value / top:.1f}"
        for place, value in enumerate(values)
    ]
    area = f"{left:.1f},{_CHART_HEIGHT} {' '.join(points)} {_CHART_WIDTH},{_CHART_HEIGHT}" if points else ""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(description)}"><polygon points="{area}"/><polyline points="{" ".join(points)}"/></svg>'
    )


def _printable(string: str) -> str:
    """Show characters that could turn the line around, or hide, by their code."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in string)

"""Turns rows a day into a small bar chart that the UI shows in a run's metadata."""

import base64
from collections.abc import Mapping

WIDTH, HEIGHT, MARGIN = 640, 160, 20


def rows_plot(rows: Mapping[str, int]) -> str:
    """Markdown with an SVG of one bar a day, `rows` by day in order. It has counts and two dates, no content.

    The bars are one path, so that a year stays small (365 days: 8 KB).
    """
    top = max(rows.values(), default=0)
    step = WIDTH / max(1, len(rows))
    bars = "".join(
        f"M{place * step:.1f} {HEIGHT}h{step * 0.8:.1f}v{-HEIGHT * count / max(1, top):.1f}h{-step * 0.8:.1f}z"
        for place, count in enumerate(rows.values())
        if count
    )
    days = list(rows)
    first, last = (days[0], days[-1]) if days else ("", "")
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT + 2 * MARGIN}" '
        f'font-family="sans-serif" font-size="12" fill="#666"><text x="0" y="14">at most {top} rows a day</text>'
        f'<g transform="translate(0 {MARGIN})"><path d="{bars}" fill="#4f43dd"/></g>'
        f'<text x="0" y="{HEIGHT + MARGIN + 14}">{first}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + MARGIN + 14}" text-anchor="end">{last}</text></svg>'
    )
    return f"![rows a day](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"

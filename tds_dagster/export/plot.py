"""Turns figures of an artifact into small charts: Markdown images that the UI, a run's metadata and a card show.

Each chart is one SVG in a data URI, so that nothing has to be fetched. Its colours stand out from white and from black
alike (at least 3:1, text 4:1: WCAG 2.1, 1.4.3 and 1.4.11), for a picture cannot know the theme of the page around it.
The picture's alternative text gives the figures in words. A chart has counts, days, names of columns, splits and
classes, and nothing else of a record.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 520  # the cell of the UI has 551 on a screen of 1,280, and cuts off what is wider
TEXT_COLOUR = "#767676"
COLOURS = ("#6c63ff", "#c2690a", "#0d9488", "#be4d8f")  # of series in their order; train, validation, test
_PLOT_HEIGHT, _LINE = 160, 20
_LABEL_WIDTH, _VALUE_WIDTH = 180, 90  # beside horizontal bars
_LABEL_LENGTH = 24  # characters that fit there
_MOST_CLASSES = 20


def rows_plot(rows: Mapping[str, int]) -> str:
    """One bar a day, `rows` by day in order.

    A month takes less than 1,000 characters, what Dagster's UI shows at once (1.13); a larger picture opens on a click.
    """
    days, most = list(rows), max(rows.values(), default=0)
    first, last = (days[0], days[-1]) if days else ("", "")
    parts = [
        text_at(0, 14, f"at most {_count(most, 'row')} a day"),
        _columns(list(rows.values()), COLOURS[0]),
        text_at(0, _PLOT_HEIGHT + 2 * _LINE - 6, first),
        text_at(WIDTH, _PLOT_HEIGHT + 2 * _LINE - 6, last, anchor="end"),
    ]
    figures = f"{_count(len(days), 'day')}, {_count(sum(rows.values()), 'row')}, at most {most:,} a day"
    return image("rows a day", figures, parts, _PLOT_HEIGHT + 2 * _LINE)


def lengths_plot(lengths: Mapping[int, int]) -> str:
    """One bar a size, `lengths` as number of records by power of two: 10 for those from 1,024 to 2,047 bytes."""
    shown = range(min(lengths, default=0), max(lengths, default=-1) + 1)
    parts = [
        text_at(0, 14, "records by length"),
        _columns([lengths.get(power, 0) for power in shown], COLOURS[0]),
    ]
    step = WIDTH / max(1, len(shown))
    every = max(1, round(60 / step))  # a label takes 60 units
    parts += [
        text_at(place * step, _PLOT_HEIGHT + 2 * _LINE - 6, _size(1 << power))
        for place, power in enumerate(shown)
        if place % every == 0
    ]
    figures = ", ".join(f"{lengths[power]:,} from {_size(1 << power)}" for power in sorted(lengths))
    return image("record lengths", figures or "no record", parts, _PLOT_HEIGHT + 2 * _LINE)


def missing_plot(missing: Mapping[str, int], rows: int) -> str:
    """One bar a column: the share of `rows` in which it is null."""
    bars = [(name, [count / max(1, rows)], f"{count / max(1, rows):.1%}") for name, count in missing.items()]
    figures = ", ".join(f"{label_text(name)} {share}" for name, (part,), share in bars if part)
    return bars_image("missing values", f"{figures or 'none'} ({_count(rows, 'row')})", bars, [""])


def splits_plot(splits: Mapping[str, int]) -> str:
    """One bar a split: its rows."""
    total, most = max(1, sum(splits.values())), max(1, max(splits.values(), default=1))
    bars = [(name, [rows / most], f"{rows:,} ({rows / total:.0%})") for name, rows in splits.items()]
    figures = ", ".join(f"{label_text(name)} {rows:,}" for name, rows in splits.items())
    return bars_image("split sizes", figures or "no split", bars, [""])


def classes_plot(classes: Mapping[str, Mapping[str, int]]) -> str:
    """A group of bars a class, one for each split: the class's share of the split. `classes` by split, then class.

    The 20 most frequent classes are shown, the others together as one.
    """
    splits = list(classes)
    totals = {split: max(1, sum(classes[split].values())) for split in splits}
    counts: dict[str, list[int]] = {}
    for place, split in enumerate(splits):
        for name, rows in classes[split].items():
            counts.setdefault(name, [0] * len(splits))[place] += rows
    ranked = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    rest = ranked[_MOST_CLASSES:]
    if rest:
        others = [sum(column) for column in zip(*(rows for _, rows in rest), strict=True)]
        ranked = [*ranked[:_MOST_CLASSES], (f"{len(rest)} others", others)]
    bars = [
        (name, [count / totals[split] for count, split in zip(rows, splits, strict=True)], f"{sum(rows):,}")
        for name, rows in ranked
    ]
    figures = ", ".join(f"{label_text(name)} {count}" for name, _, count in bars)
    return bars_image("classes: share of each split, rows in all", figures or "no class", bars, splits)


def _columns(values: Sequence[int], colour: str) -> str:
    """Vertical bars over the whole width: one line, drawn as wide as a bar, that moves on by 10 units a value."""
    most, scale = max(1, max(values, default=0)), WIDTH / (10 * max(1, len(values)))
    heights = [round(_PLOT_HEIGHT * value / most) or int(value > 0) for value in values]
    bars = "".join(f"v-{height}m10 {height}" for height in heights)
    return (
        f'<path transform="scale({scale:.4g} 1)" d="M5 {_PLOT_HEIGHT + _LINE}{bars}" '
        f'stroke="{colour}" stroke-width="8"/>'
    )


def bars_image(
    title: str, figures: str, bars: Sequence[tuple[str, Sequence[float], str]], series: Sequence[str]
) -> str:
    """Horizontal bars: a label, a share from 0 to 1 for each of the series, and the figure at the end."""
    thickness = 14 if len(series) == 1 else 8
    room, height = WIDTH - _LABEL_WIDTH - _VALUE_WIDTH, thickness * len(series) + 8
    parts, top = [text_at(0, 14, title)], _LINE
    if len(series) > 1:
        top += _LINE
        for place, name in enumerate(series):
            left = _LABEL_WIDTH + place * room / len(series)
            colour = COLOURS[place % len(COLOURS)]
            parts.append(f'<rect x="{left:.0f}" y="{_LINE + 4}" width="10" height="10" fill="{colour}"/>')
            parts.append(text_at(left + 15, _LINE + 14, label_text(name)))
    for name, shares, figure in bars:
        parts.append(text_at(_LABEL_WIDTH - 8, top + height / 2 + 4, label_text(name), anchor="end"))
        for place, share in enumerate(shares):
            y, colour = top + 4 + place * thickness, COLOURS[place % len(COLOURS)]
            parts.append(
                f'<path d="M{_LABEL_WIDTH} {y}h{room * share:.1f}v{thickness - 1}H{_LABEL_WIDTH}z" fill="{colour}"/>'
            )
        parts.append(text_at(WIDTH, top + height / 2 + 4, figure, anchor="end"))
        top += height
    return image(title, figures, parts, top + 4)


def text_at(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    """A text in a picture; `anchor` is start, middle or end."""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    place = f' x="{x:.0f}"' if x else ""
    return f'<text{place} y="{y:.0f}"{side}>{escape(text)}</text>'


def image(title: str, figures: str, parts: Sequence[str], height: float) -> str:
    """A picture as a Markdown image; `figures` are what it shows, in words."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" style="font:12px sans-serif" fill="{TEXT_COLOUR}">'
        f"{''.join(parts)}</svg>"
    )
    return f"![{_plain(f'{title}: {figures}')}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def label_text(name: str) -> str:
    """A name as a label: short, and of characters that XML may hold."""
    printable = "".join(char if char.isprintable() else "\N{MIDDLE DOT}" for char in name[: _LABEL_LENGTH + 1])
    return printable if len(printable) <= _LABEL_LENGTH else printable[: _LABEL_LENGTH - 1] + "…"


def _plain(text: str) -> str:
    """Text without what Markdown or HTML would take for markup."""
    return "".join(" " if char in "[]()<>&\\`*!#|" else char for char in text).strip()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(size_bytes: int) -> str:
    """A power of two in bytes: `512 B`, `4 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes} {unit}"
        size_bytes >>= 10
    return f"{size_bytes} GiB"

"""Turns one run into one static HTML page, which needs nothing but itself to be read.

Whatever a record holds is inert in it: text becomes markup in `element` alone, which escapes every child and attribute
that is not markup already, and the page's own policy (CSP 3) lets a browser run no script and load nothing at all.
A template engine would escape as well, but where each value stands is a question of types here: `Html` is what may go
into a page as it is, mypy tells it from text, and `tds show` starts without another package.
"""

import base64
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from statistics import median

from tds_dagster.cli.narration import (
    Narrated,
    Part,
    all_steps,
    clock_text,
    document_text,
    moment,
    narrated,
    summary_lines,
    told_steps,
)
from tds_dagster.cli.screen import visible
from tds_dagster.export.run import Run, Step

_OPEN_JSON_CHARACTERS = 160  # shorter documents stand on a line, longer ones are folded
_LONG_PROSE_CHARACTERS = 2500
_VOID = {"meta"}
_LANES = {"task": 0, "workflow": 1, "feedback": 1, "call": 3}  # everything else, messages and events: 2
_LANE_HEIGHT, _TIMELINE_WIDTH = 14, 1000

_STYLE = """\
:root{color-scheme:light dark;--bg:#fbfbfd;--fg:#1c1e26;--soft:#5d6270;--line:#dcdfe8;--box:#fff;--user:#2f5fd0;
--assistant:#7c3aad;--call:#0b7a6c;--system:#6b7080;--event:#6b7080;--task:#1c1e26;--workflow:#9a5b00;--feedback:#a8326f;--bad:#c0262d}
@media(prefers-color-scheme:dark){:root{--bg:#13151b;--fg:#e6e8ee;--soft:#9aa0b0;--line:#2c303b;--box:#1a1d25;--user:#7ea6ff;
--assistant:#c79bf0;--call:#4cc9b5;--system:#9aa0b0;--event:#9aa0b0;--task:#e6e8ee;--workflow:#e2a44a;--feedback:#ef8fbd;--bad:#ff7b7f}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.35rem;margin:0 0 .3rem;overflow-wrap:anywhere}
ul{list-style:none;margin:0;padding:0;color:var(--soft)}
svg{display:block;width:100%;height:70px;margin:1rem 0}
svg,article{border:1px solid var(--line);border-radius:6px;background:var(--box)}
article{margin:.7rem 0;padding:.55rem .8rem;border-left:4px solid var(--mark)}
article:target{outline:2px solid var(--mark)}
article>header{display:flex;flex-wrap:wrap;gap:.2rem .7rem;align-items:baseline}
article>header b{color:var(--mark);overflow-wrap:anywhere}
time,.mark,summary,.label{color:var(--soft);font-size:.85rem}
.failed>header .mark,.error{color:var(--bad)}
.part{margin-top:.35rem;display:flex;gap:.6rem;align-items:baseline}
.part>pre,.part>details{flex:1;min-width:0}
pre{margin:.2rem 0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
pre{font:13px/1.45 ui-monospace,monospace}
.prose pre{font:inherit}
summary{cursor:pointer}
"""
_STYLES = ("user", "assistant", "system", "tool", "call", "event", "task", "workflow", "feedback")
_COLOURS = {"tool": "call"}
_RULES = "".join(f".{name}{{--mark:var(--{_COLOURS.get(name, name)})}}" for name in _STYLES)
_FILLS = "rect{fill:var(--mark)}rect.bad{fill:var(--bad)}\n"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def page_of(run: Run) -> str:
    """The page of a run: a heading, a timeline, and every step with what belongs to it."""
    numbers = {id(step): f"s{number}" for number, step in enumerate(all_steps(run.steps), 1)}
    style = _STYLE + _RULES + _FILLS
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = f"{run.subject} {run.id}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        Html(f"<style>{style}</style>"),
    )
    facts = element("ul", *(element("li", line) for line in summary_lines(run)))
    steps = [_article(step, numbers) for step in run.steps]
    body = element("body", element("main", element("h1", title), facts, _timeline(run, numbers), *steps))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def element(tag: str, /, *children: str, **attributes: str) -> Html:
    """An element; what is not `Html` among its children is escaped, and every attribute is.

    `class_` and `http_equiv` stand for the attributes that Python has no names for.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(visible(value))}"' for key, value in attributes.items() if value
    )
    if tag in _VOID:
        return Html(f"<{tag}{given}>")
    content = "".join(child if isinstance(child, Html) else _text(child) for child in children)
    return Html(f"<{tag}{given}>{content}</{tag}>")


def _text(text: str) -> str:
    """Text as markup. What UTF-8 cannot hold, a lone surrogate, is shown as its number."""
    return escape(visible(text.replace("\r\n", "\n"))).encode("utf-8", "backslashreplace").decode()


def _article(step: Step, numbers: Mapping[int, str]) -> Html:
    told = narrated(step)
    marks = [element("span", mark, class_="mark") for mark in told.marks]
    time = element("time", clock_text(step.began), datetime=step.began)
    return element(
        "article",
        element("header", time, element("b", told.title), *marks),
        *(_part(part) for part in told.parts),
        *(_article(below, numbers) for below in told_steps(step)),
        *_rest(told, step),
        id=numbers[id(step)],
        class_=f"{told.style} failed" if told.failed else told.style,
    )


def _part(part: Part) -> Html:
    label = (
        [element("span", part.label, class_="label error" if part.label == "error" else "label")] if part.label else []
    )
    if part.is_prose:
        text = str(part.value).strip("\n")
        shown = element("pre", text, dir="auto", **({"class_": "error"} if part.label == "error" else {}))
        if len(text) > _LONG_PROSE_CHARACTERS:
            shown = element("details", element("summary", f"{text[:120]}… ({len(text):,} characters)"), shown)
        return element("div", *label, shown, class_="part prose")
    short = document_text(part.value)
    if len(short) <= _OPEN_JSON_CHARACTERS:
        return element("div", *label, element("pre", short), class_="part")
    name = part.label or "data"
    return element("div", _folded(f"{name}: {_shape(part.value)}", part.value), class_="part")


def _folded(summary: str, document: object) -> Html:
    pretty = document_text(document, indent=2)
    return element("details", element("summary", summary), element("pre", pretty))


def _shape(document: object) -> str:
    """What a document is, in a few words."""
    if isinstance(document, Mapping):
        names = ", ".join(str(name) for name in list(document)[:6])
        return f"{names}{', …' if len(document) > 6 else ''}"
    return f"{len(document)} items" if isinstance(document, list) else type(document).__name__


def _rest(told: Narrated, step: Step) -> Iterator[Html]:
    """The columns that are not told above, and a task's former states."""
    if told.rest:
        yield _folded("record", told.rest)
    if step.history:
        yield _folded(f"{len(step.history)} former states", step.history)


# ------------------------------------------------------------------------------------------------ the timeline


def _timeline(run: Run, numbers: Mapping[int, str]) -> Html:
    """Every step as a bar from its beginning to its end; long pauses are shortened. A bar leads to its step."""
    steps = [step for above in run.steps for step in _told(above)]
    places = _places(steps)
    bars = []
    for step in steps:
        told = narrated(step)
        left, right = places[step.began], places[step.ended]
        lane = _LANES.get(told.style, 2)
        took = (moment(step.ended) - moment(step.began)).total_seconds()
        bar = element(
            "rect", element("title", f"{clock_text(step.began)} {told.title}, {took:.3f} s"),
            x=f"{left:.1f}", y=str(4 + lane * (_LANE_HEIGHT + 2)), width=f"{max(3.0, right - left):.1f}",
            height=str(_LANE_HEIGHT), rx="2", class_=f"{told.style} bad" if told.failed else told.style,
        )  # fmt: skip
        bars.append(element("a", bar, href=f"#{numbers[id(step)]}"))
    label = f"{len(steps)} steps from {clock_text(run.began)} to {clock_text(run.ended)}, long pauses shortened"
    view = f"0 0 {_TIMELINE_WIDTH} {4 * (_LANE_HEIGHT + 2) + 6}"
    attributes = {"viewBox": view, "preserveAspectRatio": "none", "aria-label": label, "role": "group"}
    return element("svg", *bars, **attributes)


def _told(step: Step) -> Iterator[Step]:
    yield step
    for below in told_steps(step):
        yield from _told(below)


def _places(steps: Sequence[Step]) -> dict[str, float]:
    """Where each moment lies on the timeline; a pause counts as five usual ones at most."""
    moments = sorted({time for step in steps for time in (step.began, step.ended)})
    seconds = [moment(time).timestamp() for time in moments]
    gaps = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    longest = 5 * median(gaps) if gaps else 1.0
    ends = [0.0]
    for gap in gaps:
        ends.append(ends[-1] + min(gap, longest))
    scale = (_TIMELINE_WIDTH - 16) / max(ends[-1], 1e-9)
    return {time: 4 + end * scale for time, end in zip(moments, ends, strict=True)}

"""Makes the records that every way stores: the same ones, in the same order, for all ways of a run.

Needs nothing but the standard library, for the peers that live in an environment of their own read it too.
"""

import json
import random
from typing import NamedTuple

PAYLOAD_BYTES = 300  # of an event's payload as JSON, where single calls are timed
LINE_BYTES = 500  # of the whole record as one JSON line, id and time included, where records a second are counted
DISTINCT = 4096  # different records; they repeat after that, but for their ids and times
ESCAPED_EVERY = 8  # one record in so many has a quoted word and a line break in its text, as prompts do

_TEXT = "plan the trip and check whether to inform the user about a refund of the flight seat or baggage before noon "
_WORDS = (
    _TEXT + "the tool result is ready so continue with the next step and search for a hotel name price city date"
).split()


class Event(NamedTuple):
    """What an agent passes to `store_agent_event`."""

    event_type: str
    agent_id: str
    session_id: str
    payload: dict[str, object]


def events_with_payload(seed: int, count: int, payload_bytes: int = PAYLOAD_BYTES) -> list[Event]:
    """Events whose payload as compact JSON has exactly `payload_bytes` bytes."""
    return _repeated(
        [_event(random.Random(f"{seed} {n}"), n, payload_bytes) for n in range(min(count, DISTINCT))], count
    )


def events_of_line(seed: int, count: int, line_bytes: int = LINE_BYTES) -> list[Event]:
    """Events that are exactly `line_bytes` long as one JSON line: id, time, type, agent, session, severity, payload."""
    made = []
    for n in range(min(count, DISTINCT)):
        around = line_size(_event(random.Random(f"{seed} {n}"), n, PAYLOAD_BYTES)) - PAYLOAD_BYTES
        made.append(_event(random.Random(f"{seed} {n}"), n, line_bytes - around))
    return _repeated(made, count)


def line_size(event: Event) -> int:
    """Bytes of an event as one JSON line, with an id of 36 and a time of 27 characters; nulls are left out."""
    return json_size({"record_id": "0" * 36, "timestamp": "0" * 27, **event._asdict(), "severity": "info"})


def json_size(value: object) -> int:
    """Bytes of a value as compact JSON."""
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _repeated(made: list[Event], count: int) -> list[Event]:
    return (made * (count // max(1, len(made)) + 1))[:count]


def _event(chance: random.Random, n: int, payload_bytes: int) -> Event:
    payload: dict[str, object] = {
        "model": "llama3:8b",
        "step": n,
        "tokens": chance.randint(100, 4000),
        "temperature": round(chance.random(), 3),
        "prompt": "",
    }
    text = " ".join(chance.choices(_WORDS, k=payload_bytes // 4))
    if n % ESCAPED_EVERY == 0:
        text = f'the user said "{chance.choice(_WORDS)}"\n{text}'
    payload["prompt"] = text
    excess = json_size(payload) - payload_bytes
    payload["prompt"] = text[:-excess]  # plain letters stand at its end, a byte each
    return Event("agent_step", f"agent-{chance.randint(100, 999)}", f"session-{chance.randint(1000, 9999)}", payload)

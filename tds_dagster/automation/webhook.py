"""Turns an alert into a POST that a webhook takes: our own fields as JSON, or Slack's format.

Tried again on what may pass: no connection, a time-out, 429 and 5xx. Another answer says that the address or the format
is wrong, and trying again helps nobody. Redirects are not followed: a POST would become a GET.
"""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from ingest.errors import AlertFailed
from ingest.settings import Settings

ATTEMPTS, TIMEOUT_S = 3, 5.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 5.0  # 25 s in all: a tick of a sensor has a minute, and the next one goes on
_SIGNS = {"error": ":red_circle:", "warning": ":large_yellow_circle:", "resolved": ":large_green_circle:"}

Kind = Literal["run_failed", "check_failed", "check_passed", "test"]


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What is posted; the fields of the JSON body."""

    kind: Kind
    severity: Literal["error", "warning", "resolved"]
    title: str  # one line
    text: str  # what happened, in words
    at: str  # RFC 3339, UTC, of what happened
    assets: list[str] = []  # such as exports/events
    check: str | None = None
    run_id: str | None = None
    url: str | None = None  # in the Dagster UI
    source: str = "training-data-store"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_given: object, **_more: object) -> None:
        """Follow none."""


def body_of(alert: Alert, form: str) -> bytes:
    """The alert as JSON: its own fields, or `{"text": …}` as Slack's incoming webhooks take it.

    Source of the format and of its escapes &, <, >: https://api.slack.com/messaging/webhooks and /reference/surfaces.
    """
    if form == "json":
        return msgspec.json.encode(alert)
    link = f"\n<{alert.url}|open in Dagster>" if alert.url else ""
    text = f"{_SIGNS[alert.severity]} *{_escaped(alert.title)}*\n{_escaped(alert.text)}{link}"
    return msgspec.json.encode({"text": text})


def post(settings: Settings, alert: Alert, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Post an alert to TDS_ALERT_URL.

    Raises AlertFailed if the webhook does not take it, also when it was tried again; its text never has the address.
    """
    if settings.alert_url is None:
        raise AlertFailed("TDS_ALERT_URL is not set: expected the address of a webhook; set it where `tds up` starts")
    request = urllib.request.Request(  # noqa: S310 - http or https: the setting is checked
        settings.alert_url,
        data=body_of(alert, settings.alert_format),
        headers={"Content-Type": "application/json", "User-Agent": "training-data-store"},
    )
    wait_s = FIRST_WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        problem, may_pass, asked_s = _try(request)
        if problem is None:
            return
        if not may_pass or attempt == ATTEMPTS:
            times = "once" if attempt == 1 else f"{attempt} times"
            raise AlertFailed(
                f"the webhook of TDS_ALERT_URL was asked {times}: {problem}; expected an answer 2xx. Check the address "
                "and TDS_ALERT_FORMAT, then try `tds alert --test`"
            )
        sleep(min(LONGEST_WAIT_S, wait_s if asked_s is None else asked_s))
        wait_s *= 2


def _try(request: urllib.request.Request) -> tuple[str | None, bool, float | None]:
    """One attempt: what went wrong, whether that may pass, and how long the webhook asks to wait."""
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S):
            return None, False, None
    except urllib.error.HTTPError as err:
        with err:
            may_pass = (
                err.code == http.HTTPStatus.TOO_MANY_REQUESTS or err.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
            )
            return f"it answered {err.code} {err.reason}", may_pass, _seconds(err.headers.get("Retry-After"))
    except urllib.error.URLError as err:
        return f"no answer ({err.reason})", True, None
    except (OSError, http.client.HTTPException) as err:  # in the middle of the answer
        return f"no answer ({type(err).__name__}: {err})", True, None


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After, a number of seconds or a date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return None
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except ValueError:
        return None


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

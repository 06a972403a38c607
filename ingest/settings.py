"""Turns the TDS_* environment variables into one frozen value; nothing else reads the environment."""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Literal, get_args

import msgspec

from ingest.errors import InvalidSetting

SpoolSync = Literal["off", "interval", "always"]
OnFull = Literal["drop", "raise", "block"]
RedactionLevel = Literal["none", "secrets", "full"]
AlertFormat = Literal["json", "slack"]

_SIZE = re.compile(r"([0-9]{1,15})\s*(|[kmg]i?b?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")
_PASSWORD_PARAMETER = re.compile(r"(password=)[^&\s]*", re.IGNORECASE)
_LARGEST_RECORD = 256 << 20  # Redis takes 512 MiB in a value, and a row may be twice its record's length
_SECRETS = ("redaction_key", "alert_url")  # who knows a webhook's address may post there
SHORTEST_KEY = 16  # characters of the key of redaction


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting with its default. `read_settings` fills it from the environment.

    The comment above a field is its text in `.env.example`.
    """

    # Where all files live: CSV, exports, spool, ledgers.
    data_dir: Path = Path("data")
    # The client's spool; set it on hosts that do not have the data folder.
    spool_dir: Path | None = None
    # Synapse (Redis 6.2 or newer), such as redis://localhost:6379/0. Unset: embedded, no server at all.
    redis_url: str | None = None
    # What `source` is when an event is stored without one.
    source: str | None = None
    # The first day that has a partition (UTC). Older event times are filed under their ingest day.
    start_date: date = date(2024, 1, 1)
    # A larger record is not accepted: it is counted as dropped.
    max_record_bytes: int = 16 << 20
    # When spooled bytes reach the disk: off (the kernel decides), interval (every 0.2 s) or always (at once).
    spool_sync: SpoolSync = "interval"
    # The most that one process keeps in its spool of one kind; what is written makes room.
    spool_max_bytes: int = 4 << 30
    # Size of one spool segment.
    spool_segment_bytes: int = 8 << 20
    # What a call does when the spool is full: drop (and count), raise NotAccepted, or block.
    on_full: OnFull = "drop"
    # How long the writer remembers idempotency keys.
    key_days: int = 7
    # How many range exports of a kind are kept.
    keep_ranges: int = 10
    # How long entries stay in Synapse for subscribers after they were written, in seconds.
    synapse_retention: int = 3600
    # How long a durable group of subscribers may hold back what it has not read, in seconds; 3 days outlast a weekend.
    # Redis keeps it in memory: 500 bytes a record. When Redis is 80 % full, no group holds anything back.
    group_retention: int = 259_200
    # After so many seconds without a sign of life, what a subscriber of a group had in hand goes to another one.
    group_idle: int = 60
    # What exports are cleaned of: none, secrets (keys, tokens, passwords) or full (personal data too).
    redaction: RedactionLevel = "secrets"
    # The same for datasets.
    dataset_redaction: RedactionLevel = "full"
    # The rules of redaction, a TOML file; unset: those that come with the package (docs/redaction.md).
    redaction_policy: Path | None = None
    # Secret from which tokens for redacted values are made, 16 characters or more: the same key, the same tokens.
    # Unset: state/redaction.key in the data folder, made once.
    redaction_key: str | None = None
    # The command that trains a model, given the dataset's folder and an output folder; unset: ours (docs/training.md).
    trainer: str | None = None
    # When training starts and what is promoted, a TOML file; unset: the conditions in docs/retraining.md.
    training_policy: Path | None = None
    # How many versions of a dataset, and of a model, are kept; what a champion was made from always is.
    keep_versions: int = 10
    # Where failed runs and checks are posted to, an https:// or http:// address; unset: nowhere.
    alert_url: str | None = None
    # What is posted: json (our own fields) or slack (Slack's incoming webhooks, and what understands them).
    alert_format: AlertFormat = "json"
    # Where the Dagster UI is seen, for links in alerts.
    ui_url: str = "http://127.0.0.1:3000"
    # How long Dagster keeps what runs did, in days; the days' versions stay.
    keep_runs_days: int = 30
    # Conversations, such as postgresql://user:password@host/database; unset: SQLite in the data folder.
    postgres_url: str | None = None
    # The schema of the table of conversations; unset: the first of the server's search_path. SQLite has none.
    postgres_schema: str | None = None
    # Whether each message of a conversation is also stored as an event, so that it can become training data.
    stream_messages: bool = False
    # Where `tds writer` and `tds up` serve Prometheus metrics, a port of 127.0.0.1; unset: nowhere.
    metrics_port: int | None = None
    # Dagster's storage; unset: SQLite under the data folder.
    dagster_postgres_url: str | None = None
    # For tests: kill this process at the named step of the write path.
    failpoint: str | None = None

    @property
    def spool(self) -> Path:
        """The spool's folder: `spool_dir` or `<data_dir>/spool`."""
        return self.spool_dir if self.spool_dir is not None else self.data_dir / "spool"

    @property
    def redis_url_without_password(self) -> str | None:
        """The Redis address as it may be shown to people and written to logs."""
        return None if self.redis_url is None else without_password(self.redis_url)

    def __repr__(self) -> str:
        """Show every setting, secrets left out, so that it may stand in a log."""
        return f"Settings({', '.join(f'{name}={self.shown(name)!r}' for name in self.__struct_fields__)})"

    def shown(self, name: str) -> object:
        """A setting's value as it may stand in a log: secrets as ***, addresses without their password."""
        value = getattr(self, name)
        if name in _SECRETS:
            return None if value is None else "***"
        return without_password(value) if isinstance(value, str) else value


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read TDS_<FIELD> for every field of `Settings`; an empty variable counts as unset.

    Sizes are bytes and may carry a unit (`64MiB`, `1g`), dates are `YYYY-MM-DD`. Folders become absolute, so
    that a program that changes its working directory goes on writing where it began.
    Raises InvalidSetting naming the variable, its value and what was expected.
    """
    environ = os.environ if environ is None else environ
    texts = {name: environ.get(_variable(name), "").strip() for name in Settings.__struct_fields__}
    given = {name: _parser(name)(name, text) for name, text in texts.items() if text}
    given.setdefault("data_dir", Settings().data_dir.absolute())
    settings = Settings(**given)  # type: ignore[arg-type]  # each value was made for its field by its parser
    # A segment goes when it is written and a later one exists, and a record may be larger than a segment.
    least = 2 * settings.spool_segment_bytes + settings.max_record_bytes
    if settings.spool_max_bytes < least:
        raise _invalid(
            "spool_max_bytes",
            texts["spool_max_bytes"] or str(settings.spool_max_bytes),
            f"at least {least}: two of TDS_SPOOL_SEGMENT_BYTES={settings.spool_segment_bytes} and one of "
            f"TDS_MAX_RECORD_BYTES={settings.max_record_bytes}",
        )
    return settings


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Names that begin with TDS_ and are no setting, most likely misspelt, in alphabetical order."""
    environ = os.environ if environ is None else environ
    known = {_variable(name) for name in Settings.__struct_fields__} | {"TDS_REQUIRE_ALL"}  # the tests' own
    return sorted(name for name in environ if name.startswith("TDS_") and name not in known)


def child_environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment for a child process that is to have the same settings: this process's, and `more` on top."""
    fields = {_variable(name): getattr(settings, name) for name in Settings.__struct_fields__}
    return {**os.environ, **{name: "" if value is None else str(value) for name, value in fields.items()}, **more}


def dagster_home(settings: Settings, environ: Mapping[str, str] | None = None) -> Path:
    """Where Dagster keeps its runs and events: DAGSTER_HOME if it is set, else `<data_dir>/dagster`; absolute."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("DAGSTER_HOME") or settings.data_dir / "dagster").expanduser().absolute()


def without_password(url: str) -> str:
    """An address as it may be shown: what stands before the host becomes `***`, and so does `password=`."""
    scheme, separator, _ = url.partition("://")
    _, at, host = url.rpartition("@")
    shown = f"{scheme + separator if separator else ''}***@{host}" if at else url
    return _PASSWORD_PARAMETER.sub(r"\1***", shown)


def _variable(name: str) -> str:
    return f"TDS_{name.upper()}"


def _parser(name: str) -> Callable[[str, str], object]:
    """What makes a field's value from its text, found by the field's name or else by how that ends."""
    return _PARSERS.get(name) or _PARSERS.get(name.rpartition("_")[2]) or _text


def _text(_name: str, text: str) -> str:
    return text


def _folder(name: str, text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as err:
        raise _invalid(name, text, "a folder whose ~user exists") from err


def _command(name: str, text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as err:
        raise _invalid(name, text, f"a command as a shell reads it ({err})") from err
    if not words:
        raise _invalid(name, text, "a command such as 'python my_trainer.py'")
    return text


def _secret(name: str, text: str) -> str:
    if len(text) < SHORTEST_KEY:
        variable = _variable(name)
        raise InvalidSetting(
            f"{variable} ({len(text)} characters): expected {SHORTEST_KEY} or more that nobody guesses; "
            f"make one with `openssl rand -hex 32` or unset {variable} for a key of this data folder"
        )
    return text


def _size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise _invalid(name, text, "a number of bytes above 0 such as 16777216 or 16MiB")
    return int(match[1]) * _UNITS[match[2][:1].lower()]


def _record_size(name: str, text: str) -> int:
    size = _size(name, text)
    if size > _LARGEST_RECORD:
        raise _invalid(name, text, f"at most {_LARGEST_RECORD >> 20}MiB")
    return size


def _whole_number(name: str, text: str) -> int:
    if _WHOLE_NUMBER.fullmatch(text) is None:
        raise _invalid(name, text, "a whole number of 0 or more")
    return int(text)


def _positive_number(name: str, text: str) -> int:
    number = _whole_number(name, text)
    if number == 0:
        raise _invalid(name, text, "1 or more")
    return number


def _date(name: str, text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError as err:
        raise _invalid(name, text, "a date as YYYY-MM-DD") from err
    if day.isoformat() != text:  # fromisoformat also reads 20240515 and 2024-W20-3
        raise _invalid(name, text, f"a date as YYYY-MM-DD, that is {day}")
    return day


def _flag(name: str, text: str) -> bool:
    word = text.lower()
    if word not in _FLAGS:
        raise _invalid(name, text, f"one of {', '.join(_FLAGS)}")
    return _FLAGS[word]


def _identifier(name: str, text: str) -> str:
    if _IDENTIFIER.fullmatch(text) is None:
        raise _invalid(name, text, "a name of letters, digits and _ that begins with no digit, 63 at most")
    return text


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 1 << 16):
        raise _invalid(name, text, "a port, 1 to 65535")
    return int(text)


def _choice(name: str, text: str) -> str:
    choices = get_args(_CHOICES[name])
    if text not in choices:
        raise _invalid(name, text, f"one of {', '.join(choices)}")
    return text


def _url(name: str, text: str) -> str:
    schemes = _SCHEMES[name]
    if not text.startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise _invalid(name, text, f"an address that begins with {' or '.join(f'{s}://' for s in schemes)}")
    return text


_CHOICES = {
    "spool_sync": SpoolSync,
    "on_full": OnFull,
    "redaction": RedactionLevel,
    "alert_format": AlertFormat,
    "dataset_redaction": RedactionLevel,
}
_FLAGS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_SCHEMES = {
    "postgres_url": ("postgresql", "postgres"),
    "redis_url": ("redis", "rediss", "unix"),
    "dagster_postgres_url": ("postgresql", "postgres"),
    "alert_url": ("https", "http"),
    "ui_url": ("https", "http"),
}
_PARSERS: dict[str, Callable[[str, str], object]] = {
    "dir": _folder,
    "bytes": _size,
    "url": _url,
    "max_record_bytes": _record_size,
    "key_days": _whole_number,
    "keep_ranges": _positive_number,
    "synapse_retention": _whole_number,
    "group_retention": _whole_number,
    "group_idle": _positive_number,
    "start_date": _date,
    "spool_sync": _choice,
    "on_full": _choice,
    "redaction": _choice,
    "dataset_redaction": _choice,
    "redaction_policy": _folder,
    "trainer": _command,
    "training_policy": _folder,
    "keep_versions": _positive_number,
    "alert_format": _choice,
    "keep_runs_days": _positive_number,
    "metrics_port": _port,
    "redaction_key": _secret,
    "postgres_schema": _identifier,
    "stream_messages": _flag,
}


def _invalid(name: str, text: str, expected: str) -> InvalidSetting:
    variable = _variable(name)
    value = "***" if name in _SECRETS else repr(without_password(text))
    return InvalidSetting(f"{variable}={value}: expected {expected}; correct it or unset {variable} for the default")

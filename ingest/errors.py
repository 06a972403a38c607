"""The errors raised on purpose, one tree, so that callers can catch as widely as they mean to.

    TdsError
    ├── InvalidRecord          a call's values cannot become a record
    │   └── UnknownKind        no such kind of record
    ├── InvalidSetting         a TDS_* variable holds a value that cannot be used
    ├── InvalidPolicy          a policy of redaction holds a rule that cannot be used
    ├── InvalidRange           dates that are no dates, or that are swapped
    ├── InvalidPredicate       a condition on records that is none, or that does more than judge them
    ├── InvalidSelection       columns, a sample or a format of an export that cannot be had
    ├── InvalidRecipe          a dataset's recipe that cannot be followed
    ├── InvalidTrainingPolicy  a policy of training holds a value that cannot be used
    ├── InvalidConfig          a file of an agent's config or prompt that cannot be used
    ├── InvalidLog             a log given to an import is not in the format that it was said to be in
    ├── MissingExtra           a package of an extra is asked for and not installed
    ├── NotAccepted            TDS_ON_FULL=raise and the spool cannot take the record
    ├── FlushTimeout           records are still on their way when the time is over
    ├── WriterBusy             another process writes this kind already
    ├── PlatformUnavailable    `tds up` cannot start: port or folder taken, or Dagster's storage does not answer
    ├── SynapseUnavailable     Redis does not answer; trying again can help
    ├── DatabaseUnavailable    the database of conversations does not answer; trying again can help
    ├── SourceMissing          an artifact is asked for before the stage ahead of it was built
    ├── ModelMissing           a model is asked for before one was trained or promoted
    ├── TrainingFailed         a trainer ended badly, or what it made cannot be used
    ├── AlertFailed            a webhook did not take an alert
    ├── SplitLeak              two splits of a dataset share what only one of them may have
    ├── UnknownArtifact        a path that is none of the files this project writes or reads
    ├── UnknownRun             a session or task that no record names
    ├── DamagedFile            bytes on disk contradict the ledger; trying again cannot help
    ├── RedactionLeak          something is still there that its level of redaction promises to be gone
    ├── EngineFailed           DuckDB ran out of disk or memory; trying again can help
    ├── RunFailed              a Dagster run that a command started has failed
    └── Unbalanced             days whose records do not add up

A message is value, expectation, next action.
"""


class TdsError(Exception):
    """Base of every error that this project raises on purpose."""


class InvalidRecord(TdsError, ValueError):
    """A call's values cannot become a record: names the field, the value and what was expected."""


class UnknownKind(InvalidRecord):
    """There is no such kind of record."""


class InvalidSetting(TdsError, ValueError):
    """A TDS_* variable holds a value that cannot be used."""


class InvalidPolicy(TdsError, ValueError):
    """A policy of redaction holds a rule that cannot be used: names the rule, its value and what was expected."""


class InvalidRange(TdsError, ValueError):
    """A range of days that is none: not dates, or the last day lies before the first."""


class InvalidPredicate(TdsError, ValueError):
    """A condition on records that is none, or that does more than judge them: names the place and what was expected."""


class InvalidSelection(TdsError, ValueError):
    """What is wanted of an export cannot be had: names the option, its value and what was expected."""


class InvalidRecipe(TdsError, ValueError):
    """A dataset's recipe that cannot be followed: a wrong value, or one that leaves a split without rows."""


class InvalidTrainingPolicy(TdsError, ValueError):
    """A policy of training holds a value that cannot be used: names the file, the field, its value, what it may be."""


class InvalidConfig(TdsError, ValueError):
    """An agent's config or prompt that cannot be used: names the file, the line, the field and what was expected."""


class InvalidLog(TdsError, ValueError):
    """A log given to an import is not in the format that it was said to be in."""


_EXTRAS = {  # the others come with the platform
    "alembic": "postgres", "psycopg": "postgres", "sqlalchemy": "postgres", "prometheus_client": "metrics",
}  # fmt: skip


class MissingExtra(TdsError, ImportError):
    """A package of an extra is asked for and not installed."""

    def __init__(self, package: str | None) -> None:
        """`package` is the name that could not be imported."""
        extra = _EXTRAS.get((package or "").partition(".")[0], "platform")
        super().__init__(
            f"the package {package} is not installed: expected the {extra} extra for this; "
            f"pip install 'training-data-store[{extra}]'",
            name=package,
        )


class NotAccepted(TdsError):
    """The spool cannot take a record and TDS_ON_FULL=raise asks to be told."""


class FlushTimeout(TdsError, TimeoutError):
    """Accepted records were not all in their CSV files when the time was over; they are not lost."""


class WriterBusy(TdsError):
    """Another process holds this kind's writer lock."""


class PlatformUnavailable(TdsError):
    """`tds up` cannot start: its port or folder is taken, or Dagster cannot use its storage."""


class SynapseUnavailable(TdsError, ConnectionError):
    """Redis does not answer; trying again can help."""


class DatabaseUnavailable(TdsError):
    """The database of conversations does not answer, or does not take them; trying again can help."""


class SourceMissing(TdsError, FileNotFoundError):
    """An artifact was asked for before the stage ahead of it was built."""


class ModelMissing(TdsError):
    """A model is asked for before one was trained or promoted."""


class TrainingFailed(TdsError):
    """A trainer ended badly, or what it made cannot be used; nothing was put in place."""


class AlertFailed(TdsError):
    """A webhook did not take an alert, also when it was tried again."""


class SplitLeak(TdsError):
    """Two splits of a dataset share an entity, a record or an example, or lie in the wrong order of time."""


class UnknownArtifact(TdsError, ValueError):
    """A path that is none of the files that this project writes or reads."""


class UnknownRun(TdsError, LookupError):
    """A session or task that no record names: gives those whose ids come near."""


class DamagedFile(TdsError):
    """Bytes on disk contradict the ledger: names the file and the offset."""


class RedactionLeak(TdsError):
    """Something is left in an artifact that its level of redaction promises to be gone; the value is not shown."""


class EngineFailed(TdsError):
    """DuckDB could not finish, for want of disk or memory; trying again can help."""


class RunFailed(TdsError):
    """A Dagster run that a command started has failed: gives the end of its log."""


class Unbalanced(TdsError):
    """Days whose stored and exported records do not add up."""


def safe_repr(value: object) -> str:
    """The `repr` of a value, or its type's name where `repr` raises."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a stranger's repr may raise anything, and the record must survive it
        return f"<{type(value).__name__}: repr failed>"


def shown(value: object) -> str:
    """A value as a message shows it: its `repr`, at most 80 characters of it."""
    text = safe_repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

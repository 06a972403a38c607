"""Each TDS_* variable is read once, and a value that cannot be used is named with what would do."""

import os
from datetime import date
from pathlib import Path

import pytest

from ingest.errors import InvalidSetting
from ingest.settings import Settings, read_settings, unknown_variables, without_password


def test_an_empty_environment_gives_the_defaults_with_an_absolute_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings({})
    assert settings == Settings(data_dir=tmp_path / "data")
    assert settings.spool == tmp_path / "data" / "spool"
    os.chdir("/")
    assert settings.spool == tmp_path / "data" / "spool"


def test_every_variable_reaches_its_field() -> None:
    assert read_settings(
        {
            "TDS_DATA_DIR": "/srv/tds",
            "TDS_SPOOL_DIR": "~/spool",
            "TDS_REDIS_URL": "rediss://:secret@host:6380/1",
            "TDS_SOURCE": "crm",
            "TDS_START_DATE": "2019-02-28",
            "TDS_MAX_RECORD_BYTES": "1 MiB",
            "TDS_SPOOL_SYNC": "always",
            "TDS_SPOOL_MAX_BYTES": "2G",
            "TDS_SPOOL_SEGMENT_BYTES": "65536",
            "TDS_ON_FULL": "block",
            "TDS_KEY_DAYS": "0",
            "TDS_KEEP_RANGES": "3",
            "TDS_SYNAPSE_RETENTION": " 60 ",
            "TDS_GROUP_RETENTION": "120",
            "TDS_GROUP_IDLE": "5",
            "TDS_REDACTION": "none",
            "TDS_DATASET_REDACTION": "secrets",
            "TDS_REDACTION_POLICY": "/etc/tds/policy.toml",
            "TDS_REDACTION_KEY": "sixteen letters!",
            "TDS_TRAINER": "python 'my trainer.py'",
            "TDS_TRAINING_POLICY": "/etc/tds/training.toml",
            "TDS_KEEP_VERSIONS": "4",
            "TDS_ALERT_URL": "https://hooks.example.com/secret",
            "TDS_ALERT_FORMAT": "slack",
            "TDS_UI_URL": "https://dagster.example.com",
            "TDS_KEEP_RUNS_DAYS": "7",
            "TDS_METRICS_PORT": "9464",
            "TDS_POSTGRES_URL": "postgres://u@db/conversations",
            "TDS_POSTGRES_SCHEMA": "cyrex",
            "TDS_STREAM_MESSAGES": "Yes",
            "TDS_DAGSTER_POSTGRES_URL": "postgresql://u@db/dagster",
            "TDS_FAILPOINT": "appended",
        }
    ) == Settings(
        data_dir=Path("/srv/tds"),
        spool_dir=Path("~/spool").expanduser(),
        redis_url="rediss://:secret@host:6380/1",
        source="crm",
        start_date=date(2019, 2, 28),
        max_record_bytes=1 << 20,
        spool_sync="always",
        spool_max_bytes=2 << 30,
        spool_segment_bytes=1 << 16,
        on_full="block",
        key_days=0,
        keep_ranges=3,
        synapse_retention=60,
        group_retention=120,
        group_idle=5,
        redaction="none",
        dataset_redaction="secrets",
        redaction_policy=Path("/etc/tds/policy.toml"),
        redaction_key="sixteen letters!",
        trainer="python 'my trainer.py'",
        training_policy=Path("/etc/tds/training.toml"),
        keep_versions=4,
        alert_url="https://hooks.example.com/secret",
        alert_format="slack",
        ui_url="https://dagster.example.com",
        keep_runs_days=7,
        metrics_port=9464,
        postgres_url="postgres://u@db/conversations",
        postgres_schema="cyrex",
        stream_messages=True,
        dagster_postgres_url="postgresql://u@db/dagster",
        failpoint="appended",
    )


def test_no_field_lacks_a_variable_in_the_test_above() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in Settings.__struct_fields__ if f'"TDS_{name.upper()}":' not in source] == []


def test_an_empty_variable_counts_as_unset() -> None:
    variables = {f"TDS_{name.upper()}": " " for name in Settings.__struct_fields__}
    assert read_settings(variables) == read_settings({})


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("64KiB", 65536), ("8m", 8 << 20), ("1 gb", 1 << 30), ("3kb", 3072), ("2MI", 2 << 20)]
)
def test_a_size_may_carry_a_unit(text: str, size: int) -> None:
    limits = {"TDS_SPOOL_MAX_BYTES": "4GiB"}
    assert read_settings(limits | {"TDS_SPOOL_SEGMENT_BYTES": text}).spool_segment_bytes == size


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("TDS_START_DATE", "yesterday", "a date as YYYY-MM-DD"),
        ("TDS_START_DATE", "2024-02-30", "a date as YYYY-MM-DD"),
        ("TDS_START_DATE", "20240515", "that is 2024-05-15"),
        ("TDS_START_DATE", "2024-W20-3", "that is 2024-05-15"),
        ("TDS_START_DATE", "٢٠٢٤-05-15", "a date as YYYY-MM-DD"),
        ("TDS_MAX_RECORD_BYTES", "0", "a number of bytes above 0"),
        ("TDS_MAX_RECORD_BYTES", "-1", "a number of bytes above 0"),
        ("TDS_MAX_RECORD_BYTES", "1.5MiB", "a number of bytes above 0"),
        ("TDS_MAX_RECORD_BYTES", "lots", "a number of bytes above 0"),
        ("TDS_MAX_RECORD_BYTES", "1TiB", "a number of bytes above 0"),
        ("TDS_MAX_RECORD_BYTES", "9" * 5000, "a number of bytes above 0"),
        ("TDS_MAX_RECORD_BYTES", "257MiB", "at most 256MiB"),
        ("TDS_SPOOL_MAX_BYTES", "1MiB", "TDS_SPOOL_SEGMENT_BYTES=8388608"),
        ("TDS_SPOOL_SEGMENT_BYTES", "", None),
        ("TDS_SPOOL_SYNC", "Always", "one of off, interval, always"),
        ("TDS_ON_FULL", "panic", "one of drop, raise, block"),
        ("TDS_KEY_DAYS", "-1", "a whole number of 0 or more"),
        ("TDS_KEY_DAYS", "1.5", "a whole number of 0 or more"),
        ("TDS_METRICS_PORT", "0", "a port, 1 to 65535"),
        ("TDS_METRICS_PORT", "65536", "a port, 1 to 65535"),
        ("TDS_METRICS_PORT", "9" * 5000, "a port, 1 to 65535"),
        ("TDS_KEEP_RANGES", "0", "1 or more"),
        ("TDS_SYNAPSE_RETENTION", "1h", "a whole number of 0 or more"),
        ("TDS_GROUP_RETENTION", "3d", "a whole number of 0 or more"),
        ("TDS_GROUP_IDLE", "0", "1 or more"),
        ("TDS_REDIS_URL", "localhost:6379", "redis:// or rediss:// or unix://"),
        ("TDS_POSTGRES_SCHEMA", "a; drop", "letters, digits and _"),
        ("TDS_STREAM_MESSAGES", "maybe", "one of true, false"),
        ("TDS_DAGSTER_POSTGRES_URL", "mysql://db", "postgresql:// or postgres://"),
        ("TDS_DAGSTER_POSTGRES_URL", "db", "postgresql:// or postgres://"),
        ("TDS_REDACTION", "all", "one of none, secrets, full"),
        ("TDS_DATASET_REDACTION", "FULL", "one of none, secrets, full"),
        ("TDS_DATA_DIR", "~nobody-of-that-name/x", "a folder whose ~user exists"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_would_do(
    variable: str, text: str, expected: str | None
) -> None:
    if expected is None:
        read_settings({variable: text})
        return
    with pytest.raises(InvalidSetting) as caught:
        read_settings({variable: text})
    message = str(caught.value)
    assert message.startswith(f"{variable}={text!r}: expected ")
    assert expected in message
    assert message.endswith(f"; correct it or unset {variable} for the default")


def test_a_segment_larger_than_the_spool_is_refused_whichever_of_the_two_is_set() -> None:
    with pytest.raises(InvalidSetting, match=r"TDS_SPOOL_MAX_BYTES='4294967296'.*TDS_SPOOL_SEGMENT_BYTES=5368709120"):
        read_settings({"TDS_SPOOL_SEGMENT_BYTES": "5GiB"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:secret@host/0", "redis://***@host/0"),
        ("redis://:se:cr@et/x@host/0", "redis://***@host/0"),
        ("redis://:p://secret@host", "redis://***@host"),
        ("redis://host?password=secret&db=1", "redis://host?password=***&db=1"),
        ("user:secret@host", "***@host"),
        ("host=db password=secret user=u", "host=db password=*** user=u"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_no_password_reaches_a_log_or_a_message() -> None:
    settings = Settings(redis_url="redis://u:geheim@h", dagster_postgres_url="postgresql://u:geheim@h")
    assert "geheim" not in repr(settings)
    assert "redis://***@h" in repr(settings)
    assert settings.redis_url_without_password == "redis://***@h"
    assert Settings().redis_url_without_password is None
    with pytest.raises(InvalidSetting) as caught:
        read_settings({"TDS_REDIS_URL": "u:geheim@h"})
    assert "geheim" not in str(caught.value)


def test_a_key_of_redaction_reaches_no_log_and_no_message_and_is_not_too_short() -> None:
    assert "sixteen" not in repr(Settings(redaction_key="sixteen letters!"))
    with pytest.raises(InvalidSetting, match=r"TDS_REDACTION_KEY \(8 characters\): expected 16 or more") as caught:
        read_settings({"TDS_REDACTION_KEY": "geheim!!"})
    assert "geheim" not in str(caught.value)


def test_misspelt_variables_can_be_found() -> None:
    environ = {"TDS_REDIS_ULR": "x", "TDS_REQUIRE_ALL": "1", "TDS_SOURCE": "x", "PATH": "/bin", "TDS_A": ""}
    assert unknown_variables(environ) == ["TDS_A", "TDS_REDIS_ULR"]


def test_a_wrong_address_of_a_webhook_is_not_shown() -> None:
    with pytest.raises(InvalidSetting, match=r"TDS_ALERT_URL=\*\*\*") as caught:
        read_settings({"TDS_ALERT_URL": "htps://hooks.example.com/T00/secret"})
    assert "T00" not in str(caught.value)

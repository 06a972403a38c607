"""Turns a value into the token that stands in its place: the same value and key, the same token.

A token is `<LABEL:` with 16 letters and `>`: 64 bits of HMAC-SHA256 (RFC 2104) over label and value, a letter from a
to p each four bits. Without digits, as no detector of numbers can take it for one. Of a million values two get the
same token with a chance of 1 in 37 million.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from ingest.errors import InvalidSetting
from ingest.pipeline.partitions import DataPaths
from ingest.settings import SHORTEST_KEY, Settings

_LETTERS = bytes.maketrans(b"0123456789abcdef", b"abcdefghijklmnop")


class Tokens:
    """Makes tokens with one key."""

    def __init__(self, key: bytes) -> None:
        """`key` is secret: whoever has it can test whether a token stands for a value that they guess."""
        self._keyed = hmac.new(key, digestmod=hashlib.sha256)
        self.fingerprint = self._digest(b"fingerprint of the key", b"")

    def token(self, label: str, value: bytes) -> bytes:
        """The token of a value, in the one form that all its spellings share."""
        letters = self._digest(label.encode(), value)[:16].encode().translate(_LETTERS)
        return b"<%b:%b>" % (label.encode(), letters)

    def _digest(self, label: bytes, value: bytes) -> str:
        keyed = self._keyed.copy()  # 1 microsecond less than a new one
        keyed.update(label + b"\0" + value)
        return keyed.hexdigest()


def read_key(settings: Settings) -> bytes:
    """The key of TDS_REDACTION_KEY, or the data folder's own, which is made at its first use, for its owner only.

    Raises InvalidSetting if the file holds no key, or cannot be made or read.
    """
    if settings.redaction_key is not None:
        return settings.redaction_key.encode()
    path = DataPaths(settings.data_dir).state / "redaction.key"
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes().strip()
    except OSError as err:
        raise InvalidSetting(f"{path}: {err}; expected a file for the key of redaction; set TDS_REDACTION_KEY") from err
    if len(key) < SHORTEST_KEY:
        raise InvalidSetting(
            f"{path}: {len(key)} characters; expected a key of {SHORTEST_KEY} or more. Restore it from a backup, or "
            "remove the file for a new key: tokens made with the old one then match no new ones"
        )
    return key


def _make_key(path: Path) -> None:
    """Write a new key, whole or not at all; the key of a process that was faster stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(mine, path)  # unlike a rename it replaces nothing
    except FileExistsError:
        pass
    finally:
        mine.unlink()

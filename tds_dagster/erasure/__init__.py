"""Erases one subject's records from every stage, from raw days to datasets, and says what it did."""

from tds_dagster.erasure.erase import erase
from tds_dagster.erasure.journal import Receipt
from tds_dagster.erasure.selection import Found, Selector, find_doomed

__all__ = ["Found", "Receipt", "Selector", "erase", "find_doomed"]

"""Alembic's migrations of the table of conversations. They go one way: who wants to go back restores a backup."""

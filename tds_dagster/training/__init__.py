"""The stage from datasets to models: a trainer learns from a folder, and we measure, keep and choose what it made."""

"""What of a record must not leave the store, and what stands in its place."""

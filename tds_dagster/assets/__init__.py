"""The assets: thin adapters that pick days, call one function of a stage and report what it made."""

"""Prompt lists that are made rather than downloaded: one generator a file, `make(split)` each."""

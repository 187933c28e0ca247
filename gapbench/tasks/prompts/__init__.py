"""Prompt lists that are made rather than downloaded: a generator with `make(split)` a file, and the
words of those of `shapes`."""

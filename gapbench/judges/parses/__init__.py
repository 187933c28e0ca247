"""Parses of the benchmark prompts, shipped so that everyone scores from the same ones."""

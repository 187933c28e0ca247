"""Post-training on a model's own verdicts (paper, section 3)."""

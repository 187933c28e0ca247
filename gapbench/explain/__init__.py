"""Why understanding moved with generation, by the model's own gradients (paper, section 4)."""

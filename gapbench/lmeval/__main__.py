"""`python -m gapbench.lmeval ARGS`: lm-eval's own command line, with `--model gapbench` in it."""

import sys
from importlib import import_module

from gapbench.types import GapbenchError

if __name__ == "__main__":
    try:
        import_module("gapbench.lmeval.harness")  # registers the model
        import_module("lm_eval.__main__").cli_evaluate()
    except GapbenchError as error:
        sys.exit(f"gapbench: {error}")

"""`python -m gapbench`, and `torchrun -m gapbench fix ...`."""

from gapbench.cli import main

main()

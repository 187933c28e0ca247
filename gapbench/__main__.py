"""`python -m gapbench`, and `torchrun -m gapbench fix ...`."""

from gapbench.cli.main import main

if __name__ == "__main__":  # not in the processes of --workers
    main()

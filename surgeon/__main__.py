"""``python -m surgeon``: the command line, as ``torchrun -m surgeon`` starts it."""

from surgeon.cli import main

if __name__ == "__main__":
    main()

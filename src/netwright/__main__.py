"""``python -m netwright``."""

from netwright.cli import main

main()

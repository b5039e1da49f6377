"""`python -m surefoot`."""

from .cli import main

main()

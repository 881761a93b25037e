"""Run the command line: `python -m specdec.cli`."""

from . import main

main()

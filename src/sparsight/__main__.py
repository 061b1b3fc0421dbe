"""`python -m sparsight` is the command `sparsight`."""

from sparsight.cli import main

main()

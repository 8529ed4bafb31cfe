"""`python -m pipeline` is `seqkd`."""

from pipeline.cli import main

main()

"""``python -m refervos``."""

from refervos.cli.entry import main

main()

"""``python -m refervos``."""

from refervos.cli import main

main()

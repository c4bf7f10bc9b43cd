"""``python -m mrca``."""

from mrca.commands import main

main()

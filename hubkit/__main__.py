"""``python -m hubkit`` is ``hubkit``."""

from hubkit.cli import main

main()

"""`python -m gainstage`."""

from gainstage.cli.main import main

main()

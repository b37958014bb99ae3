"""``python -m ranksearch`` is the command ``ranksearch``."""

from ranksearch.cli.main import script

script()

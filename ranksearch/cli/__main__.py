"""``python -m ranksearch.cli`` is the command ``ranksearch``."""

from ranksearch.cli.main import script

script()

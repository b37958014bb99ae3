"""What is shown while a command works: stages, sites, and what a search has come to."""

from ranksearch.cli.progress.search import SearchProgress, View, view
from ranksearch.cli.progress.sites import EVERY, SiteProgress, bar
from ranksearch.cli.progress.times import clock

__all__ = ["EVERY", "SearchProgress", "SiteProgress", "View", "bar", "clock", "view"]

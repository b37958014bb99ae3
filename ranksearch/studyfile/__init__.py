"""Files that people write for the command line: studies and search spaces, and the options that their functions declare."""

from __future__ import annotations

from ranksearch.studyfile.options import DeclaredOption
from ranksearch.studyfile.spaces import DeclaredSpace, load_space
from ranksearch.studyfile.studies import StudyFile, load, load_study

__all__ = ["DeclaredOption", "DeclaredSpace", "StudyFile", "load", "load_space", "load_study"]

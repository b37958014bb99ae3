"""Declared search spaces, one file per family of networks: copy one and change it. See docs/search_spaces.md."""

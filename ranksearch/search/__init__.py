"""The search: exact starts, the loop, its events, measured local search."""

"""ranksearch: search the ranks and decomposition types of every layer of a trained network."""

__version__ = "0.1.0"

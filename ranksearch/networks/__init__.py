"""From a configuration to a network: layers exchanged, batch norm re-estimated, factors fitted, files written."""

"""From a configuration to a network: its layers are exchanged, batch norms re-estimated, factors fitted, and files written."""

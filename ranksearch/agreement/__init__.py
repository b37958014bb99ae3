"""How well proxies predicted what was measured."""

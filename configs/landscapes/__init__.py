"""Landscapes: two networks, and what their author compared."""

"""Globally and locally consistent completion."""

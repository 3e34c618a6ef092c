"""The published normal-map systems, one file for each version; every file names its parent and what differs from it."""

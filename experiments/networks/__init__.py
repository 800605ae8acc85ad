"""Runs: their settings and flags, training, folders, measurements."""

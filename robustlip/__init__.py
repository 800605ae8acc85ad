"""Tools to measure whether accurate image classifiers have to be fragile.

Import the modules, not names: `from robustlip import attacks, losses`.
"""

"""Tools to measure whether accurate image classifiers have to be fragile.

Import the modules, not names: `from robustlip import attacks, losses`.
"""

__version__ = '0.2.0'

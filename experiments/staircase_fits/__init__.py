"""The staircase: splines, the fits by name, what is measured of them."""

"""The staircase: splines, the ten fits, their table and figure."""

"""The staircase regression: splines, methods that fit them, measurements."""

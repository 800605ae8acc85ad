"""The suites of `experiments.benchmark`, and the other libraries (peers)."""

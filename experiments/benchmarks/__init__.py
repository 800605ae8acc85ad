"""What `experiments.benchmark` measures, and the peers beside it."""

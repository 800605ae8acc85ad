"""How long a new process takes to the end of its first training step.

Imports, the embedded data, initial parameters, compilation, one RST step on
CNN1 at batch 64. Run as a script it is that process.
"""

import os
import subprocess
import sys
import tempfile

from experiments.benchmarks import Candidate, Case

ARCH, BATCH_SIZE = 'cnn1', 64


def cases(peers: bool) -> list[Case]:
  """With the programs of an earlier start on disk, and without."""
  del peers  # nobody else starts our process
  kept = tempfile.TemporaryDirectory(prefix='robustlip-benchmark-')

  def cached():
    _start(kept.name)

  def cold():
    with tempfile.TemporaryDirectory(prefix='robustlip-benchmark-') as folder:
      _start(folder)

  candidates = {'cached': Candidate(cached, 1), 'cold': Candidate(cold, 1)}
  return [Case('first command to first step', 'starts', candidates)]


def _start(cache: str) -> None:
  environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache)
  environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
  command = [sys.executable, '-m', 'experiments.benchmarks.startup']
  subprocess.run(command, env=environment, check=True)


def first_step() -> None:
  """What a newcomer waits for before the progress bar moves."""
  from experiments.benchmarks import problem, train
  from robustlip import datasets

  split = datasets.load('mnist5k').train
  task = problem.make(ARCH, 1)._replace(split=split)
  train.ours(task, BATCH_SIZE, steps=1).run()


if __name__ == '__main__':
  first_step()

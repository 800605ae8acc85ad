"""foolbox's PGD on a network of robustlip's or, in a process apart, of Flax's.

  python -m experiments.benchmarks.foolbox_peer cnn2 1000 64 float32

is that process: it attacks every image for each line that it reads and answers
with a line. Its convolutions and pooling are those of `flax.linen`, and XLA has
none of the flags that importing robustlip sets: what someone has who brings
foolbox a Flax network.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

import eagerpy
import foolbox
import jax
import numpy as np
from flax import linen as nn

from experiments.benchmarks import batches, problem
from robustlip import models
from robustlip.models import convolution, layers


def attack(task: problem.Problem, batch_size: int) -> Callable[[], None]:
  """Attacks every image of the problem."""
  network = jax.jit(models.logits_fn(task.module, task.variables()))
  model = foolbox.models.JAXModel(network, bounds=(0, 1))
  pgd = foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=10)
  inputs = jax.numpy.asarray(task.split.images) / np.float32(255)
  labels = jax.numpy.asarray(task.split.labels)

  def run():
    for chosen in batches(len(labels), batch_size):
      points, labelled = map(eagerpy.astensor, (inputs[chosen], labels[chosen]))
      found = pgd(model, points, labelled, epsilons=problem.EPSILON)
      jax.block_until_ready([tensor.raw for tensor in found])

  return run


def attack_apart(task: problem.Problem, batch_size: int) -> Callable[[], None]:
  """The same in a process of its own, which ends with this one.

  Raises (when run):
    OSError, RuntimeError: if that process ended.
  """
  sizes = map(str, (len(task.split.labels), batch_size))
  arguments = (task.arch, *sizes, task.precision)
  environment = {
    'XLA_FLAGS': os.devnull,  # a file without flags
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # two share an accelerator
  }

  @functools.cache
  def start():
    return subprocess.Popen(
      [sys.executable, '-m', __name__, *arguments],
      env=os.environ | environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def run():
    process = start()
    print(file=process.stdin, flush=True)
    if not process.stdout.readline():
      raise RuntimeError(f'{__name__} ended with code {process.wait()}')

  return run


def plain_max_pool(inputs, *, size=2, strides=2, padding=0):
  """`layers.max_pool` by Flax."""
  pads = [(padding, padding)] * 2
  return nn.max_pool(inputs, (size, size), (strides, strides), pads)


def main(arch: str, num_images: str, batch_size: str, precision: str) -> None:
  """Attacks when told to."""
  with (
    mock.patch.object(layers, 'convolve', convolution.xla),
    mock.patch.object(layers, 'max_pool', plain_max_pool),
  ):
    task = problem.make(arch, int(num_images), precision)
    run = attack(task, int(batch_size))
    for _ in sys.stdin:
      run()
      print(flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])

"""foolbox's PGD on our network, and on the same network in plain Flax.

The second is the usual case of a user's own Flax network; it runs with the XLA
flag that our scripts set. This module imports foolbox, so it is imported only
with --peers.
"""

from collections.abc import Callable
from functools import partial

import eagerpy
import foolbox
import jax
import numpy as np
from flax import linen as nn

from experiments.benchmarks.problem import EPSILON, Problem
from experiments.benchmarks.timing import Candidate
from robustlip import models


def candidates(task: Problem, batch_size: int) -> dict[str, Candidate]:
  """An attack on every image, plain Flax for the two small networks only."""
  networks = {'foolbox': models.logits_fn(task.module, task.variables())}
  if task.arch in ('cnn1', 'cnn2'):
    plain = plain_flax(task.arch, task.precision)
    inputs = np.zeros((1, *task.image_shape), np.float32)
    variables = plain.init(jax.random.key(0), inputs)
    networks['foolbox, plain Flax'] = partial(plain.apply, variables)
  return {
    name: Candidate(
      _attack(task, network, batch_size), len(task.split.labels), may_fail=True
    )
    for name, network in networks.items()
  }


def plain_flax(arch: str, dtype: str) -> nn.Module:
  """cnn1 or cnn2 in inference mode, of the layers of `flax.linen`."""
  conv = partial(nn.Conv, kernel_size=(3, 3), padding='VALID', dtype=dtype)
  dense = partial(nn.Dense, dtype=dtype)
  pool = partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))

  def flat(features):
    return features.reshape(len(features), -1)

  if arch == 'cnn1':
    layers = [conv(32), nn.relu, conv(64), pool, flat, dense(128), nn.relu]
  else:
    layers = []
    for width in (32, 64):
      layers += [conv(width), nn.relu, conv(width), nn.relu, pool]
    layers += [flat, dense(200), nn.relu, dense(200), nn.relu]
  return nn.Sequential([*layers, dense(10)])


def _attack(task, network, batch_size: int) -> Callable[[], None]:
  model = foolbox.models.JAXModel(jax.jit(network), bounds=(0, 1))
  pgd = foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=10)
  inputs = jax.numpy.asarray(task.split.images) / np.float32(255)
  labels = jax.numpy.asarray(task.split.labels)

  def run():
    for chosen in task.batches(batch_size):
      points, labelled = map(eagerpy.astensor, (inputs[chosen], labels[chosen]))
      found = pgd(model, points, labelled, epsilons=EPSILON)
      jax.block_until_ready([tensor.raw for tensor in found])

  return run

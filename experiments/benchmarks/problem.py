"""Networks and random images that the suites measure on."""

import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import Candidate
from robustlip import evaluation, models
from robustlip.datasets import Split

EPSILON = 0.1
LAM = 2.0
PEERS_BATCH_SIZE = 64  # when measuring


class Problem(NamedTuple):
  """A network and images of the size it is made for."""

  arch: str
  module: nn.Module
  split: Split
  precision: str  # what the network computes in

  def variables(self) -> Any:
    """Fresh parameters."""
    shape = self.split.images.shape[1:]
    inputs = jnp.zeros((1, *shape))
    return jax.jit(self.module.init)(jax.random.key(0), inputs)

  def forward_flops(self) -> float:
    """Floating-point operations of the logits of one image, as XLA counts."""
    inputs = jax.ShapeDtypeStruct((1, *self.split.images.shape[1:]), 'float32')
    variables = jax.eval_shape(self.module.init, jax.random.key(0), inputs)
    lowered = jax.jit(self.module.apply).lower(variables, inputs)
    return lowered.cost_analysis()['flops']

  def fitting(self) -> int:
    """The batch that `experiments.evaluate` would take."""
    shape = self.split.images.shape[1:]
    return evaluation.fitting_batch_size(self.module, shape)


def make(arch: str, num_images: int, precision: str = 'float32') -> Problem:
  """Noise: no step of this work depends on what the images show."""
  shape = (28, 28, 1) if arch.startswith('cnn') else (32, 32, 3)
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (num_images, *shape), np.uint8)
  labels = generator.integers(0, 10, num_images).astype(np.int32)
  module = models.build(arch, 10, dtype=precision)
  return Problem(arch, module, Split(images, labels), precision)


def measured(
  task: Problem, measure: evaluation.Measure, batch_size: int | None
) -> Candidate:
  """`measure` of every image, as an evaluation runs it."""
  program, variables = evaluation.over_devices(measure), task.variables()
  batch_size = batch_size or task.fitting()

  def run():
    key = jax.random.key(0)
    evaluation.per_example(
      program, variables, task.split, key, batch_size=batch_size
    )

  return Candidate(run, len(task.split.labels))


def matrix_rate(precision: str) -> float:
  """Floating-point operations a second of one large matrix product.

  Of all local accelerators together; the devices of a CPU share its cores.
  """
  on_cpu = jax.default_backend() == 'cpu'
  size, devices = (2048, 1) if on_cpu else (8192, jax.local_device_count())
  factor = jnp.ones((size, size), precision)
  product = jax.jit(jnp.matmul)

  def seconds():
    start = time.perf_counter()
    product(factor, factor).block_until_ready()
    return time.perf_counter() - start

  return devices * 2 * size**3 / min(seconds() for _ in range(10))

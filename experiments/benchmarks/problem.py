"""Networks and random images that the suites measure on."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robustlip import models
from robustlip.datasets import Split

EPSILON = 0.1
LAM = 2.0


class Problem(NamedTuple):
  """A network and images of the size it is made for."""

  arch: str
  module: nn.Module
  split: Split
  precision: str  # what the network computes in

  @property
  def image_shape(self) -> tuple[int, ...]:
    """[H, W, C]."""
    return self.split.images.shape[1:]

  def variables(self) -> Any:
    """Fresh parameters."""
    inputs = jnp.zeros((1, *self.image_shape))
    return jax.jit(self.module.init)(jax.random.key(0), inputs)

  def batches(self, batch_size: int) -> list[slice]:
    """Slices that cover the examples."""
    firsts = range(0, len(self.split.labels), batch_size)
    return [slice(first, first + batch_size) for first in firsts]


def make(arch: str, num_images: int, precision: str = 'float32') -> Problem:
  """A problem with random images: the time does not depend on their content.

  Raises:
    ValueError: for a network that the peers lack.
  """
  if arch.startswith('resnet'):
    raise ValueError(f'no benchmark for {arch}; there are cnn1, cnn2, wrn_')
  shape = (28, 28, 1) if arch.startswith('cnn') else (32, 32, 3)
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (num_images, *shape), np.uint8)
  labels = generator.integers(0, 10, num_images).astype(np.int32)
  module = models.build(arch, 10, dtype=precision)
  return Problem(arch, module, Split(images, labels), precision)

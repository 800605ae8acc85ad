"""Networks and random images that the suites measure on."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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

  def variables(self) -> Any:
    """Fresh parameters."""
    shape = self.split.images.shape[1:]
    inputs = jnp.zeros((1, *shape))
    return jax.jit(self.module.init)(jax.random.key(0), inputs)

  def fitting(self) -> int:
    """The batch that `experiments.evaluate` would take."""
    shape = self.split.images.shape[1:]
    return evaluation.fitting_batch_size(self.module, shape)


def make(arch: str, num_images: int) -> Problem:
  """Noise: no step of this work depends on what the images show."""
  shape = (28, 28, 1) if arch.startswith('cnn') else (32, 32, 3)
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (num_images, *shape), np.uint8)
  labels = generator.integers(0, 10, num_images).astype(np.int32)
  module = models.build(arch, 10)
  return Problem(arch, module, Split(images, labels))


def to_torch(split: Split):
  """The images as [N, C, H, W] and the labels, both as PyTorch has them."""
  import torch

  images = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
  return images.float() / 255, torch.from_numpy(split.labels).long()

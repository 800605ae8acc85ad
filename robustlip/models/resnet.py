"""Residual networks of bottleneck blocks, with dropout.

Source: He et al. 2016, arXiv:1512.03385, with the stride in the 3x3
convolution as in torchvision. Dropout follows the second ReLU of every block
but the first of a stage.
"""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from robustlip.models import layers

_EXPANSION = 4


class Bottleneck(nn.Module):
  """Convolutions 1x1, 3x3 and 1x1 and a shortcut."""

  width: int
  strides: int
  is_first: bool  # of its stage: projects the shortcut, never drops
  dropout_rate: float
  dtype: jnp.dtype
  activation: layers.Activation

  @nn.compact
  def __call__(self, inputs: chex.Array, train: bool) -> chex.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, 4 * width]."""
    wide = _EXPANSION * self.width
    convolve = functools.partial(
      convolve_and_normalize, train=train, dtype=self.dtype
    )
    features = self.activation(convolve(inputs, self.width, 1, 1))
    features = convolve(features, self.width, 3, self.strides)
    features = self.activation(features)
    if not self.is_first:
      dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
      features = dropout(features)
    features = convolve(features, wide, 1, 1)
    if self.is_first:
      inputs = convolve(inputs, wide, 1, self.strides)
    return self.activation(features + inputs)


class ResNet(nn.Module):
  """A stem for large images, four stages of bottlenecks, one affine layer."""

  num_classes: int
  stage_sizes: Sequence[int]
  dropout_rate: float | None = None  # None: 0
  dtype: jnp.dtype = jnp.float32
  activation: layers.Activation = jax.nn.relu
  remat: bool = False  # keep no features of a block for its gradient

  @nn.compact
  def __call__(self, inputs: chex.Array, train: bool = False) -> chex.Array:
    """Images [B, H, W, C] in [0, 1] -> logits [B, num_classes]."""
    features = convolve_and_normalize(
      inputs, 64, 7, 2, train=train, dtype=self.dtype
    )
    features = self.activation(features)
    features = layers.max_pool(features, size=3, strides=2, padding=1)
    block = nn.remat(Bottleneck, static_argnums=2) if self.remat else Bottleneck
    for stage, num_blocks in enumerate(self.stage_sizes):
      for index in range(num_blocks):
        features = block(
          name=f'Bottleneck_{sum(self.stage_sizes[:stage]) + index}',
          width=64 * 2**stage,
          strides=2 if stage > 0 and index == 0 else 1,
          is_first=index == 0,
          dropout_rate=self.dropout_rate or 0.0,
          dtype=self.dtype,
          activation=self.activation,
        )(features, train)
    features = features.mean(axis=(1, 2))
    logits = layers.dense(features, self.num_classes, dtype=self.dtype)
    return logits.astype(jnp.float32)


def convolve_and_normalize(
  features: chex.Array,
  width: int,
  size: int,
  strides: int,
  *,
  train: bool,
  dtype: jnp.dtype,
) -> chex.Array:
  """A convolution, then batch normalisation.

  To be called in a compact method: it adds submodules.
  """
  features = layers.residual_conv(
    features, width, size, strides=strides, dtype=dtype
  )
  return layers.batch_norm(features, train=train, dtype=dtype)

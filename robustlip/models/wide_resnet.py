"""Wide residual networks of any depth and width, with dropout.

Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from robustlip.models import layers


class Block(nn.Module):
  """Two 3x3 convolutions, normalised before each, and a shortcut."""

  width: int
  strides: int
  dropout_rate: float
  dtype: jnp.dtype
  activation: layers.Activation

  @nn.compact
  def __call__(self, inputs: chex.Array, train: bool) -> chex.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, width]."""
    normalized = layers.batch_norm(inputs, train=train, dtype=self.dtype)
    normalized = self.activation(normalized)
    convolve = functools.partial(layers.residual_conv, dtype=self.dtype)
    features = convolve(normalized, self.width, strides=self.strides)
    features = layers.batch_norm(features, train=train, dtype=self.dtype)
    features = self.activation(features)
    features = nn.Dropout(self.dropout_rate, deterministic=not train)(features)
    features = convolve(features, self.width)
    if inputs.shape[-1] == self.width and self.strides == 1:
      return inputs + features
    shortcut = convolve(normalized, self.width, 1, strides=self.strides)
    return shortcut + features


class WideResNet(nn.Module):
  """WRN-depth-width; 55,841,754 parameters for 40, 10 and ten classes.

  Raises:
    ValueError: if `depth` is not 6 n + 4 for a positive n.
  """

  num_classes: int
  depth: int
  width: int
  dropout_rate: float | None = None  # None: 0
  dtype: jnp.dtype = jnp.float32
  activation: layers.Activation = jax.nn.relu
  remat: bool = False  # keep no features of a block for its gradient

  @nn.compact
  def __call__(self, inputs: chex.Array, train: bool = False) -> chex.Array:
    """Images [B, H, W, C] in [0, 1] -> logits [B, num_classes]."""
    num_blocks = blocks_per_group(self.depth)
    block = nn.remat(Block, static_argnums=2) if self.remat else Block
    features = layers.residual_conv(inputs, 16, dtype=self.dtype)
    for group in range(3):
      for index in range(num_blocks):
        features = block(
          name=f'Block_{group * num_blocks + index}',
          width=16 * 2**group * self.width,
          strides=2 if group > 0 and index == 0 else 1,
          dropout_rate=self.dropout_rate or 0.0,
          dtype=self.dtype,
          activation=self.activation,
        )(features, train)
    features = layers.batch_norm(features, train=train, dtype=self.dtype)
    features = self.activation(features).mean(axis=(1, 2))
    logits = layers.dense(
      features,
      self.num_classes,
      bias_init=nn.initializers.zeros,
      dtype=self.dtype,
    )
    return logits.astype(jnp.float32)


def blocks_per_group(depth: int) -> int:
  """Number of blocks in each of the three groups.

  Raises:
    ValueError: if `depth` is not 6 n + 4 for a positive n.
  """
  if depth < 10 or depth % 6 != 4:
    raise ValueError(
      'the depth of a wide residual network must be 6 n + 4 (10, 16, 22, 28, '
      f'34, 40, ...), got {depth}.'
    )
  return (depth - 4) // 6

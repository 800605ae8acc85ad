"""The two small networks for MNIST-sized images.

Dropout rates are the paper's unless `dropout_rate` sets another one.
"""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from robustlip.models import layers


class CNN1(nn.Module):
  """Two convolutions and two affine layers; 1,199,882 parameters on MNIST."""

  num_classes: int
  dropout_rate: float | None = None  # None: 0.25 and 0.5
  dtype: jnp.dtype = jnp.float32
  activation: layers.Activation = jax.nn.relu

  @nn.compact
  def __call__(self, inputs: chex.Array, train: bool = False) -> chex.Array:
    """Images [B, H, W, C] in [0, 1] -> logits [B, num_classes]."""
    rates = (0.25, 0.5)
    if self.dropout_rate is not None:
      rates = (self.dropout_rate,) * 2
    features = self.activation(layers.conv(inputs, 32, dtype=self.dtype))
    features = layers.conv(features, 64, dtype=self.dtype)
    features = layers.max_pool(features)  # no ReLU before it, as published
    # Whole channels are dropped here, single units after the affine layer.
    features = nn.Dropout(rates[0], (1, 2), deterministic=not train)(features)
    features = features.reshape(len(features), -1)
    features = self.activation(layers.dense(features, 128, dtype=self.dtype))
    features = nn.Dropout(rates[1], deterministic=not train)(features)
    logits = layers.dense(features, self.num_classes, dtype=self.dtype)
    return logits.astype(jnp.float32)


class CNN2(nn.Module):
  """Four convolutions, three affine layers; 312,202 parameters on MNIST.

  Source: SmallCNN of Zhang et al. 2019, arXiv:1901.08573.
  """

  num_classes: int
  dropout_rate: float | None = None  # None: 0.5
  dtype: jnp.dtype = jnp.float32
  activation: layers.Activation = jax.nn.relu

  @nn.compact
  def __call__(self, inputs: chex.Array, train: bool = False) -> chex.Array:
    """Images [B, H, W, C] in [0, 1] -> logits [B, num_classes]."""
    rate = 0.5 if self.dropout_rate is None else self.dropout_rate
    features, zeros = inputs, nn.initializers.zeros
    for width in (32, 64):
      for _ in range(2):
        features = layers.conv(
          features,
          width,
          # Not `he_normal`, which is truncated.
          kernel_init=nn.initializers.variance_scaling(2.0, 'fan_in', 'normal'),
          bias_init=zeros,
          dtype=self.dtype,
        )
        features = self.activation(features)
      features = layers.max_pool(features)
    features = features.reshape(len(features), -1)
    features = self.activation(layers.dense(features, 200, dtype=self.dtype))
    features = nn.Dropout(rate, deterministic=not train)(features)
    features = self.activation(layers.dense(features, 200, dtype=self.dtype))
    logits = layers.dense(
      features,
      self.num_classes,
      kernel_init=zeros,
      bias_init=zeros,
      dtype=self.dtype,
    )
    return logits.astype(jnp.float32)

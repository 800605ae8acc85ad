"""Layers that the networks share.

Images and features are [B, H, W, C]. Parameters are float32; `dtype` is that of
the computation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from robustlip.models.convolution import convolve, views
from robustlip.types import DEVICES

Initializer = Callable[..., chex.Array]
Activation = Callable[[chex.Array], chex.Array]


def devices_axis() -> str | None:
  """The mapped axis over devices if one is being traced, else None."""
  try:
    lax.axis_index(DEVICES)
  except NameError:
    return None
  return DEVICES


def uniform(bound: float) -> Initializer:
  """Uniform in [-bound, bound]."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def conv(
  inputs: chex.Array,
  features: int,
  size: int = 3,
  *,
  strides: int = 1,
  padding: int = 0,
  use_bias: bool = True,
  kernel_init: Initializer | None = None,
  bias_init: Initializer | None = None,
  dtype: jnp.dtype = jnp.float32,
  tiles: bool = False,
) -> chex.Array:
  """Convolution with PyTorch's initial values unless given.

  [B, H, W, C] -> [B, H', W', features]. To be called in a compact method: it
  adds a submodule.

  Args:
    tiles: see `convolution`; not for networks that pool at ties.

  Raises:
    ValueError: if the images are smaller than the kernel.
  """
  _check_size(inputs, size, padding)
  default = uniform((size**2 * inputs.shape[-1]) ** -0.5)
  return nn.Conv(
    features,
    (size, size),
    strides=strides,
    padding=padding,
    use_bias=use_bias,
    kernel_init=kernel_init or default,
    bias_init=bias_init or default,
    dtype=dtype,
    conv_general_dilated=functools.partial(_convolve, tiles),
  )(inputs)


def _convolve(tiles, inputs, kernel, strides, padding, **defaults):
  """`convolve` as `nn.Conv` calls it."""
  del defaults
  settings = dict(strides=strides[0], padding=padding, tiles=tiles)
  return convolve(inputs, kernel, **settings)


def residual_conv(
  inputs: chex.Array, features: int, size: int = 3, **settings
) -> chex.Array:
  """The convolution of residual networks, padded equally on all sides.

  XLA's 'SAME' pads unequally at stride 2. Kernels are drawn from a normal
  distribution; that of flax's `he_normal` is truncated.

  Args:
    **settings: `strides` and `dtype` of `conv`.
  """
  return conv(
    inputs,
    features,
    size,
    padding=size // 2,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    tiles=True,
    **settings,
  )


def _check_size(inputs, size, padding) -> None:
  height, width = inputs.shape[1:3]
  if min(height, width) + 2 * padding < size:
    raise ValueError(
      f'features of {height} x {width} are smaller than a window of '
      f'{size} x {size}: the images are too small for this network.'
    )


def dense(
  inputs: chex.Array,
  features: int,
  *,
  kernel_init: Initializer | None = None,
  bias_init: Initializer | None = None,
  dtype: jnp.dtype = jnp.float32,
) -> chex.Array:
  """Affine map with PyTorch's initial values unless given, [B, C] -> [B, D].

  To be called in a compact method: it adds a submodule.
  """
  default = uniform(inputs.shape[-1] ** -0.5)
  return nn.Dense(
    features,
    kernel_init=kernel_init or default,
    bias_init=bias_init or default,
    dtype=dtype,
  )(inputs)


def batch_norm(
  inputs: chex.Array, *, train: bool, dtype: jnp.dtype = jnp.float32
) -> chex.Array:
  """Normalises with the statistics of the batch (if `train`) on all devices.

  As in PyTorch, except that the running variance is not multiplied by
  n / (n - 1). To be called in a compact method.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    axis_name=devices_axis(),
  )(inputs)


def max_pool(
  inputs: chex.Array, *, size: int = 2, strides: int = 2, padding: int = 0
) -> chex.Array:
  """Maxima of windows, [B, H, W, C] -> [B, H', W', C].

  The gradient goes to the first maximum of a window in reading order, as in
  PyTorch: MNIST's flat background is nothing but ties. NaN wins.

  Raises:
    ValueError: if the images are smaller than the window.
  """
  _check_size(inputs, size, padding)
  if size == strides and not padding:
    best, *others = _disjoint_views(inputs, size)
  else:
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(inputs, pads, constant_values=-jnp.inf)
    best, *others = views(padded, size, size, strides)
  for other in others:
    best = jnp.where((other > best) | jnp.isnan(other), other, best)
  return best


def _disjoint_views(inputs, size):
  """One view per position in a window, by splits: their gradient just joins."""
  height, width = (length // size for length in inputs.shape[1:3])
  cut = inputs[:, : height * size, : width * size]
  features = cut.shape[-1]  # no -1 below: there may be no image
  rows = cut.reshape(len(cut), height, size, width * size, features)
  found = []
  for row in lax.split(rows, [1] * size, axis=2):
    columns = row.reshape(len(cut), height, width, size, features)
    found += lax.split(columns, [1] * size, axis=3)
  return [view.squeeze(3) for view in found]

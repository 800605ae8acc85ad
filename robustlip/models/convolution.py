"""Convolution as each backend runs it fastest, the same numbers up to rounding.

XLA's own convolution is slow on the CPU, its gradients more so, and loops make
it worse; matrix products are fast there. Each output is one sum of products in
one order: equal patches have equal features, and where nothing depends on a
pixel its gradient is exactly 0. Pooling and sign steps rely on both.

Features are [B, H, W, C], kernels [h, w, C, D].
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]  # before and after, for height and width

_TALL = 16  # rows above which two more of them cost less than wide patches


def convolve(
  inputs: chex.Array, kernel: chex.Array, *, strides: int, padding: Padding
) -> chex.Array:
  """Convolution of [B, H, W, C] with [h, w, C, D] -> [B, H', W', D]."""
  if jax.default_backend() != 'cpu':
    return xla(inputs, kernel, strides=strides, padding=padding)
  padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
  tall = padded.shape[1] >= _TALL
  if strides == 1 and tall and min(kernel.shape) >= 2:
    return gather_and_add(padded, kernel)
  return patches_product(padded, kernel, strides)


def xla(
  inputs: chex.Array, kernel: chex.Array, *, strides: int, padding: Padding
) -> chex.Array:
  """The same as XLA writes it."""
  return lax.conv_general_dilated(
    inputs,
    kernel,
    (strides, strides),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def patches_product(
  padded: chex.Array, kernel: chex.Array, strides: int
) -> chex.Array:
  """Patches times the kernel, one matrix product; no padding is added."""
  height, width = kernel.shape[:2]
  rows = (padded.shape[1] - height) // strides * strides + 1
  columns = (padded.shape[2] - width) // strides * strides + 1
  patches = [
    padded[:, top : top + rows : strides, left : left + columns : strides]
    for top in range(height)
    for left in range(width)
  ]
  return _product(
    jnp.concatenate(patches, axis=-1), kernel.reshape(-1, kernel.shape[-1])
  )


def gather_and_add(padded: chex.Array, kernel: chex.Array) -> chex.Array:
  """Columns gathered before the product, rows added up after it; stride 1.

  Both intermediate arrays have 3 times the size of the features for a 3x3
  kernel, where patches have 9 times, and so have both of the gradient: its
  transpose does the same in the other order.
  """
  height, width, channels, features = kernel.shape
  rows, columns = padded.shape[1] - height + 1, padded.shape[2] - width + 1
  shifted = [padded[:, :, left : left + columns] for left in range(width)]
  products = _product(
    jnp.concatenate(shifted, axis=-1),
    kernel.transpose(1, 2, 0, 3).reshape(width * channels, height * features),
  )
  parts = lax.split(products, [features] * height, axis=3)
  return sum(part[:, top : top + rows] for top, part in enumerate(parts))


def _product(features, matrix):
  """[B, H, W, C] times [C, D], as one matrix product."""
  flat = features.reshape(-1, features.shape[-1]) @ matrix
  return flat.reshape(*features.shape[:-1], matrix.shape[-1])

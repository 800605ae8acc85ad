"""Convolution as each backend runs it fastest, the same numbers up to rounding.

XLA's own convolution is slow on the CPU, its gradients more so, and loops make
it worse; matrix products are fast there. `convolve` writes a convolution as
matrix products of what is gathered from the features, and saves half of the
multiplications of a 3x3 kernel by Winograd's minimal filtering.

Features are [B, H, W, C], kernels [h, w, C, D].
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = Sequence[tuple[int, int]]  # before and after, for height and width

TILE = 4  # rows that the minimal filtering computes together
# Where its polynomials are evaluated, infinity besides: the choice with the
# least rounding error according to Barabasz et al. 2020, arXiv:1803.10986.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)


def convolve(
  inputs: chex.Array, kernel: chex.Array, *, strides: int, padding: Padding
) -> chex.Array:
  """Convolution of [B, H, W, C] with [h, w, C, D] -> [B, H', W', D]."""
  if jax.default_backend() != 'cpu':
    return xla(inputs, kernel, strides=strides, padding=padding)
  padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
  minimal = kernel.shape[:2] == (3, 3) and strides == 1
  # A few channels are too little work to be worth the transforms, and
  # bfloat16 too coarse for them.
  if minimal and kernel.shape[2] >= 16 and inputs.dtype == jnp.float32:
    return minimal_filtering(padded, kernel)
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


def minimal_filtering(padded: chex.Array, kernel: chex.Array) -> chex.Array:
  """A 3x3 kernel with half of the multiplications; no padding is added.

  Four rows of the result are the coefficients of a product of polynomials
  whose factors are six rows and the kernel's column: both are evaluated at six
  points, multiplied there (columns and channels in one matrix product), and
  interpolated. The transforms are linear, so that the gradients cost as little.

  Source: Lavin and Gray 2016, arXiv:1509.09308, F(4, 3) along the height.
  """
  analysis, kernel_analysis, synthesis = _transforms()
  height, width, channels, features = kernel.shape
  rows, columns = padded.shape[1] - height + 1, padded.shape[2] - width + 1
  tiles = -(-rows // TILE)
  taken = _rows_of_tiles(padded, tiles)
  products = []
  for weights, kernel_weights in zip(analysis, kernel_analysis, strict=True):
    mixed = _combination(weights, taken)  # [B, tiles, W, C]
    shifted = [mixed[:, :, left : left + columns] for left in range(width)]
    matrix = _combination(kernel_weights, kernel)  # [w, C, D]
    products.append(
      _product(
        jnp.concatenate(shifted, axis=-1),
        matrix.reshape(width * channels, features),
      )
    )
  outputs = [_combination(weights, products) for weights in synthesis]
  outputs = jnp.stack(outputs, axis=2)  # [B, tiles, TILE, W', D]
  outputs = outputs.reshape(len(padded), tiles * TILE, columns, features)
  return outputs[:, :rows]


def _rows_of_tiles(padded, tiles):
  """The TILE + 2 rows that each tile needs: arrays of [B, tiles, W, C]."""
  missing = (tiles + 1) * TILE - padded.shape[1]
  padded = jnp.pad(padded, ((0, 0), (0, missing), (0, 0), (0, 0)))
  grouped = padded.reshape(len(padded), tiles + 1, TILE, *padded.shape[2:])
  # Splitting is the transpose of joining, where slices would be padded.
  rows = [row.squeeze(2) for row in lax.split(grouped, [1] * TILE, axis=2)]
  return [row[:, :-1] for row in rows] + [row[:, 1:] for row in rows[:2]]


def _transforms():
  """Evaluation of inputs [6, 6] and kernels [6, 3], interpolation [4, 6]."""

  def evaluation(count):
    at_infinity = np.eye(count)[-1:]
    powers = np.vander(POINTS, count, increasing=True)
    return np.concatenate([powers, at_infinity])

  analysis = np.linalg.inv(evaluation(TILE + 2)).T
  return analysis, evaluation(3), evaluation(TILE).T


def _combination(weights, arrays):
  """Sum of the arrays times their weights, zero weights left out."""
  terms = [
    array * float(weight)
    for weight, array in zip(weights, arrays, strict=True)
    if abs(weight) > 1e-12
  ]
  return sum(terms[1:], start=terms[0])


def _product(features, matrix):
  """[B, H, W, C] times [C, D], as one matrix product."""
  flat = features.reshape(-1, features.shape[-1]) @ matrix
  return flat.reshape(*features.shape[:-1], matrix.shape[-1])

"""Convolution with 3 x 3 kernels by a quarter of the products.

Winograd's F(4 x 4, 3 x 3) makes tiles of 4 x 4 outputs from 6 x 6 inputs. Along
an axis, the four outputs y_k = sum_i d_{k+i} g_i of six inputs d are

  y = OUTPUTS @ ((KERNEL @ g) * (INPUTS @ d)),

where the six products are values of a product of polynomials at six points, one
of them infinity. It rounds some ten times as coarsely as sums of products do.

Source: Lavin and Gray 2016, arXiv:1509.09308; the matrices, Cook and Toom.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 4  # outputs of a tile along an axis
WINDOW = 3  # side of the kernel


def convolve(inputs: chex.Array, kernel: chex.Array) -> chex.Array:
  """Convolution of [B, H, W, C] with [3, 3, C, D] -> [B, H - 2, W - 2, D]."""
  height, width = (size - WINDOW + 1 for size in inputs.shape[1:3])
  tall, wide = -(-height // TILE), -(-width // TILE)
  rest = (0, tall * TILE - height), (0, wide * TILE - width)
  padded = jnp.pad(inputs, ((0, 0), *rest, (0, 0)))
  rows = _combined(INPUTS, _steps(padded, 1, tall))
  columns = []  # [4, ...], the outputs along the width, for each of six rows
  for features, factors in zip(rows, KERNEL, strict=True):
    values = jnp.stack(_combined(INPUTS, _steps(features, 2, wide)))
    weights = np.kron(factors, KERNEL) @ kernel.reshape(WINDOW**2, -1)
    weights = weights.reshape(-1, *kernel.shape[2:])
    products = values.reshape(len(values), -1, kernel.shape[2]) @ weights
    columns.append(OUTPUTS @ products.reshape(len(values), -1))
  tiles = jnp.stack(_combined(OUTPUTS, columns))
  tiles = tiles.reshape(TILE, TILE, -1, tall, wide, kernel.shape[3])
  whole = tiles.transpose(2, 3, 0, 4, 1, 5)
  whole = whole.reshape(-1, tall * TILE, wide * TILE, kernel.shape[3])
  return whole[:, :height, :width]


def _steps(features, axis, count) -> list[chex.Array]:
  """What each of the six places in a tile has, for `count` tiles."""
  reach = TILE * (count - 1) + 1
  return [
    lax.slice_in_dim(features, place, place + reach, TILE, axis)
    for place in range(TILE + WINDOW - 1)
  ]


def _combined(matrix, arrays) -> list[chex.Array]:
  """The matrix times a column of arrays, without what is multiplied by 0."""
  return [
    sum(float(a) * x for a, x in zip(row, arrays, strict=True) if a)
    for row in matrix
  ]


def _matrices(points: np.ndarray) -> tuple[np.ndarray, ...]:
  """OUTPUTS, KERNEL and INPUTS for these points and infinity."""
  others = [np.delete(points, i) for i in range(len(points))]
  scales = [np.prod(p - rest) for p, rest in zip(points, others, strict=True)]
  inputs = [np.append(np.poly(rest)[::-1], 0) for rest in others]
  inputs.append(np.poly(points)[::-1])

  def values(degree):  # of the powers at the points; at infinity, the leading
    powers = np.vander(points, degree + 1, increasing=True)
    return np.vstack([powers, np.eye(degree + 1)[-1]])

  kernel = values(WINDOW - 1) / np.append(scales, 1)[:, None]
  return tuple(map(np.float32, (values(TILE - 1).T, kernel, inputs)))


# 0, 3/4, -3/4, 3/2, -3/2 round a fourth as coarsely, but have fewer factors 1.
OUTPUTS, KERNEL, INPUTS = _matrices(np.array([0.0, 1.0, -1.0, 2.0, -2.0]))

"""Gaps of pairs: a lower bound for a tile on the device, exact on the host.

A gap is a distance before it is scaled: for l-inf the largest difference of
two pixels (0 to 255 for uint8), for l2 the sum of squared differences.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

UNROLLED = 16  # features per step; XLA's CPU code is slow with 8 and with 32
CHUNK = 2**19  # values of either side in one step on the host: cache size
UNDERFLOW = 1e-30  # more than what products of small numbers lose


class Side(NamedTuple):
  """One side of a tile."""

  coordinates: chex.Array  # [N, D]; their gaps are at most those of the images
  labels: chex.Array  # [N]
  limits: chex.Array  # [N], float32: only smaller gaps are wanted


@functools.partial(jax.jit, static_argnames='norm')
def candidates(
  queries: Side, refs: Side, error: chex.Numeric, *, norm: str
) -> chex.Array:
  """Which opponents, bool [Q, R], may have a gap below the limit of either.

  Args:
    error: by how much the gap of coordinates may be too large in l2, relative
      to the sum of their squared lengths.
  """
  bounds = _bounds(queries.coordinates, refs.coordinates, error, norm)
  # No gap is below a limit of 0, though its lower bound may be.
  limits = [jnp.where(x > 0, x, -jnp.inf) for x in (queries[2], refs[2])]
  near = bounds < jnp.maximum(limits[0][:, None], limits[1][None])
  return near & (queries.labels[:, None] != refs.labels[None])


@functools.partial(jax.jit, static_argnames='norm')
def nearest_in_tile(queries: Side, refs: Side, *, norm: str) -> chex.Array:
  """The nearest opponent [Q] of each query, in l2 up to rounding; 0 if none."""
  bounds = _bounds(queries.coordinates, refs.coordinates, 0.0, norm)
  same = queries.labels[:, None] == refs.labels[None]
  return jnp.where(same, jnp.inf, bounds).argmin(axis=1)


def _bounds(queries, refs, error, norm):
  if norm == 'l2':
    return _l2(queries, refs, error)
  return _linf(queries, refs).astype(jnp.float32)


def _linf(queries, refs):
  padding = (0, -queries.shape[1] % UNROLLED), (0, 0)
  queries, refs = jnp.pad(queries.T, padding), jnp.pad(refs.T, padding)

  def step(block, gaps):
    part = functools.partial(
      jax.lax.dynamic_slice_in_dim,
      start_index=block * UNROLLED,
      slice_size=UNROLLED,
    )
    for a, b in zip(part(queries), part(refs), strict=True):
      gaps = jnp.maximum(gaps, differences(a[:, None], b[None]))
    return gaps

  gaps = jnp.zeros((queries.shape[1], refs.shape[1]), queries.dtype)
  return jax.lax.fori_loop(0, len(queries) // UNROLLED, step, gaps)


def _l2(queries, refs, error):
  """A lower bound on the squared distances, from a matrix product."""
  queries, refs = queries.astype(jnp.float32), refs.astype(jnp.float32)
  center = jnp.round(refs.mean(axis=0, keepdims=True))  # exact for integers
  rounding = (queries.shape[1] + 8) * jnp.finfo(jnp.float32).eps

  def least(images):
    sizes = ((images - center) ** 2).sum(axis=1)
    slack = rounding * sizes + error * (images**2).sum(axis=1)
    return sizes - slack - UNDERFLOW

  products = jnp.matmul(
    -2 * (queries - center), (refs - center).T, precision='highest'
  )
  return products + least(queries)[:, None] + least(refs)[None]


def differences(a: chex.Array, b: chex.Array) -> chex.Array:
  """|a - b| in their dtype without wraparound, for NumPy and JAX arrays."""
  maths = a.__array_namespace__()
  if a.dtype == np.uint8:
    return maths.maximum(a, b) - maths.minimum(a, b)
  return maths.abs(a - b)


def exact_gaps(
  queries: np.ndarray,
  refs: np.ndarray,
  rows: np.ndarray,
  cols: np.ndarray,
  *,
  norm: str,
) -> np.ndarray:
  """Gaps of the pairs (queries[rows], refs[cols]) as float64 [P].

  For float32 images in l2 they are squares of float32 distances, so that equal
  sums in another order of summation tie.
  """
  gaps = np.empty(len(rows))
  step = max(CHUNK // queries.shape[1], 1)
  shape = min(step, len(rows)), queries.shape[1]
  # Buffers are allocated once: threads that allocate at every step wait for one
  # another.
  room = np.empty((3, *shape), queries.dtype)
  wide = np.empty(shape) if norm == 'l2' else None
  for first in range(0, len(rows), step):
    part = slice(first, first + step)
    a, b, apart = room[:, : len(rows[part])]
    queries.take(rows[part], axis=0, out=a, mode='clip')
    refs.take(cols[part], axis=0, out=b, mode='clip')
    np.subtract(np.maximum(a, b, out=apart), np.minimum(a, b, out=b), out=apart)
    if norm == 'linf':
      gaps[part] = apart.max(axis=1)
    else:
      exact = wide[: len(apart)]
      exact[:] = apart
      gaps[part] = np.vecdot(exact, exact)
  if norm == 'l2' and queries.dtype != np.uint8:
    gaps = np.square(np.sqrt(gaps).astype(np.float32), dtype=np.float64)
  return gaps

"""Gaps of pairs: a lower bound for a tile on the device, exact on the host.

A gap is a distance before it is scaled: for l-inf the largest difference of
two pixels (0 to 255 for uint8), for l2 the sum of squared differences.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

UNROLLED = 16  # features a step; XLA's CPU code is slow with 8 and with 32
CHUNK = 2**17  # values of either side in one step on the host: cache size
UNDERFLOW = 1e-30  # more than what products of small numbers lose


@functools.partial(jax.jit, static_argnames='norm')
def candidates(
  queries: chex.Array,
  refs: chex.Array,
  query_labels: chex.Array,
  ref_labels: chex.Array,
  query_limits: chex.Array,
  ref_limits: chex.Array,
  error: chex.Numeric,
  *,
  norm: str,
) -> chex.Array:
  """Pairs [Q, R] of two classes whose gap may be below a limit of either.

  `queries` is [Q, D] and `refs` [R, D]: coordinates whose gap is not larger
  than the pair's. In l2 it may be, by the share `error` of the sum of their
  squared lengths.
  """
  bounds = _tile(queries, refs, error, norm)
  # No gap is below 0, though a bound may be.
  query_limits, ref_limits = (
    jnp.where(limits > 0, limits, -jnp.inf)
    for limits in (query_limits, ref_limits)
  )
  near = bounds < jnp.maximum(query_limits[:, None], ref_limits[None])
  return near & (query_labels[:, None] != ref_labels[None])


@functools.partial(jax.jit, static_argnames='norm')
def nearest_in_tile(
  queries: chex.Array,
  refs: chex.Array,
  query_labels: chex.Array,
  ref_labels: chex.Array,
  *,
  norm: str,
) -> tuple[chex.Array, chex.Array]:
  """For each of Q queries whether the tile has an opponent, and the nearest.

  In l2 it is nearest up to rounding.
  """
  gaps = _tile(queries, refs, 0.0, norm)
  gaps = jnp.where(query_labels[:, None] == ref_labels[None], jnp.inf, gaps)
  return jnp.isfinite(gaps.min(axis=1)), gaps.argmin(axis=1)


def _tile(queries, refs, error, norm):
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
  """|a - b| without leaving the type, for NumPy and for JAX arrays."""
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

  For float32 images in l2 they are squares of float32 distances: equal sums
  that are added up in another order are ties.
  """
  gaps = np.empty(len(rows))
  step = max(CHUNK // queries.shape[1], 1)
  for first in range(0, len(rows), step):
    part = slice(first, first + step)
    apart = differences(queries[rows[part]], refs[cols[part]])
    if norm == 'linf':
      gaps[part] = apart.max(axis=1)
    else:
      apart = apart.astype(np.float64)
      gaps[part] = np.vecdot(apart, apart)
  if norm == 'l2' and queries.dtype != np.uint8:
    gaps = np.square(np.sqrt(gaps).astype(np.float32), dtype=np.float64)
  return gaps

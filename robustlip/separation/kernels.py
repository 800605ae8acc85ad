"""What is computed for one tile of pairs, on the device and on the host.

A gap is a distance before it is scaled: for l-inf the largest difference of
two pixels (0 to 255 for uint8), for l2 the sum of squared differences.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

UNROLLED = 16  # features a step; XLA's CPU code is slow with 8 and with 32
PAIRS = 2048  # finished in one call
LANES = 32  # running maxima of one pair; XLA's CPU code needs them to be fast


@functools.partial(jax.jit, static_argnames='norm')
def candidates(
  queries: chex.Array,
  refs: chex.Array,
  query_labels: chex.Array,
  ref_labels: chex.Array,
  query_limits: chex.Array,
  ref_limits: chex.Array,
  *,
  norm: str,
) -> chex.Array:
  """Pairs [Q, R] whose gap may be below the limit of either of the two.

  `queries` is [F, Q] and `refs` [F, R]. F may be some of the features only,
  since leaving features out makes a gap smaller, never larger.
  """
  gaps = _tile(queries, refs, norm).astype(jnp.float32)
  near = (gaps < query_limits[:, None]) | (gaps < ref_limits[None])
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
  """For each of Q queries whether the tile has an opponent, and the nearest."""
  gaps = _tile(queries.T, refs.T, norm).astype(jnp.float32)
  gaps = jnp.where(query_labels[:, None] == ref_labels[None], jnp.inf, gaps)
  return jnp.isfinite(gaps.min(axis=1)), gaps.argmin(axis=1)


def _tile(queries, refs, norm):
  return _linf(queries, refs) if norm == 'linf' else _l2(queries, refs)


def _linf(queries, refs):
  padding = (0, -len(queries) % UNROLLED), (0, 0)
  queries, refs = jnp.pad(queries, padding), jnp.pad(refs, padding)

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


def _l2(queries, refs):
  """A lower bound on the squared distances, from a matrix product."""
  queries, refs = queries.astype(jnp.float32), refs.astype(jnp.float32)
  center = jnp.round(refs.mean(axis=1, keepdims=True))  # exact for integers
  queries, refs = queries - center, refs - center
  sizes = (queries**2).sum(axis=0)[:, None] + (refs**2).sum(axis=0)[None]
  products = jnp.matmul(queries.T, refs, precision='highest')
  rounding = (len(queries) + 8) * jnp.finfo(jnp.float32).eps
  return jnp.maximum(sizes - 2 * products - rounding * sizes, 0)


def differences(a: chex.Array, b: chex.Array) -> chex.Array:
  """|a - b| without leaving the type, for NumPy and for JAX arrays."""
  maths = a.__array_namespace__()
  if a.dtype == np.uint8:
    return maths.maximum(a, b) - maths.minimum(a, b)
  return maths.abs(a - b)


def exact_gaps(
  inputs: np.ndarray,
  refs: np.ndarray,
  rows: np.ndarray,
  cols: np.ndarray,
  *,
  norm: str,
  device: jax.Device | None = None,
) -> np.ndarray:
  """Gaps of the pairs (inputs[rows], refs[cols]) as float64 [P]."""
  gaps = np.empty(len(rows))
  if norm == 'linf' and len(rows):
    inputs, refs = jax.device_put((_padded(inputs), _padded(refs)), device)
  for first in range(0, len(rows), PAIRS):
    part = slice(first, first + PAIRS)
    if norm == 'linf':
      padding = 0, PAIRS - len(rows[part])
      pairs = (np.pad(side[part], padding) for side in (rows, cols))
      found = _linf_pairs(inputs, refs, *pairs)
      gaps[part] = np.asarray(found)[: len(rows[part])]
    else:  # float64, which few devices have
      apart = differences(inputs[rows[part]], refs[cols[part]])
      gaps[part] = np.square(apart, dtype=np.float64).sum(axis=1)
  if norm == 'l2' and inputs.dtype != np.uint8:
    # Equal sums added in another order differ: ties are of float32 distances.
    gaps = np.square(np.sqrt(gaps).astype(np.float32), dtype=np.float64)
  return gaps


def power_of_two(size: int) -> int:
  """The smallest that is not below `size`: few shapes to compile for."""
  return 1 << max(size - 1, 0).bit_length()


def _padded(images):
  missing = power_of_two(len(images)) - len(images)
  return np.pad(images, ((0, missing), (0, 0))) if missing else images


@jax.jit
def _linf_pairs(inputs, refs, rows, cols):
  padding = (0, 0), (0, -inputs.shape[1] % LANES)
  inputs, refs = jnp.pad(inputs, padding), jnp.pad(refs, padding)
  image = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

  def gaps(pair):
    apart = differences(image(inputs, pair[0]), image(refs, pair[1]))
    return apart.reshape(-1, LANES).max(axis=0)

  together = None if jax.default_backend() == 'cpu' else PAIRS
  return jax.lax.map(gaps, (rows, cols), batch_size=together).max(axis=1)


def telling_features(
  apart: np.ndarray, limits: np.ndarray, size: int
) -> np.ndarray:
  """Indices [size] of the features that rule out most pairs, best first.

  A greedy cover: the feature that rules out most of the sampled pairs, then
  the one that rules out most of the rest; all over again when none is left.

  Args:
    apart: differences of sampled pairs, [P, F].
    limits: the gap from which on a pair is of no interest, [P].
  """
  ruled_out = apart >= limits[:, None]
  totals = ruled_out.sum(axis=0)
  counts, left = totals.copy(), np.ones(len(apart), bool)
  chosen = []
  for _ in range(min(size, apart.shape[1])):
    if counts.max() <= 0:
      counts, left = totals.copy(), np.ones(len(apart), bool)
      counts[chosen] = -1
    feature = counts.argmax()
    hit = left & ruled_out[:, feature]
    counts -= ruled_out[hit].sum(axis=0)
    left &= ~hit
    counts[feature] = totals[feature] = -1
    chosen.append(feature)
  return np.array(chosen, int)

"""Exact distances between the classes of a labelled set of images.

No model is involved: for every example, the nearest reference example of
another class, by brute force in blocks like a matrix product.

Shared arguments: `inputs` and `ref_inputs` are [N, ...] and [M, ...] arrays of
images of one shape, both uint8 (compared as integers, so that ties and minima
are exact) or both float32 in [0, 1]; `labels` and `ref_labels` are integer
arrays [N] and [M] with any values. NumPy arrays stay on the host and are sent
to the device block by block. Distances are float32 in units of the pixel range
(steps of 1/255 for uint8), indices are int32. An example without any opponent
has distance inf and index -1; of several nearest examples the one with the
smallest index is returned. `norm` is 'linf' or 'l2'.

All functions raise ValueError for arrays of the wrong type or length and for
values that are not finite.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robustlip import projections

QUERY_BLOCK, REF_BLOCK, FEATURE_BLOCK = 256, 2048, 16


class Neighbors(NamedTuple):
  """The nearest reference example of each query."""

  distances: np.ndarray  # [N], float32; inf where there is none
  indices: np.ndarray  # [N], int32; -1 where there is none


def nearest_opposite(
  inputs: chex.Array,
  labels: chex.Array,
  ref_inputs: chex.Array | None = None,
  ref_labels: chex.Array | None = None,
  *,
  norm: str = 'linf',
) -> Neighbors:
  """Nearest reference example of another class; the set itself by default."""
  labels = np.asarray(labels)
  if ref_inputs is None:
    ref_inputs, ref_labels = inputs, labels
  return _search(inputs, labels, ref_inputs, np.asarray(ref_labels), norm)


def nearest(
  inputs: chex.Array, ref_inputs: chex.Array, *, norm: str = 'linf'
) -> Neighbors:
  """Nearest reference example of any class."""
  labels = np.zeros(len(inputs), np.int32)
  ref_labels = np.ones(len(ref_inputs), np.int32)
  return _search(inputs, labels, ref_inputs, ref_labels, norm)


def _search(inputs, labels, ref_inputs, ref_labels, norm) -> Neighbors:
  projections.check_norm(norm)
  inputs, ref_inputs = _flat(inputs, labels), _flat(ref_inputs, ref_labels)
  if inputs.dtype != ref_inputs.dtype:
    raise ValueError(
      f'inputs are {inputs.dtype} but reference inputs {ref_inputs.dtype}; '
      'both must be uint8 or both float32.'
    )
  if inputs.shape[1] != ref_inputs.shape[1]:
    raise ValueError(
      f'inputs have {inputs.shape[1]} values each, reference inputs '
      f'{ref_inputs.shape[1]}; their shapes must agree.'
    )
  best = []
  for start in range(0, len(inputs), QUERY_BLOCK):
    rows = slice(start, start + QUERY_BLOCK)
    values = np.full(len(labels[rows]), np.inf, np.float32)
    indices = np.full(len(values), -1, np.int32)
    for first in range(0, len(ref_inputs), REF_BLOCK):
      cols = slice(first, first + REF_BLOCK)
      found, where = _tile(
        inputs[rows], labels[rows], ref_inputs[cols], ref_labels[cols], norm
      )
      nearer = np.asarray(found) < values
      values = np.where(nearer, found, values)
      indices = np.where(nearer, where + first, indices)
    best.append((values, indices))
  if not best:
    return Neighbors(np.zeros(0, np.float32), np.zeros(0, np.int32))
  distances, indices = (
    np.concatenate(parts) for parts in zip(*best, strict=True)
  )
  if inputs.dtype == np.uint8:
    distances = distances / np.float32(255)
  return Neighbors(distances, indices)


def _flat(inputs, labels):
  """Checked [N, F] view of `inputs`."""
  if inputs.dtype not in (np.uint8, np.float32):
    raise ValueError(f'images must be uint8 or float32, got {inputs.dtype}.')
  if labels.ndim != 1 or len(labels) != len(inputs):
    raise ValueError(
      f'{len(inputs)} images need as many labels, got {labels.shape}.'
    )
  if inputs.dtype == np.float32 and not np.isfinite(inputs).all():
    raise ValueError('images must be finite, got NaN or inf.')
  return inputs.reshape(len(inputs), -1)


@functools.partial(jax.jit, static_argnames='norm')
def _tile(queries, labels, refs, ref_labels, norm):
  """Smallest distance to an opponent in one tile, and its column."""
  if norm == 'linf':
    gaps = _linf(queries, refs).astype(jnp.float32)
  else:
    gaps = _l2(queries, refs)
  gaps = jnp.where(labels[:, None] == ref_labels[None], jnp.inf, gaps)
  return gaps.min(axis=1), gaps.argmin(axis=1)


def _linf(queries, refs):
  padding = -queries.shape[1] % FEATURE_BLOCK
  queries = jnp.pad(queries, ((0, 0), (0, padding)))
  refs = jnp.pad(refs, ((0, 0), (0, padding)))

  def step(block, gaps):
    first = block * FEATURE_BLOCK
    part = jax.lax.dynamic_slice_in_dim
    left = part(queries, first, FEATURE_BLOCK, axis=1).T
    right = part(refs, first, FEATURE_BLOCK, axis=1).T
    for a, b in zip(left[:, :, None], right[:, None], strict=True):
      gaps = jnp.maximum(gaps, jnp.maximum(a, b) - jnp.minimum(a, b))
    return gaps

  gaps = jnp.zeros((len(queries), len(refs)), queries.dtype)
  return jax.lax.fori_loop(0, queries.shape[1] // FEATURE_BLOCK, step, gaps)


def _l2(queries, refs):
  a, b = queries.astype(jnp.float32), refs.astype(jnp.float32)
  return jnp.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

"""Exact distances between the classes of a labelled set of images.

No model is involved: for every example, the nearest reference example of
another class. `search.py` says how pairs are skipped without losing any.

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

from typing import NamedTuple

import chex
import numpy as np

from robustlip import projections
from robustlip.separation import search


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
  queries = _examples(inputs, labels)
  same = ref_inputs is inputs and ref_labels is labels
  refs = queries if same else _examples(ref_inputs, ref_labels)
  if queries.images.dtype != refs.images.dtype:
    raise ValueError(
      f'inputs are {queries.images.dtype}, reference inputs '
      f'{refs.images.dtype}; both must be uint8 or both float32.'
    )
  if inputs.shape[1:] != ref_inputs.shape[1:]:
    raise ValueError(
      f'inputs are {inputs.shape[1:]}, reference inputs '
      f'{ref_inputs.shape[1:]}; their shapes must agree.'
    )
  best = search.run(queries, refs, norm=norm)
  return _neighbors(best, queries.images.dtype, norm)


def _examples(inputs, labels) -> search.Examples:
  inputs, labels = np.asarray(inputs), np.asarray(labels)
  if inputs.dtype not in (np.uint8, np.float32):
    raise ValueError(f'images must be uint8 or float32, got {inputs.dtype}.')
  if labels.shape != inputs.shape[:1]:
    raise ValueError(
      f'{len(inputs)} images need as many labels, got {labels.shape}.'
    )
  if inputs.dtype == np.float32 and not np.isfinite(inputs).all():
    raise ValueError('images must be finite, got NaN or inf.')
  return search.Examples(inputs.reshape(len(inputs), -1), labels)


def _neighbors(best, dtype, norm) -> Neighbors:
  distances = np.sqrt(best.gaps) if norm == 'l2' else best.gaps
  if dtype == np.uint8:
    distances = distances / 255
  known = np.isfinite(distances)
  indices = np.where(known, best.indices, -1)
  return Neighbors(distances.astype(np.float32), indices.astype(np.int32))

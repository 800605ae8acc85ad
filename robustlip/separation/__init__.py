"""Exact distances between the classes of a labelled set of images.

No model is involved: for every example, the nearest reference example of
another class. `search.py` says how pairs are skipped without losing any.

Shared arguments: `inputs` and `ref_inputs` are [N, ...] and [M, ...] arrays of
images of one shape, both uint8 (compared as integers, so that ties and minima
are exact) or both float32; `labels` and `ref_labels` are integer arrays [N] and
[M] with any values. NumPy arrays stay on the host and are sent to the device
block by block. Distances are float32 in the units of the inputs, and for uint8
in units of the pixel range (steps of 1/255); indices are int32. Examples of
another class are opponents. An example without any has distance inf and index
-1; of several nearest ones, that with the smallest index is returned. `norm`
is 'linf' or 'l2'.

All functions raise ValueError for arrays of the wrong type or length and for
values that are not finite or so large that the squares of a difference cannot
be added up in float32. Differences below 1e-38 may count as 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import numpy as np

from robustlip import projections
from robustlip.images import check_labels, check_least
from robustlip.separation import kernels, search

LARGEST = 1e18  # l2 norm of float32 images; its square must not overflow


class Neighbors(NamedTuple):
  """The nearest reference example of each query."""

  distances: np.ndarray  # [N], float32; inf where there is none
  indices: np.ndarray  # [N], int32; -1 where there is none


class Pairs(NamedTuple):
  """Pairs of examples of different classes, closest first."""

  distances: np.ndarray  # [k], float32
  rows: np.ndarray  # [k], int32, into the inputs
  cols: np.ndarray  # [k], int32, into the reference inputs


class Duplicates(NamedTuple):
  """Groups of identical images, each an ascending array of indices."""

  groups: list[np.ndarray]
  conflicts: list[np.ndarray]  # the groups in which labels disagree


def nearest_opposite(
  inputs: chex.Array,
  labels: chex.Array,
  ref_inputs: chex.Array | None = None,
  ref_labels: chex.Array | None = None,
  *,
  norm: str = 'linf',
  progress: Callable[[int], None] | None = None,
) -> Neighbors:
  """Nearest reference example of another class; the set itself by default.

  Args:
    progress: called after each block of queries with their number.
  """
  queries, refs = _sets(inputs, labels, ref_inputs, ref_labels, norm)
  best = search.nearest(queries, refs, norm=norm, progress=progress)
  distances = _distances(best.gaps, queries, norm)
  indices = np.where(np.isfinite(distances), best.indices, -1)
  return Neighbors(distances, indices.astype(np.int32))


def nearest(
  inputs: chex.Array, ref_inputs: chex.Array, *, norm: str = 'linf'
) -> Neighbors:
  """Nearest reference example of any class."""
  here, there = np.zeros(len(inputs), int), np.ones(len(ref_inputs), int)
  return nearest_opposite(inputs, here, ref_inputs, there, norm=norm)


def closest_pairs(
  inputs: chex.Array,
  labels: chex.Array,
  ref_inputs: chex.Array | None = None,
  ref_labels: chex.Array | None = None,
  *,
  k: int = 10,
  norm: str = 'linf',
  neighbors: Neighbors | None = None,
) -> Pairs:
  """The `k` closest pairs of different classes, or all where there are fewer.

  Within one set a pair counts once, smaller index first; of equally close
  pairs those with the smaller row, then the smaller column come first.

  Args:
    neighbors: what `nearest_opposite` returned for the same arrays and norm.

  Raises:
    ValueError: for a `k` below 1, or `neighbors` of other arrays.
  """
  check_least(1, k=k)
  queries, refs = _sets(inputs, labels, ref_inputs, ref_labels, norm)
  same = refs is queries
  gaps = _neighbor_gaps(queries, refs, norm, neighbors)
  # The k-th closest pair is no farther apart than the k-th smallest gap of a
  # nearest opponent; than the 2k-th in one set, where pairs occur twice.
  enough = 2 * k if same else k
  limit = np.sort(gaps)[enough - 1] if enough <= len(gaps) else np.inf
  limit = min(limit, 1e38)  # leaves out infinite gaps only
  near = np.flatnonzero(gaps <= limit)
  closest = np.zeros((0, 3))  # gap, row, column

  def limit_from(row, col):
    if len(closest) < k:
      return limit, True
    gap, *last = closest[-1]
    return gap, [near[row], near[col] if same else col] < last

  def keep(rows, cols, gaps):
    nonlocal closest
    found = np.stack([gaps, near[rows], near[cols] if same else cols], axis=1)
    if same:
      found[:, 1:].sort(axis=1)
    first = np.lexsort(found.T[::-1])[: 2 * k]  # a pair may be there twice
    found = np.concatenate([closest, found[first]])
    closest = np.unique(found, axis=0)[:k]

  queries = search.Examples(queries.images[near], queries.labels[near])
  refs = queries if same else refs
  search.pairs_within(queries, refs, limit_from, keep, norm=norm)
  gaps, rows, cols = closest.T
  distances = _distances(gaps, queries, norm)
  return Pairs(distances, rows.astype(np.int32), cols.astype(np.int32))


def class_matrix(
  inputs: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  norm: str = 'linf',
  neighbors: Neighbors | None = None,
) -> np.ndarray:
  """Smallest distance between each pair of classes of one set, [C, C] float32.

  Labels are 0 to C - 1. The diagonal and classes without examples are inf.

  Args:
    neighbors: what `nearest_opposite` returned for the same arrays.
  """
  examples, _ = _sets(inputs, labels, None, None, norm)
  labels = np.asarray(labels)
  check_labels(labels, len(labels), num_classes)
  if neighbors is None:
    neighbors = nearest_opposite(inputs, labels, norm=norm)
  gaps = _neighbor_gaps(examples, examples, norm, neighbors)
  matrix = np.full((num_classes, num_classes), np.inf)
  known = np.isfinite(gaps)
  others = labels[neighbors.indices[known]]
  np.minimum.at(matrix, (labels[known], others), gaps[known])
  np.minimum(matrix, matrix.T, out=matrix)
  search.tighten(matrix, examples._replace(labels=labels), gaps, norm=norm)
  return _distances(matrix, examples, norm)


def duplicates(inputs: chex.Array, labels: chex.Array) -> Duplicates:
  """Identical images of one set, and those of them whose labels disagree."""
  examples, _ = _sets(inputs, labels, None, None, 'linf')
  same = {}
  for index, digest in enumerate(_digests(examples.images)):
    same.setdefault(digest, []).append(index)
  groups = [np.array(group) for group in same.values() if len(group) > 1]
  mixed = [g for g in groups if len(set(examples.labels[g].tolist())) > 1]
  return Duplicates(groups, mixed)


def shared(inputs: chex.Array, ref_inputs: chex.Array) -> np.ndarray:
  """Inputs that are references too, [K, 2]: index, index of first reference."""
  here, there = np.zeros(len(inputs), int), np.zeros(len(ref_inputs), int)
  queries, refs = _sets(inputs, here, ref_inputs, there, 'linf')
  first = {}
  for index, digest in enumerate(_digests(refs.images)):
    first.setdefault(digest, index)
  found = [first.get(digest, -1) for digest in _digests(queries.images)]
  pairs = np.stack([np.arange(len(found)), np.array(found, int)], axis=1)
  return pairs[pairs[:, 1] >= 0]


def _digests(images):
  """A hash of each image; adding 0 makes -0.0 and 0.0 the same bytes."""
  images = np.asarray(images)
  return [
    hashlib.blake2b(image + images.dtype.type(0), digest_size=16).digest()
    for image in images
  ]


def _sets(inputs, labels, ref_inputs, ref_labels, norm):
  """Both sets, checked and flat, labels 0 to C - 1; without refs one object."""
  projections.check_norm(norm)
  queries = _examples(inputs, labels)
  if ref_inputs is None:
    if ref_labels is not None:
      raise ValueError('ref_labels come with ref_inputs.')
    _, codes = np.unique(queries.labels, return_inverse=True)
    queries = queries._replace(labels=codes.astype(np.int32))
    return queries, queries
  refs = _examples(ref_inputs, ref_labels)
  if queries.images.dtype != refs.images.dtype:
    raise ValueError(
      f'inputs are {queries.images.dtype}, reference inputs '
      f'{refs.images.dtype}; both must be uint8 or both float32.'
    )
  if inputs.shape[1:] != ref_inputs.shape[1:]:
    raise ValueError(
      f'inputs have shape {inputs.shape[1:]}, reference inputs '
      f'{ref_inputs.shape[1:]}; the shapes must agree.'
    )
  # As Python integers, since NumPy makes float64 of int64 and uint64.
  labels = [side.labels.tolist() for side in (queries, refs)]
  codes = {label: code for code, label in enumerate(set().union(*labels))}
  here, there = (np.array([codes[x] for x in y], np.int32) for y in labels)
  return queries._replace(labels=here), refs._replace(labels=there)


def _examples(inputs, labels) -> search.Examples:
  inputs, labels = np.asarray(inputs), np.asarray(labels)
  if inputs.dtype not in (np.uint8, np.float32):
    raise ValueError(f'images must be uint8 or float32, got {inputs.dtype}.')
  num_values = math.prod(inputs.shape[1:])
  if inputs.ndim < 2 or not num_values:
    raise ValueError(f'images must be [N, ...], got {inputs.shape}.')
  if labels.shape != inputs.shape[:1]:
    raise ValueError(
      f'{len(inputs)} images need as many labels, got {labels.shape}.'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'labels must be integers, got {labels.dtype}.')
  if inputs.dtype == np.float32 and len(inputs):
    smallest, largest = inputs.min(), inputs.max()  # NaN if there is one
    limit = LARGEST / math.sqrt(num_values)
    if not -limit <= smallest <= largest <= limit:
      raise ValueError(
        f'pixels must be finite and within {limit:.0e} of 0, got {smallest} to '
        f'{largest}.'
      )
  return search.Examples(inputs.reshape(len(inputs), num_values), labels)


def _neighbor_gaps(queries, refs, norm, neighbors):
  if neighbors is None:
    return search.nearest(queries, refs, norm=norm).gaps
  others = ValueError(f'neighbors are not of these arrays in {norm}.')
  gaps, indices = np.full(len(queries.labels), np.inf), neighbors.indices
  if len(indices) != len(gaps) or indices.max(initial=-1) >= len(refs.labels):
    raise others
  known = np.flatnonzero(indices >= 0)
  if (queries.labels[known] == refs.labels[indices[known]]).any():
    raise others
  gaps[known] = kernels.exact_gaps(
    queries.images, refs.images, known, indices[known], norm=norm
  )
  found = _distances(gaps, queries, norm)
  if not np.allclose(found, neighbors.distances, rtol=1e-6):
    raise others
  return gaps


def _distances(gaps, examples, norm):
  distances = np.sqrt(gaps) if norm == 'l2' else gaps
  if examples.images.dtype == np.uint8:
    distances = distances / 255
  return distances.astype(np.float32)

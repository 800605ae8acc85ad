"""The search: filter tiles of pairs by a few coordinates, then compare exactly.

1. Every query gets a first bound from a few reference examples of each class.
2. `filters` finds coordinates that rule out most pairs at such bounds.
3. Tile by tile, the device compares only these coordinates and reports the
   pairs that could still beat the best gap of their row; the host computes
   these few gaps exactly. Every smaller gap found makes the filter tighter.

When a set is compared with itself, a tile serves both its rows and its columns.
Coordinates reach the device tile by tile.
"""

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from robustlip.separation import filters, kernels

SAMPLE = {'linf': 128, 'l2': 1024}  # see `_sample`
FEATURES = 128, 512  # compared in l-inf: on the device, then on the host
DIRECTIONS = 191  # compared in l2, and the length of the rest
BLOCK = 2048  # examples of either side of a tile on a CPU, else twice as many
UNKNOWN = np.iinfo(np.int64).max  # index that loses every tie


class Examples(NamedTuple):
  """A checked set."""

  images: np.ndarray  # [N, F], uint8 or float32
  labels: np.ndarray  # [N], int32


class Best(NamedTuple):
  """Smallest gap of each query so far, the smallest index that has it."""

  gaps: np.ndarray  # [N], float64; inf where nothing is known
  indices: np.ndarray  # [N], int64; UNKNOWN where nothing is known

  def improve(self, rows, cols, gaps) -> None:
    """Takes the pairs (rows, cols) into account, in place."""
    order = np.lexsort((cols, gaps, rows))
    order = order[np.diff(rows[order], prepend=-1) > 0]  # the first of each row
    rows, cols, gaps = rows[order], cols[order], gaps[order]
    tie = (gaps == self.gaps[rows]) & (cols < self.indices[rows])
    better = tie | (gaps < self.gaps[rows])
    self.gaps[rows[better]] = gaps[better]
    self.indices[rows[better]] = cols[better]

  def limits(self, rows, first: int) -> np.ndarray:
    """Gap below which a candidate of index >= `first` can improve each row."""
    tie_improves = self.indices[rows] > first
    return limits(self.gaps[rows], inclusive=tie_improves)


def limits(gaps: np.ndarray, *, inclusive: np.ndarray | bool) -> np.ndarray:
  """Float32 limits above all smaller gaps, and where `inclusive` equal ones."""
  found = gaps.astype(np.float32)
  above = np.nextafter(found, np.float32(np.inf))
  found = np.where(inclusive | (found < gaps), above, found)
  smallest = np.finfo(np.float32).tiny  # devices flush subnormal numbers to 0
  return np.where(found > 0, np.maximum(found, smallest), found)


def nearest(
  queries: Examples,
  refs: Examples,
  *,
  norm: str,
  progress: Callable[[int], None] | None = None,
) -> Best:
  """The nearest opponent of every query; `refs` may be `queries` itself."""
  size = len(queries.labels)
  best = Best(np.full(size, np.inf), np.full(size, UNKNOWN))
  if not size or not len(refs.labels):
    return best
  sets = Sets(queries, refs, norm)
  if norm == 'l2':
    sets.filter()
  _first_bounds(best, sets)
  if norm == 'linf':
    sets.filter(best.gaps)
  same = refs is queries
  # In l-inf, ties among the first examples are already resolved.
  seen = SAMPLE[norm] - 1 if norm == 'linf' else 0

  def limits_of(rows, cols):
    mine = best.limits(rows, max(cols[0], seen))
    return mine, best.limits(cols, max(rows[0], seen)) if same else None

  def keep(rows, cols, gaps):
    best.improve(rows, cols, gaps)
    if same:
      best.improve(cols, rows, gaps)

  walk(sets, limits_of, keep, progress=progress)
  return best


def pairs_within(
  queries: Examples,
  refs: Examples,
  limit_from: Callable[[int, int], tuple[float, bool]],
  keep: Callable[..., None],
  *,
  norm: str,
) -> None:
  """Calls `keep(rows, cols, gaps)` with all opponents that are near enough.

  Within one set a pair is passed once or twice.

  Args:
    limit_from: (row, column) -> (gap, inclusive), called before each tile with
      the first of its pairs; wanted are pairs with a smaller (or equal) gap.
  """
  if not len(queries.labels) or not len(refs.labels):
    return
  sets = Sets(queries, refs, norm)
  gap, _ = limit_from(0, 0)
  sets.filter(np.full(len(queries.labels), gap))

  def limits_of(rows, cols):
    gap, inclusive = limit_from(rows[0], cols[0])
    return limits(np.full(len(rows), gap), inclusive=inclusive), None

  walk(sets, limits_of, keep)


def tighten(
  matrix: np.ndarray, examples: Examples, gaps: np.ndarray, *, norm: str
) -> None:
  """Lowers upper bounds [C, C] to the smallest gap of each pair of classes.

  Args:
    matrix: symmetric; changed in place.
    gaps: [N], of the nearest opponents; they choose the filter.
  """
  if not len(examples.labels):
    return
  sets, labels = Sets(examples, examples, norm), examples.labels
  sets.filter(gaps)

  def limits_of(rows, cols):
    bounds = matrix[labels[rows], labels[cols[0]]]
    return limits(bounds, inclusive=False), None

  def keep(rows, cols, gaps):
    np.minimum.at(matrix, (labels[rows], labels[cols]), gaps)

  for label in range(1, len(matrix)):
    rows, cols = (np.flatnonzero(x) for x in (labels < label, labels == label))
    walk(sets, limits_of, keep, rows, cols)
  np.minimum(matrix, matrix.T, out=matrix)


class Sets:
  """Two sets, and the coordinates that filter their pairs."""

  def __init__(self, queries: Examples, refs: Examples, norm: str):
    self.queries, self.refs, self.norm = queries, refs, norm
    # Arrays compared in turn: the first on the device, the last the images.
    self.stages = [(queries.images, refs.images)]
    self.error = 0.0

  def filter(self, limits: np.ndarray | None = None) -> None:
    """Adds coordinates if they save time; l-inf needs row limits [N]."""
    sides = self.stages[-1]
    (num_queries, num_features), num_refs = sides[0].shape, len(sides[1])
    if self.norm == 'l2':
      fraction = num_queries * num_refs / (num_queries + num_refs)
      if num_features > 2 * DIRECTIONS and fraction > 4 * DIRECTIONS:
        center, directions = filters.leading_directions(sides[1], DIRECTIONS)
        self._add(lambda images: filters.project(images, center, directions))
        self.error = filters.projection_error(*directions.shape)
    elif num_features > FEATURES[0] and jax.default_backend() == 'cpu':
      few, many = FEATURES
      chosen = filters.telling_features(*sides, limits, many)
      self._add(lambda images: np.take(images, chosen, axis=1))
      self._add(lambda features: features[:, :few].copy())

  def _add(self, coordinates):
    queries, refs = self.stages[0]
    mine = coordinates(queries)
    theirs = mine if refs is queries else coordinates(refs)
    self.stages.insert(0, (mine, theirs))

  def below(self, rows, cols, row_limits, col_limits, block, device):
    """Opponents in rows x cols with a gap below a limit, and their gaps."""
    if col_limits is None:
      col_limits = np.full(len(cols), -1, np.float32)
    queries, refs = self.stages[0]
    sides = (
      (queries[rows], self.queries.labels[rows], row_limits),
      (refs[cols], self.refs.labels[cols], col_limits),
    )
    sides = (kernels.Side(*(padded(x, block) for x in side)) for side in sides)
    with jax.default_device(device):
      near = kernels.candidates(*sides, self.error, norm=self.norm)
    i, j = np.divmod(np.flatnonzero(near), block)
    inside = (i < len(rows)) & (j < len(cols))
    i, j, gaps = i[inside], j[inside], np.zeros(0)
    for queries, refs in self.stages[1:] or self.stages:
      gaps = kernels.exact_gaps(queries, refs, rows[i], cols[j], norm=self.norm)
      kept = (gaps < row_limits[i]) | (gaps < col_limits[j])
      i, j, gaps = i[kept], j[kept], gaps[kept]
    return rows[i], cols[j], gaps


def walk(sets, limits_of, keep, rows=None, cols=None, progress=None) -> None:
  """Compares rows with columns tile by tile, in ascending order.

  Args:
    limits_of: (rows, cols) -> float32 limits of the rows and of the columns (or
      None) of a tile; pairs with a gap below either are wanted.
    keep: takes rows, columns and exact gaps of these pairs. Only one thread at
      a time calls `limits_of` or `keep`.
    rows, cols: ascending indices of the examples; None is all, and then two
      blocks of the same set are compared only once.
    progress: called after each block of rows with their number.
  """
  once = rows is None and sets.refs is sets.queries
  if rows is None:
    rows, cols = (np.arange(len(s.labels)) for s in (sets.queries, sets.refs))
  largest = BLOCK if jax.default_backend() == 'cpu' else 2 * BLOCK
  block = min(largest, power_of_two(max(len(rows), len(cols))))
  lock = threading.Lock()

  def compare(row, col, device):
    i, j = rows[row : row + block], cols[col : col + block]
    with lock:
      wanted = limits_of(i, j)
    found = sets.below(i, j, *wanted, block, device)
    with lock:
      keep(*found)

  devices = itertools.cycle(jax.local_devices())
  # One more than there are cores, since some wait for the device.
  workers = max(os.cpu_count() or 1, jax.local_device_count()) + 1
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for row in range(0, len(rows), block):
      columns = range(row if once else 0, len(cols), block)
      list(pool.map(compare, itertools.repeat(row), columns, devices))
      if progress:
        progress(len(rows[row : row + block]))


def _first_bounds(best, sets) -> None:
  (queries, refs), images = sets.stages[0], sets.stages[-1]
  labels, ref_labels = sets.queries.labels, sets.refs.labels
  sample = _sample(ref_labels, SAMPLE[sets.norm])
  theirs = kernels.Side(refs[sample], ref_labels[sample], None)
  block = min(1024, power_of_two(len(queries)))
  for first in range(0, len(queries), block):
    rows = np.arange(first, min(first + block, len(queries)))
    mine = (padded(x[rows], block) for x in (queries, labels))
    found = kernels.nearest_in_tile(
      kernels.Side(*mine, None), theirs, norm=sets.norm
    )
    cols = sample[np.asarray(found)[: len(rows)]]
    opponents = labels[rows] != ref_labels[cols]
    pairs = rows[opponents], cols[opponents]
    best.improve(*pairs, kernels.exact_gaps(*images, *pairs, norm=sets.norm))


def _sample(labels, size):
  """The first `size` examples, and `size` more by turns of class; ascending."""
  _, classes = np.unique(labels, return_inverse=True)
  order = np.argsort(classes, kind='stable')
  rank = np.arange(len(order)) - np.searchsorted(classes[order], classes[order])
  of_each = order[np.argsort(rank, kind='stable')][:size]
  sample = np.union1d(np.arange(min(size, len(labels))), of_each)
  return np.pad(sample, (0, 2 * size - len(sample)), mode='edge')


def padded(array: np.ndarray, size: int) -> np.ndarray:
  """`array` with zeros appended, until it has `size` rows."""
  padding = [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, padding) if size > len(array) else array


def power_of_two(size: int) -> int:
  """The smallest power of two >= `size`, so that few shapes are compiled."""
  return 1 << max(size - 1, 0).bit_length()

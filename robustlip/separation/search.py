"""The search: filter tiles of pairs on a few features, finish what is left.

1. Every query gets a first bound from a few reference examples of each class.
2. A sample of pairs tells which features rule out most pairs at those bounds.
3. Tile by tile, the device compares only these features and reports the pairs
   that could still beat the best distance of their row; the host finishes
   these few with all features. Every best found makes the filter tighter.

Tiles come in ascending order, so that a tie with an earlier index is already
excluded by the filter. When a set is compared with itself a tile serves its
rows and its columns. Features reach the device tile by tile.
"""

import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from robustlip.separation import kernels

SAMPLE = 128  # first examples, and as many in turn from each class
SAMPLED_VALUES = 2**25  # pixels compared to choose the features
FILTERED, FIRST_FINISHED = 96, 512  # features; the second includes the first
UNKNOWN = np.iinfo(np.int64).max  # index that loses every tie


class Examples(NamedTuple):
  """A checked set."""

  images: np.ndarray  # [N, F], uint8 or float32
  labels: np.ndarray  # [N]


class Best(NamedTuple):
  """Smallest gap of each query so far, the smallest index that has it."""

  gaps: np.ndarray  # [N], float64; inf where nothing is known
  indices: np.ndarray  # [N], int64; UNKNOWN where nothing is known
  next_query: int = 0  # the queries before this one are done


Report = Callable[[Best], None]  # sees the state after each block of queries


def bounded(gaps: np.ndarray) -> Best:
  """The state in which only upper bounds are known."""
  return Best(np.array(gaps, np.float64), np.full(len(gaps), UNKNOWN))


def improve(best: Best, rows, cols, gaps) -> None:
  """Takes the pairs (rows, cols) into account, in place."""
  order = np.lexsort((cols, gaps, rows))
  order = order[np.diff(rows[order], prepend=-1) > 0]
  rows, cols, gaps = rows[order], cols[order], gaps[order]
  tie = (gaps == best.gaps[rows]) & (cols < best.indices[rows])
  better = tie | (gaps < best.gaps[rows])
  best.gaps[rows[better]] = gaps[better]
  best.indices[rows[better]] = cols[better]


def limits(best: Best, rows: slice, first: int) -> np.ndarray:
  """Gaps from which on an index not below `first` is of no use, float32."""
  gaps = best.gaps[rows].astype(np.float32)
  above = np.nextafter(gaps, np.float32(np.inf))
  equal_helps = (best.indices[rows] > first) | (gaps < best.gaps[rows])
  gaps = np.where(equal_helps, above, gaps)
  smallest = np.finfo(np.float32).tiny  # devices take subnormal numbers for 0
  return np.where(gaps > 0, np.maximum(gaps, smallest), gaps)


def run(
  queries: Examples,
  refs: Examples,
  *,
  norm: str,
  start: Best | None = None,
  report: Report | None = None,
) -> Best:
  """The nearest opponent of every query; `refs` may be `queries` itself.

  Args:
    start: what is known already: an earlier report on the same sets, or upper
      bounds. It is not changed.
    report: called with a state that is only valid during the call.
  """
  best = (
    Best(*map(np.array, start))
    if start
    else bounded([np.inf] * len(queries.labels))
  )
  if not len(queries.labels) or not len(refs.labels):
    return best
  seen = 0
  if start is None:
    _first_bounds(best, queries, refs, norm)
    # Among the first examples, none is left that could win a tie.
    seen = SAMPLE - 1 if norm == 'linf' else 0
  return _walk(best, _Tiles(queries, refs, best.gaps, norm), seen, report)


def pairs_up_to(
  queries: Examples, refs: Examples, gap: float, *, norm: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Rows, columns and gaps of all opponents not farther than `gap`."""
  if not len(queries.labels) or not len(refs.labels):
    return
  best = bounded(np.full(len(queries.labels), gap))
  tiles = _Tiles(queries, refs, best.gaps, norm)
  for row in range(0, len(queries.labels), tiles.block):
    row_limits = limits(best, slice(row, row + tiles.block), 0)
    for col in range(0, len(refs.labels), tiles.block):
      yield tiles.compare(row, col, row_limits, None, jax.local_devices()[0])


def _first_bounds(best, queries, refs, norm) -> None:
  sample = _sample(refs.labels)
  size = min(1024, kernels.power_of_two(len(queries.images)))
  for first in range(0, len(queries.images), size):
    rows = np.arange(first, min(first + size, len(queries.images)))
    found, where = kernels.nearest_in_tile(
      _padded(queries.images[rows], size, axis=0),
      refs.images[sample],
      _padded(queries.labels[rows], size, axis=0),
      refs.labels[sample],
      norm=norm,
    )
    found = np.flatnonzero(np.asarray(found)[: len(rows)])
    where = np.asarray(where)[found]
    gaps = kernels.exact_gaps(
      queries.images[rows], refs.images[sample], found, where, norm=norm
    )
    improve(best, rows[found], sample[where], gaps)


def _sample(labels):
  """The first examples of all, and the first of each class."""
  _, classes = np.unique(labels, return_inverse=True)
  order = np.argsort(classes, kind='stable')
  rank = np.arange(len(order)) - np.searchsorted(classes[order], classes[order])
  of_each = order[np.argsort(rank, kind='stable')][:SAMPLE]
  sample = np.union1d(np.arange(min(SAMPLE, len(labels))), of_each)
  return np.pad(sample, (0, 2 * SAMPLE - len(sample)), mode='edge')


def _padded(array, size, axis):
  padding = [(0, 0)] * array.ndim
  padding[axis] = (0, size - array.shape[axis])
  return np.pad(array, padding)


def _telling_features(gaps, queries, refs, size):
  draw = np.random.default_rng(0).integers
  num_pairs = min(8192, SAMPLED_VALUES // queries.images.shape[1] + 1)
  rows = draw(len(queries.images), size=num_pairs)
  cols = draw(len(refs.images), size=num_pairs)
  opponents = queries.labels[rows] != refs.labels[cols]
  rows, cols = rows[opponents], cols[opponents]
  apart = kernels.differences(queries.images[rows], refs.images[cols])
  return kernels.telling_features(apart, gaps[rows], size)


class _Tiles:
  """Two sets cut into blocks: few features for the device, all for the end."""

  def __init__(self, queries, refs, gaps, norm):
    self.queries, self.refs, self.norm = queries, refs, norm
    on_cpu = jax.default_backend() == 'cpu'
    sides = queries.images, refs.images
    largest = kernels.power_of_two(max(map(len, sides)))
    self.block = min(1024 if on_cpu else 4096, largest)
    self.stages = [sides]
    filtered = sides
    if norm == 'linf' and on_cpu and sides[0].shape[1] > FILTERED:
      features = _telling_features(gaps, queries, refs, FIRST_FINISHED)
      self.stages.insert(0, [side.take(features, axis=1) for side in sides])
      filtered = [side[:, :FILTERED] for side in self.stages[0]]
    self.columns = [np.ascontiguousarray(side.T) for side in filtered]

  def compare(self, row, col, row_limits, col_limits, device):
    """Pairs below a limit in the blocks from `row` and `col`, their gaps."""
    rows, cols = slice(row, row + self.block), slice(col, col + self.block)
    if col_limits is None:
      col_limits = np.full(len(self.refs.labels[cols]), -1, np.float32)
    arrays = (
      self.columns[0][:, rows],
      self.columns[1][:, cols],
      self.queries.labels[rows],
      self.refs.labels[cols],
      row_limits,
      col_limits,
    )
    arrays = [_padded(array, self.block, axis=-1) for array in arrays]
    near = kernels.candidates(*jax.device_put(arrays, device), norm=self.norm)
    i, j = np.divmod(np.flatnonzero(near), self.block)
    inside = (i < len(row_limits)) & (j < len(col_limits))
    i, j, gaps = i[inside], j[inside], np.zeros(0)
    for images, ref_images in self.stages:
      gaps = kernels.exact_gaps(
        images[rows], ref_images[cols], i, j, norm=self.norm, device=device
      )
      kept = (gaps < row_limits[i]) | (gaps < col_limits[j])
      i, j, gaps = i[kept], j[kept], gaps[kept]
    return i + row, j + col, gaps


def _walk(best, tiles, seen, report):
  """Compares all pairs that can matter, one block of queries after another."""
  same, lock = tiles.refs is tiles.queries, threading.Lock()

  def update(row, col, device):
    rows, cols = slice(row, row + tiles.block), slice(col, col + tiles.block)
    with lock:  # gaps and indices that belong together
      row_limits = limits(best, rows, max(col, seen))
      col_limits = limits(best, cols, max(row, seen)) if same else None
    i, j, gaps = tiles.compare(row, col, row_limits, col_limits, device)
    with lock:
      improve(best, i, j, gaps)
      if same:
        improve(best, j, i, gaps)

  devices = jax.local_devices()
  workers = max(os.cpu_count() or 1, len(devices))
  size, block = len(tiles.queries.labels), tiles.block
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    for row in range(int(best.next_query), size, block):
      cols = range(row if same else 0, len(tiles.refs.labels), block)
      rows = itertools.repeat(row)
      for _ in pool.map(update, rows, cols, itertools.cycle(devices)):
        pass
      best = best._replace(next_query=min(row + block, size))
      if report:
        report(best)
  return best

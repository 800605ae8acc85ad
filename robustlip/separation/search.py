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
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from robustlip.separation import kernels

SAMPLE = 256  # reference examples behind the first bounds
SAMPLED_VALUES = 2**25  # pixels compared to choose the features


class Examples(NamedTuple):
  """A checked set."""

  images: np.ndarray  # [N, F], uint8 or float32
  labels: np.ndarray  # [N]


class Best(NamedTuple):
  """Smallest gap of each query so far, the smallest index that has it."""

  gaps: np.ndarray  # [N], float64; inf where nothing is known
  indices: np.ndarray  # [N], int64; the largest int64 where nothing is known
  next_block: int = 0  # first block of queries that is not done


# Called as report(best, number of blocks) after each block of queries.
Report = Callable[[Best, int], None]


def unknown(size: int) -> Best:
  """The state before anything was compared."""
  return Best(np.full(size, np.inf), np.full(size, np.iinfo(np.int64).max))


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
  """The nearest opponent of every query; `refs` may be `queries` itself."""
  best = Best(*map(np.array, start[:2]), start[2]) if start else None
  if best is None:
    best = unknown(len(queries.images))
    if len(queries.images) and len(refs.images):
      _first_bounds(best, queries, refs, norm)
  if len(queries.images) and len(refs.images):
    _Filter(best, queries, refs, norm).run(report)
  return best


def _first_bounds(best, queries, refs, norm) -> None:
  _, classes = np.unique(refs.labels, return_inverse=True)
  order = np.argsort(classes, kind='stable')
  rank = np.arange(len(order)) - np.searchsorted(classes[order], classes[order])
  sample = np.sort(order[np.argsort(rank, kind='stable')][:SAMPLE])
  size = 1024
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


def _padded(array, size, axis):
  padding = [(0, 0)] * array.ndim
  padding[axis] = (0, size - array.shape[axis])
  return np.pad(array, padding)


def _telling_features(best, queries, refs, size):
  draw = np.random.default_rng(0).integers
  num_pairs = min(8192, SAMPLED_VALUES // queries.images.shape[1] + 1)
  rows = draw(len(queries.images), size=num_pairs)
  cols = draw(len(refs.images), size=num_pairs)
  opponents = queries.labels[rows] != refs.labels[cols]
  rows, cols = rows[opponents], cols[opponents]
  apart = kernels.differences(queries.images[rows], refs.images[cols])
  return kernels.telling_features(apart, best.gaps[rows], size)


class _Filter:
  """One search: what the device compares, and the best found so far."""

  def __init__(self, best, queries, refs, norm):
    self.best, self.queries, self.refs, self.norm = best, queries, refs, norm
    self.same, self.lock = refs is queries, threading.Lock()
    on_cpu = jax.default_backend() == 'cpu'
    self.block = 1024 if on_cpu else 4096
    features = np.arange(queries.images.shape[1])
    self.stages = [(queries.images, refs.images)]
    if norm == 'linf' and on_cpu and len(features) > 128:
      features = _telling_features(best, queries, refs, 512)
      some = (images.take(features, 1) for images, _ in (queries, refs))
      self.stages.insert(0, tuple(some))
      features = features[:128]
    self.columns = [
      np.ascontiguousarray(images[:, features].T)
      for images in (queries.images, refs.images)
    ]

  def run(self, report):
    blocks = -(-len(self.queries.images) // self.block)
    devices = itertools.cycle(jax.local_devices())
    workers = int(os.environ.get('WK', 2))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      for block in range(self.best.next_block, blocks):
        first = block * self.block
        start = first if self.same else 0
        cols = range(start, len(self.refs.images), self.block)
        list(pool.map(lambda c, d, r=first: self.tile(r, c, d), cols, devices))
        self.best = self.best._replace(next_block=block + 1)
        if report:
          report(self.best, blocks)

  def tile(self, row, col, device):
    """Compares two blocks that begin at `row` and `col`."""
    rows, cols = slice(row, row + self.block), slice(col, col + self.block)
    row_limits = limits(self.best, rows, col)
    num_cols = len(self.refs.labels[cols])
    col_limits = (
      limits(self.best, cols, row)
      if self.same
      else np.full(num_cols, -1, np.float32)
    )
    tile = [
      _padded(array, self.block, axis=-1)
      for array in (
        self.columns[0][:, rows],
        self.columns[1][:, cols],
        self.queries.labels[rows],
        self.refs.labels[cols],
        row_limits,
        col_limits,
      )
    ]
    near = kernels.candidates(*jax.device_put(tile, device), norm=self.norm)
    near = np.asarray(near)[: len(row_limits), :num_cols]
    near_rows, near_cols = np.nonzero(near)
    for images, ref_images in self.stages:
      gaps = kernels.exact_gaps(
        images[rows], ref_images[cols], near_rows, near_cols, norm=self.norm
      )
      kept = (gaps < row_limits[near_rows]) | (gaps < col_limits[near_cols])
      near_rows, near_cols, gaps = near_rows[kept], near_cols[kept], gaps[kept]
    near_rows, near_cols = near_rows + row, near_cols + col
    with self.lock:
      improve(self.best, near_rows, near_cols, gaps)
      if self.same:
        improve(self.best, near_cols, near_rows, gaps)

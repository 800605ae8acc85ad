"""A few coordinates of each image, which rule most pairs of images out.

The gap of two images is never smaller than the gap of their coordinates: for
l-inf these are some of the features, for l2 the components along orthonormal
directions and the length of what is left.
"""

import numpy as np

from robustlip.separation import kernels

SAMPLED_PAIRS = 8192  # that choose features
SAMPLED_VALUES = 2**25  # at most, in these pairs
SAMPLED_IMAGES = 1024  # that choose directions
PROJECTED_VALUES = 2**21  # pixels at a time


def telling_features(
  queries: np.ndarray, refs: np.ndarray, limits: np.ndarray, size: int
) -> np.ndarray:
  """Indices [size] of the features that rule out most pairs, best first.

  A greedy cover of random pairs: the feature that rules out most of them, then
  the one that rules out most of the rest; it starts over when none are left.

  Args:
    limits: [N], by query; a pair with a gap at or above it is ruled out.
  """
  draw = np.random.default_rng(0).integers
  num_pairs = min(SAMPLED_PAIRS, SAMPLED_VALUES // queries.shape[1] + 1)
  rows, cols = (draw(len(side), size=num_pairs) for side in (queries, refs))
  apart, limits = kernels.differences(queries[rows], refs[cols]), limits[rows]
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


def leading_directions(
  images: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """A center [F] and at most `size` orthonormal directions [F, D], float64.

  They approximate the leading principal directions of a sample, by two steps of
  subspace iteration. Others would be correct too, but rule out fewer pairs.
  """
  draw = np.random.default_rng(0)
  count = min(SAMPLED_IMAGES, len(images))
  sample = images[draw.choice(len(images), count, replace=False)]
  center = sample.mean(axis=0, dtype=np.float64)
  deltas = sample - center
  components = draw.normal(size=(count, size))
  for _ in range(2):
    directions, _ = np.linalg.qr(deltas.T @ components)
    components = deltas @ directions
  return center, directions


def project(
  images: np.ndarray, center: np.ndarray, directions: np.ndarray
) -> np.ndarray:
  """Components along the directions, length of the rest: float32 [N, D + 1]."""
  found = np.empty((len(images), directions.shape[1] + 1), np.float32)
  step = max(PROJECTED_VALUES // images.shape[1], 1)
  for first in range(0, len(images), step):
    part = slice(first, first + step)
    deltas = images[part] - center
    components = deltas @ directions
    rest = np.vecdot(deltas, deltas) - np.vecdot(components, components)
    found[part, :-1] = components
    found[part, -1] = np.sqrt(np.maximum(rest, 0))
  return found


def projection_error(num_features: int, num_directions: int) -> float:
  """By how much the gap of projected images may be too large.

  Relative to the sum of the squared lengths of their coordinates. Let u be
  float64's epsilon and s the length of an image minus the center. Components
  and directions are off by at most e = F D u, relative to s, and the square
  of the rest by 3 e, so that the rest is off by sqrt(3 e). Two images are at
  most s + s' apart, and (s + s')^2 <= 2 (s^2 + s'^2): their gap grows by no
  more than 4 (e + sqrt(3 e)), of which 8 sqrt(e) is an upper bound. Rounding
  to float32 adds at most 2 of its epsilons.
  """
  e = num_features * num_directions * np.finfo(np.float64).eps
  return 8 * np.sqrt(e) + 2 * np.finfo(np.float32).eps

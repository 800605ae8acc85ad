"""Cubic splines on the staircase: features, penalty, scores.

A spline is given by coefficients [34] for the knots {i, i +- 1/3}. The
perturbed inputs of x are x - 1/3, x and x + 1/3.
"""

from typing import NamedTuple

import numpy as np
import scipy.interpolate

from robustlip.datasets import synthetic

SHIFT = synthetic.STAIR_SHIFT
PENALTY = 0.01  # weight of the squared second differences


NUM_COEFFICIENTS = 34
INNER_KNOTS = np.sort(
  np.add.outer([-SHIFT, 0, SHIFT], np.arange(synthetic.NUM_STAIRS)).ravel()
)


def _basis() -> scipy.interpolate.BSpline:
  margin = np.arange(1.0, 5.0)
  # As published: on the left the margin ends at -2/3, not at -1 - 1/3.
  left, right = margin - 5 - INNER_KNOTS[0], INNER_KNOTS[-1] + margin
  knots = np.concatenate([left, INNER_KNOTS, right])
  return scipy.interpolate.BSpline(knots, np.eye(NUM_COEFFICIENTS), 3)


BASIS = _basis()  # called with inputs [N]: features [N, 34]
SLOPE = BASIS.derivative()
DIFFERENCES = np.diff(np.eye(NUM_COEFFICIENTS), n=2)  # [34, 32]
ROUGHNESS = DIFFERENCES @ DIFFERENCES.T


class Data(NamedTuple):
  """Examples in groups of equal inputs, and the features of distinct inputs."""

  inputs: np.ndarray  # [N]
  targets: np.ndarray  # [N]
  groups: np.ndarray  # [N], index of the distinct input
  counts: np.ndarray  # [K], examples per distinct input
  around: np.ndarray  # [3, K, 34], features of x - 1/3, x and x + 1/3
  slope: np.ndarray  # [K, 34], derivatives of the features by the input

  @property
  def center(self) -> np.ndarray:
    """Features of the inputs themselves, [K, 34]."""
    return self.around[1]


class Scores(NamedTuple):
  """Means over a set; the last two are in target units per input unit."""

  error: float
  attacked_error: float
  label_ratio: float  # max over both sides of |f(x +- 1/3) - y| / (1/3)
  lipschitz: float  # max over both sides of |f(x +- 1/3) - f(x)| / (1/3)


def observe(inputs: np.ndarray, targets: np.ndarray) -> Data:
  """Gathers equal inputs (up to rounding) and computes their features."""
  points, groups = np.unique(np.round(inputs, 9), return_inverse=True)
  return Data(
    inputs=inputs,
    targets=targets,
    groups=groups,
    counts=np.bincount(groups),
    around=np.stack([BASIS(points + s) for s in (-SHIFT, 0, SHIFT)]),
    slope=SLOPE(points),
  )


def penalty(coefficients: np.ndarray) -> float:
  """The roughness penalty of every objective."""
  return PENALTY * coefficients @ ROUGHNESS @ coefficients


def errors(coefficients: np.ndarray, data: Data) -> np.ndarray:
  """f(x - 1/3) - y, f(x) - y and f(x + 1/3) - y, [3, N]."""
  return (data.around @ coefficients)[:, data.groups] - data.targets[None]


def evaluate(coefficients: np.ndarray, data: Data) -> Scores:
  """Mean squared errors and Lipschitz ratios of a spline on `data`."""
  signed = errors(coefficients, data)
  moves = np.abs(signed - signed[1]).max(axis=0)
  sizes = np.abs(signed)
  return Scores(
    error=np.mean(sizes[1] ** 2),
    attacked_error=np.mean(sizes.max(axis=0) ** 2),
    label_ratio=np.mean(sizes[::2].max(axis=0)) / SHIFT,
    lipschitz=np.mean(moves) / SHIFT,
  )

"""The classifier of the paper's theorems, computed exactly on finite sets.

f(x)_i = dist(x, class i) / r and g(x) = argmin_i f(x)_i (Eqs. 1 and 2), where
the classes are the examples of a reference set. A class distance changes by at
most dist(x, x') between x and x'. So f is 1/r-Lipschitz everywhere, and g keeps
its answer while x moves by less than half the difference of the two smallest
class distances. After exactly half of it the two can tie (the boundary case of
Lemma 4.1, where f(x)_j - f(x)_y = 2 and x' is at distance r), so certificates
hold in the open ball.

Shared arguments: `class_distances` is [N, C], of `class_distances`; `labels`
is [N], integers in [0, C); `radius` is r, positive and finite, in units of the
inputs. All functions that take them raise ValueError if these do not fit
together.
Everything is NumPy; the distances come from `separation` and are float32.
"""

from __future__ import annotations

import chex
import numpy as np

from robustlip import separation
from robustlip.images import check_labels

ROUNDING = 5e-5  # covers the rounding of float32 distances up to 400


def class_distances(
  inputs: chex.Array,
  ref_inputs: chex.Array,
  ref_labels: chex.Array,
  *,
  num_classes: int,
  norm: str = 'linf',
) -> np.ndarray:
  """Distance of each input to the nearest reference of each class, [N, C].

  Args:
    inputs: [N, ...], uint8 images or float32.
    ref_inputs: [M, ...] of the same type and shape.
    ref_labels: [M], integers in [0, num_classes).
    num_classes: C; a class without a reference is at distance inf.
    norm: 'linf' or 'l2'.
  """
  ref_labels = np.asarray(ref_labels)
  check_labels(ref_labels, len(ref_inputs), num_classes)
  distances = np.full((len(inputs), num_classes), np.inf, np.float32)
  for label in np.unique(ref_labels):
    refs = ref_inputs[ref_labels == label]
    distances[:, label] = separation.nearest(inputs, refs, norm=norm).distances
  return distances


def values(class_distances: np.ndarray, *, radius: float) -> np.ndarray:
  """The f of Eq. (1), [N, C]."""
  _check_radius(radius)
  return class_distances / radius


def predict(class_distances: np.ndarray) -> np.ndarray:
  """The g of Eq. (2), [N]; of tied classes the smallest number."""
  _check_references(class_distances)
  return np.argmin(class_distances, axis=1)


def binary_values(class_distances: np.ndarray, *, radius: float) -> np.ndarray:
  """The f of Theorem 4.4, [N]: positive where class 1 is the nearer."""
  _check_radius(radius)
  if class_distances.shape[1] != 2:
    raise ValueError(f'need two classes, got {class_distances.shape[1]}.')
  negative, positive = class_distances.T
  return (negative - positive) / (2 * radius)


def margins(class_distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Distance to the nearest other class minus that to the own class, [N].

  In units of the inputs; divided by r it is the margin of Lemma 4.1. Positive
  where g is right.
  """
  labels = np.asarray(labels)
  check_labels(labels, *class_distances.shape)
  _check_references(class_distances)
  is_label = np.arange(class_distances.shape[1]) == labels[:, None]
  own = class_distances[is_label]
  return np.where(is_label, np.inf, class_distances).min(axis=1) - own


def certified_radius(
  class_distances: np.ndarray, labels: np.ndarray
) -> np.ndarray:
  """Radius of the open ball on which g is provably right, [N].

  Half the margin where g is right, 0 where it is wrong or tied; inf if no other
  class has a reference.
  """
  return np.maximum(margins(class_distances, labels), 0) / 2


def certified(margins: np.ndarray, radius: float) -> np.ndarray:
  """Whether g is provably right on the closed ball of `radius`, bool [N].

  It is where half the margin exceeds the radius by more than `ROUNDING`, since
  distances are float32. This suffices for class distances up to 400, such as
  those of images of 224 x 224 x 3 in [0, 1], also in l2.

  Args:
    margins: [N], of `margins`.
    radius: not negative.
  """
  if not radius >= 0:
    raise ValueError(f'the radius cannot be negative or NaN, got {radius}.')
  return np.asarray(margins, np.float64) / 2 > radius + ROUNDING


def lipschitz_ratio(
  values: np.ndarray, moved_values: np.ndarray, moves: np.ndarray
) -> np.ndarray:
  """Largest |f(x)_i - f(x')_i| / dist(x, x') over coordinates i, [N].

  A coordinate that is inf at both points (its class has no reference) has not
  changed.

  Args:
    values: f at x, [N, C].
    moved_values: f at x', [N, C].
    moves: dist(x, x'), [N], positive.
  """
  if values.shape != moved_values.shape or moves.shape != values.shape[:1]:
    raise ValueError(
      f'shapes {values.shape}, {moved_values.shape} and {moves.shape} do not '
      'fit together.'
    )
  if not np.all(moves > 0):
    raise ValueError('the two points of every pair must differ.')
  changes = np.zeros(values.shape, np.result_type(values, moved_values))
  np.subtract(values, moved_values, out=changes, where=values != moved_values)
  return np.abs(changes).max(axis=1) / moves


def _check_references(class_distances: np.ndarray) -> None:
  if np.isinf(class_distances).all(axis=1).any():
    raise ValueError('there is no reference of any class.')


def _check_radius(radius: float) -> None:
  if not 0 < radius < np.inf:  # of one class alone the separation is inf
    raise ValueError(f'radius must be positive and finite, got {radius}.')

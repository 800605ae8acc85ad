"""The distance classifier on a data set: certified, checked and attacked.

Shared arguments: `dataset` is a `datasets.Dataset`; g is the distance
classifier whose classes are the training examples. Ties between classes count
as errors. Accuracies are fractions of the examples counted beside them.
"""

from typing import Any

import numpy as np
from absl import logging

from robustlip import distance_attack, theory
from robustlip.datasets import Dataset, Split
from robustlip.images import from_bytes

JUST_INSIDE = 0.999  # of a ball's radius: certificates hold in the open ball


def some_of(split: Split, count: int, seed: int) -> Split:
  """`count` examples drawn without replacement, or all, in random order."""
  chosen = np.random.default_rng(seed).permutation(len(split.labels))[:count]
  return Split(split.images[chosen], split.labels[chosen])


def train_certificate(distances: np.ndarray) -> dict[str, Any]:
  """Theorem 4.2 on the training set itself, with r half its separation.

  An example is at distance 0 from its own class, so its certified radius is
  half its distance to the nearest example of another class.

  Args:
    distances: [N], to the nearest example of another class.
  """
  radius = distances.min() / 2
  return {
    'num_train': len(distances),
    'separation': 2 * radius,
    'r': radius,
    'accuracy': np.mean(distances > 0),
    'astute_in_open_ball': np.mean((distances / 2 >= radius) & (distances > 0)),
    'astute_in_closed_ball': np.mean(theory.certified(distances, radius)),
    # In units of r, as in Lemma 4.1.
    'smallest_margin': distances.min() / radius if radius else None,
  }


def _accuracies(margins: np.ndarray, epsilon: float) -> dict[str, Any]:
  radii = epsilon * np.linspace(0, 3, 61)
  return {
    'accuracy': np.mean(margins > 0),
    'tied': np.mean(margins == 0),
    'certified': np.mean(theory.certified(margins, epsilon)),
    'curve': {
      'epsilons': radii,
      'certified': [np.mean(theory.certified(margins, r)) for r in radii],
    },
  }


def test_table(
  dataset: Dataset,
  *,
  num_test: int,
  num_attacked: int,
  epsilon: float,
  seed: int,
) -> dict[str, Any]:
  """Accuracy of g on the test set: clean, certified and under attack.

  Args:
    num_test: test examples, drawn without replacement.
    num_attacked: how many of these, the first ones, are attacked.
    epsilon: radius of certificate and attack.
    seed: of the draw.
  """
  images, labels = some_of(dataset.test, num_test, seed)
  logging.info('nearest training images of %d test images', len(labels))
  found = distance_attack.nearest_references(images, labels, *dataset.train)
  some = slice(0, num_attacked)
  attacked = distance_attack.attack(
    from_bytes(images[some]),
    labels[some],
    from_bytes(dataset.train.images),
    dataset.train.labels,
    epsilon=epsilon,
  )
  return {
    'epsilon': epsilon,
    'num_test': len(labels),
    **_accuracies(found.margins, epsilon),
    'attacked_subset': {
      'num_attacked': len(attacked.margins),
      **_accuracies(found.margins[some], epsilon),
      'attacked': np.mean((found.margins[some] > 0) & (attacked.margins > 0)),
    },
  }


def lemma_checks(
  dataset: Dataset, *, radius: float, num_examples: int, seed: int
) -> dict[str, Any]:
  """Lemma 4.1's conditions and conclusion around some training examples.

  Around each example one point is drawn uniformly just inside the ball of
  `radius`, and one is found by the attack on g.
  """
  images, labels = some_of(dataset.train, num_examples, seed)
  images = from_bytes(images)
  refs = from_bytes(dataset.train.images), dataset.train.labels
  size = JUST_INSIDE * radius
  noise = np.random.default_rng(seed).uniform(-size, size, images.shape)
  attacked = distance_attack.attack(images, labels, *refs, epsilon=size)
  moved = {
    'sampled': np.clip(images + noise, 0, 1).astype(np.float32),
    'attacked': attacked.points,
  }

  def distances(inputs):
    num_classes = len(dataset.class_names)
    return theory.class_distances(inputs, *refs, num_classes=num_classes)

  before = theory.values(distances(images), radius=radius)
  result = {'num_examples': len(labels)}
  for name, points in moved.items():
    around = distances(points)
    after = theory.values(around, radius=radius)
    moves = np.abs(points - images).reshape(len(images), -1).max(axis=1)
    ratios = theory.lipschitz_ratio(before, after, moves)
    result[name] = {
      'largest_ratio_times_r': ratios.max() * radius,
      'astute': np.mean(theory.margins(around, labels) > 0),
    }
  return result

"""What the theorems say, computed on a data set: the distance classifier.

Shared arguments: `dataset` is a `datasets.Dataset`; g is the distance
classifier whose classes are the training examples. Ties between classes count
as errors. Accuracies are fractions of the examples named beside them.
"""

from typing import Any

import numpy as np
from absl import logging

from robustlip import distance_attack, separation, theory
from robustlip.datasets import Dataset, Split
from robustlip.images import from_bytes

JUST_INSIDE = 0.999  # of a ball's radius: certificates hold in the open ball


def some_of(split: Split, count: int, seed: int) -> Split:
  """`count` examples drawn without replacement, or all, in random order."""
  chosen = np.random.default_rng(seed).permutation(len(split.labels))[:count]
  return Split(split.images[chosen], split.labels[chosen])


def train_certificate(distances: np.ndarray) -> dict[str, Any]:
  """Theorem 4.2 on the training set itself, with r half its separation.

  An example's distance to its own class is 0, so its certified radius is half
  its distance to the nearest example of another class.

  Args:
    distances: those distances, [N].
  """
  radius = distances.min() / 2
  return {
    'num_train': len(distances),
    'separation': 2 * radius,
    'r': radius,
    'accuracy': np.mean(distances > 0),
    'astute_in_open_ball': np.mean((distances / 2 >= radius) & (distances > 0)),
    'astute_in_closed_ball': np.mean(theory.certified(distances, radius)),
    'smallest_margin': distances.min() / radius if radius else None,
  }


def train_distances(dataset: Dataset) -> np.ndarray:
  """Distance of each training example to the nearest of another class."""
  logging.info('train-train separation of %d images', len(dataset.train.labels))
  return separation.nearest_opposite(*dataset.train).distances


def _accuracies(gaps: np.ndarray, epsilon: float) -> dict[str, Any]:
  radii = epsilon * np.linspace(0, 3, 61)
  return {
    'accuracy': np.mean(gaps > 0),
    'tied': np.mean(gaps == 0),
    'certified': np.mean(theory.certified(gaps, epsilon)),
    'curve': {
      'epsilons': radii,
      'certified': [np.mean(theory.certified(gaps, r)) for r in radii],
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
    num_test: test examples, drawn without replacement, which the clean and
      certified columns cover.
    num_attacked: of these the first, which the attack covers.
    epsilon: radius of certificate and attack.
    seed: of the draw.
  """
  images, labels = some_of(dataset.test, num_test, seed)
  logging.info('nearest training images of %d test images', len(labels))
  gaps = distance_attack.search(images, labels, *dataset.train).gaps
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
    **_accuracies(gaps, epsilon),
    'attacked_subset': {
      'num_attacked': len(attacked.gaps),
      **_accuracies(gaps[some], epsilon),
      'attacked': np.mean((gaps[some] > 0) & (attacked.gaps > 0)),
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
      'astute': np.mean(theory.gaps(around, labels) > 0),
    }
  return result

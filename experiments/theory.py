r"""The distance classifier of the theorems, on images and in the plane.

  python -m experiments.theory
  python -m experiments.theory --dataset=cifar10 --num_test=1000

On the data set: r is half the measured train-train separation; g is right on
every training image and certified in the open ball of radius r around it
(Theorem 4.2); Lemma 4.1 is checked at sampled and at attacked points; on test
images, where the theorem promises nothing, the record has the accuracy of g:
clean, under attack and certified (certified <= attacked <= clean).

Figures, in PNG: figure_2, figure_4 (r = 0.353, accuracy 1 with seed 0, the
published draw), figure_5, not_separated (the distribution of Tsipras et al.)
and accuracies.

Ties between classes count as errors; accuracies are fractions of the examples
counted beside them.

Writes theory_<dataset>.json. A minute on 2 CPU cores at the defaults.
"""

import math
import time
from typing import Any

import numpy as np
from absl import flags, logging

from experiments import common, plots, theory_figures
from robustlip import distance_attack, separation, theory
from robustlip.datasets import Dataset, Split
from robustlip.images import from_bytes

FLAGS = flags.FLAGS
JUST_INSIDE = 0.999  # times the radius: certificates hold in the open ball


def define() -> None:
  """The flags of this script."""
  common.define_dataset()
  common.define_epsilon()
  common.define_seed()
  flags.DEFINE_string(
    'workdir', 'runs/theory', 'Folder for the record and the figures.'
  )
  flags.DEFINE_integer(
    'num_test', None, 'Test images, drawn at random. Default: all.', 1
  )
  flags.DEFINE_integer('num_attacked', 500, 'Test images to attack.', 1)
  flags.DEFINE_integer(
    'num_checked', 100, 'Training images to check Lemma 4.1 at.', 0
  )
  flags.DEFINE_bool(
    'figures', True, 'Draw the figures that do not depend on the data set.'
  )


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
    num_attacked: how many of these are attacked, the first ones.
    epsilon: radius of certificate and attack.
    seed: for the draw.
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


def on_data(dataset: Dataset, epsilon: float, seed: int) -> dict:
  """The certificate on the training set, the lemma's checks, the test table."""
  logging.info('separation of %d training images', len(dataset.train.labels))
  distances = separation.nearest_opposite(*dataset.train).distances
  result = {'train': train_certificate(distances)}
  radius = result['train']['r']
  if 0 < radius < math.inf and FLAGS.num_checked:
    result['lemma_4_1'] = lemma_checks(
      dataset, radius=radius, num_examples=FLAGS.num_checked, seed=seed
    )
  result['test'] = test_table(
    dataset,
    num_test=FLAGS.num_test or len(dataset.test.labels),
    num_attacked=FLAGS.num_attacked,
    epsilon=epsilon,
    seed=seed,
  )
  return result


def main() -> None:
  """The measurements, the record, the figures."""
  start, seed = time.monotonic(), FLAGS.seed
  dataset = common.load_dataset()
  name, epsilon = dataset.name, common.radius(dataset)
  if len(dataset.class_names) < 2:
    raise ValueError(f'{name} has one class; a classifier needs two')
  folder = common.output_folder(FLAGS.workdir)
  output = folder / f'theory_{name}.json'
  record = common.owner(dataset, output) | {'seed': seed}
  record['data'] = on_data(dataset, epsilon, seed)
  figures = {}
  if FLAGS.figures:
    figures = {k: of(seed) for k, of in theory_figures.FIGURES.items()}
    record['figures'] = {k: numbers for k, (numbers, _) in figures.items()}
  record |= {'seconds': time.monotonic() - start, **common.provenance()}
  common.finish(record, output)
  for figure, (_, draw) in figures.items():
    common.draw(draw, folder / figure)
  found = record['data']['test']['attacked_subset']
  g = plots.of_g(found['curve'], math.inf)
  g['label'] = f'{name}, {found["num_attacked"]:,} images; triangle: attacked'
  g['adv_test_acc_at'] = {epsilon: 100 * found['attacked']}
  common.draw(plots.both_sides, [g], folder / f'accuracies_{name}')


if __name__ == '__main__':
  common.run(main, define)

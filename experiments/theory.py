r"""The distance classifier of the theorems, on images and in the plane.

  python -m experiments.theory
  python -m experiments.theory --dataset=cifar10 --num_test=1000

On the data set: r is half the measured train-train separation; g is right on
every training image and certified in the open ball of radius r around it
(Theorem 4.2); Lemma 4.1 is checked at sampled and at attacked points; on test
images, where the theorem promises nothing, the accuracy of g, its certified
accuracy and what an attack leaves of it: certified <= attacked <= clean.

Figures, in PNG: figure_2, figure_4 (r = 0.353, accuracy 1 with seed 0, the
published draw), figure_5, not_separated (the distribution of Tsipras et al.)
and accuracies.

Writes theory_<dataset>.json. 2 minutes on 2 CPU cores at the defaults.
"""

import math
import time

from absl import flags, logging

from experiments import common, distance_classifier, plots, theory_figures
from robustlip import datasets, separation

FLAGS = flags.FLAGS


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
  flags.DEFINE_integer('num_attacked', 500, 'How many of these to attack.', 1)
  flags.DEFINE_integer(
    'num_checked', 100, 'Training images to check Lemma 4.1 at.', 0
  )
  flags.DEFINE_bool(
    'figures', True, 'Draw what does not depend on the data set.'
  )


def on_data(dataset: datasets.Dataset, epsilon: float, seed: int) -> dict:
  """The certificate on the training set, the lemma's checks, the test table."""
  logging.info('separation of %d training images', len(dataset.train.labels))
  distances = separation.nearest_opposite(*dataset.train).distances
  result = {'train': distance_classifier.train_certificate(distances)}
  radius = result['train']['r']
  if 0 < radius < math.inf and FLAGS.num_checked:
    result['lemma_4_1'] = distance_classifier.lemma_checks(
      dataset, radius=radius, num_examples=FLAGS.num_checked, seed=seed
    )
  result['test'] = distance_classifier.test_table(
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
    for figure, compute in theory_figures.FIGURES.items():
      figures[figure] = compute(seed)
    record['figures'] = {key: numbers for key, (numbers, _) in figures.items()}
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

r"""Appendix C: an accurate and robust network for train and test set exists.

  python -m experiments.proof_of_concept --dataset=mnist --preset=paper

trains RST(4) on the training and the test set together, since the point is
existence, not generalization; the record says so. It measures accuracy, clean
and under PGD-10 and the multi-targeted attack, on both sets, and the
certificate of the distance classifier with both sets as references. We found no
numbers of the paper's. The same command again resumes or prints the result.
"""

import pathlib

from absl import flags

from experiments import common, config, evaluate, measure, paper, runs
from robustlip import separation, theory
from robustlip.datasets import Dataset

FLAGS = flags.FLAGS
NOTE = (
  'The test set was trained on, together with the training set: the numbers '
  'say that such a network exists, not how well one generalizes.'
)
FIXED = ('method', *config.WEIGHTS, 'holdout', 'train_examples')


def define() -> None:
  """The flags of this script."""
  common.define_dataset()
  config.define(without=FIXED)
  runs.define()
  flags.DEFINE_string(
    'workdir', None, 'Folder of runs and records. Default: runs/<preset>.'
  )


def settings(dataset: Dataset) -> config.Config:
  """RST(4), or what `--preset=paper` has, on both sets together.

  Raises:
    ValueError: for a data set that the appendix does not have.
  """
  base = dict(lam=4.0)
  if FLAGS.preset == 'paper':
    if dataset.name not in paper.PROOF_OF_CONCEPT:
      raise ValueError(
        f'--preset=paper knows {", ".join(paper.PROOF_OF_CONCEPT)}, not '
        f'{dataset.name!r}'
      )
    base = paper.PROOF_OF_CONCEPT[dataset.name]
  own = base | config.given() | dict(method='rst', train_on='train+test')
  return config.from_flags(dataset, **own)


def certificate(dataset: Dataset, epsilon: float) -> dict[str, float]:
  """Percent of each set on which the distance classifier is certified.

  Its references are the examples of both sets, so that the distance of each to
  its own class is 0, and its certified radius half that to the nearest other.
  """
  distances = separation.nearest_opposite(*dataset.both).distances
  certified = 100.0 * theory.certified(distances, epsilon)
  count = len(dataset.train.labels)
  return {
    'separation_of_both': float(distances.min()),
    'certified_train': float(certified[:count].mean()),
    'certified_test': float(certified[count:].mean()),
  }


def main() -> None:
  """One data set, one record: trains, measures, certifies what is missing."""
  if FLAGS.seeds > 1:
    raise ValueError('the proof of concept is one run: drop --seeds')
  dataset = common.load_dataset()
  chosen = settings(dataset)
  root = pathlib.Path(FLAGS.workdir or f'runs/{FLAGS.preset}')
  name = f'proof_of_concept-{dataset.name}-seed{chosen.seed}'
  found = {'note': NOTE, **runs.train(chosen, dataset, root / name)}
  attack = measure.Attack('multi_targeted')
  stronger = evaluate.evaluate(
    root / name, dataset, attack, only_step=found['step']
  )
  for column in ('adv_train_acc', 'adv_test_acc', 'adv_gap'):
    found[f'multi_targeted_{column}'] = stronger[column]
  found |= certificate(dataset, chosen.epsilon)
  common.finish(found, root / f'{name}.json')


if __name__ == '__main__':
  common.run(main, define)

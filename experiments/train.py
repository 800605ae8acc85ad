r"""Trains a classifier robustly, then measures it.

  python -m experiments.train --method=rst --lam=2

trains cnn1 on the embedded mnist5k for three epochs of RST and prints accuracy,
accuracy under PGD-10 and the local Lipschitz constant of the paper's Eq. (3).
`--preset=paper --dataset=mnist` is a row of the paper's Table 2.

The same command again resumes from the last checkpoint, or prints the result of
a finished run at once.
"""

import itertools
import pathlib

from absl import flags, logging

from experiments import common, config, runs
from experiments.config import Config
from robustlip import datasets

FLAGS = flags.FLAGS


def define() -> None:
  """The flags of this script."""
  common.define_dataset()
  config.define(several=config.WEIGHTS)
  runs.define()
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run; of several runs, one folder each in it. Default: '
    'runs/<the settings>.',
  )


def wanted(dataset: datasets.Dataset) -> list[Config]:
  """One `Config` for each choice of the listed weights and seeds.

  Raises:
    ValueError: for a flag that does not fit the data set or another flag.
  """
  choices = {'seed': config.seeds()}
  for name in config.WEIGHTS:
    if (values := config.numbers(name, common.Number().parse)) is not None:
      if not values:
        raise ValueError(f'--{name} has no number')
      choices = {name: values, **choices}
  return [
    config.from_flags(dataset, **dict(zip(choices, chosen, strict=True)))
    for chosen in itertools.product(*choices.values())
  ]


def main() -> None:
  """One run, or several one after the other."""
  dataset = common.load_dataset()
  settings = wanted(dataset)
  root = pathlib.Path(FLAGS.workdir or 'runs')
  paths = [root / config.name(each, dataset) for each in settings]
  if len(settings) == 1 and FLAGS.workdir:
    paths = [root]
  for each in settings:
    runs.check(each, dataset)
  errors = []
  for each, path in zip(settings, paths, strict=True):
    try:
      record = runs.train(each, dataset, path)
    except ValueError as error:  # a run that diverges does not stop the others
      errors.append(str(error))
      continue
    logging.info('%s: finished', path)
    common.print_json(record)
  if errors:
    raise ValueError('; '.join(errors))


if __name__ == '__main__':
  common.run(main, define)

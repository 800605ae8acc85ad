r"""Trains a classifier robustly, then measures it.

  python -m experiments.train --method=rst --lam=2

trains cnn1 on the embedded mnist5k for five epochs of RST and prints accuracy,
accuracy under PGD-10 and the local Lipschitz constant of the paper's Eq. (3).
`--preset=paper --dataset=mnist` is a row of the paper's Table 2.

The same command again goes on from the last checkpoint, or prints the result
of a finished run at once.
"""

import itertools
import pathlib

from absl import flags

from experiments import common
from experiments.networks import runs, train_flags
from experiments.networks.config import Config
from robustlip import datasets
from robustlip.methods import METHODS, WEIGHTS

flags.adopt_module_key_flags(train_flags)
flags.adopt_module_key_flags(runs)
flags.declare_key_flag(common.DATASET)
flags.declare_key_flag(common.DATA_DIR)
flags.declare_key_flag(common.PROTOCOL)
METHOD = flags.DEFINE_enum('method', 'rst', sorted(METHODS), 'How to train.')
LAM = flags.DEFINE_list(
  'lam',
  None,
  'Weight in rst, gr and llr, at least 0; several, separated by commas, are '
  'one program.',
)
BETA = flags.DEFINE_list(
  'beta', None, 'Weight in trades, at least 0, or several.'
)
MU = flags.DEFINE_list(
  'mu', None, 'Second weight in llr, at least 0, or several.'
)
WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; of several runs, one folder each in it. Default: '
  'runs/<the settings>, those of other flags too where they are given.',
)


def configs(dataset: datasets.Dataset) -> list[Config]:
  """One checked `Config` for each choice of the listed weights and seeds.

  Raises:
    ValueError: for a flag that does not fit the data set or another flag.
  """
  method = METHOD.value
  shared = train_flags.fields(dataset, method, train_flags.setup(dataset.name))
  choices = {}
  for name, flag in {'lam': LAM, 'beta': BETA, 'mu': MU}.items():
    values = common.numbers(flag, float)
    if values is not None and name not in WEIGHTS.get(method, {}):
      raise ValueError(f'--{name} means nothing to --method={method}')
    if values == []:
      raise ValueError(f'--{name} has no number')
    choices[name] = values or [shared[name]]
  choices['seed'] = train_flags.seeds()
  return [
    Config(**shared | dict(zip(choices, chosen, strict=True)))
    for chosen in itertools.product(*choices.values())
  ]


def main() -> None:
  """One run, or several that train at once."""
  dataset = datasets.load(common.DATASET.value, data_dir=common.DATA_DIR.value)
  wanted = configs(dataset)
  root = pathlib.Path(WORKDIR.value or 'runs')
  others = train_flags.named()
  paths = [root / (config.name + others) for config in wanted]
  if len(wanted) == 1 and WORKDIR.value:
    paths = [root]
  if len(set(paths)) < len(paths):
    raise ValueError('two of the weights have the same name: drop one')
  for record in runs.train(wanted, dataset, paths):
    common.print_json(record)


if __name__ == '__main__':
  common.run(main)

r"""Trains a classifier robustly, then measures it.

  python -m experiments.train --method=rst --lam=2

trains cnn1 on the embedded mnist5k for five epochs of RST and prints accuracy,
accuracy under PGD-10 and the local Lipschitz constant of the paper's Eq. (3).
`--preset=paper --dataset=mnist` is a row of the paper's Table 2.

The same command again goes on from the last checkpoint, or prints the result
of a finished run at once.
"""

import pathlib

from absl import flags

from experiments import common
from experiments.networks import runs, train_flags
from robustlip import datasets

flags.adopt_module_key_flags(train_flags)
flags.adopt_module_key_flags(runs)
flags.declare_key_flag(common.DATASET)
flags.declare_key_flag(common.DATA_DIR)
WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; of several runs, one folder each in it. Default: '
  'runs/<the settings>, those of other flags too where they are given.',
)


def main() -> None:
  """One run, or several that train at once."""
  dataset = datasets.load(common.DATASET.value, data_dir=common.DATA_DIR.value)
  configs = train_flags.configs(dataset)
  root = pathlib.Path(WORKDIR.value or 'runs')
  others = train_flags.named()
  paths = [root / (c.name + others) for c in configs]
  if len(configs) == 1 and WORKDIR.value:
    paths = [root]
  if len(set(paths)) < len(paths):
    raise ValueError('two of the weights have the same name: drop one')
  for record in runs.train(configs, dataset, paths):
    common.print_json(record)


if __name__ == '__main__':
  common.run(main)

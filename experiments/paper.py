"""The settings behind the rows of the paper, as overrides of a `Config`.

Source: Yang et al. 2020, arXiv:2003.02460; where its text is silent, the
authors' released code. Learning rates are for losses that are means over the
batch: the published ones were for sums, so that SGD's are multiplied by the
batch size.

The published numbers are the rows of `paper.csv`: tables 1 to 4, and the
appendix (`mt`, `svhn`, `no_augmentation`) as saved in the authors' notebook
(github.com/yangarbiter/blindguess at 80caeed, notebooks/plot.ipynb), accuracies
and gaps in percent. Rows and columns have the names of ours: `gr_released` and
`llr_released`, since the released code trains something else than the text
defines, and `released_lipschitz`, of the test set, since the released procedure
descends the ratio of Eq. (3). Those of the staircase are the saved outputs of
github.com/yangarbiter/robust-local-lipschitz at 024a4e3,
notebooks/splines.ipynb; RST's, which it lacks, are of a run of that code.
"""

import csv
import functools
import pathlib
from typing import Any

Overrides = dict[str, Any]

_MNIST = dict(
  arch='cnn2',
  optimizer='sgd',
  momentum=0.9,
  batch_size=64,
  epochs=160,
  milestones=(40, 80, 120, 140),
  learning_rate=64 * 1e-4,
)
_WRN = dict(
  arch='wrn_40_10',
  optimizer='sgd',
  momentum=0.0,
  batch_size=64,
  learning_rate=64 * 1e-2,
)
_ADAM = dict(optimizer='adam', momentum=0.9, learning_rate=1e-2)

SETUPS: dict[str, Overrides] = {
  'mnist': _MNIST,
  'mnist5k': _MNIST,
  'fashion_mnist': _MNIST,  # not in the paper
  'svhn': _WRN | dict(epochs=60, milestones=(30, 50)),
  'cifar10': _WRN
  | dict(epochs=120, milestones=(40, 80, 100), augment='crop4_flip'),
  'restricted_imagenet': _ADAM
  | dict(
    arch='resnet50',
    batch_size=128,
    epochs=70,
    milestones=(40, 60),
    augment='crop8',
  ),
}

# Overrides for single methods: (data set, method) -> overrides.
OF_METHOD: dict[tuple[str, str], Overrides] = {
  **{
    ('svhn', method): dict(learning_rate=64 * 1e-3)
    for method in ('at', 'rst', 'llr', 'llr_released')
  },
  ('cifar10', 'rst'): dict(learning_rate=64 * 1e-3),
  ('restricted_imagenet', 'llr'): dict(lam=3.0, mu=6.0),
  ('restricted_imagenet', 'llr_released'): dict(lam=3.0),
}

DROPOUT = {'svhn': 0.5, 'cifar10': 0.2}  # the rates of Table 4

# Appendix C as the released script has it, but for MNIST's radius: 0.031 there,
# here the 0.1 of the tables.
PROOF_OF_CONCEPT: dict[str, Overrides] = {
  'mnist': _MNIST
  | dict(
    batch_size=128,
    epochs=40,
    milestones=(20, 30),
    learning_rate=128 * 1e-4,
    lam=4.0,
  ),
  'cifar10': SETUPS['cifar10']
  | _ADAM
  | dict(epochs=70, milestones=(40, 60), augment='none', lam=4.0),
  'svhn': SETUPS['svhn'] | _ADAM | dict(arch='wrn_52_12', lam=4.0),
  'restricted_imagenet': SETUPS['restricted_imagenet']
  | dict(epochs=30, milestones=(15, 25), lam=2.0),
}

# Not from the paper: one-cycle schedules that train a network in a fraction of
# the published epochs, with an inner ascent of fewer steps. At a rate of 0.05,
# losses of several terms, such as RST(2), end in a constant network.
SHORT: dict[str, Overrides] = {
  name: dict(
    arch='cnn2',
    optimizer='nesterov',
    epochs=15,
    schedule='onecycle',
    learning_rate=0.02,
    inner_steps=3,
  )
  for name in ('mnist', 'mnist5k', 'fashion_mnist')
}


# From these, the paper left out duplicates and noisy images before searching.
EXAMPLES_LEFT_OUT = ('svhn', 'restricted_imagenet')


@functools.cache
def panels(table: str) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
  """A table's numbers: (data set, network) -> row -> column -> value.

  In Table 1 network and row are empty.
  """
  found: dict = {}
  with open(pathlib.Path(__file__).with_suffix('.csv'), newline='') as file:
    for line in csv.DictReader(file):
      if line['table'] == table:
        panel = found.setdefault((line['dataset'], line['arch']), {})
        row = panel.setdefault(line['row'], {})
        row[line['column']] = float(line['value'])
  return found


def separation(record: dict[str, Any]) -> dict[str, float]:
  """Table 1's numbers for the record of a search; {} if not comparable.

  Where the paper left out examples, searches with and without them are.
  """
  name = record['dataset']
  other = record['norm'] != 'linf' or record['random_labels']
  if other or (record['dropped'] and name not in EXAMPLES_LEFT_OUT):
    return {}
  return panels('1').get((name, ''), {}).get('', {})

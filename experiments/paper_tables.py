"""The published numbers of the paper, nothing else.

Source: Yang et al. 2020, arXiv:2003.02460, tables 1 to 4; the appendix as
saved in the authors' notebook (github.com/yangarbiter/blindguess at 80caeed,
notebooks/plot.ipynb). The staircase table is in `staircase_table`.

Columns of the tables, accuracies and gaps in percent: `gap` is train minus
test accuracy, `adv_gap` the same under attack, `released_lipschitz` the local
Lipschitz constant of the test set by the authors' released procedure, which
descends the ratio of Eq. (3), and `released_mt_...` under the multi-targeted
attack as released. The `gr` and `llr` rows are what the released code trains
(`robustlip.reference`), not what the text defines.
"""

from typing import NamedTuple


class Panel(NamedTuple):
  """Published numbers of one network on one data set, in percent."""

  dataset: str
  arch: str
  columns: tuple[str, ...]
  rows: dict[str, tuple[float | None, ...]]  # in the order of the paper
  augment: str | None = None  # where it is not that of the data set's setup
  rates: dict[str, float] = {}  # row -> likewise, for a mean loss
  note: str | None = None  # how it differs from what robustlip measures


_ALL = (
  'train_acc',
  'test_acc',
  'adv_test_acc',
  'released_lipschitz',
  'gap',
  'adv_gap',
)
_DROPOUT = _ALL[1:]
_ATTACKED = ('released_mt_adv_test_acc', 'released_mt_adv_gap')

# Table 1: radius, then smallest train-train and test-train separation.
SEPARATION = {
  'mnist': (0.1, 0.737, 0.812),
  'cifar10': (0.031, 0.212, 0.220),
  'svhn': (0.031, 0.094, 0.110),
  'restricted_imagenet': (0.005, 0.180, 0.224),
}
# The training examples that the paper left out, where it did.
SEPARATION_LEFT_OUT = {
  'svhn': 'a duplicate with two labels and one noisy image',
  'restricted_imagenet': 'three pairs of duplicates and two noisy images',
}

_TABLE_2 = (
  Panel(
    'mnist',
    'cnn1',
    _ALL,
    {
      'natural': (100.00, 99.20, 59.83, 67.25, 0.80, 0.45),
      'gr': (99.99, 99.29, 91.03, 26.05, 0.70, 3.49),
      'llr': (100.00, 99.43, 92.14, 30.44, 0.57, 4.42),
      'at': (99.98, 99.31, 97.21, 8.84, 0.67, 2.67),
      'rst0.5': (100.00, 99.34, 96.53, 11.09, 0.66, 3.16),
      'rst1': (100.00, 99.31, 96.96, 11.31, 0.69, 2.95),
      'rst2': (100.00, 99.31, 97.09, 12.39, 0.69, 2.87),
      'trades1': (99.81, 99.26, 96.60, 9.69, 0.55, 2.10),
      'trades3': (99.21, 98.96, 96.66, 7.83, 0.25, 1.33),
      'trades6': (97.50, 97.54, 93.68, 2.87, -0.04, 0.37),
    },
  ),
  Panel(
    'mnist',
    'cnn2',
    _ALL,
    {
      'natural': (100.00, 99.51, 86.01, 23.06, 0.49, -0.28),
      'gr': (99.99, 99.55, 93.71, 20.26, 0.44, 2.55),
      'llr': (100.00, 99.57, 95.13, 9.75, 0.43, 2.28),
      'at': (99.98, 99.48, 98.03, 6.09, 0.50, 1.92),
      'rst0.5': (100.00, 99.53, 97.72, 8.27, 0.47, 2.27),
      'rst1': (100.00, 99.55, 98.27, 6.26, 0.45, 1.73),
      'rst2': (100.00, 99.56, 98.48, 4.55, 0.44, 1.52),
      'trades1': (99.96, 99.58, 98.10, 4.74, 0.38, 1.70),
      'trades3': (99.80, 99.57, 98.54, 2.14, 0.23, 1.18),
      'trades6': (99.61, 99.59, 98.73, 1.36, 0.02, 0.80),
    },
  ),
)

_TABLE_3 = (
  Panel(
    'cifar10',
    'wrn_40_10',
    _ALL,
    {
      'natural': (100.00, 93.81, 0.00, 425.71, 6.19, 0.00),
      'gr': (94.90, 80.74, 21.32, 28.53, 14.16, 3.94),
      'llr': (100.00, 91.44, 22.05, 94.68, 8.56, 4.50),
      'rst0.5': (99.90, 85.11, 39.58, 20.67, 14.79, 36.26),
      'rst1': (99.86, 84.61, 40.89, 23.15, 15.25, 41.31),
      'rst2': (99.73, 83.87, 41.75, 23.80, 15.86, 43.54),
      'at': (99.84, 83.51, 43.51, 26.23, 16.33, 49.94),
      'trades1': (99.76, 84.96, 43.66, 28.01, 14.80, 44.60),
      'trades3': (99.78, 85.55, 46.63, 22.42, 14.23, 47.67),
      'trades6': (98.93, 84.46, 48.58, 13.05, 14.47, 42.65),
    },
  ),
  Panel(
    'restricted_imagenet',
    'resnet50',
    _ALL,
    {
      'natural': (97.72, 93.47, 7.89, 32228.51, 4.25, -0.46),
      'gr': (91.12, 88.51, 62.14, 886.75, 2.61, 0.19),
      'llr': (98.76, 93.44, 52.62, 4795.66, 5.32, 0.22),
      'rst0.5': (96.08, 92.02, 79.24, 451.57, 4.06, 4.57),
      'rst1': (95.66, 92.06, 79.69, 355.43, 3.61, 4.67),
      'rst2': (96.02, 91.14, 81.41, 394.40, 4.87, 6.19),
      'at': (96.22, 90.33, 82.25, 287.97, 5.90, 8.23),
      'trades1': (97.39, 92.27, 79.90, 2144.66, 5.13, 6.66),
      'trades3': (95.74, 90.75, 82.28, 396.67, 5.00, 6.41),
      'trades6': (93.34, 88.92, 82.13, 200.90, 4.42, 5.31),
    },
  ),
)

_TABLE_4 = (
  Panel(
    'svhn',
    'wrn_40_10',
    _DROPOUT,
    {
      'natural': (95.85, 2.66, 149.82, 4.15, 0.87),
      'natural_dropout': (96.66, 1.52, 152.38, 3.34, 1.22),
      'at': (91.68, 54.17, 16.51, 5.11, 25.74),
      'at_dropout': (93.05, 57.90, 11.68, -0.14, 6.48),
      'rst2': (92.39, 51.39, 23.17, 6.86, 36.02),
      'rst2_dropout': (95.19, 55.22, 17.59, 1.90, 11.30),
      'trades3': (91.85, 54.37, 10.15, 7.48, 33.33),
      'trades3_dropout': (94.00, 62.41, 4.99, 0.48, 7.91),
      'trades6': (91.83, 58.12, 5.20, 5.35, 23.88),
      'trades6_dropout': (93.46, 63.24, 3.30, 0.45, 5.97),
    },
  ),
  Panel(
    'cifar10',
    'wrn_40_10',
    _DROPOUT,
    {
      'natural': (93.81, 0.00, 425.71, 6.19, 0.00),
      'natural_dropout': (93.87, 0.00, 384.48, 6.13, 0.00),
      'at': (83.51, 43.51, 26.23, 16.33, 49.94),
      'at_dropout': (85.20, 43.07, 31.59, 14.51, 44.05),
      'rst2': (83.87, 41.75, 23.80, 15.86, 43.54),
      'rst2_dropout': (85.49, 40.24, 34.45, 14.00, 33.07),
      'trades3': (85.55, 46.63, 22.42, 14.23, 47.67),
      'trades3_dropout': (86.43, 49.01, 14.69, 12.59, 35.03),
      'trades6': (84.46, 48.58, 13.05, 14.47, 42.65),
      'trades6_dropout': (84.69, 52.32, 8.13, 11.91, 26.49),
    },
  ),
)

# Appendix, multi-targeted attack. No row of RST, and of CIFAR-10 only two rows,
# were found.
_TABLE_MT = (
  Panel(
    'mnist',
    'cnn1',
    _ATTACKED,
    {
      'natural': (47.30, -0.53),
      'gr': (89.99, 3.30),
      'llr': (90.49, 4.06),
      'at': (97.23, 2.65),
      'trades1': (96.53, 2.12),
      'trades3': (96.60, 1.34),
    },
  ),
  Panel(
    'mnist',
    'cnn2',
    _ATTACKED,
    {
      'natural': (81.35, -0.87),
      'gr': (92.93, 2.39),
      'llr': (93.76, 1.70),
      'at': (98.01, 1.94),
      'trades1': (98.06, 1.73),
      'trades3': (98.54, 1.18),
      'trades6': (98.73, 0.81),
    },
  ),
  Panel(
    'svhn',
    'wrn_40_10',
    _ATTACKED,
    {
      'natural': (1.06, 0.43),
      'gr': (14.59, 2.41),
      'llr': (20.95, 3.47),
      'at_fast': (49.47, 14.96),
      'trades1': (46.40, 29.22),
      'trades3': (49.41, 32.70),
      'trades6': (52.82, 24.28),
    },
  ),
  Panel(
    'restricted_imagenet',
    'resnet50',
    _ATTACKED,
    {
      'natural': (4.21, -0.29),
      'gr': (60.55, -0.18),
      'llr': (50.16, -0.36),
      'at': (81.91, 8.27),
      'trades1': (79.44, 6.61),
      'trades3': (82.00, 6.33),
      'trades6': (81.86, 5.31),
    },
    note='the published attack was not clipped to [0, 1]',
  ),
  Panel(
    'cifar10',
    'wrn_40_10',
    _ATTACKED,
    {'natural': (0.00, None), 'gr': (19.15, 2.88)},
  ),
)

# Appendix: SVHN, but `at` and `rst2`, which are of Table 4, where training
# accuracy is left out. `at_fast` is AT at ten
# times the rate, which the first version of the paper had.
_TABLE_SVHN = (
  Panel(
    'svhn',
    'wrn_40_10',
    _ALL,
    {
      'natural': (100.00, 95.85, 2.66, 149.82, 4.15, 0.87),
      'gr': (96.73, 87.80, 17.67, 40.83, 8.94, 3.16),
      'llr': (100.00, 95.48, 28.04, 61.64, 4.51, 5.91),
      'at': (None, 91.68, 54.17, 16.51, 5.11, 25.74),
      'at_fast': (95.20, 92.45, 55.10, 13.03, 2.75, 17.44),
      'rst2': (None, 92.39, 51.39, 23.17, 6.86, 36.02),
      'trades1': (98.96, 92.45, 50.88, 18.75, 6.51, 31.89),
      'trades3': (99.33, 91.85, 54.37, 10.15, 7.48, 33.33),
      'trades6': (97.19, 91.83, 58.12, 5.20, 5.35, 23.88),
    },
  ),
)

# First version of the paper: without augmentation.
NO_AUGMENTATION = Panel(
  'cifar10',
  'wrn_40_10',
  (*_ALL[:3], 'released_mt_adv_test_acc', 'released_lipschitz'),
  {
    'natural': (100.00, 88.62, 0.00, 0.00, 356.46),
    'gr': (99.71, 71.68, 13.73, 12.45, 33.27),
    'llr': (100.00, 85.83, 20.44, 13.69, 79.08),
    'at': (99.98, 74.00, 33.09, 32.16, 16.90),
    'trades1': (100.00, 81.61, 38.06, 37.25, 30.79),
    'trades3': (99.99, 79.98, 37.03, 36.01, 27.38),
    'trades6': (99.79, 78.34, 37.33, 36.04, 19.79),
  },
  augment='none',
  rates={'at': 64 * 1e-3},
)

TABLES = {
  '2': _TABLE_2,
  '3': _TABLE_3,
  '4': _TABLE_4,
  'mt': _TABLE_MT,
  'svhn': _TABLE_SVHN,
}


class Inconsistency(NamedTuple):
  """Where the paper's text and its own tables disagree; not mended."""

  text: str
  table: str
  dataset: str
  column: str
  printed: dict[str, float]  # row -> what the table has


_SMOOTHER = 'Section 5.3: dropout lowers the test Lipschitzness of all methods.'
INCONSISTENCIES = (
  Inconsistency(
    'Section 5.3 gives 94.10 for TRADES(3) with dropout.',
    '4',
    'svhn',
    'test_acc',
    {'trades3_dropout': 94.00},
  ),
  Inconsistency(
    'Section 5.3 calls 62.41, of TRADES(3) with dropout, the best.',
    '4',
    'svhn',
    'adv_test_acc',
    {'trades3_dropout': 62.41, 'trades6_dropout': 63.24},
  ),
  Inconsistency(
    _SMOOTHER,
    '4',
    'svhn',
    'released_lipschitz',
    {'natural': 149.82, 'natural_dropout': 152.38},
  ),
  Inconsistency(
    _SMOOTHER,
    '4',
    'cifar10',
    'released_lipschitz',
    {'at': 26.23, 'at_dropout': 31.59, 'rst2': 23.80, 'rst2_dropout': 34.45},
  ),
  Inconsistency(
    'Section 5.3: dropout narrows the adversarial gap of all methods.',
    '4',
    'svhn',
    'adv_gap',
    {'natural': 0.87, 'natural_dropout': 1.22},
  ),
  Inconsistency(
    'Section 5.2: AT, RST and TRADES are smoother than GR and LLR.',
    '3',
    'restricted_imagenet',
    'released_lipschitz',
    {'gr': 886.75, 'trades1': 2144.66},
  ),
  Inconsistency(
    'Section 5.2: TRADES is the smoothest overall.',
    '3',
    'cifar10',
    'released_lipschitz',
    {'trades1': 28.01, 'rst0.5': 20.67, 'at': 26.23},
  ),
)

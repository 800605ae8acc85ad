"""The published numbers against the sums that they print themselves."""

import itertools

import numpy as np
import pytest

from experiments import common, config, paper, proof_of_concept, table_rows
from robustlip import datasets
from robustlip.datasets import catalogue

TABLES = ('2', '3', '4', 'mt', 'svhn', 'no_augmentation')
PANELS = [
  (table, *key, rows)
  for table in TABLES
  for key, rows in paper.panels(table).items()
]
ROWS = [
  (table, dataset, arch, name, found)
  for table, dataset, arch, rows in PANELS
  for name, found in rows.items()
]


def test_every_table_is_whole():
  counts = {t: sum(map(len, paper.panels(t).values())) for t in TABLES}
  assert counts == {
    '2': 20,
    '3': 20,
    '4': 20,
    'mt': 29,
    'svhn': 9,
    'no_augmentation': 7,
  }
  assert len(paper.panels('1')) == 4
  for table, _, _, _, found in ROWS:
    wanted = {'2': 6, '3': 6, '4': 5, 'no_augmentation': 5}.get(table)
    assert wanted is None or len(found.keys() - {'learning_rate'}) == wanted


def test_gap_is_train_minus_test_to_rounding():
  checked = 0
  for _, dataset, _, name, found in ROWS:
    if {'train_acc', 'gap'} <= found.keys():
      gap = found['train_acc'] - found['test_acc']
      # Two rounded numbers differ by up to 0.01 from the rounded difference;
      # of 10,000 examples all three are exact.
      tolerance = 0.0101 if dataset != 'mnist' else 1e-9
      assert abs(gap - found['gap']) < tolerance, (dataset, name)
      checked += 1
  assert checked == 2 * 10 + 2 * 10 + 7


def test_the_training_set_is_never_worse_attacked_than_clean():
  for _, _, _, name, found in ROWS:
    if 'adv_gap' in found:
      attacked = found['adv_test_acc'] + found['adv_gap']
      clean = found['test_acc'] + found['gap']
      assert 0 <= attacked <= clean + 0.02 <= 100.03, name


def test_accuracies_are_fractions_of_the_test_set():
  for _, dataset, _, name, found in ROWS:
    count = sum(catalogue.FACTS[dataset].test_counts)
    for column in (c for c in found if c.endswith('test_acc')):
      near = round(found[column] * count / 100) + np.arange(-1, 2)
      nearest = np.abs(100 * near / count - found[column]).min()
      assert nearest < 0.0051, (dataset, name, column)


def test_tables_that_share_a_network_agree():
  shared = 0
  for a, b in itertools.combinations(ROWS, 2):
    if a[1:4] == b[1:4] and 'no_augmentation' not in (a[0], b[0]):
      for column in a[4].keys() & b[4].keys():
        assert a[4][column] == b[4][column]
        shared += 1
  assert shared > 40


def test_table_2_as_printed():
  # The columns of CNN1 as the paper's text prints them, one list per column.
  printed = """
  100.00 99.99 100.00 99.98 100.00 100.00 100.00 99.81 99.21 97.50
  99.20 99.29 99.43 99.31 99.34 99.31 99.31 99.26 98.96 97.54
  59.83 91.03 92.14 97.21 96.53 96.96 97.09 96.60 96.66 93.68
  67.25 26.05 30.44 8.84 11.09 11.31 12.39 9.69 7.83 2.87
  0.80 0.70 0.57 0.67 0.66 0.69 0.69 0.55 0.25 -0.04
  0.45 3.49 4.42 2.67 3.16 2.95 2.87 2.10 1.33 0.37
  """
  columns = np.array(printed.split(), float).reshape(6, 10)
  rows = paper.panels('2')['mnist', 'cnn1'].values()
  np.testing.assert_array_equal(
    np.transpose([list(row.values()) for row in rows]), columns
  )


def test_separations_exceed_twice_the_radius():
  for (name, _), rows in paper.panels('1').items():
    epsilon, *separations = rows[''].values()
    assert epsilon == catalogue.FACTS[name].epsilon
    assert min(separations) > 2 * epsilon
    steps = np.array(separations) * 255  # pixels have 8 bits
    assert np.abs(steps - np.round(steps)).max() < 0.5e-3 * 255


def test_a_search_of_other_pairs_is_not_compared():
  search = {'dataset': 'mnist', 'norm': 'linf', 'random_labels': False}
  search['dropped'] = []
  assert paper.separation(search)['train_train_min'] == 0.737
  for change in ({'norm': 'l2'}, {'random_labels': True}, {'dropped': [3]}):
    assert paper.separation(search | change) == {}
  assert paper.separation(search | {'dataset': 'fashion_mnist'}) == {}
  assert paper.separation(search | {'dataset': 'svhn', 'dropped': [3]})


def test_every_published_row_has_one_of_ours():
  for table, dataset, arch, name, _ in ROWS:
    assert name in table_rows.ORDER, (table, dataset, arch)


SETUPS = [
  *paper.SETUPS.values(),
  *paper.PROOF_OF_CONCEPT.values(),
  *paper.SHORT.values(),
]


@pytest.mark.parametrize('overrides', SETUPS)
def test_setups_can_be_trained_with(overrides):
  found = config.Config(**overrides)  # checks each setting
  assert list(found.milestones) == sorted(found.milestones)
  if found.schedule == 'milestones':
    assert found.milestones[-1] < found.epochs


def test_the_proof_of_concept_takes_its_flags_before_the_papers_settings():
  common.define_flags(proof_of_concept.define)
  flags = ['--dataset=mnist', '--preset=paper', '--epochs=7', '--milestones=6']
  common.FLAGS(['proof_of_concept', *flags])
  mnist = datasets.load('mnist5k')._replace(name='mnist')
  found = proof_of_concept.settings(mnist)
  assert (found.arch, found.train_on) == ('cnn2', 'train+test')
  assert (found.epochs, found.milestones, found.lam) == (7, (6,), 4.0)
  common.define_flags(lambda: None)
  common.FLAGS.unparse_flags()

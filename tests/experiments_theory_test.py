"""The distance classifier of a data set, the figures, and the script."""

import json

import numpy as np
import pytest
import scripts
from separation_test import all_distances

from experiments import curves, theory, theory_figures
from experiments.config import Config
from robustlip import separation
from robustlip.datasets import synthetic


@pytest.mark.parametrize('epsilon', [0.0, 0.05])
def test_certified_attacked_clean_are_ordered(dataset, epsilon):
  table = theory.test_table(
    dataset, num_test=30, num_attacked=20, epsilon=epsilon, seed=0
  )
  subset = table['attacked_subset']
  assert subset['certified'] <= subset['attacked'] <= subset['accuracy']
  assert table['curve']['certified'][0] == table['accuracy']
  assert np.all(np.diff(table['curve']['certified']) <= 0)
  assert subset['num_attacked'] == 20 and table['num_test'] == 30


def test_certificate_on_the_training_set(dataset):
  distances = separation.nearest_opposite(*dataset.train).distances
  brute = all_distances(*dataset.train, *dataset.train)
  result = theory.train_certificate(distances)
  assert result['r'] == pytest.approx(brute.min() / 2)
  assert result['accuracy'] == result['astute_in_open_ball'] == 1
  # The closest pair itself ties on the boundary.
  assert result['astute_in_closed_ball'] <= 1 - 2 / 90
  assert result['smallest_margin'] == pytest.approx(2)


def test_lemma_4_1_holds_around_training_images(dataset):
  distances = separation.nearest_opposite(*dataset.train).distances
  radius = distances.min() / 2
  result = theory.lemma_checks(dataset, radius=radius, num_examples=20, seed=0)
  for name in ('sampled', 'attacked'):
    assert result[name]['astute'] == 1
    assert 0 < result[name]['largest_ratio_times_r'] <= 1 + 1e-5


def test_script_prints_one_record_that_curves_can_read(
  tmp_path, call, monkeypatch
):
  draw = synthetic.one_strong_many_weak  # 10,000 examples, compared in pairs
  monkeypatch.setattr(
    synthetic,
    'one_strong_many_weak',
    lambda count, *args, **kwargs: draw(count // 10, *args, **kwargs),
  )
  monkeypatch.setattr(theory_figures, 'GRID', 80)
  dataset = scripts.tiny(tmp_path)
  finished = call(
    'experiments.theory',
    f'--dataset={dataset}',
    f'--workdir={tmp_path}',
    '--epsilon=0.02',
    '--num_attacked=10',
  )
  record = scripts.last_json(finished)
  assert record == json.loads((tmp_path / 'theory_tiny.json').read_text())
  test = record['data']['test']['attacked_subset']
  assert test['certified'] <= test['attacked'] <= test['accuracy']
  figures = record['figures']
  names = ['figure_2', 'figure_4', 'figure_5', 'not_separated']
  assert list(figures) == names
  below, spirals, two, _ = figures.values()
  assert below['certified_at_0.9r'] == 1 > below['certified_at_1.6r']
  assert round(spirals['separation'], 4) == 0.7052
  assert spirals['train_accuracy'] == 1
  f, h = two['f'], two['h']
  assert f['accuracy'] == h['accuracy'] == 1
  assert f['astute_at_r'] == 1 and h['astute_at_r'] == 0
  assert f['lipschitz'] <= (1 + 1e-4) / two['r'] < h['lipschitz']
  for figure in (*figures, 'accuracies_tiny'):
    assert (tmp_path / f'{figure}.png').stat().st_size > 10_000
  at_radii = {f'{x}_at': {'0.1': 1.0, '0.2': 1.0} for x in curves.COLUMNS}
  of = {'dataset': str(dataset), 'fingerprint': record['fingerprint']}
  run = Config(**of).to_json() | at_radii  # as a run of one's own file has it
  (tmp_path / 'run.json').write_text(json.dumps(run | {'test_acc': 1.0}))
  drawn = call(
    'experiments.curves',
    f'--records={tmp_path}/run.json',
    f'--theory={tmp_path}/theory_tiny.json',
    f'--output={tmp_path}/curves.json',
  )
  assert scripts.last_json(drawn)['g'] == record['data']['test']['curve']


def test_script_asks_for_the_radius_of_ones_own_data(tmp_path, call):
  own = f'--dataset={scripts.tiny(tmp_path)}'
  refused = call('experiments.theory', own)
  assert '--epsilon is needed' in scripts.error(refused)

"""The attack on g, the table of a data set, and the script."""

import json

import numpy as np
import pytest
import scripts

from experiments import distance_classifier, theory_figures
from robustlip import datasets, distance_attack, theory
from robustlip.images import from_bytes


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return datasets.load(scripts.tiny(tmp_path_factory.mktemp('tiny')))


def test_attack_succeeds_exactly_beyond_half_the_gap():
  """On a line both references can be approached and left at full speed."""
  inputs = np.linspace(0.3, 0.49, 20, dtype=np.float32)[:, None]
  labels = np.zeros(20, np.int32)
  refs = np.array([[0.25], [0.75]], np.float32)
  epsilon = 0.065
  found = distance_attack.attack(
    inputs, labels, refs, np.array([0, 1]), epsilon=epsilon
  )
  moved = np.abs(found.points - inputs).max()
  assert moved <= epsilon * (1 + 1e-5)
  half_gaps = 0.5 - inputs[:, 0]
  np.testing.assert_array_equal(found.gaps > 0, half_gaps > epsilon)


def test_attack_leaves_several_references_of_the_own_class():
  """Three pixels must move at once, away from a reference each."""
  inputs = np.full((1, 4), 0.5, np.float32)
  own = inputs + 0.1 * np.eye(4, dtype=np.float32)[:3]
  other = inputs + 0.13 * np.eye(4, dtype=np.float32)[3:]
  refs = np.concatenate([own, other])
  found = distance_attack.attack(
    inputs, np.array([0]), refs, np.array([0, 0, 0, 1]), epsilon=0.02
  )
  assert found.gaps[0] == pytest.approx(0.13 - 0.1 - 0.04, abs=2e-3)


def test_search_finds_the_gaps_of_the_class_distances(dataset):
  images, labels = dataset.test
  found = distance_attack.search(images, labels, *dataset.train)
  distances = theory.class_distances(images, *dataset.train, num_classes=3)
  np.testing.assert_array_equal(found.gaps, theory.gaps(distances, labels))
  np.testing.assert_array_equal(dataset.train.labels[found.own], labels)
  assert np.all(dataset.train.labels[found.other] != labels)


def test_reported_gaps_are_those_of_the_points(dataset):
  images = from_bytes(dataset.test.images)
  refs = from_bytes(dataset.train.images)
  labels = dataset.test.labels
  found = distance_attack.attack(
    images, labels, refs, dataset.train.labels, epsilon=0.02
  )
  assert found.points.min() >= 0 and found.points.max() <= 1
  assert np.abs(found.points - images).max() <= 0.02 * (1 + 1e-5)
  gaps = np.abs(found.points[:, None] - refs[None]).max(axis=(2, 3, 4))
  distances = np.stack(
    [gaps[:, dataset.train.labels == c].min(axis=1) for c in range(3)], axis=1
  )
  expected = theory.gaps(distances, labels)
  np.testing.assert_allclose(found.gaps, expected, atol=1e-6)


@pytest.mark.parametrize('epsilon', [0.0, 0.02, 0.05, 0.2])
def test_certified_attacked_clean_are_ordered(dataset, epsilon):
  table = distance_classifier.test_table(
    dataset, num_test=30, num_attacked=20, epsilon=epsilon, seed=0
  )
  subset = table['attacked_subset']
  assert subset['certified'] <= subset['attacked'] <= subset['accuracy']
  assert table['curve']['certified'][0] == table['accuracy']
  assert np.all(np.diff(table['curve']['certified']) <= 0)
  assert subset['num_attacked'] == 20 and table['num_test'] == 30


def test_certificate_on_the_training_set(dataset):
  distances = distance_classifier.train_distances(dataset)
  images = dataset.train.images.astype(int)
  gaps = np.abs(images[:, None] - images[None]).max(axis=(2, 3, 4)) / 255
  labels = dataset.train.labels
  gaps[labels[:, None] == labels[None]] = np.inf
  np.testing.assert_allclose(distances, gaps.min(axis=1), rtol=1e-6)
  result = distance_classifier.train_certificate(distances)
  assert result['r'] == pytest.approx(gaps.min() / 2)
  assert result['accuracy'] == result['astute_in_open_ball'] == 1
  # The closest pair itself ties on the boundary.
  assert result['astute_in_closed_ball'] <= 1 - 2 / 90
  assert result['smallest_margin'] == pytest.approx(2)


def test_lemma_4_1_holds_around_training_images(dataset):
  radius = distance_classifier.train_distances(dataset).min() / 2
  result = distance_classifier.lemma_checks(
    dataset, radius=radius, num_examples=20, seed=0
  )
  for name in ('sampled', 'attacked'):
    assert result[name]['astute'] == 1
    assert 0 < result[name]['largest_ratio_times_r'] <= 1 + 1e-5


def test_figure_5_contrasts_equally_accurate_classifiers(tmp_path):
  result = theory_figures.two_classifiers(tmp_path / 'figure_5', 0)
  f, h = result['f'], result['h']
  assert f['accuracy'] == h['accuracy'] == 1
  assert f['astute_at_r'] == 1 and h['astute_at_r'] == 0
  assert f['lipschitz'] <= (1 + 1e-4) / result['r'] < h['lipschitz']


def test_figure_2_is_certified_below_the_separation_only(tmp_path):
  result = theory_figures.existence(tmp_path / 'figure_2', 0)
  assert result['certified_at_0.9r'] == 1 > result['certified_at_1.6r']


def test_script_prints_one_record(tmp_path):
  finished = scripts.run(
    'experiments.theory',
    f'--dataset={scripts.tiny(tmp_path)}',
    f'--workdir={tmp_path}',
    '--epsilon=0.02',
    '--num_attacked=10',
    folder=tmp_path,
  )
  record = scripts.last_json(finished)
  assert record == json.loads((tmp_path / 'theory_tiny.json').read_text())
  test = record['data']['test']['attacked_subset']
  assert test['certified'] <= test['attacked'] <= test['accuracy']
  assert round(record['figures']['figure_4']['separation'], 4) == 0.7052
  assert record['figures']['figure_4']['train_accuracy'] == 1
  figures = ('figure_2', 'figure_4', 'figure_5', 'not_separated')
  for figure in (*figures, 'accuracies_tiny'):
    assert (tmp_path / f'{figure}.png').stat().st_size > 10_000
    assert (tmp_path / f'{figure}.pdf').exists()


def test_script_asks_for_the_radius_of_ones_own_data(tmp_path):
  own = f'--dataset={scripts.tiny(tmp_path)}'
  refused = scripts.run('experiments.theory', own, folder=tmp_path)
  assert '--epsilon is needed' in scripts.error(refused)

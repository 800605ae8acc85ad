"""The script from its flags to its files."""

import json

import numpy as np
import pytest
import scripts
from separation_test import all_distances

from experiments import common, separation_figures
from robustlip import drawing

FIGURES = ('separation', 'closest_pairs', 'class_matrix', 'moved')


@pytest.fixture
def run(tmp_path, monkeypatch, call):
  """A function from arguments to the record that the script prints last."""

  def found(*arguments, dataset=tmp_path / 'mine.npz', draw=False):
    words = f'--dataset={dataset}', f'--workdir={tmp_path}/out', *arguments
    if not draw:  # pictures take most of the time
      monkeypatch.setattr(common, 'draw', lambda *_: None)
    return scripts.last_json(call('experiments.separation', *words))

  return found


def write_set(path, **changes):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
  images[7] = images[3]
  labels = np.arange(40, dtype=np.int32) % 3  # 3 and 7 disagree
  arrays = {
    'train_images': images,
    'train_labels': labels,
    'test_images': images[5:11],
    'test_labels': labels[5:11],
  }
  np.savez(path, **arrays | changes)
  return images, labels


@pytest.mark.parametrize(
  ('drop', 'name', 'dropped'),
  [
    (None, 'mine', []),
    ('conflicts', 'mine-without_conflicts', [3, 7]),
    ('9,3', 'mine-without_3_9', [3, 9]),
    ('closest:1', 'mine-without_closest_1', [3, 7]),
  ],
)
def test_record_and_files(tmp_path, run, drop, name, dropped):
  images, labels = write_set(tmp_path / 'mine.npz')
  flags = [f'--drop={drop}'] if drop else []
  pictures = FIGURES if drop == 'conflicts' else ()
  record = run(*flags, draw=bool(pictures))
  assert record['dropped'] == dropped
  kept = np.setdiff1d(np.arange(40), dropped)
  left = images[kept], labels[kept]
  expected = all_distances(*left, *left)
  assert record['train_train_min'] == pytest.approx(expected.min(), abs=1e-6)
  assert record['train_train_mean'] == pytest.approx(
    expected.min(axis=1).mean(), abs=1e-6
  )
  first = record['closest_pairs']['train_train'][0]
  i, j = np.searchsorted(kept, first['indices'])
  assert expected[i, j] == expected.min()
  assert (record['duplicates'], record['duplicates_indices']) == (1, [[3, 7]])
  assert (record['conflicts'], record['conflicts_indices']) == (1, [[3, 7]])
  assert record['leaks'] == 6
  assert record['leaks_indices'][:3] == [[0, 5], [1, 6], [2, 3]]
  files = [f'separation_{name}.{suffix}' for suffix in ('json', 'npz')]
  files += [f'{stem}_{name}.png' for stem in pictures]
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == sorted(files)
  assert json.loads((tmp_path / 'out' / files[0]).read_text()) == record
  with np.load(tmp_path / 'out' / files[1]) as arrays:
    np.testing.assert_allclose(
      arrays['train_train_distances'], expected.min(axis=1), atol=1e-6
    )
    np.testing.assert_array_equal(arrays['kept'], kept)


def test_many_indices_have_a_short_name_without_order(tmp_path, run):
  write_set(tmp_path / 'mine.npz')
  indices = list(range(2, 38))
  records = [
    run(f'--drop={",".join(map(str, order))}')
    for order in (indices, indices[::-1])
  ]
  assert records[0]['dropped'] == records[1]['dropped'] == indices
  (found,) = (tmp_path / 'out').glob('separation_*.json')
  assert found.name.startswith('separation_mine-without_36_')
  assert len(found.name) < 60


def test_channels_names_and_titles_that_are_odd(tmp_path, run, monkeypatch):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (12, 4, 4, 2)).astype(np.uint8)
  path = tmp_path / f'a_$_in_caf\xe9_{"a_long_name_" * 5}.npz'
  write_set(
    path,
    train_images=images,
    train_labels=np.arange(12) % 3,
    test_images=images,
    test_labels=np.arange(12) % 3,
    class_names=np.array(['$x_{', 'a/b', '..' + 'a long name ' * 9]),
  )
  warned = []
  monkeypatch.setattr(common.logging, 'warning', lambda *a: warned.append(a))
  run(dataset=path, draw=True)
  assert not warned
  assert len(list((tmp_path / 'out').glob('*.png'))) == len(FIGURES)


def test_pictures_that_fail_cost_a_warning_and_no_record(
  tmp_path, run, monkeypatch
):
  write_set(tmp_path / 'mine.npz')
  warned = []
  monkeypatch.setattr(common.logging, 'warning', lambda *a: warned.append(a))

  def fails(path, *arguments):
    assert path.with_name('separation_mine.json').exists()
    raise TypeError('no fonts')

  monkeypatch.setattr(separation_figures, 'histograms', fails)
  record = run(draw=True)
  assert record['num_train'] == 40 and len(warned) == 1
  assert (tmp_path / 'out' / 'moved_mine.png').exists()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_images_are_moved_by_the_distance_and_towards_the_other(
  tmp_path, monkeypatch, norm
):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (6, 3, 3, 1)).astype(np.uint8)
  labels, distance = np.arange(6, dtype=np.int32) // 2, 0.3
  shown, draw = [], drawing.images
  monkeypatch.setattr(
    drawing, 'images', lambda *a: shown.extend(a[0].values()) or draw(*a)
  )
  record = {'train_train_min': distance, 'norm': norm}
  separation_figures.moved(
    tmp_path / 'moved', (images, labels), record, ['a', 'b', 'c']
  )
  starts, on_line, nearest, ends = np.array(shown, float).reshape(4, 3, 9)
  np.testing.assert_allclose(starts, images[::2].reshape(3, 9) / 255, atol=1e-6)
  np.testing.assert_array_equal(ends, starts[[1, 2, 0]])
  order = {'linf': np.inf, 'l2': 2}[norm]

  def size(deltas):
    return np.linalg.norm(deltas, order, axis=1)

  np.testing.assert_allclose(size(on_line - starts), distance, atol=1e-5)
  np.testing.assert_allclose(size(nearest - starts), distance, atol=1e-5)
  left = size(ends - starts) - distance
  np.testing.assert_allclose(size(ends - on_line), left, atol=1e-5)
  np.testing.assert_allclose(size(ends - nearest), left, atol=1e-5)


def test_random_labels_change_the_distances(tmp_path, run):
  write_set(tmp_path / 'mine.npz')
  records = run(), run('--random_labels')
  assert records[0]['train_train_mean'] != records[1]['train_train_mean']
  assert (tmp_path / 'out' / 'separation_mine-random0.json').exists()


def test_own_data_are_known_by_their_content(tmp_path, run, call):
  for folder in 'ab':
    (tmp_path / folder).mkdir()
  write_set(tmp_path / 'a' / 'mine.npz')
  write_set(tmp_path / 'b' / 'mine.npz', test_labels=np.arange(6) % 2)
  run(dataset=tmp_path / 'a' / 'mine.npz')
  (tmp_path / 'a' / 'mine.npz').rename(tmp_path / 'mine.npz')
  run(dataset=tmp_path / 'mine.npz')
  flags = f'--dataset={tmp_path}/b/mine.npz', f'--workdir={tmp_path}/out'
  line = scripts.error(call('experiments.separation', *flags))
  assert 'name another folder' in line


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('--drop=many', 'expected conflicts, closest:N'),
    ('--drop=-1', 'indices go from 0 to 39'),
    ('--drop=' + ','.join(map(str, range(40))), 'leaves no training'),
  ],
)
def test_damaged_or_odd_input_is_named(
  tmp_path, call, monkeypatch, arguments, message
):
  monkeypatch.chdir(tmp_path)
  write_set('mine.npz')
  flags = '--dataset=mine.npz', '--workdir=out', arguments
  assert message in scripts.error(call('experiments.separation', *flags))


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_one_class_has_no_minimum(tmp_path, run, norm):
  images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32)
  write_set(
    tmp_path / 'mine.npz',
    train_images=images,
    train_labels=labels,
    test_images=images,
    test_labels=labels,
  )
  record = run(f'--norm={norm}')
  assert record['train_train_min'] is None
  assert record['train_train_without_opponent'] == 4


def test_two_processes_find_what_one_does(tmp_path, run):
  dataset = tmp_path / 'mine.npz'
  write_set(dataset)
  run('--norm=l2')
  work = f'--workdir={tmp_path}/two'
  finished = scripts.two_processes(
    tmp_path,
    'experiments.separation',
    f'--dataset={dataset}',
    work,
    '--norm=l2',
  )
  assert [each.code for each in finished] == [0, 0], finished
  name = 'separation_mine-l2.npz'
  with (
    np.load(tmp_path / 'out' / name) as one,
    np.load(tmp_path / 'two' / name) as two,
  ):
    for key in one:
      np.testing.assert_array_equal(two[key], one[key])

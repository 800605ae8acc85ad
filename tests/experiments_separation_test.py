"""The script from its flags to its files."""

import json
import pathlib

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import separation as script
from experiments.distances import separation_figures, separation_state
from robustlip import separation
from robustlip.datasets import splits
from robustlip.separation import search

FIGURES = ('histogram', 'closest_pairs', 'class_matrix', 'moved')


def run(capsys, **values):
  """The record that the script prints last."""
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**values):
    script.main()
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def write_set(path: pathlib.Path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
  images[7] = images[3]
  labels = np.arange(40, dtype=np.int32) % 3  # 3 and 7 disagree
  np.savez(
    path,
    train_images=images,
    train_labels=labels,
    test_images=images[:6],
    test_labels=labels[:6],
  )
  return images, labels


def distances(images, labels, kept):
  flat = images.reshape(len(images), -1).astype(int)
  gaps = np.abs(flat[kept][:, None] - flat[kept][None]).max(axis=2) / 255
  return np.where(labels[kept][:, None] == labels[kept], np.inf, gaps)


@pytest.mark.parametrize('drop', [None, 'conflicts', '3,9', 'closest:2'])
def test_record_and_files(tmp_path, capsys, drop):
  images, labels = write_set(tmp_path / 'mine.npz')
  record = run(
    capsys,
    dataset=f'{tmp_path}/mine.npz',
    workdir=f'{tmp_path}/out',
    drop=drop,
  )
  dropped = record['dropped']
  assert dropped == {None: [], 'conflicts': [3, 7], '3,9': [3, 9]}.get(
    drop, dropped
  )
  assert {3, 7} <= set(dropped) or drop in (None, '3,9')
  kept = np.setdiff1d(np.arange(40), dropped)
  expected = distances(images, labels, kept)
  assert record['train_train_min'] == pytest.approx(expected.min(), abs=1e-6)
  assert record['train_train_mean'] == pytest.approx(
    expected.min(axis=1).mean(), abs=1e-6
  )
  first = record['closest_pairs']['train_train'][0]
  i, j = np.searchsorted(kept, first['indices'])
  assert expected[i, j] == expected.min()
  assert (record['duplicates'], record['conflicts']) == (1, 1)
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(drop=drop):
    name = script.variant('mine')
  files = [f'separation_{name}.{suffix}' for suffix in ('json', 'npz')]
  files += [
    f'{stem}_{name}.{end}' for stem in FIGURES for end in ('png', 'pdf')
  ]
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == sorted(files)
  with np.load(tmp_path / 'out' / files[1]) as arrays:
    np.testing.assert_allclose(
      arrays['train_train_distances'], expected.min(axis=1), atol=1e-6
    )
    np.testing.assert_array_equal(arrays['kept'], kept)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_images_are_moved_by_the_distance_and_towards_the_other(
  monkeypatch, norm
):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (6, 3, 3, 1)).astype(np.uint8)
  labels, distance = np.arange(6, dtype=np.int32) // 2, 0.3
  shown = []
  monkeypatch.setattr(
    separation_figures, '_show', lambda axes, image, title: shown.append(image)
  )
  record = {'train_train_min': distance, 'norm': norm}
  separation_figures._moved((images, labels), record, ['a', 'b', 'c'])
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


def test_random_labels_change_the_distances(tmp_path, capsys):
  write_set(tmp_path / 'mine.npz')
  records = [
    run(
      capsys,
      dataset=f'{tmp_path}/mine.npz',
      workdir=f'{tmp_path}/out',
      random_labels=random,
    )
    for random in (False, True)
  ]
  assert records[0]['train_train_mean'] != records[1]['train_train_mean']
  names = ('separation_mine.json', 'separation_mine-random0.json')
  found = [json.loads((tmp_path / 'out' / n).read_text()) for n in names]
  assert found == records


def test_another_set_of_the_same_name_is_refused(tmp_path, capsys):
  (tmp_path / 'a').mkdir()
  write_set(tmp_path / 'mine.npz')
  write_set(tmp_path / 'a' / 'mine.npz')
  values = {'dataset': f'{tmp_path}/mine.npz', 'workdir': f'{tmp_path}/out'}
  run(capsys, **values)
  with pytest.raises(ValueError, match='name another folder'):
    run(capsys, **values | {'dataset': f'{tmp_path}/a/mine.npz'})


def test_only_what_was_published_is_beside_the_paper():
  record = {
    'dataset': 'mnist',
    **{'norm': 'linf', 'random_labels': False, 'dropped': []},
    **{'epsilon': 0.1, 'train_train_min': 0.7, 'test_train_min': 0.8},
    **{'num_train': 60000, 'num_test': 10000},
  }
  assert '0.737' in script.row(record)
  for other in ({'norm': 'l2'}, {'random_labels': True}, {'dropped': [3]}):
    assert '0.737' not in script.row(record | other)
  assert '0.094' in script.row(record | {'dataset': 'svhn', 'dropped': [3]})


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'drop': 'closest:0'}, 'expected conflicts, closest:N'),
    ({'drop': 'many'}, 'expected conflicts, closest:N'),
    ({'drop': '40'}, 'indices go from 0 to 39'),
    ({'drop': ','.join(map(str, range(40)))}, 'leaves no training'),
    ({'dataset': 'nowhere.npz'}, 'no such file'),
    ({'dataset': 'no_keys.npz'}, 'train_images'),
    ({'dataset': 'unequal.npz'}, 'labels'),
  ],
)
def test_damaged_or_odd_input_is_named(
  tmp_path, capsys, monkeypatch, values, message
):
  monkeypatch.chdir(tmp_path)
  images, labels = write_set(tmp_path / 'mine.npz')
  np.savez('no_keys.npz', other=images)
  np.savez(
    'unequal.npz',
    train_images=images,
    train_labels=labels[:-1],
    test_images=images,
    test_labels=labels,
  )
  with pytest.raises((ValueError, OSError), match=message) as error:
    run(capsys, **{'dataset': 'mine.npz', 'workdir': 'out', **values})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_one_class_has_no_minimum(tmp_path, capsys, norm):
  images = np.zeros((4, 2, 2, 1), np.uint8)
  labels = np.zeros(4, np.int32)
  np.savez(
    tmp_path / 'mine.npz',
    train_images=images,
    train_labels=labels,
    test_images=images,
    test_labels=labels,
  )
  record = run(
    capsys,
    dataset=f'{tmp_path}/mine.npz',
    workdir=f'{tmp_path}/out',
    norm=norm,
  )
  assert record['train_train_min'] is None
  assert record['train_train_without_opponent'] == 4


class Interrupted(Exception):
  pass


def test_interrupted_search_goes_on(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2100, 3, 3, 1)).astype(np.uint8)
  labels = rng.integers(0, 3, 2100)
  whole = separation.nearest_opposite(images, labels)
  path = tmp_path / 'part.npz'
  monkeypatch.setattr(separation_state, 'SECONDS_BETWEEN_SAVES', 0)
  save = separation_state.save

  def save_once(*args, **kwargs):
    save(*args, **kwargs)
    raise Interrupted

  monkeypatch.setattr(separation_state, 'save', save_once)
  with pytest.raises(Interrupted):
    separation_state.search(images, labels, norm='linf', path=path)
  owner = splits.fingerprint(images, labels, salt='linf')
  assert separation_state.load(path, owner, 2100)[0].next_query == 1024
  monkeypatch.setattr(separation_state, 'save', save)
  found, _ = separation_state.search(images, labels, norm='linf', path=path)
  np.testing.assert_array_equal(found.distances, whole.distances)
  np.testing.assert_array_equal(found.indices, whole.indices)
  # What is complete is not searched again.
  compared = []
  compare = search._Tiles.compare
  monkeypatch.setattr(
    search._Tiles, 'compare', lambda *a: compared.append(a) or compare(*a)
  )
  again, _ = separation_state.search(images, labels, norm='linf', path=path)
  np.testing.assert_array_equal(again.indices, whole.indices)
  assert not compared


@pytest.mark.parametrize('damage', ['half', 'empty', 'keys', 'other', 'size'])
def test_damaged_state_starts_anew(tmp_path, damage):
  path, best = (
    tmp_path / 'part.npz',
    {
      'gaps': np.ones(5),
      'indices': np.ones(5, int),
      'next_query': np.array(3),
      'owner': np.array('mine'),
      'seconds': np.array(1.0),
    },
  )
  if damage == 'keys':
    best.pop('gaps')
  if damage == 'other':
    best['owner'] = np.array('theirs')
  separation_state.save(path, **best)
  content = path.read_bytes()
  if damage in ('half', 'empty'):
    path.write_bytes(content[: len(content) // 2 if damage == 'half' else 0])
  size = 6 if damage == 'size' else 5
  assert separation_state.load(path, 'mine', size) == (None, 0.0)

"""The script from its flags to its files."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments import separation_state
from robustlip import separation

FILES = [
  f'{stem}.{suffix}'
  for stem in ('histogram', 'closest_pairs', 'class_matrix')
  for suffix in ('png', 'pdf')
]


def run(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.separation', *flags],
    capture_output=True,
    text=True,
    timeout=600,
  )


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
def test_record_and_files(tmp_path, drop):
  images, labels = write_set(tmp_path / 'mine.npz')
  flags = [f'--drop={drop}'] if drop else []
  result = run(
    f'--dataset={tmp_path}/mine.npz', f'--workdir={tmp_path}/out', *flags
  )
  assert result.returncode == 0, result.stderr
  record = json.loads(result.stdout.splitlines()[-1])
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
  for name in ('separation.npz', 'separation_mine.json', *FILES):
    assert (tmp_path / 'out' / name).stat().st_size > 0
  with np.load(tmp_path / 'out' / 'separation.npz') as arrays:
    np.testing.assert_allclose(
      arrays['train_train_distances'], expected.min(axis=1), atol=1e-6
    )
    np.testing.assert_array_equal(arrays['kept'], kept)


def test_random_labels_change_the_distances(tmp_path):
  write_set(tmp_path / 'mine.npz')
  minima = []
  for flags in (['--drop=3'], ['--drop=3', '--random_labels', '--seed=1']):
    result = run(
      f'--dataset={tmp_path}/mine.npz', f'--workdir={tmp_path}/out', *flags
    )
    record = json.loads(result.stdout.splitlines()[-1])
    minima.append(record['train_train_mean'])
  assert minima[0] != minima[1]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--drop=closest:0'], 'expected conflicts, closest:N'),
    (['--drop=many'], 'expected conflicts, closest:N'),
    (['--drop=40'], 'indices go from 0 to 39'),
    (['--drop=' + ','.join(map(str, range(40)))], 'leaves no training'),
    (['--norm=l3'], 'norm'),
    (['--dataset=nowhere.npz'], 'no such file'),
    (['--dataset=EMPTY'], 'train_images'),
    (['--dataset=UNEQUAL'], 'labels'),
  ],
)
def test_damaged_or_odd_input_is_one_line(tmp_path, flags, message):
  images, labels = write_set(tmp_path / 'mine.npz')
  np.savez(tmp_path / 'EMPTY.npz', other=images)
  np.savez(
    tmp_path / 'UNEQUAL.npz',
    train_images=images,
    train_labels=labels[:-1],
    test_images=images,
    test_labels=labels,
  )
  flags = [
    flag.replace('EMPTY', f'{tmp_path}/EMPTY.npz').replace(
      'UNEQUAL', f'{tmp_path}/UNEQUAL.npz'
    )
    for flag in flags
  ]
  result = run(
    f'--dataset={tmp_path}/mine.npz', f'--workdir={tmp_path}/out', *flags
  )
  assert result.returncode == 1
  errors = [x for x in result.stderr.splitlines() if x.startswith('error:')]
  assert len(errors) == 1
  assert message in errors[0]


def test_one_class_has_no_minimum(tmp_path):
  images = np.zeros((4, 2, 2, 1), np.uint8)
  labels = np.zeros(4, np.int32)
  np.savez(
    tmp_path / 'mine.npz',
    train_images=images,
    train_labels=labels,
    test_images=images,
    test_labels=labels,
  )
  result = run(f'--dataset={tmp_path}/mine.npz', f'--workdir={tmp_path}/out')
  assert result.returncode == 0, result.stderr
  record = json.loads(result.stdout.splitlines()[-1])
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
  owner = separation_state.fingerprint(images, labels, norm='linf')
  assert separation_state.load(path, owner, 2100).next_query == 1024
  monkeypatch.setattr(separation_state, 'save', save)
  found, _ = separation_state.search(images, labels, norm='linf', path=path)
  np.testing.assert_array_equal(found.distances, whole.distances)
  np.testing.assert_array_equal(found.indices, whole.indices)
  assert not path.exists()


@pytest.mark.parametrize('damage', ['half', 'empty', 'keys', 'other', 'size'])
def test_damaged_state_starts_anew(tmp_path, damage):
  path, best = (
    tmp_path / 'part.npz',
    {
      'gaps': np.ones(5),
      'indices': np.ones(5, int),
      'next_query': np.array(3),
      'owner': np.array('mine'),
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
  assert separation_state.load(path, 'mine', size) is None

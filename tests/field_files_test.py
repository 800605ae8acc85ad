"""Cases from public reports in which a script lost a result, or crashed.

Nothing measured is lost: the record is there whatever becomes of its picture.
Those of training are in `experiments_train_test`, those of the readers of data
sets in `datasets_load_test`.
"""

import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scripts
from PIL import Image

from experiments import common, config, runs
from robustlip import checkpoints, datasets
from robustlip.datasets import imagenet

TRAIN, EVALUATE = 'experiments.train', 'experiments.evaluate'
SEPARATION = 'experiments.separation'


@pytest.fixture
def call(capsys, monkeypatch):
  return functools.partial(scripts.here, capsys=capsys, monkeypatch=monkeypatch)


def small(path, **others):
  return (
    f'--dataset={path}',
    '--epsilon=0.02',
    '--method=natural',
    '--epochs=1',
    '--batch_size=30',
    '--curve_examples=0',
    '--eval_examples=10',
  )


def test_the_backend_of_a_notebook_loses_no_record(tmp_path):
  """Every notebook exports MPLBACKEND; what it names may not be installed."""
  work = tmp_path / 'run'
  finished = subprocess.run(
    [
      *(sys.executable, '-m', TRAIN, f'--workdir={work}'),
      *small(scripts.tiny(tmp_path)),
    ],
    env=os.environ | {'MPLBACKEND': 'module://no_such.backend_inline'},
    capture_output=True,
    text=True,
  )
  assert finished.returncode == 0, finished.stderr
  assert json.loads(finished.stdout) == json.loads(
    (work / 'result.json').read_text()
  )
  assert (work / 'curves.png').exists()


def test_two_channels_lose_no_record(tmp_path, call):
  rng = np.random.default_rng(0)
  path = scripts.tiny(
    tmp_path,
    train_images=rng.integers(0, 256, (90, 8, 8, 2), np.uint8),
    test_images=rng.integers(0, 256, (30, 8, 8, 2), np.uint8),
  )
  finished = call(SEPARATION, f'--dataset={path}', f'--workdir={tmp_path}/work')
  record = scripts.last_json(finished)
  (file,) = (tmp_path / 'work').glob('separation_*.json')
  assert json.loads(file.read_text()) == record


def test_names_of_classes_are_neither_markup_nor_files(tmp_path, call):
  names = np.array(['$x_{', 'a/b', '..' + 'long ' * 40])
  path = scripts.tiny(tmp_path, class_names=names)
  moved = tmp_path / 'caf\xe9 $y$.npz'
  shutil.move(path, moved)
  finished = call(
    SEPARATION, f'--dataset={moved}', f'--workdir={tmp_path}/work'
  )
  scripts.last_json(finished)
  assert 'No picture' not in finished.err
  assert list((tmp_path / 'work').glob('*.png'))


def test_many_dropped_examples_are_one_name_in_any_order(tmp_path, call):
  path, work = scripts.tiny(tmp_path), tmp_path / 'work'
  drop = list(range(64))
  for indices in (drop, drop[::-1]):
    text = ','.join(map(str, indices))
    scripts.last_json(
      call(
        SEPARATION,
        *(f'--dataset={path}', f'--drop={text}', f'--workdir={work}'),
      )
    )
  (file,) = work.glob('separation_*.json')
  assert len(file.name) < 100
  (tmp_path / 'drop.txt').write_text('\n'.join(map(str, drop)))
  scripts.last_json(
    call(
      SEPARATION,
      f'--dataset={path}',
      f'--drop=@{tmp_path / "drop.txt"}',
      f'--workdir={work}',
    )
  )
  assert len(list(work.glob('separation_*.json'))) == 1


def test_moved_data_are_the_same_data(tmp_path, call):
  path, work = scripts.tiny(tmp_path), tmp_path / 'run'
  record = scripts.last_json(call(TRAIN, f'--workdir={work}', *small(path)))
  moved = tmp_path / 'moved.npz'
  shutil.move(path, moved)
  again = call(TRAIN, f'--workdir={work}', *small(moved))
  assert scripts.last_json(again) == record
  refused = call(EVALUATE, f'--workdir={work}')
  assert 'tiny.npz' in scripts.error(refused)
  found = call(EVALUATE, f'--workdir={work}', f'--dataset={moved}')
  assert scripts.last_json(found)['test_acc'] == record['test_acc']


def test_a_platform_that_is_not_there_is_named(tmp_path):
  finished = subprocess.run(
    [
      *(sys.executable, '-m', TRAIN, f'--workdir={tmp_path / "run"}'),
      *small(scripts.tiny(tmp_path)),
    ],
    env=os.environ | {'JAX_PLATFORMS': 'cuda'},
    capture_output=True,
    text=True,
  )
  if finished.returncode == 0:
    pytest.skip('there is a CUDA device here')
  line = scripts.error(
    scripts.Finished(finished.returncode, finished.stdout, finished.stderr)
  )
  assert 'JAX_PLATFORMS=cuda' in line


def test_help_into_a_closed_pipe_is_no_traceback():
  finished = subprocess.run(
    f'{sys.executable} -m {TRAIN} --help | head -1',
    shell=True,
    capture_output=True,
    text=True,
  )
  assert 'Traceback' not in finished.stderr
  assert 'BrokenPipe' not in finished.stderr


def test_scripts_follow_one_another_in_one_process(tmp_path, call):
  path = scripts.tiny(tmp_path)
  for _ in range(2):
    for module in (TRAIN, EVALUATE, SEPARATION):
      assert call(module, '--help').code == 0
  refused = call(SEPARATION, f'--dataset={path}', '--method=natural')
  assert 'method' in scripts.error(refused)


def test_several_radii_in_one_call(tmp_path, call):
  path, work = scripts.tiny(tmp_path), tmp_path / 'run'
  scripts.last_json(call(TRAIN, f'--workdir={work}', *small(path)))
  flags = (f'--workdir={work}', '--eval_examples=0', '--save_examples')
  finished = call(EVALUATE, *flags, '--epsilon=8/255,0,0.3', '--attack=strong')
  record = scripts.last_json(finished)
  curve = record['adv_test_acc_at']
  assert list(curve) == ['0', '0.0313725', '0.3']
  assert list(curve.values()) == sorted(curve.values(), reverse=True)
  assert curve['0'] == record['test_acc']
  assert curve['0.3'] == record['adv_test_acc']
  assert sum(record['broken_test'].values()) == pytest.approx(
    (record['test_acc'] - record['adv_test_acc']) * 30 / 100
  )
  assert list((work / 'evaluations').glob('strong-*.png'))
  (file,) = (work / 'evaluations').glob('*-examples.npz')
  saved = np.load(file)
  images = np.load(path)['test_images']
  assert np.abs(saved['points'] - images / 255).max() <= 0.3 + 1e-6
  assert np.abs(saved['bytes'].astype(int) - images).max() <= 0.3 * 255
  still = saved['robust'] | ~saved['correct']
  np.testing.assert_array_equal(saved['bytes'][still], images[still])
  one = call(EVALUATE, *flags[:2], '--epsilon=8/255', '--attack=strong')
  assert scripts.last_json(one)['adv_test_acc'] == curve['0.0313725']


def test_certificates_stand_on_the_other_side(tmp_path, call):
  path, work = scripts.tiny(tmp_path), tmp_path / 'run'
  scripts.last_json(call(TRAIN, f'--workdir={work}', *small(path)))
  record = scripts.last_json(
    call(EVALUATE, f'--workdir={work}', '--certify=linear', '--epsilon=0,.001')
  )
  certified = record['certified_test_acc_at']
  for radius, attacked in record['adv_test_acc_at'].items():
    assert certified[radius] <= attacked
    lower = record['eq3_lipschitz_at'][radius]
    assert record['upper_lipschitz_at'][radius] >= lower
  assert certified['0'] == record['test_acc']
  assert sum(record['certified_by'].values()) <= record['measured_test']


@pytest.mark.parametrize(
  'flags, word',
  [
    (['--attack=magic'], 'magic'),
    (['--epsilon=2'], 'epsilon'),
    (['--epsilon=0.1,0.1'], 'twice'),
    (['--certify=magic'], 'certify'),
    (['--attack='], 'attack'),
    (['--norm=l2'], '--epsilon'),
  ],
)
def test_wrong_measurements_are_one_line(tmp_path, call, flags, word):
  path, work = scripts.tiny(tmp_path), tmp_path / 'run'
  scripts.last_json(call(TRAIN, f'--workdir={work}', *small(path)))
  assert word in scripts.error(call(EVALUATE, f'--workdir={work}', *flags))
  assert not (work / 'evaluations').exists()


def test_a_run_that_cannot_be_written_is_measured_and_printed(
  tmp_path, call, caplog
):
  work = tmp_path / 'run'
  scripts.last_json(
    call(TRAIN, f'--workdir={work}', *small(scripts.tiny(tmp_path)))
  )
  (work / 'evaluations').write_text('in the way, as a read-only folder is')
  finished = call(EVALUATE, f'--workdir={work}')
  assert scripts.last_json(finished)['adv_test_acc'] >= 0
  assert 'the record is printed alone' in caplog.text
  refused = call(EVALUATE, f'--workdir={work}', '--save_examples')
  assert 'cannot write' in scripts.error(refused)


def test_what_a_full_disk_does_not_take_is_printed(tmp_path, capsys):
  (tmp_path / 'file').write_text('no folder')
  with pytest.raises(OSError):
    common.write_json({'test_acc': 12.5}, tmp_path / 'file' / 'result.json')
  assert json.loads(capsys.readouterr().out) == {'test_acc': 12.5}


def test_a_file_system_without_locks_is_no_obstacle(
  tmp_path, call, monkeypatch, caplog
):
  def flock(*_):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(runs.fcntl, 'flock', flock)
  finished = call(
    TRAIN, f'--workdir={tmp_path / "run"}', *small(scripts.tiny(tmp_path))
  )
  scripts.last_json(finished)
  assert 'cannot be locked: Function not implemented' in caplog.text


def test_a_terminal_of_another_encoding_shows_the_help():
  finished = subprocess.run(
    [sys.executable, '-m', 'experiments.tables', '--help'],
    env=os.environ | {'PYTHONIOENCODING': 'ascii'},
    capture_output=True,
    text=True,
  )
  assert finished.returncode == 0 and '--rows' in finished.stdout


def test_the_version_is_said(call):
  assert call(TRAIN, '--version').out.startswith('robustlip 0.')


def test_nothing_to_publish_is_one_line(tmp_path, call):
  refused = call('experiments.report', f'--publish={tmp_path / "none"}')
  assert 'none to publish: expected the folder' in scripts.error(refused)


@pytest.mark.parametrize('epochs', [1, 2, 3, 4])
def test_a_schedule_of_few_steps_has_rates(epochs):
  """optax had NaN for cycles whose rise is shorter than a step."""
  settings = config.Config(epochs=epochs, schedule='onecycle', momentum=0.0)
  optimizer = runs.optimizer(settings, 0.1, 1)
  gradient = np.ones((), np.float32)
  state = optimizer.init(gradient)
  for _ in range(epochs):
    update, state = optimizer.update(gradient, state)
    assert -0.1 <= update < 0


def test_several_classes_of_an_image_are_not_taken_for_one(tmp_path):
  labels = np.eye(14, dtype=np.uint8)[np.arange(90) % 14]
  labels[0] = 0  # nothing found, as in ChestMNIST
  path = scripts.tiny(tmp_path, train_labels=labels)
  with pytest.raises(ValueError, match='no class or several: keep one column'):
    datasets.load(path)


def test_names_in_bytes_are_names(tmp_path):
  path = scripts.tiny(tmp_path, class_names=np.array([b'cat', b'dog', b'owl']))
  assert datasets.load(path).class_names == ('cat', 'dog', 'owl')


def test_images_beside_what_other_systems_leave(tmp_path):
  for part in ('train', 'val'):
    folder = tmp_path / part / 'n02123045'
    folder.mkdir(parents=True)
    Image.new('RGB', (64, 64), (9, 9, 9)).save(folder / 'a.JPEG')
    for name in ('._a.JPEG', '.DS_Store', 'Thumbs.db'):
      (folder / name).write_bytes(b'\0\5\x16\7')
  train, _ = imagenet.read(imagenet.find(tmp_path))
  assert train.images.shape == (1, 64, 64, 3)
  deep = tmp_path / 'deep.png'
  Image.fromarray(np.full((64, 64), 30_000, np.uint16)).save(deep)
  with pytest.raises(ValueError, match='of mode I;16, not of 8 bits'):
    imagenet.decode(deep)


def test_a_checkpoint_is_never_converted(tmp_path):
  with checkpoints.Store(tmp_path) as store:
    store.save(1, {'step': np.int32(16_777_217)})  # no float32 is so odd
    store.wait()
    with pytest.raises(ValueError, match='has other arrays'):
      store.newest({'step': np.float32(0)})
    assert store.newest({'step': np.int32(0)})['step'] == 16_777_217
  checkpoints.save(
    tmp_path / 'own', {'layers': {0: np.ones(2), 1: np.zeros(3)}}
  )
  assert list(checkpoints.load(tmp_path / 'own')['layers']) == ['0', '1']


def test_training_goes_on_from_the_weights_of_another_run(tmp_path, call):
  path, first = scripts.tiny(tmp_path), tmp_path / 'first'
  flags = (*small(path), '--learning_rate=0')
  scripts.last_json(call(TRAIN, f'--workdir={first}', *small(path)))
  second = tmp_path / 'second'
  scripts.last_json(
    call(TRAIN, f'--workdir={second}', f'--start={first}', '--seed=1', *flags)
  )
  (_, trained), (_, kept) = (
    checkpoints.newest_variables(work / 'checkpoints')
    for work in (first, second)
  )
  np.testing.assert_array_equal(
    *(found['params']['Dense_0']['kernel'] for found in (trained, kept))
  )
  refused = call(
    TRAIN,
    *(f'--workdir={tmp_path / "third"}', f'--start={first}', '--arch=wrn_10_1'),
    *flags,
  )
  assert 'other network' in scripts.error(refused)

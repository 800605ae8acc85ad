"""Cases from public reports in which a script lost a result, or crashed.

Nothing measured is lost: the record is there whatever becomes of its picture.
Those of training are in `experiments_train_test`, those of the readers of data
sets in `datasets_load_test`.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scripts
from PIL import Image

from experiments import common, config, measure, runs
from robustlip import checkpoints, datasets
from robustlip.datasets import imagenet

TRAIN, EVALUATE = 'experiments.train', 'experiments.evaluate'
BATCHES = '--eval_batch_size=15'  # as in training: one program


def test_moved_data_are_the_same_data(tmp_path, call, trained):
  flags, work = trained
  record = common.read_json(work / 'result.json')
  settings = common.read_json(work / 'config.json')
  gone = settings | {'dataset': f'{tmp_path}/tiny.npz'}
  common.write_json(gone, work / 'config.json')
  moved = tmp_path / 'moved.npz'
  np.savez(moved, **scripts.tiny_arrays())
  again = call(TRAIN, *flags, f'--workdir={work}', f'--dataset={moved}')
  assert scripts.last_json(again) == record
  refused = call(EVALUATE, f'--workdir={work}')
  assert 'tiny.npz' in scripts.error(refused)
  given = f'--workdir={work}', f'--dataset={moved}', BATCHES
  found = scripts.last_json(call(EVALUATE, *given))
  assert found['test_acc'] == record['test_acc']


def test_help_into_a_closed_pipe_is_no_traceback():
  finished = subprocess.run(
    f'{sys.executable} -m {TRAIN} --help | head -1',
    shell=True,
    capture_output=True,
    text=True,
  )
  assert 'Traceback' not in finished.stderr
  assert 'BrokenPipe' not in finished.stderr


def test_several_radii_in_one_call(call, trained):
  _, work = trained
  flags = f'--workdir={work}', BATCHES
  radii = '--epsilon=8/255,0,0.3', '--save_examples'
  record = scripts.last_json(call(EVALUATE, *flags, *radii, '--attack=strong'))
  curve = record['adv_test_acc_at']
  assert list(curve) == ['0', '0.0313725', '0.3']
  assert list(curve.values()) == sorted(curve.values(), reverse=True)
  assert curve['0'] == record['test_acc']
  assert curve['0.3'] == record['adv_test_acc']
  assert sum(record['broken_test'].values()) == pytest.approx(
    (record['test_acc'] - record['adv_test_acc']) * 30 / 100
  )
  assert list((work / 'evaluations').glob('strong-*.png'))
  none = call(EVALUATE, *flags, '--epsilon=')
  assert '--epsilon names no radius' in scripts.error(none)
  (file,) = (work / 'evaluations').glob('*-examples.npz')
  saved = np.load(file)
  images = scripts.tiny_arrays()['test_images']
  assert np.abs(saved['points'] - images / 255).max() <= 0.3 + 1e-6
  assert np.abs(saved['bytes'].astype(int) - images).max() <= 0.3 * 255
  still = saved['robust'] | ~saved['correct']
  np.testing.assert_array_equal(saved['bytes'][still], images[still])
  one = call(EVALUATE, *flags, '--epsilon=8/255', '--attack=strong')
  assert scripts.last_json(one)['adv_test_acc'] == curve['0.0313725']


def test_certificates_stand_on_the_other_side(call, trained):
  _, work = trained
  flags = f'--workdir={work}', BATCHES, '--certify=linear', '--epsilon=0,.001'
  record = scripts.last_json(call(EVALUATE, *flags))
  certified = record['certified_test_acc_at']
  for radius, attacked in record['adv_test_acc_at'].items():
    assert certified[radius] <= attacked
    lower = record['eq3_lipschitz_at'][radius]
    assert record['upper_lipschitz_at'][radius] >= lower
  assert certified['0'] == record['test_acc']
  assert sum(record['certified_by'].values()) <= record['measured_test']


def test_a_ball_in_l2_is_larger_than_any_of_the_constant(call, trained):
  _, work = trained
  flags = f'--workdir={work}', BATCHES, '--norm=l2', '--epsilon=2'
  record = scripts.last_json(call(EVALUATE, *flags, '--num_steps=2'))
  assert (record['attack_norm'], record['attack_epsilon']) == ('l2', 2.0)
  assert record['adv_test_acc'] <= record['test_acc']
  assert not [name for name in record if name.endswith('lipschitz')]


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
def test_wrong_measurements_are_one_line(call, trained, flags, word):
  _, work = trained
  assert word in scripts.error(call(EVALUATE, f'--workdir={work}', *flags))
  assert not (work / 'evaluations').exists()


def test_a_run_that_cannot_be_written_is_measured_and_printed(
  call, trained, caplog
):
  _, work = trained
  (work / 'evaluations').write_text('in the way, as a read-only folder is')
  found = scripts.last_json(call(EVALUATE, f'--workdir={work}', BATCHES))
  record = common.read_json(work / 'result.json')
  assert found['adv_test_acc'] == record['adv_test_acc']
  assert 'the record is printed alone' in caplog.text
  refused = call(EVALUATE, f'--workdir={work}', '--save_examples')
  assert 'cannot write' in scripts.error(refused)


def test_what_a_full_disk_does_not_take_is_printed(tmp_path, capsys):
  (tmp_path / 'file').write_text('no folder')
  with pytest.raises(OSError):
    common.write_json({'test_acc': 12.5}, tmp_path / 'file' / 'result.json')
  assert json.loads(capsys.readouterr().out) == {'test_acc': 12.5}


def test_what_is_not_written_to_its_end_is_not_there(tmp_path):
  path = tmp_path / 'examples.npz'
  with pytest.raises(KeyboardInterrupt), common.whole(path) as file:
    file.write(b'half of it')
    raise KeyboardInterrupt
  assert not path.exists()


def test_an_interrupted_cascade_keeps_its_time(tmp_path):
  assert measure.seconds_before(tmp_path / 'pgd-partial') == 0
  for name, seconds in (('pgd', 3.0), ('pgd', 5.0), ('square', 9.0)):
    file = tmp_path / f'{name}-partial-{seconds:g}.npz'
    np.savez(file, place=1, seconds=seconds)
  assert measure.seconds_before(tmp_path / 'pgd-partial') == 5


def test_a_file_system_without_locks_is_no_obstacle(
  call, trained, monkeypatch, caplog
):
  flags, work = trained

  def flock(*_):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(runs.fcntl, 'flock', flock)
  scripts.last_json(call(TRAIN, *flags, f'--workdir={work}'))
  assert 'cannot be locked: Function not implemented' in caplog.text


def test_the_version_is_said(call):
  assert call(TRAIN, '--version').out.startswith('robustlip 0.')


@pytest.mark.parametrize('epochs', [1, 2])
def test_a_schedule_of_few_steps_has_rates(epochs):
  """optax had NaN for cycles whose rise is shorter than a step."""
  settings = config.Config(epochs=epochs, schedule='onecycle', momentum=0.0)
  optimizer = runs.optimizer(settings, 0.1, 1)
  gradient = np.ones((), np.float32)
  state = optimizer.init(gradient)
  for _ in range(epochs):
    update, state = optimizer.update(gradient, state)
    assert -0.1 <= update < 0


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


def test_training_goes_on_from_the_weights_of_another_run(
  tmp_path, call, trained
):
  flags, folder = trained
  first = shutil.copytree(folder, tmp_path / 'first')
  flags += f'--start={first}', '--epochs=1', '--learning_rate=0', '--ema=0.9'
  second = tmp_path / 'second'
  command = TRAIN, *flags, f'--workdir={second}', '--seed=1'
  scripts.last_json(call(*command))
  (_, trained), (_, kept) = (
    checkpoints.newest_variables(work / 'checkpoints')
    for work in (first, second)
  )
  np.testing.assert_allclose(
    *(found['params']['Dense_0']['kernel'] for found in (trained, kept)),
    rtol=1e-5,
  )
  other = f'--workdir={tmp_path / "third"}', '--arch=wrn_10_1'
  assert 'other network' in scripts.error(call(TRAIN, *flags, *other))
  fourth = tmp_path / 'fourth'
  nowhere = f'--workdir={fourth}', f'--start={tmp_path / "nowhere"}'
  assert 'no checkpoint' in scripts.error(call(TRAIN, *flags, *nowhere))
  assert not fourth.exists()  # and is free for the right command
  shutil.rmtree(first)
  (second / 'result.json').unlink()  # as if it had not been measured yet
  scripts.last_json(call(*command))


def test_damaged_stages_of_a_cascade_are_named(tmp_path):
  (tmp_path / 'pgd-partial-test-0.1.npz').touch()
  with pytest.raises(ValueError, match='0 bytes, expected stages of a cascade'):
    measure.seconds_before(tmp_path / 'pgd-partial')


def test_a_run_is_measured_on_its_own_data_alone(tmp_path):
  embedded = datasets.load('mnist5k')
  config.check_data(tmp_path, config.Config(), embedded)
  with pytest.raises(ValueError, match='trained on other data .mnist. than mn'):
    config.check_data(tmp_path, config.Config(dataset='mnist'), embedded)

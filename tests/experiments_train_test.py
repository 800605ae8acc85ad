"""The training and evaluation scripts, as a user runs them."""

import fcntl
import json
import os
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
from scripts import last_json, settings

from experiments import common, config, measure, runs
from robustlip import checkpoints, datasets
from robustlip.parameters import average

TRAIN, EVALUATE = 'experiments.train', 'experiments.evaluate'
FIELDS = """dataset arch method epsilon seed epochs train_acc test_acc
adv_train_acc adv_test_acc eq3_lipschitz released_lipschitz gap adv_gap seconds
jax_version device""".split()


def train(folder, *others, **run):
  """A run in a process of its own."""
  return scripts.run(TRAIN, *settings(folder, *others), folder=folder, **run)


def test_train_resume_evaluate(trained, call):
  flags, work = trained
  record = common.read_json(work / 'result.json')
  assert set(FIELDS) <= set(record)
  assert record['test_acc'] > 90 and record['best']['test_acc'] > 90
  assert record['gap'] == record['train_acc'] - record['test_acc']
  assert (work / 'curves.png').stat().st_size > 1000
  curve = runs.read_curve(work)
  assert [line['epoch'] for line in curve] == list(range(1, 25))
  again = call(TRAIN, *flags, f'--workdir={work}')
  assert last_json(again) == record
  assert 'training' not in again.err

  line = scripts.error(call(TRAIN, *flags, f'--workdir={work}', '--holdout=10'))
  assert 'holdout=15' in line and 'holdout=10' in line

  flags = f'--workdir={work}', '--epsilon=0.02', '--eval_batch_size=15'
  measured = last_json(call(EVALUATE, *flags, '--checkpoint=best'))
  assert measured['step'] == record['best']['step'] < record['step']
  assert measured['adv_gap'] == record['best']['adv_gap']
  assert measured['run'] == {key: record[key] for key in common.ORIGIN}
  other = last_json(call(EVALUATE, *flags, '--attack=multi_targeted_released'))
  assert other['attack'] == 'multi_targeted_released'
  assert other['adv_test_acc'] <= other['test_acc'] == record['test_acc']
  found = sorted(path.name for path in (work / 'evaluations').glob('*.json'))
  assert found == [
    'multi_targeted_released-eps0.02-1000examples-newest.json',
    'pgd-eps0.02-1000examples-best.json',
  ]
  assert record == common.read_json(work / 'result.json')


def test_a_picture_and_a_checkpoint_that_are_missing_cost_a_warning(
  trained, call, caplog
):
  flags, work = trained
  record = common.read_json(work / 'result.json')
  for name in ('result.json', 'curves.png'):
    (work / name).unlink()
  (work / 'curves.png').mkdir()  # in the way
  beyond = work / 'best' / '9999'  # of a run that was killed after it
  shutil.copytree(work / 'best' / str(record['best']['step']), beyond)
  again = last_json(call(TRAIN, *flags, f'--workdir={work}'))
  assert again['best'] == record['best'] and not beyond.exists()
  assert again == common.read_json(work / 'result.json')
  assert again['adv_test_acc'] == record['adv_test_acc']
  assert 'No picture' in caplog.text
  shutil.rmtree(work / 'checkpoints' / str(record['step']))
  assert last_json(call(TRAIN, *flags, f'--workdir={work}')) == again
  assert 'is gone' in caplog.text
  evaluated = last_json(call(EVALUATE, f'--workdir={work}'))
  assert evaluated['finished'] is False and 'not its last' in caplog.text


def test_a_run_that_was_trained_anew_is_measured_again(trained, call):
  _, work = trained
  flags = f'--workdir={work}', '--num_steps=1', '--eval_batch_size=15'
  before = last_json(call(EVALUATE, *flags, '--save_examples'))
  with checkpoints.Store(work / 'checkpoints') as store:
    progress = store.restore(before['step'])
    zeros = jax.tree.map(np.zeros_like, progress['state']['params'])
    progress['state']['params'] = zeros  # a network of the same step
    store.save(before['step'], progress)
  after = last_json(call(EVALUATE, *flags))
  assert after['test_acc'] == pytest.approx(100 / 3) != before['test_acc']
  assert after == last_json(call(EVALUATE, *flags))
  call(EVALUATE, *flags, '--save_examples')  # those before are of another
  found = sorted((work / 'evaluations').glob('*.npz'), key=os.path.getmtime)
  accuracies = [100 * np.load(file)['correct'].mean() for file in found]
  expected = before['test_acc'], after['test_acc']
  assert accuracies == pytest.approx(expected)


def test_the_best_is_not_replaced_where_it_is_not_known(trained, call):
  flags, work = trained
  best = common.read_json(work / 'result.json')['best']
  (work / 'result.json').unlink()
  shutil.rmtree(work / 'checkpoints' / str(newest(work)))
  (work / 'metrics.jsonl').rename(work / 'elsewhere')
  refused = scripts.error(call(TRAIN, *flags, f'--workdir={work}'))
  assert 'metrics.jsonl has lost epochs' in refused
  (work / 'elsewhere').rename(work / 'metrics.jsonl')
  again = last_json(call(TRAIN, *flags, f'--workdir={work}'))
  assert again['best'] == best


def test_other_arrays_in_the_same_file_are_refused(
  trained, tmp_path, call, caplog
):
  (flags, work), own = trained, tmp_path / 'own.npz'
  arrays = scripts.tiny_arrays()
  where = f'--dataset={own}', f'--workdir={work}'
  few = EVALUATE, *where, '--eval_examples=7', '--epsilon=8/255'

  np.savez(own, **arrays | {'test_images': 255 - arrays['test_images']})
  assert 'other arrays' in scripts.error(call(TRAIN, *flags, *where))
  assert 'other data' in scripts.error(call(EVALUATE, *where))
  np.savez(own, **arrays, class_names=list('abcd'))
  assert 'of the 4 classes' in scripts.error(call(*few))
  np.savez(own, **arrays)
  record = last_json(call(*few))
  assert record['measured_test'] == 7
  assert record['attack_epsilon'] == pytest.approx(8 / 255)
  assert last_json(call(*few)) == record  # its seconds too
  assert 'measured before' in caplog.text
  refused = scripts.error(call(EVALUATE, f'--workdir={tmp_path}'))
  assert 'not the folder of a run' in refused
  (work / 'config.json').write_text('{"epsilon": 1}')
  assert 'not the settings of a run' in scripts.error(call(EVALUATE, *where))


def parameters(work):
  with checkpoints.Store(work / 'checkpoints') as store:
    return store.restore(store.numbers()[-1])['state']


def newest(work):
  names = [path.name for path in (work / 'checkpoints').glob('*')]
  return max((int(name) for name in names if name.isdecimal()), default=0)


def further(work):
  """A condition that holds once there is another checkpoint."""
  seen = newest(work)
  return lambda: newest(work) > seen


@pytest.mark.parametrize(
  'times, epochs, when',
  [
    (3, 24, lambda work, draw: further(work)),
    pytest.param(
      20,
      400,
      lambda work, draw: scripts.after(draw.uniform(0.5, 6.0)),
      marks=pytest.mark.full_scale,
    ),
  ],
)
def test_killed_again_and_again_it_is_never_stopped(
  tmp_path, times, epochs, when
):
  often = ('--checkpoint_seconds=0', f'--epochs={epochs}')
  often += ('--ema=0.9', '--awp=0.01', '--cutmix=0.5')
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  last_json(train(tmp_path, f'--workdir={whole}', *often))
  draw, kills = np.random.default_rng(0), 0
  for _ in range(times):
    finished = train(
      tmp_path, f'--workdir={broken}', *often, when=when(broken, draw)
    )
    kills += finished.code == -9
    assert finished.code in (-9, 0), finished.err
  assert kills >= min(times, 5)  # at random, some find it finished
  resumed = train(tmp_path, f'--workdir={broken}', *often)
  last_json(resumed)
  chex.assert_trees_all_equal(parameters(whole), parameters(broken))
  lines = (broken / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line)['epoch'] for line in lines]
  assert found == list(range(1, epochs + 1))


def test_interrupted_it_leaves_the_last_step_on_disk(tmp_path):
  work = tmp_path / 'run'
  curve = work / 'metrics.jsonl'
  finished = train(
    tmp_path,
    f'--workdir={work}',
    '--epochs=3000',
    '--checkpoint_seconds=1000000',
    stop=signal.SIGTERM,
    when=lambda: curve.exists() and curve.read_text().count('\n') > 1,
  )
  assert_one_line(finished, 'interrupted')
  last = json.loads(curve.read_text().splitlines()[-1])
  assert parameters(work)['step'] >= last['step'] > 0


def together(*arguments):
  return [last_json(each) for each in scripts.two_processes(*arguments)]


def test_two_processes_are_one(tmp_path, call):
  flags = ['--dropout=0', '--method=rst', '--epochs=1', '--inner_steps=2']
  one = settings(tmp_path, *flags, f'--workdir={tmp_path / "one"}')
  last_json(call(TRAIN, *one))
  work = f'--workdir={tmp_path / "two"}'
  found = together(tmp_path, TRAIN, *settings(tmp_path, *flags, work))
  assert found[0]['test_acc'] == found[1]['test_acc']
  one, two = parameters(tmp_path / 'one'), parameters(tmp_path / 'two')
  kernel = one['params']['Conv_0']['kernel']
  np.testing.assert_allclose(
    two['params']['Conv_0']['kernel'], kernel, rtol=5e-3, atol=5e-4
  )
  measured = [work, '--attack=pgd,square', '--epsilon=.05,.1', '--num_steps=2']
  measured += ['--eval_batch_size=15']
  alone = last_json(call(EVALUATE, *measured))
  shutil.rmtree(tmp_path / 'two' / 'evaluations')
  for record in together(tmp_path, EVALUATE, *measured):
    assert record['adv_test_acc_at'] == alone['adv_test_acc_at']
    assert record['broken_train'] == alone['broken_train']
    np.testing.assert_allclose(
      record['eq3_lipschitz'], alone['eq3_lipschitz'], rtol=1e-3
    )


@pytest.mark.filterwarnings('ignore:overflow')
def test_of_several_runs_those_that_diverge_say_where(tmp_path, call):
  work = tmp_path / 'many'
  flags = ['--method=gr', '--lam=1e39,.5,1', '--seeds=2', '--epochs=1']
  finished = call(TRAIN, *settings(tmp_path, *flags, f'--workdir={work}'))
  assert finished.code == 1
  line = finished.err.splitlines()[-1]
  assert line.startswith('error:') and line.count('not finite at step 0') == 2
  assert 'lam1e+39' in line and 'learning_rate' in line
  assert 'there is no checkpoint yet' in line
  records = [json.loads(line) for line in finished.out.splitlines()]
  found = [(record['lam'], record['seed']) for record in records]
  assert found == [(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
  assert len(list(work.glob('*/result.json'))) == 4


@pytest.mark.filterwarnings('ignore:overflow')
def test_a_last_update_that_diverges_is_seen(tmp_path, call):
  flags = ['--epochs=1', '--batch_size=90', '--learning_rate=1e39']
  flags += ['--milestones=10000000000', f'--workdir={tmp_path / "run"}']
  finished = call(TRAIN, *settings(tmp_path, *flags))
  assert_one_line(finished, 'not finite at step 1;')
  flags += ['--epochs=2', '--checkpoint_seconds=0']  # due with these weights
  flags += [f'--workdir={tmp_path / "longer"}']
  finished = call(TRAIN, *settings(tmp_path, *flags))
  assert_one_line(finished, 'step 1; there is no checkpoint yet')
  assert not (tmp_path / 'longer' / 'checkpoints' / '1').exists()


def test_schedules():
  def rates(**others):
    settings = config.Config(epochs=5, optimizer='sgd', momentum=0.0, **others)
    tx = runs.optimizer(settings, 0.5, steps_per_epoch=10)
    state, found = tx.init(jnp.zeros(())), []
    for _ in range(50):
      update, state = tx.update(jnp.ones(()), state)
      found.append(-float(update))
    return np.array(found)

  steps = rates(milestones=(2, 4, 7))[[0, 19, 20, 39, 40, 49]]
  np.testing.assert_allclose(steps, [0.5, 0.5, 0.05, 0.05, 5e-3, 5e-3], 1e-6)
  cosine = 0.25 * (1 + np.cos(np.pi * np.arange(50) / 50))
  np.testing.assert_allclose(rates(schedule='cosine'), cosine, rtol=1e-5)
  once = rates(schedule='onecycle')
  assert once.argmax() == 15 and once[15] == pytest.approx(0.5)
  assert once[0] == pytest.approx(0.5 / 25) and once[49] < 0.01


@pytest.mark.parametrize('name', config.OPTIMIZERS)
def test_optimizers(name):
  tx = runs.optimizer(
    config.Config(optimizer=name, momentum=0.8, milestones=()), 0.1, 1
  )
  gradients = np.arange(1.0, 4.0), np.array([-1.0, 2.0, -3.0])
  state, first, second = tx.init(jnp.zeros(3)), 0.0, 0.0
  for count, gradient in enumerate(gradients, start=1):
    update, state = tx.update(jnp.asarray(gradient), state)
    if name == 'adam':
      first = 0.8 * first + 0.2 * gradient
      second = 0.999 * second + 0.001 * gradient**2
      length = np.sqrt(second / (1 - 0.999**count)) + 1e-8
      expected = -0.1 * first / (1 - 0.8**count) / length
    else:
      first = 0.8 * first + gradient
      ahead = gradient + 0.8 * first if name == 'nesterov' else first
      expected = -0.1 * ahead
    np.testing.assert_allclose(update, expected, rtol=1e-4)


def test_weight_decay():
  params = jnp.array([1.0, -2.0, 4.0])
  # The first step of Adam has length 1, whatever the gradient.
  for name, length in (('sgd', 0.1), ('adam', 1.0)):
    tx = runs.optimizer(
      config.Config(
        optimizer=name, momentum=0.0, milestones=(), weight_decay=0.01
      ),
      0.5,
      1,
    )
    update, _ = tx.update(jnp.full(3, 0.1), tx.init(params), params)
    expected = -0.5 * (length + 0.01 * params)
    np.testing.assert_allclose(update, expected, rtol=1e-4)


def test_swa_takes_the_ends_of_epochs():
  settings = config.Config(epochs=4, swa=0.5, momentum=0.0, milestones=())
  tx, params = runs.optimizer(settings, 0.1, steps_per_epoch=5), jnp.zeros(())
  state = tx.init(params)
  for _ in range(20):
    updates, state = tx.update(jnp.ones(()), state, params)
    params += updates
  expected = np.mean([-0.1 * 15, -0.1 * 20])
  assert average(state) == pytest.approx(expected, rel=1e-5)


def test_of_epochs_equal_under_attack_the_more_accurate_is_best():
  found = [(0, 30), (0, 60), (0, 60), (5, 20), (5, 10), (0, 90)]
  curve = [{'holdout_adv_acc': x, 'holdout_acc': y} for x, y in found]
  best = [runs.is_best(line, curve[:i]) for i, line in enumerate(curve)]
  assert best == [True, True, False, True, False, False]


def test_the_radius_grows():
  settings = config.Config(epsilon_warmup=1.5)
  radius = runs.radius_schedule(settings, 0.3, steps_per_epoch=10)
  found = [float(radius(step)) for step in (0, 5, 15, 40)]
  np.testing.assert_allclose(found, [0.0, 0.1, 0.3, 0.3], rtol=1e-5)
  assert runs.radius_schedule(config.Config(), 0.3, 10)(0) == 0.3


def test_the_first_examples_of_each_class(tmp_path):
  dataset = datasets.load(scripts.tiny(tmp_path))
  settings = config.Config(train_examples=12, holdout=3)
  split, held = measure.training_split(settings, dataset)
  assert (len(split.labels), len(held.labels)) == (9, 3)
  labels = np.concatenate([split.labels, held.labels])
  assert np.bincount(labels).tolist() == [4, 4, 4]
  with pytest.raises(ValueError, match='no equal shares'):
    measure.training_split(config.Config(train_examples=13), dataset)


WRONG_FLAGS = [
  (TRAIN, ['--epsilon=8/0'], 'epsilon'),
  (TRAIN, ['--epsilon=8/0'], '8/0 divides by 0'),
  (TRAIN, ['--dataset=./nowhere'], 'arrays; there is no /'),
  (TRAIN, ['--epsilon=300/255'], 'epsilon'),
  (TRAIN, ['--checkpoint_seconds=nan'], 'must be a number'),
  (TRAIN, ['--train_examples=7'], 'equal shares'),
  (TRAIN, ['--schedule=linear'], 'schedule'),
  (TRAIN, ['--arch=cnn2'], 'too small'),
  (TRAIN, ['--method=magic'], 'method'),
  (TRAIN, ['--method=rst', '--lam=two'], 'lam'),
  (TRAIN, ['--method=natural', '--lam=1'], 'lam'),
  (TRAIN, ['--epochs=0'], 'epochs'),
  (TRAIN, ['--batch_size=1000'], '1000'),
  (TRAIN, ['--batch_size=30', '--accumulate=4'], 'accumulate'),
  (TRAIN, ['--holdout=90'], 'holdout'),
  (TRAIN, ['--augment=flip,magic'], 'no augmentation magic'),
  (TRAIN, ['--ema=.9', '--swa=.5'], 'two averages'),
  (TRAIN, ['--epochs=3', '--swa=.75'], 'fewer than two of 3 epochs'),
  (TRAIN, ['--batch_size=45', '--cutmix=1'], 'in pairs'),
  (TRAIN, ['--method=ibp', '--dropout=0', '--cutmix=.1'], 'one label'),
  (TRAIN, ['--method=ibp', '--dropout=0', '--label_smoothing=.1'], 'one label'),
  (TRAIN, ['--method=ibp', '--arch=cnn1'], 'needs --dropout=0'),
  (TRAIN, ['--method=ibp', '--arch=wrn_10_1'], 'batch normalisation'),
  (TRAIN, ['--epsilon_warmup=1'], 'means nothing to natural'),
  (TRAIN, ['--method=at', '--epsilon_warmup=8.5'], 'than the 8 epochs'),
  (TRAIN, ['--inner_steps=3'], 'means nothing to natural'),
  (TRAIN, ['--preset=paper'], 'preset'),
  (TRAIN, ['--milestones=a'], 'milestones'),
  (TRAIN, ['--schedule=onecycle'], 'not of onecycle'),
  (TRAIN, ['--method=rst', '--lam='], 'lam'),
  (TRAIN, ['--method=rst', '--lam=1,1.00000001'], 'twice'),
  (TRAIN, ['--seed=4294967296'], 'seed'),
  (TRAIN, ['--seed=4294967295', '--seeds=2'], 'got 4294967296'),
  (TRAIN, ['--num_processes=2'], 'coordinator'),
  (TRAIN, ['--num_steps=3'], 'num_steps'),
  (EVALUATE, [], 'workdir'),
  (EVALUATE, ['--workdir=/nowhere/at/all'], '/nowhere/at/all'),
]


def assert_one_line(finished, word):
  assert word in scripts.error(finished), finished.err


def test_one_class_is_none(tmp_path, call):
  labels = {'train_labels': np.zeros(90, int), 'test_labels': np.zeros(30, int)}
  path, work = scripts.tiny(tmp_path, **labels), tmp_path / 'run'
  flags = f'--dataset={path}', '--epsilon=0.1', f'--workdir={work}'
  assert 'class' in scripts.error(call(TRAIN, *flags))
  assert not work.exists()


@pytest.mark.parametrize('module, flags, word', WRONG_FLAGS)
def test_wrong_flags(tmp_path, call, module, flags, word):
  first = []
  if module == TRAIN:
    first = settings(tmp_path, f'--workdir={tmp_path / "run"}')
  assert word in scripts.error(call(module, *first, *flags))
  assert not (tmp_path / 'run').exists()


def test_folders_that_cannot_be_used(tmp_path, call):
  file = tmp_path / 'file'
  file.write_text('keep me')
  flags = settings(tmp_path)
  assert_one_line(call(TRAIN, *flags, f'--workdir={file}'), 'file')
  assert file.read_text() == 'keep me'
  foreign = tmp_path / 'foreign'
  foreign.mkdir()
  (foreign / 'thesis.tex').write_text('keep me too')
  assert_one_line(call(TRAIN, *flags, f'--workdir={foreign}'), 'foreign')
  assert [p.name for p in foreign.iterdir()] == ['thesis.tex']


def test_a_folder_in_use_is_left_alone(tmp_path, call):
  work = tmp_path / 'run'
  work.mkdir()
  with open(work / '.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    finished = call(TRAIN, *settings(tmp_path, f'--workdir={work}'))
  assert_one_line(finished, 'in use')


def test_a_missing_device_is_one_line(tmp_path, call, monkeypatch):
  def devices():
    raise RuntimeError('Unable to initialize backend')

  monkeypatch.setattr(jax, 'devices', devices)
  flags = settings(tmp_path, f'--workdir={tmp_path / "run"}')
  assert_one_line(call(TRAIN, *flags), 'no device to compute on')

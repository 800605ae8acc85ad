"""From settings to a record: trains what is missing, measures, writes.

The folder of a run has `config.json`, its settings (a run with others is
refused); `checkpoints/`, the newest states, and with a held-out set `best/`
(the last state and the best hold the averaged network, if one is asked for);
`metrics.jsonl`, a line per epoch, which `curves.png` draws; `result.json`,
which is written last and ends the run. Checkpoints hold the whole state at a
step, and every draw depends on seed and step alone, so that a resumed run is
identical to one that was never stopped.
"""

import contextlib
import fcntl
import functools
import json
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import flags, logging
from jax.experimental import multihost_utils

from experiments import common, config, measure, plots
from experiments.config import Config
from robustlip import (
  augmentations,
  checkpoints,
  evaluation,
  methods,
  parameters,
  progress,
  released,
  training,
)
from robustlip.checkpoints import Store
from robustlip.datasets import Dataset, Split
from robustlip.feed import Feed, epoch_order, replicate, unreplicate

FLAGS = flags.FLAGS


def define() -> None:
  """Defines the flags of all scripts that train."""
  measure.define()
  common.define_processes()
  flags.DEFINE(
    common.Number(0.0),
    'checkpoint_seconds',
    60.0,
    'Least time between two checkpoints.',
  )
  flags.DEFINE_bool(
    'stream',
    None,
    'Keep the training images on the host and send each dispatch its own. '
    'Default: only if they would take over half of the memory of the device.',
  )
  flags.DEFINE_integer(
    'curve_examples',
    200,
    'Test examples measured after every epoch for the curve; 0 for none. No '
    'decision depends on them.',
    0,
  )


def optimizer(
  settings: Config, learning_rate: Any, steps_per_epoch: int
) -> optax.GradientTransformation:
  """The optimizer and the schedule of its rate, which may be traced.

  Raises:
    ValueError: if too few epochs are left for the average of `swa`.
  """
  total = settings.epochs * steps_per_epoch
  if settings.schedule == 'onecycle':
    rate = optax.cosine_onecycle_schedule(total, learning_rate)
  elif settings.schedule == 'cosine':
    rate = optax.cosine_decay_schedule(learning_rate, total)
  else:
    falls = (m for m in settings.milestones if m < settings.epochs)
    scales = {epoch * steps_per_epoch: 0.1 for epoch in falls}
    rate = optax.piecewise_constant_schedule(learning_rate, scales)
  decay, parts = settings.weight_decay, []
  if settings.optimizer == 'adam' and decay:
    parts.append(optax.adamw(rate, settings.momentum, weight_decay=decay))
  elif settings.optimizer == 'adam':
    parts.append(optax.adam(rate, settings.momentum))
  else:
    if decay:
      parts.append(optax.add_decayed_weights(decay))
    nesterov = settings.optimizer == 'nesterov'
    parts.append(optax.sgd(rate, settings.momentum or None, nesterov))
  if settings.ema:
    parts.append(parameters.ema(settings.ema))
  if settings.swa:
    first = round(settings.swa * total)
    if settings.epochs - first // steps_per_epoch < 2:
      raise ValueError(
        f'--swa={settings.swa:g} leaves fewer than two of {settings.epochs} '
        'epochs to average'
      )
    parts.append(parameters.swa(first, every=steps_per_epoch))
  return parts[0] if len(parts) == 1 else optax.chain(*parts)


def radius_schedule(
  settings: Config, epsilon: Any, steps_per_epoch: int
) -> optax.Schedule:
  """The radius of the attack as a function of the step."""
  warmup = round(settings.epsilon_warmup * steps_per_epoch)
  if not warmup:
    return optax.constant_schedule(epsilon)
  return optax.linear_schedule(0.0, epsilon, warmup)


@functools.lru_cache(maxsize=2)
def _trainer(static: Config, num_classes: int, steps_per_epoch: int):
  """(make_recipe, trainer, settler) for runs that differ only in `NUMBERS`."""
  module = static.network(num_classes)
  total = static.epochs * steps_per_epoch
  factory = released.METHODS[static.method]

  def make_recipe(numbers: dict[str, Any]) -> training.Recipe:
    epsilon = radius_schedule(static, numbers['epsilon'], steps_per_epoch)

    def method(step):
      chosen = {name: numbers[name] for name in static.weights}
      chosen['epsilon'] = epsilon(step)
      if methods.accepts(factory, 'num_steps'):
        chosen['num_steps'] = static.inner_steps
      return methods.at_progress(factory, **chosen)(step / total)

    return training.Recipe(
      module=module,
      method=method,
      optimizer=optimizer(static, numbers['learning_rate'], steps_per_epoch),
      augment=augmentations.augmentation(static.augment),
      attack_in_training_mode=static.attack_mode == 'train',
      accumulate=static.accumulate,
      cutmix=static.cutmix or None,
      label_smoothing=static.label_smoothing or None,
      awp=static.awp or None,
    )

  return (
    make_recipe,
    training.trainer(make_recipe),
    training.settler(make_recipe),
  )


class Progress(NamedTuple):
  """What a checkpoint holds."""

  state: training.TrainState
  seconds: np.ndarray  # float64, spent so far


def train(
  settings: Config, dataset: Dataset, path: pathlib.Path
) -> dict[str, Any]:
  """Finishes the run in the folder `path` if it is not; returns its record.

  Raises:
    ValueError: if the settings cannot work, the folder has a run of other
      settings or is in use, or the loss or the weights are not finite.
  """
  check(settings, dataset)
  if settings.start and not (path / 'config.json').exists():
    start_of(settings)  # before the folder is that of a run
  result = path / 'result.json'
  with claimed(path, settings):
    if not result.exists():
      began = time.monotonic()
      trained = fit(settings, dataset, path)
      spent = time.monotonic()
      record = measure.record(settings, dataset, trained.state.variables)
      record['step'] = int(trained.state.step)
      record['train_seconds'] = float(trained.seconds)
      if settings.holdout:
        record['best'] = best_record(settings, dataset, path, record)
      record['seconds'] = float(trained.seconds) + time.monotonic() - spent
      logging.info('%s: %.0f s', path, time.monotonic() - began)
      if jax.process_index() == 0:
        common.write_json(record, result)
        common.draw(plots.curves, read_curve(path), path / 'curves')
    multihost_utils.sync_global_devices('the result is written')
    with common.reading(result):
      record = common.read_json(result)
      last = path / 'checkpoints' / str(record['step'])
    if not last.exists():
      logging.warning('%s is gone: its network cannot be measured', last)
    return record


def best_record(
  settings: Config, dataset: Dataset, path: pathlib.Path, last: dict[str, Any]
) -> dict[str, Any]:
  """The columns measured at the step that is best on held-out examples."""
  step, variables = checkpoints.newest_variables(path / 'best')
  found = last
  if step != last['step']:
    found = measure.record(settings, dataset, variables)
  ends = ('_acc', 'gap', '_lipschitz')
  return {k: x for k, x in found.items() if k.endswith(ends)} | {'step': step}


def check(settings: Config, dataset: Dataset) -> None:
  """Raises ValueError for settings that cannot work; nothing is written yet."""
  training.check_batch_size(
    settings.batch_size,
    accumulate=settings.accumulate,
    pairs=settings.cutmix > 0,
  )
  split, _ = measure.training_split(settings, dataset)
  if not len(split.labels):
    raise ValueError(f'--holdout={settings.holdout} leaves no training example')
  order = epoch_order(
    0, 0, num_examples=len(split.labels), batch_size=settings.batch_size
  )
  # Images may be too small for the network, and a method may not take it.
  make_recipe, *_ = _trainer(
    settings.static, len(dataset.class_names), len(order)
  )
  recipe, shape = make_recipe(numbers_of(settings)), split.images.shape[1:]
  jax.eval_shape(
    lambda key: training.initial_state(recipe, key, shape), jax.random.key(0)
  )


def numbers_of(settings: Config) -> dict[str, np.float32]:
  """The traced argument of `_trainer`'s programs: the settings in `NUMBERS`."""
  return {name: np.float32(getattr(settings, name)) for name in config.NUMBERS}


def fit(settings: Config, dataset: Dataset, path: pathlib.Path) -> Progress:
  """Trains from the newest checkpoint in the folder to the last step.

  Raises:
    ValueError: if the loss or the weights are not finite, or it is not known
      which epoch is the best so far.
    KeyboardInterrupt: after Ctrl-C or SIGTERM, with the last step on disk.
  """
  split, held_out = measure.training_split(settings, dataset)
  order = functools.partial(
    epoch_order,
    settings.seed,
    num_examples=len(split.labels),
    batch_size=settings.batch_size,
  )
  steps = len(order(0))
  total = steps * settings.epochs
  make_recipe, program, settler = _trainer(
    settings.static, len(dataset.class_names), steps
  )
  numbers, key = numbers_of(settings), jax.random.key(settings.seed)
  watched = watch(settings, dataset, held_out)
  feed = Feed(split, stream=FLAGS.stream)
  recipe = make_recipe(numbers)
  fresh = training.initial_state(recipe, key, split.images.shape[1:])
  with (
    Store(path / 'checkpoints') as newest,
    Store(path / 'best') as best,
    stop_asked() as stopping,
  ):
    begun = Progress(fresh, np.zeros(()))
    state, seconds = newest.newest(begun) or begun._replace(
      state=started(settings, fresh, recipe.optimizer)
    )
    done, saved_at = int(state.step), time.monotonic()
    best.drop_after(done)  # with the lines below: those steps are taken again
    states = replicate(state)
    # Lines written after the checkpoint are measured again.
    curve = [line for line in read_curve(path) if line['step'] <= done]
    if settings.holdout and len(curve) < done // steps < settings.epochs:
      raise ValueError(
        f'{path}/metrics.jsonl has lost epochs before step {done}: which of '
        'them is best is not known; bring it back, or name another --workdir'
      )

    def save_if_due(last: bool = False) -> None:
      nonlocal saved_at
      due = time.monotonic() - saved_at >= FLAGS.checkpoint_seconds
      if last or due or stopping():
        check_finite(states, newest, weights=True)  # else it cannot go on
        best.wait()  # the best is on disk before the curve that names it
        newest.save(done, Progress(unreplicate(states), seconds))
        saved_at = time.monotonic()
      if stopping():
        raise KeyboardInterrupt

    bar = progress.bar(
      total, f'training {path.name}', unit='step', initial=done
    )
    with bar:
      for epoch in range(done // steps, settings.epochs):
        end = (epoch + 1) * steps
        for arguments in feed.dispatches(order(epoch), done - epoch * steps):
          began, taken = time.monotonic(), arguments[2] - arguments[1]
          states = program(states, numbers, key, *arguments)
          loss = check_finite(states, newest)  # waits for the devices
          seconds = np.float64(seconds + time.monotonic() - began)
          done += taken
          bar.set_postfix_str(
            f'loss {loss / (done - end + steps):.3f}', refresh=False
          )
          bar.update(taken)
          if done < end:
            save_if_due()
        states = states._replace(loss_sum=states.loss_sum * 0)
        state = training.settled(
          settler, unreplicate(states), numbers, key, feed, order(0)
        )
        line = {'epoch': epoch + 1, 'step': done, 'loss': loss / steps}
        line |= {'seconds': round(float(seconds), 2)} | watched(state.variables)
        if settings.holdout and is_best(line, curve):
          best.save(done, Progress(state, seconds))
        curve.append(line)
        write_curve(path, curve)
        if done < total:
          save_if_due()
    check_finite(states, newest, weights=True)
    if done != max(newest.numbers(), default=0):
      states = replicate(state)
      save_if_due(last=True)
    return Progress(unreplicate(states), seconds)


def started(
  settings: Config,
  fresh: training.TrainState,
  optimizer: optax.GradientTransformation,
) -> training.TrainState:
  """The fresh state with the weights of the run that `--start` names.

  The optimizer begins with them too: it may average them.

  Raises:
    ValueError: if they are of another network.
  """
  if not settings.start:
    return fresh
  step, found = start_of(settings)
  if jax.tree.map(np.shape, found) != jax.tree.map(np.shape, fresh.variables):
    raise ValueError(f'--start={settings.start} is of another network')
  logging.info('Starting from step %d in %s', step, settings.start)
  return fresh._replace(**found, opt_state=optimizer.init(found['params']))


def start_of(settings: Config) -> tuple[int, dict[str, Any]]:
  """The step and the variables that `--start` names."""
  folder = pathlib.Path(settings.start).expanduser() / 'checkpoints'
  return checkpoints.newest_variables(folder)


def watch(
  settings: Config, dataset: Dataset, held_out: Split
) -> Callable[[Any], dict[str, float]]:
  """A function from variables to test and held-out accuracies, in percent."""
  splits = {'holdout': held_out} if settings.holdout else {}
  if count := FLAGS.curve_examples:
    splits['test'] = measure.subset(dataset.test, count)
  measures = measure.evaluator(settings, dataset, measure.PGD)

  def accuracies(variables: Any) -> dict[str, float]:
    line = {}
    for name, split in splits.items():
      found = measures.accuracies(
        variables, split, measure.key(settings), name=name
      )
      line[f'{name}_acc'] = evaluation.percent(found.correct)
      line[f'{name}_adv_acc'] = evaluation.percent(found.robust)
    return line

  return accuracies


def is_best(line: dict[str, Any], before: list[dict[str, Any]]) -> bool:
  """Whether an epoch is better on the held-out examples than all before it.

  Under attack, and of those equal there on clean images: a network that is
  never robust would else be best after its first epoch.
  """
  columns = 'holdout_adv_acc', 'holdout_acc'
  found = [line[c] for c in columns]
  return all(found > [earlier[c] for c in columns] for earlier in before)


def check_finite(
  states: training.TrainState, newest: Store, *, weights: bool = False
) -> float:
  """The sum of the losses of this epoch so far, checked to be finite.

  Args:
    weights: whether to check the weights too, since no later loss shows the
      effect of the last update.

  Raises:
    ValueError: if the loss, or a weight, is not finite.
  """
  loss, bad = unreplicate((states.loss_sum, states.bad_step))
  if weights:
    bad = training.diverged_at(unreplicate(states))
  if bad >= 0:
    kept = newest.numbers()
    where = (
      f'the last good checkpoint is step {kept[-1]}'
      if kept
      else 'there is no checkpoint yet'
    )
    raise ValueError(
      f'the loss or the weights of {newest.folder.parent} are not finite at '
      f'step {bad}; {where}; try a lower --learning_rate'
    )
  return float(loss)


@contextlib.contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
  """Context in which a first Ctrl-C or SIGTERM is noted and a second one acts.

  Yields a function that says whether one was noted. Ignored signals stay
  ignored. With several processes all signals act at once, since the processes
  would not stop at the same step.
  """
  asked = []

  def note(number, _):
    asked.append(number)
    signal.signal(number, handlers[number])
    logging.info('Stopping after these steps; interrupt again to stop at once.')

  numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
  handlers = {number: signal.getsignal(number) for number in numbers}
  handlers = {n: h for n, h in handlers.items() if h is not signal.SIG_IGN}
  for number in handlers:
    signal.signal(number, note)
  try:
    yield lambda: bool(asked)
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def claimed(path: pathlib.Path, settings: Config) -> Iterator[None]:
  """Context that locks the folder for a run with these settings.

  Raises:
    ValueError: if the folder has a run of other settings, or is in use.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      common.output_folder(path)
      names = {file.name for file in path.iterdir()}
      # A process may have been killed before it wrote its settings.
      names = {n for n in names if n != '.lock' and not n.endswith('.partial')}
      if names and 'config.json' not in names:
        raise ValueError(
          f'{path} has files but no config.json, so it is not the folder of a '
          'run; name another --workdir'
        )
      lock = stack.enter_context(open(path / '.lock', 'w'))
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise ValueError(f'{path} is in use by another process') from None
      except OSError as error:  # some network file systems have no locks
        logging.warning('%s cannot be locked: %s', path, error.strerror)
      if not names:
        common.write_json(settings.to_json(), path / 'config.json')
      check_settings(path, settings)
    multihost_utils.sync_global_devices(f'{path} is claimed')
    yield


def check_settings(path: pathlib.Path, settings: Config) -> None:
  """Raises ValueError if the run in the folder has other settings."""
  found, asked = config.read(path).to_json(), settings.to_json()
  if found['fingerprint']:  # identifies the data even if the file has moved
    found['dataset'] = asked['dataset']
  name = common.difference(found, asked)
  if name == 'fingerprint':
    raise ValueError(
      f'{path} was trained on other arrays than {settings.dataset} has now; '
      'name another --workdir'
    )
  if name:
    raise ValueError(
      f'{path} has a run with {name}={found[name]}, asked for '
      f'{name}={asked[name]}; name another --workdir'
    )


def read_curve(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of the curve, if there are any."""
  file = path / 'metrics.jsonl'
  lines = file.read_text().splitlines() if file.exists() else []
  return [json.loads(line) for line in lines]


def write_curve(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
  """Writes the whole curve atomically, so that no line is ever incomplete."""
  if jax.process_index() == 0:
    text = ''.join(json.dumps(common.plain(line)) + '\n' for line in lines)
    common.write_text(text, path / 'metrics.jsonl')

"""The training loop of runs that share a program, and how it resumes.

A dispatch takes about `DISPATCH_SECONDS` of steps. Checkpoints hold the whole
state at a step boundary and every draw depends on seed and step alone, so that
a resumed run is the run that was never stopped. Ctrl-C and SIGTERM leave a
checkpoint of the last step that a single process took.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils

from experiments.networks import feed, interruption
from experiments.networks.config import Config, numeric
from experiments.networks.folder import Folder
from robustlip import checkpoints, methods, progress, released, training
from robustlip.datasets import Split
from robustlip.images import AUGMENTATIONS

CHECKPOINT_SECONDS = flags.DEFINE_float(
  'checkpoint_seconds',
  60.0,
  'Least time between two checkpoints.',
  lower_bound=0.0,
)
STREAM = flags.DEFINE_bool(
  'stream',
  None,
  'Keep the training images on the host and send each dispatch its own. '
  'Default: only if they would take over half of the memory of the device.',
)
DISPATCH_SECONDS = 2.0

# (config, variables) -> what to add to a line of the curve
Watch = Callable[[Config, Any], dict[str, float]]


class Progress(NamedTuple):
  """What a checkpoint holds."""

  state: training.TrainState  # of one run, no leading axes
  seconds: np.ndarray  # float64, spent so far


def recipe(
  config: Config, module: nn.Module, steps_per_epoch: int
) -> training.Recipe:
  """The static part of the program that trains with `config`."""
  table = {'text': methods.METHODS, 'reference': released.METHODS}
  return training.Recipe(
    module=module,
    method=table[config.protocol][config.method],
    optimizer=training.optimizer(
      config.optimizer,
      momentum=config.momentum,
      milestones=tuple(m for m in config.milestones if m < config.epochs),
      steps_per_epoch=steps_per_epoch,
      onecycle_epochs=(config.epochs if config.schedule == 'onecycle' else 0),
    ),
    augment=AUGMENTATIONS[config.augment],
    attack_in_training_mode=config.attack_mode == 'train',
    fresh_masks=config.protocol == 'reference',
    accumulate=config.accumulate,
  )


def restore(
  folders: list[Folder], fresh: training.TrainState
) -> tuple[list[Progress], int]:
  """States to go on from and their step; `fresh` is [R, ...]."""
  starts = [
    Progress(jax.tree.map(lambda x, r=r: np.asarray(x[r]), fresh), np.zeros(()))
    for r in range(len(folders))
  ]
  found = checkpoints.newest_common([f.newest for f in folders], starts[0])
  if found is None:
    return starts, 0
  step, trees = found
  logging.info('Resuming at step %d.', step)
  return trees, step


class Fit:
  """Trains `configs`, which differ in numbers alone, to their last epoch.

  Args:
    watch: called with a config and its variables after every epoch; what it
      returns joins the line of the curve. With a held-out set it has to give
      `holdout_adv_acc`, by which the best checkpoint is kept.

  A run whose loss or last weights are not finite ends, and its folder says so;
  the others go on.
  """

  def __init__(
    self,
    configs: list[Config],
    folders: list[Folder],
    module: nn.Module,
    split: Split,
    watch: Watch,
  ):
    shared = configs[0]
    self._configs, self._folders, self._watch = configs, folders, watch
    self._running = list(range(len(configs)))
    self._order = partial(
      training.epoch_order,
      num_examples=len(split.labels),
      batch_size=shared.batch_size,
    )
    self._steps = len(self._order(0, 0))
    self._total = self._steps * shared.epochs
    self._settings = numeric(configs)
    plan = recipe(shared, module, self._steps)
    self._program = training.trainer(plan)
    shape = split.images.shape[1:]
    fresh = training.initial_state(plan, self._settings, shape)
    starts, self._done = restore(folders, fresh)
    self._curves = [f.rewind_metrics(self._done) for f in folders]
    self._states = training.replicate(
      jax.tree.map(lambda *x: np.stack(x), *[s.state for s in starts])
    )
    self._seconds = float(max(s.seconds for s in starts))
    stream = not feed.fits(split) if STREAM.value is None else STREAM.value
    self._feed = (feed.Streamed if stream else feed.Resident)(split)
    self._per_dispatch, self._compiled = 1, False
    self._saved_step, self._saved_at = self._done, time.monotonic()
    self._stop = threading.Event()

  def run(self) -> dict[int, Progress]:
    """Trains on from where the folders stand; what comes out, by place."""
    description = f'training {self._configs[0].name}'
    if len(self._configs) > 1:
      description += f' and {len(self._configs) - 1} more'
    bar = progress.bar(
      self._total, description, unit='step', initial=self._done
    )
    postponed = interruption.postponed(self._stop)
    if jax.process_count() > 1:  # they would not stop at the same step
      postponed = contextlib.nullcontext()
    with bar, postponed:
      while self._done < self._total and self._running:
        self._epoch(self._done // self._steps, bar)
    self._save(force=True)
    return {run: self._progress(run) for run in self._running}

  def _epoch(self, epoch: int, bar) -> None:
    start, end = epoch * self._steps, (epoch + 1) * self._steps
    orders = [self._order(c.seed, epoch) for c in self._configs]
    self._feed.epoch(np.stack(orders))
    while self._done < end and self._running:
      self._dispatch(start, bar)
      if self._done < end:
        self._save()
    losses = self._losses() / self._steps
    self._states = self._states._replace(loss_sum=self._states.loss_sum * 0)
    for run in self._running:
      self._write_curve(run, epoch, losses[run])
    self._save()

  def _dispatch(self, start: int, bar) -> None:
    began, first = time.monotonic(), self._done - start
    last = min(first + self._per_dispatch, self._steps)
    arguments = self._feed.chunk(first, last)
    self._states = self._program(self._states, self._settings, *arguments)
    losses = self._losses()  # waits for the devices
    taken, spent = arguments[2] - arguments[1], time.monotonic() - began
    if self._compiled:
      fitting = max(1, int(DISPATCH_SECONDS / spent * taken))
      self._per_dispatch = int(
        multihost_utils.broadcast_one_to_all(np.int32(fitting))
      )
    self._compiled = True  # by the first dispatch
    self._seconds += spent
    self._done += taken
    self._end_diverged()
    if self._running:
      mean = losses[self._running].mean() / (first + taken)
      bar.set_postfix_str(f'loss {mean:.3f}')
    bar.update(taken)

  def _losses(self) -> np.ndarray:
    return np.asarray(self._states.loss_sum.addressable_data(0)[0])

  def _end_diverged(self) -> None:
    bad = np.array(self._states.bad_step.addressable_data(0)[0])
    if self._done == self._total:  # the last update has no loss to show
      for run in self._running:
        variables = jax.tree.leaves(self._progress(run).state.variables)
        if bad[run] < 0 and not all(np.isfinite(x).all() for x in variables):
          bad[run] = self._done
    for run in [run for run in self._running if bad[run] >= 0]:
      folder = self._folders[run]
      kept = folder.newest.numbers()
      where = (
        f'the last good checkpoint is step {kept[-1]} in {folder.newest.folder}'
        if kept
        else 'there is no checkpoint yet'
      )
      folder.end_diverged(
        f'the loss or the weights of {self._configs[run].name} are not finite '
        f'at step {bad[run]}; {where}; try a lower --learning_rate'
      )
      self._running.remove(run)

  def _progress(self, run: int) -> Progress:
    state = jax.tree.map(
      lambda x: np.asarray(x.addressable_data(0)[0, run]), self._states
    )
    return Progress(state, np.float64(self._seconds))

  def _save(self, *, force: bool = False) -> None:
    stop = self._stop.is_set()
    waited = time.monotonic() - self._saved_at
    due = force or stop or waited >= CHECKPOINT_SECONDS.value
    if due and self._done != self._saved_step:
      for run in self._running:
        folder = self._folders[run]
        folder.best.wait()  # whose line the curve has, once newest is there
        folder.newest.save(self._done, self._progress(run))
      self._saved_step, self._saved_at = self._done, time.monotonic()
    if stop:
      raise KeyboardInterrupt

  def _write_curve(self, run: int, epoch: int, loss: float) -> None:
    config, folder = self._configs[run], self._folders[run]
    trained = self._progress(run)
    line = {
      'epoch': epoch + 1,
      'step': self._done,
      'loss': float(loss),
      'seconds': round(self._seconds, 2),
    }
    line |= self._watch(config, trained.state.variables)
    earlier = [
      x['holdout_adv_acc'] for x in self._curves[run] if config.holdout
    ]
    if config.holdout and line['holdout_adv_acc'] > max(earlier, default=-1):
      folder.best.save(self._done, trained)
    self._curves[run].append(line)
    folder.append_metrics(line)

"""From settings to records: trains what is missing, measures, writes.

Shared by every script that trains. A run that is finished gives its record at
once; the others train together where they differ in numbers alone.
"""

import contextlib
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from jax.experimental import multihost_utils

from experiments import common, plots
from experiments.networks import fit, measure
from experiments.networks.config import Config
from experiments.networks.folder import Folder
from robustlip import evaluation, training
from robustlip.datasets import Dataset

flags.adopt_module_key_flags(fit)
flags.adopt_module_key_flags(measure)
flags.declare_key_flag(common.COORDINATOR)
flags.declare_key_flag(common.NUM_PROCESSES)
flags.declare_key_flag(common.PROCESS_ID)
CURVE_EXAMPLES = flags.DEFINE_integer(
  'curve_examples',
  500,
  'Test examples measured after every epoch for the curve; 0 for none. They '
  'select nothing.',
  lower_bound=0,
)


def train(
  configs: list[Config], dataset: Dataset, paths: list[pathlib.Path]
) -> list[dict[str, Any]]:
  """Records of the runs, one for each config and its folder.

  Raises:
    ValueError: if a folder has other settings; at the end, when the others
      are finished, if the loss or the weights of a run were not finite.
  """
  common.check_classes(dataset)
  for config in configs:
    _check(config, dataset)
  image = jnp.float32(dataset.train.images[:1])  # it may be too small
  for network in {measure.network(config, dataset) for config in configs}:
    jax.eval_shape(network.init, jax.random.key(0), image)
  with contextlib.ExitStack() as stack:
    folders = [
      stack.enter_context(Folder(path, config))
      for path, config in zip(paths, configs, strict=True)
    ]
    for group in _groups(folders):
      _train_together(group, dataset)
    multihost_utils.sync_global_devices('every result is written')
    diverged = [folder.diverged for folder in folders]
    if reasons := [path.read_text() for path in diverged if path.exists()]:
      raise ValueError('; '.join(reasons))
    records = [common.read_json(folder.result) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
      logging.info('%s: %s', folder.path, _in_short(record))
    return records


def _in_short(record: dict[str, Any]) -> str:
  numbers = [
    f'{name} {record[column]:.{digits}f}'
    for name, column, digits in (
      ('test accuracy', 'test_acc', 1),
      ('under attack', 'adv_test_acc', 1),
      ('Lipschitz', 'test_lipschitz', 0),
    )
    if record[column] is not None
  ]
  return ', '.join(numbers)


def _check(config: Config, dataset: Dataset) -> None:
  """Raises ValueError for settings that cannot work; nothing is written yet."""
  devices, parts = jax.device_count(), config.accumulate
  if config.batch_size % (devices * parts):
    raise ValueError(
      f'--batch_size={config.batch_size} does not split evenly over {devices} '
      f'devices and --accumulate={parts}'
    )
  total = len(dataset.train.labels)
  if config.train_on == 'train+test':
    total += len(dataset.test.labels)
  if config.holdout >= total:
    raise ValueError(
      f'--holdout={config.holdout} leaves none of the {total} training examples'
    )
  training.epoch_order(
    0, 0, num_examples=total - config.holdout, batch_size=config.batch_size
  )


def _groups(folders: list[Folder]) -> list[list[Folder]]:
  """Unfinished runs by program; those of one have a checkpoint in common."""
  groups: list[tuple[dict, set[int], list[Folder]]] = []
  for folder in folders:
    if folder.result.exists() or folder.diverged.exists():
      continue
    shared, numbers = folder.config.shared(), set(folder.newest.numbers())
    for other, common_numbers, members in groups:
      fresh = not numbers and not common_numbers
      if shared == other and (fresh or numbers & common_numbers):
        common_numbers &= numbers
        members.append(folder)
        break
    else:
      groups.append((shared, numbers, [folder]))
  return [members for _, _, members in groups]


def _train_together(folders: list[Folder], dataset: Dataset) -> None:
  configs = [folder.config for folder in folders]
  split, held_out = measure.training_split(configs[0], dataset)
  evaluator = measure.evaluator(configs[0], dataset, measure.Attack())
  curve = measure.subset(dataset.test, CURVE_EXAMPLES.value)

  def watch(config: Config, variables: Any) -> dict[str, float]:
    line = {}
    if CURVE_EXAMPLES.value:
      line |= accuracies(config, variables, curve, 'test')
    if config.holdout:
      line |= accuracies(config, variables, held_out, 'holdout')
    return line

  def accuracies(config, variables, split, name):
    correct, robust = evaluator.accuracies(
      variables, split, measure.key(config), name=name
    )
    return {
      f'{name}_acc': evaluation.percent(correct),
      f'{name}_adv_acc': evaluation.percent(robust),
    }

  network = measure.network(configs[0], dataset)
  trained = fit.Fit(configs, folders, network, split, watch).run()
  for run, progress in trained.items():
    folder, began = folders[run], time.monotonic()
    record = measure.record(
      folder.config,
      dataset,
      progress.state.variables,
      evaluator,
      measure.Attack(),
    )
    record['train_seconds'] = float(progress.seconds)
    record['seconds'] = record['train_seconds'] + time.monotonic() - began
    if jax.process_index() == 0:
      plots.curves(folder.read_metrics(), folder.path / 'curves')
      common.write_json(record, folder.result)

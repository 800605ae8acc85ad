"""Further measurements of finished runs.

Each is kept in the run's `evaluations/` folder and made once.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

from experiments import common, provenance
from experiments.networks import folder, measure
from experiments.networks.config import Config, read
from robustlip import evaluation
from robustlip.datasets import Dataset

PREFIX = {'text': '', 'reference': 'released_'}
LIPSCHITZ = {'text': 'eq3_lipschitz', 'reference': 'released_lipschitz'}


def merged(path: pathlib.Path) -> dict[str, Any] | None:
  """Everything measured of the run in `path`; None if it is not finished."""
  if not (path / 'result.json').exists():
    return None
  record = common.read_json(path / 'result.json')
  record[LIPSCHITZ[record['protocol']]] = record['test_lipschitz']
  for more in sorted((path / 'evaluations').glob('*.json')):
    found = common.read_json(more)
    record['seconds'] += found.pop('seconds')
    found.pop('provenance', None)  # the run keeps its own
    record |= found
  return record


def lipschitz(
  configs: list[Config], dataset: Dataset, paths: list[pathlib.Path]
) -> None:
  """The test set's Lipschitz constant by the procedure not yet used."""
  protocol = {'text': 'reference', 'reference': 'text'}[configs[0].protocol]

  def compute(evaluator, config, variables):
    split = measure.measured(config, dataset)['test']
    ratios = evaluator.lipschitz(
      variables, split, measure.key(config), name='test'
    )
    return {LIPSCHITZ[protocol]: float(ratios.mean(dtype='float64'))}

  attack = measure.Attack(protocol=protocol)
  _complete(configs, dataset, paths, LIPSCHITZ[protocol], attack, compute)


def multi_targeted(
  configs: list[Config], dataset: Dataset, paths: list[pathlib.Path]
) -> None:
  """Accuracy of both splits under the attack as defined and as released."""
  for protocol, prefix in PREFIX.items():

    def compute(evaluator, config, variables, prefix=prefix):
      record = {}
      for name, split in measure.measured(config, dataset).items():
        _, robust = evaluator.accuracies(
          variables, split, measure.key(config), name=name
        )
        record[f'{prefix}mt_adv_{name}_acc'] = evaluation.percent(robust)
      record[f'{prefix}mt_adv_gap'] = (
        record[f'{prefix}mt_adv_train_acc'] - record[f'{prefix}mt_adv_test_acc']
      )
      return record

    attack = measure.Attack('multi_targeted', 20, protocol=protocol)
    name = f'{prefix}multi_targeted'
    _complete(configs, dataset, paths, name, attack, compute)


def _complete(
  configs: list[Config],
  dataset: Dataset,
  paths: list[pathlib.Path],
  name: str,
  attack: measure.Attack,
  compute: Callable[..., dict[str, float]],
) -> None:
  """Computes what finished runs of one program miss, and writes it.

  A folder of other settings, which training refuses, is left as it is.
  """
  evaluator = measure.evaluator(configs[0], dataset, attack)
  for config, path in zip(configs, paths, strict=True):
    output = path / 'evaluations' / f'{name}.json'
    finished = (path / 'result.json').exists() and read(path) == config
    if finished and not output.exists():
      began = time.monotonic()
      _, variables = folder.newest_variables(path / 'checkpoints')
      record = compute(evaluator, config, variables)
      record['seconds'] = time.monotonic() - began
      record['provenance'] = provenance.record()
      common.write_json(record, output)

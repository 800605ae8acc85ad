"""The settings of a training run, checked, and as JSON."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from experiments import common
from robustlip import models
from robustlip.methods import WEIGHTS, Settings


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides the numbers of a run."""

  dataset: str
  arch: str
  method: str
  epsilon: float
  lam: float
  beta: float
  mu: float
  seed: int
  epochs: int
  batch_size: int
  optimizer: str
  learning_rate: float
  momentum: float
  milestones: tuple[int, ...]
  augment: str
  dropout: float | None
  protocol: str
  attack_mode: str
  precision: str
  holdout: int
  accumulate: int = 1
  schedule: str = 'milestones'  # or 'onecycle'
  remat: bool = False
  train_on: str = 'train'  # or 'train+test' for the proof of concept
  eval_examples: int = 0  # of each split measured at the end; 0 for all
  fingerprint: str | None = None  # of a data set that can change

  def __post_init__(self):
    """Raises ValueError for settings that cannot be trained with."""
    for name in ('epsilon', 'learning_rate', 'momentum'):
      if not math.isfinite(value := getattr(self, name)):
        raise ValueError(f'--{name} must be finite, got {value}')
    models.build(self.arch, 2, dropout_rate=self.dropout, remat=self.remat)

  @property
  def name(self) -> str:
    """A short name for the run's folder."""
    weights = [f'{k}{getattr(self, k):g}' for k in WEIGHTS.get(self.method, {})]
    stem = pathlib.Path(self.dataset).stem
    parts = [stem, self.arch, self.method, *weights]
    if self.dropout is not None:
      parts.append(f'dropout{self.dropout:g}')
    return '-'.join([*parts, f'eps{self.epsilon:g}', f'seed{self.seed}'])

  def to_json(self) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(self)))

  def shared(self) -> dict[str, Any]:
    """What runs of one program have in common."""
    fields = dataclasses.asdict(self)
    return {k: v for k, v in fields.items() if k not in Settings._fields}


def read(path: pathlib.Path) -> Config:
  """The settings of the run in the folder `path`.

  Raises:
    ValueError: if there are none.
  """
  file = path / 'config.json'
  if not file.exists():
    raise ValueError(f'{path} is not the folder of a run: no config.json in it')
  record = common.read_json(file)
  try:
    return Config(**record | {'milestones': tuple(record['milestones'])})
  except (KeyError, TypeError) as error:
    raise ValueError(f'{file} are not the settings of a run: {error}') from None


def numeric(configs: list[Config]) -> Settings:
  """The settings in which runs of one program may differ, arrays of [R]."""
  columns = {
    name: np.array([getattr(c, name) for c in configs], np.float32)
    for name in Settings._fields
  }
  columns['seed'] = np.array([c.seed for c in configs], np.uint32)
  return Settings(**columns)

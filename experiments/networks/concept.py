"""Appendix C: a network that fits train and test sets robustly exists."""

import pathlib
import time
from typing import Any

from experiments import common, paper
from experiments.networks import remeasure, runs, train_flags
from experiments.networks.config import Config
from robustlip import separation, theory
from robustlip.datasets import Dataset

NOTE = (
  'The test set was trained on, together with the training set: the numbers '
  'say that such a network exists, not how well one generalizes.'
)


def config(dataset: Dataset) -> Config:
  """RST(4), or what `--preset=paper` has, on both sets together.

  Raises:
    ValueError: for a data set that the appendix does not have, or a flag that
      it fixes.
  """
  for flag in (train_flags.SEEDS, train_flags.HOLDOUT):
    if flag.present:
      raise ValueError(f'the proof of concept fixes --{flag.name}')
  if train_flags.PRESET.value == 'quick':
    setup = train_flags.QUICK._replace(method_settings={'rst': {'lam': 4.0}})
  elif dataset.name in paper.PROOF_OF_CONCEPT:
    setup = paper.PROOF_OF_CONCEPT[dataset.name]
  else:
    raise ValueError(
      f'--preset=paper knows {", ".join(paper.PROOF_OF_CONCEPT)}, not '
      f'{dataset.name!r}'
    )
  fields = train_flags.fields(dataset, 'rst', setup)
  fields['train_on'] = 'train+test'
  return Config(**fields, seed=common.SEED.value)


def certificate(dataset: Dataset, epsilon: float) -> dict[str, float]:
  """Percent at which the distance classifier of both sets is right for sure.

  Its classes are the examples of both sets, so that the distance of each to
  its own class is 0 and the certified radius half that to the nearest other.
  """
  distances = separation.nearest_opposite(*dataset.both).distances
  certified = 100.0 * theory.certified(distances, epsilon)
  count = len(dataset.train.labels)
  return {
    'separation_of_both': float(distances.min()),
    'certified_train': float(certified[:count].mean()),
    'certified_test': float(certified[count:].mean()),
  }


def record(dataset: Dataset, root: pathlib.Path) -> dict[str, Any]:
  """Trains, measures and certifies what is missing; everything measured."""
  run = config(dataset)
  stem = pathlib.Path(run.dataset).stem
  path = root / f'{stem}-{run.arch}' / 'proof_of_concept' / f'seed{run.seed}'
  runs.train([run], dataset, [path])
  remeasure.multi_targeted([run], dataset, [path])
  output = path / 'evaluations' / 'certificate.json'
  if not output.exists():
    began = time.monotonic()
    found = certificate(dataset, run.epsilon)
    found['seconds'] = time.monotonic() - began
    common.write_json(found, output)
  return {'note': NOTE, **remeasure.merged(path)}

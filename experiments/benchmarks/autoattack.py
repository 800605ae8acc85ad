"""Compares our standard AutoAttack with the original, on saved runs.

The original is `pyautoattack`, which packages the authors' code for PyTorch
(not compared with their repository); its networks are twins with our weights.

Each attack first gets, in batches, the images that no earlier one has fooled;
this is timed, as one evaluation. Then it gets the others, so that all attacks
are compared on all images. The result of a batch under an attack is kept in a
file: the same command resumes where it was interrupted.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments import common, config, measure, report
from experiments.benchmarks.problem import Problem
from experiments.benchmarks.timing import clocks
from robustlip import attacks, checkpoints, evaluation, models
from robustlip.datasets.splits import fingerprint
from robustlip.evaluation import UNBROKEN, Attacked, Evaluator
from robustlip.images import from_bytes

THEIRS = {
  'apgd_ce': 'apgd-ce',
  'apgd_targeted': 'apgd-t',
  'fab_targeted': 'fab-t',
  'square': 'square',
}
# (attack, indices) -> indices of images that are 'broken', those of them that
# are 'unconfirmed', and 'spent': wall and CPU seconds, passes (0 if unknown)
Work = Callable[[str, np.ndarray], dict[str, Any]]


def cases(
  *,
  workdir: str = '',
  peers: bool,
  attack: Sequence[str] = (*attacks.AUTOATTACK, 'strong'),
  batch_size: int = 100,
  num_images: int = 100,
  num_queries: int = 5000,
) -> list[Callable[[int], list[dict[str, Any]]]]:
  """One function for each run, see `compared`.

  Raises:
    ValueError: if no run is given, a network has no twin, or an attack is
      unknown.
  """
  if not workdir:
    raise ValueError('--workdir is needed: folders of saved runs, with commas')
  if not attack or not {*attack} <= {*THEIRS, 'strong'}:
    raise ValueError(
      f'--attack takes {",".join(THEIRS)},strong, got {",".join(attack)}'
    )
  paths = [pathlib.Path(x).expanduser() for x in workdir.split(',')]
  for path in paths:
    run = config.read(path)
    if peers and (run.arch.startswith('resnet') or run.activation != 'relu'):
      raise ValueError(
        f'{path}: there is no twin of {run.arch}, {run.activation}'
      )
  if peers:
    import pyautoattack  # noqa: F401
  sizes = batch_size, num_images, num_queries
  return [partial(compared, path, peers, attack, *sizes) for path in paths]


def compared(
  path: pathlib.Path,
  peers: bool,
  chosen: Sequence[str],
  batch_size: int,
  num_images: int,
  num_queries: int,
  repeats: int,
) -> list[dict[str, Any]]:
  """A case for each attack on a saved run, and one for the whole cascade."""
  del repeats  # an evaluation is long
  settings = config.read(path)
  dataset = common.load_dataset(settings.dataset)
  config.check_data(path, settings, dataset)
  num_classes, epsilon = len(dataset.class_names), settings.epsilon
  if peers and num_classes != 10:
    raise ValueError(f'{path}: a twin has ten classes; leave out --peers')
  split = measure.subset(dataset.test, num_images)
  module = settings.network(num_classes)
  task = Problem(settings.arch, module, split, settings.precision)
  _, variables = checkpoints.newest_variables(path / 'checkpoints')
  config.check_network(path, settings, dataset, variables)
  weights = fingerprint(*jax.tree.leaves(variables))[:12]
  pieces = f'parity-{weights}-{num_images}-{batch_size}-{num_queries}'
  # Results without peers are kept apart: no twin has confirmed them.
  folder = common.output_folder(path / (pieces + '-peers' * peers))
  twin = None
  if peers:
    from experiments.benchmarks import torch_peer

    twin = torch_peer.twin(task, variables)
  cascade = [name for name in chosen if name in THEIRS]
  sizes = num_classes, num_queries, batch_size
  mine = ours(task, variables, epsilon, *sizes, twin)
  candidates = {'robustlip': (mine, cascade)} if cascade else {}
  if peers and cascade:
    theirs = original(task, twin, epsilon, num_queries)
    candidates['pyautoattack'] = theirs, cascade
  if 'strong' in chosen:
    candidates['robustlip strong'] = mine, ['strong']
  clean = Evaluator(partial(models.logits_fn, module), batch_size=batch_size)
  correct = clean.accuracies(variables, split, jax.random.key(0)).correct
  rows = {
    who: through(folder / who.split()[0], work, names, correct, batch_size)
    for who, (work, names) in candidates.items()
  }
  run = report.run_name(path)
  return [
    {
      'case': f'{run}, {name}, {len(split.labels)} images',
      'unit': 'images/core',
      'candidates': _compared_rows(name, rows),
    }
    for name in (*cascade, 'all')
  ]


def _compared_rows(name, rows) -> list[dict[str, Any]]:
  """The rows of a case, with speeds and the images fooled by only one side."""
  rows = {who: found[name] for who, found in rows.items() if name in found}
  mine = next(iter(rows.values()))
  for who, row in rows.items():
    ratio = mine['per_second'] / row['per_second']
    row |= {
      'candidate': who,
      'ratio_of_ours': ratio,  # of CPU seconds both, see `through`
      'cpu_ratio_of_ours': ratio,
      'program_mib': None,
      'not_ours': sorted({*row['taken']} - {*mine['taken']}),
      'only_ours': sorted({*mine['taken']} - {*row['taken']}),
    }
    if row['not_ours']:
      logging.warning(
        '%s takes %s by %s, we do not', who, row['not_ours'], name
      )
  return list(rows.values())


def through(
  prefix: pathlib.Path,
  work: Work,
  cascade: Sequence[str],
  correct: np.ndarray,
  batch_size: int,
) -> dict[str, dict[str, Any]]:
  """A row for each attack, with the images it fools of all, and one for `all`.

  Seconds are for the images that no earlier attack had fooled. Rates are per
  CPU second, since batches may have run at times of different load.
  """
  standing, rows, total = correct.copy(), {}, np.zeros(3)
  for attack in cascade:
    robust, spent, unconfirmed = correct.copy(), np.zeros(3), []
    for part, mask in (('', standing), ('-rest', correct & ~standing)):
      indices = np.flatnonzero(mask)
      for first in range(0, len(indices), batch_size):
        given = indices[first : first + batch_size]
        file = prefix.with_name(f'{prefix.name}-{attack}{part}-{first}.json')
        found = common.read_json(file) if file.exists() else {}
        if found.get('given') != given.tolist():
          found = work(attack, given) | {'given': given.tolist()}
          common.write_json(found, file)
        robust[found['broken']] = False
        unconfirmed += found['unconfirmed']
        if not part:
          spent += found['spent']
        logging.info(
          f'{file.stem}: {first + len(given)} of {len(indices)} images, '
          f'{found["spent"][0]:.0f} s, {len(found["broken"])} taken'
        )
    rows[attack] = _row(robust, standing.sum(), spent, unconfirmed)
    standing &= robust
    total += spent
  rows['all'] = _row(standing, len(correct), total, [])
  return rows


def _row(robust, count, spent, unconfirmed) -> dict[str, Any]:
  seconds, cpu_seconds, passes = spent
  count = count or np.nan  # no images were left: there is no rate
  return {
    'per_second': count / max(cpu_seconds, 1e-9),
    'seconds': [seconds],
    'cpu_seconds': [cpu_seconds],
    'passes': int(passes),
    'robust': int(robust.sum()),
    'taken': np.flatnonzero(~robust).tolist(),
    'unconfirmed': unconfirmed,
  }


def ours(
  task, variables, epsilon, num_classes, num_queries, batch_size, twin
) -> Work:
  """Our attacks; a point is confirmed if it is valid and fools the twin too."""
  images, everyone = from_bytes(task.split.images), len(task.split.labels)

  @functools.cache
  def evaluator(attack):
    steps = num_queries if attack == 'square' else None
    return Evaluator(
      partial(models.logits_fn, task.module),
      cascade=attacks.cascade(
        attack, epsilon=epsilon, num_classes=num_classes, num_steps=steps
      ),
      batch_size=batch_size,
    )

  def run(attack, given, place=0, epsilon=None):
    standing = np.isin(np.arange(everyone), given)
    unbroken = np.full(everyone, UNBROKEN, np.int16)
    margins = np.zeros(everyone, np.float32)
    done = Attacked(standing, standing, unbroken, margins, images)
    return evaluator(attack).accuracies(
      variables,
      task.split,
      jax.random.key(0),
      name=attack,
      epsilon=epsilon,
      done=(place, done),
      keep_points=True,
    )

  @functools.cache
  def compile_all(attack, count):
    """Compiles all programs, on a ball so large that attacks end at once."""
    kinds = {x.attack: i for i, x in enumerate(evaluator(attack).cascade)}
    for place in kinds.values():  # the last of each kind
      for size in {-(-count * quarters // 4) for quarters in range(1, 5)}:
        run(attack, np.arange(size), place, 1.0)

  def work(attack, given):
    compile_all(attack, len(given))
    start = clocks()
    found = run(attack, given)
    spent = [*np.subtract(clocks(), start)]
    broken = given[~found.robust[given]]
    points = found.points[broken]
    sure = within(points, images[broken], epsilon)
    if twin is not None and len(broken):
      sure &= fools(twin, points, task.split.labels[broken])
    return {
      'broken': broken.tolist(),
      'unconfirmed': broken[~sure].tolist(),
      'spent': [*spent, evaluation.passes(found, evaluator(attack).cascade)],
    }

  return work


def within(points, images, epsilon) -> np.ndarray:
  """Which points lie in ball and box, but for rounding byte / 255 + epsilon."""
  points, images = np.float64(points), np.float64(images)
  lengths = np.abs(points - images).max(axis=(1, 2, 3), initial=0)
  inside = ((points >= 0) & (points <= 1)).all(axis=(1, 2, 3))
  return inside & (lengths <= epsilon + 2**-23)


def fools(twin, points, labels) -> np.ndarray:
  """Which points the network in PyTorch misclassifies, [N] bool."""
  from experiments.benchmarks import torch_peer

  predicted = twin(torch_peer.on_device(points)).argmax(1)
  return predicted.cpu().numpy() != labels


def original(task, twin, epsilon, num_queries) -> Work:
  """The original attacks."""
  import pyautoattack

  from experiments.benchmarks import torch_peer

  images, labels = torch_peer.examples(task)
  peer = pyautoattack.AutoAttack(
    twin, eps=epsilon, seed=0, device=images.device
  )
  peer.square.n_queries = num_queries

  def work(attack, given):
    peer.attacks_to_run, start = [THEIRS[attack]], clocks()
    _, predicted = peer.run_standard_evaluation(
      images[given], labels[given], batch_size=len(given)
    )
    broken = given[(predicted != labels[given]).cpu().numpy()]
    return {
      'broken': broken.tolist(),
      'unconfirmed': [],
      'spent': [*np.subtract(clocks(), start), 0],
    }

  return work

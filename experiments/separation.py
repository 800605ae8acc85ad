r"""Table 1, Figures 1 and 3, Appendix D: how far apart the classes are.

  python -m experiments.separation --dataset=mnist

Exact distances from every training and every test example to the nearest
training example of another class. Expected on MNIST: 188/255 = 0.737 and
207/255 = 0.812; on CIFAR-10: 54/255 = 0.212 and 56/255 = 0.220. In the work
folder, with the data set and any --norm, --random_labels and --drop for NAME:
`separation_NAME.json` (what is printed last), `separation_NAME.npz` (all
distances and indices), `histogram_NAME`, `closest_pairs_NAME`,
`class_matrix_NAME` and `moved_NAME` (Figure 1) as PNG and PDF. An interrupted
run goes on where it was.

On two cores of an AMD EPYC (Zen 3): MNIST 25 s, CIFAR-10 27 s, with figures and
class matrix (the two searches: 16 s and 14 s).
"""

import pathlib
import re
import time
from typing import Any

import numpy as np
from absl import flags, logging

from experiments import common, paper, plots, provenance
from experiments.distances import separation_figures, separation_state
from robustlip import datasets, projections, separation

flags.declare_key_flag(common.DATASET)
flags.declare_key_flag(common.DATA_DIR)
flags.declare_key_flag(common.EPSILON)
flags.declare_key_flag(common.SEED)
NORM = flags.DEFINE_enum('norm', 'linf', projections.NORMS, 'Distance.')
DROP = flags.DEFINE_string(
  'drop',
  None,
  'Training examples to leave out: "conflicts" (identical images with '
  'different labels), indices "7,11", or "closest:N" (both examples of each of '
  'the N closest pairs).',
)
RANDOM_LABELS = flags.DEFINE_bool(
  'random_labels', False, 'Draw all labels uniformly, by --seed: a control.'
)
TOP_K = flags.DEFINE_integer(
  'top_k', 10, 'Closest pairs to report.', lower_bound=1
)
WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Output folder, the same for any number of data sets. Default: '
  'runs/separation.',
)
PARTS = ('train_train', 'test_train')


def main() -> None:
  """Searches, draws, prints."""
  data = datasets.load(common.DATASET.value, data_dir=common.DATA_DIR.value)
  name = variant(pathlib.Path(data.name).stem)
  workdir = pathlib.Path(WORKDIR.value or 'runs/separation')
  epsilon = common.EPSILON.value
  if epsilon is None and NORM.value == 'linf':  # the paper's radii are
    epsilon = data.epsilon
  owner = {'dataset': data.name, 'fingerprint': data.fingerprint}
  output = workdir / f'separation_{name}.json'
  common.check_owner(output, owner)
  start = time.perf_counter()
  train, test, kept, repeated = _examples(data)
  common.output_folder(workdir)
  partial = [workdir / f'{part}_{name}.partial.npz' for part in PARTS]
  began = time.perf_counter()
  found, spent = search(train, test, partial)
  start += time.perf_counter() - began - spent  # what an earlier process took
  pairs, matrix = between_classes(train, test, found, len(data.class_names))
  record = {
    **owner,
    'norm': NORM.value,
    'random_labels': RANDOM_LABELS.value,
    'dropped': sorted(set(range(len(data.train.labels))) - set(kept.tolist())),
    'num_train': len(train[1]),
    'num_test': len(test[1]),
    **summary(found, epsilon),
    'duplicates': len(repeated.groups),
    'conflicts': len(repeated.conflicts),
    'closest_pairs': {
      part: _pair_rows(value, kept, part) for part, value in pairs.items()
    },
    'search_seconds': spent,
    'seconds': time.perf_counter() - start,
    **provenance.record(),
  }
  arrays = {
    f'{part}_{field}': getattr(value, field)
    for part, value in found.items()
    for field in value._fields
  }
  separation_state.save(
    workdir / f'separation_{name}.npz', class_matrix=matrix, kept=kept, **arrays
  )
  for kind, figure in separation_figures.figures(
    data, train, test, found, pairs, matrix, record
  ).items():
    plots.save(figure, workdir / f'{kind}_{name}')
  print(row(record))
  common.finish(record, output)
  for path in partial:
    path.unlink(missing_ok=True)


def search(train, test, paths):
  """Nearest opponents of both sets among the training examples, seconds."""
  spent, found = 0.0, {}
  for part, sets, path in zip(
    PARTS, (train, (*test, *train)), paths, strict=True
  ):
    found[part], seconds = separation_state.search(
      *sets, norm=NORM.value, path=path
    )
    spent += seconds
  return found, spent


def between_classes(train, test, found, num_classes):
  """Closest pairs of both searches, and the closest of each two classes."""
  settings = {'norm': NORM.value, 'neighbors': found['train_train']}
  pairs = {
    'train_train': separation.closest_pairs(*train, k=TOP_K.value, **settings),
    'test_train': separation.closest_pairs(
      *test,
      *train,
      k=TOP_K.value,
      norm=NORM.value,
      neighbors=found['test_train'],
    ),
  }
  matrix = separation.class_matrix(*train, num_classes=num_classes, **settings)
  return pairs, matrix


def variant(name: str) -> str:
  """The name of what is measured of a data set."""
  parts = [name]
  if NORM.value != 'linf':
    parts.append(NORM.value)
  if RANDOM_LABELS.value:
    parts.append(f'random{common.SEED.value}')
  if DROP.value:
    parts.append('without_' + re.sub(r'\W', '_', DROP.value))
  return '-'.join(parts)


def _examples(data):
  """Train and test (images, labels), what is kept, what occurs repeatedly."""
  images, labels = data.train
  test = data.test
  if RANDOM_LABELS.value:
    draw = np.random.default_rng(common.SEED.value).integers
    labels = draw(len(data.class_names), size=len(labels), dtype=np.int32)
    test = test._replace(
      labels=draw(len(data.class_names), size=len(test.labels), dtype=np.int32)
    )
  repeated = separation.duplicates(images, labels)
  dropped = to_drop(DROP.value, images, labels, repeated, NORM.value)
  if dropped.size:
    kept = np.setdiff1d(np.arange(len(labels)), dropped)
    logging.info('Left out: %d training examples.', len(dropped))
    if not kept.size:
      raise ValueError(f'--drop={DROP.value} leaves no training example.')
    images, labels = images[kept], labels[kept]
  else:
    kept = np.arange(len(labels))
  return (images, labels), tuple(test), kept, repeated


def to_drop(
  spec: str | None,
  images: np.ndarray,
  labels: np.ndarray,
  repeated: separation.Duplicates,
  norm: str,
) -> np.ndarray:
  """Indices of the training examples that `--drop` names.

  Raises:
    ValueError: for anything but the three forms, or indices out of range.
  """
  if spec is None:
    return np.zeros(0, int)
  if spec == 'conflicts':
    return np.concatenate([np.zeros(0, int), *repeated.conflicts])
  try:
    if spec.startswith('closest:'):
      count = int(spec.removeprefix('closest:'))
      pairs = separation.closest_pairs(images, labels, k=count, norm=norm)
      return np.union1d(pairs.rows, pairs.cols)
    dropped = np.array([int(index) for index in spec.split(',')])
  except ValueError:
    raise ValueError(
      f'--drop={spec}: expected conflicts, closest:N with N from 1, or indices '
      'such as 7,11.'
    ) from None
  if dropped.min() < 0 or dropped.max() >= len(labels):
    raise ValueError(f'--drop={spec}: indices go from 0 to {len(labels) - 1}.')
  return dropped


def summary(found, epsilon: float | None) -> dict[str, Any]:
  """Minima, means and how they compare with the radius."""
  fields: dict[str, Any] = {'epsilon': epsilon}
  for part, neighbors in found.items():
    distances = neighbors.distances.astype(np.float64)
    known = distances[np.isfinite(distances)]
    fields[f'{part}_min'] = float(known.min()) if known.size else None
    fields[f'{part}_mean'] = float(known.mean()) if known.size else None
    fields[f'{part}_without_opponent'] = int(distances.size - known.size)
  smallest = fields['train_train_min']
  if epsilon and smallest is not None:
    fields['pairs_below_2eps'] = close_pairs(found['train_train'], 2 * epsilon)
    fields['ratio_to_epsilon'] = smallest / epsilon
  return fields


def close_pairs(neighbors: separation.Neighbors, distance: float) -> int:
  """How many pairs of nearest opponents of one set are below `distance`."""
  rows = np.flatnonzero(neighbors.distances < distance)
  pairs = np.sort(np.stack([rows, neighbors.indices[rows]]), axis=0)
  return np.unique(pairs, axis=1).shape[1]


def _pair_rows(pairs, kept, part):
  """Closest pairs with the indices of the published files."""
  rows = kept[pairs.rows] if part == 'train_train' else pairs.rows
  return [
    {'distance': float(distance), 'indices': [int(i), int(j)]}
    for distance, i, j in zip(
      pairs.distances, rows, kept[pairs.cols], strict=True
    )
  ]


def row(record: dict[str, Any]) -> str:
  """Table 1's row for this data set, the paper's beside it where it has one."""
  published = paper.separation(record)
  lines = [
    f'{record["num_train"]:,} + {record["num_test"]:,} examples',
    f'{record["dataset"]:<22}{"ours":>10}{"paper":>10}',
  ]
  for column in ('epsilon', 'train_train_min', 'test_train_min'):
    value = published.get(column)
    ours = '-' if record[column] is None else f'{record[column]:.4f}'
    theirs = '-' if value is None else f'{value:.3f}'
    lines.append(f'  {column:<20}{ours:>10}{theirs:>10}')
  return '\n'.join(lines)


if __name__ == '__main__':
  common.run(main)

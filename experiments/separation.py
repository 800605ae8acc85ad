r"""Table 1, Figures 1 and 3, Appendix D: how far apart the classes are.

  python -m experiments.separation --dataset=mnist

Exact distances from every training and every test example to the nearest
training example of another class. Expected on MNIST: 188/255 = 0.737 and
207/255 = 0.812; on CIFAR-10: 54/255 = 0.212 and 56/255 = 0.220. In the work
folder, with the data set and any --norm, --random_labels and --drop for NAME:
`separation_NAME.json` (what is printed last), `separation_NAME.npz` (all
distances and indices) and, as PNG, `separation_NAME` (Figure 3),
`closest_pairs_NAME`, `class_matrix_NAME` and `moved_NAME` (Figure 1). Several
processes (`--coordinator`) divide the searches, process 0 does the rest.
"""

import hashlib
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils

from experiments import common, report, separation_figures
from robustlip import progress, projections, separation

FLAGS = flags.FLAGS
LISTED = 100  # most groups of equal images that a record lists
LONGEST_NAME = 40  # letters; longer lists of indices are hashed in file names


def define() -> None:
  """The flags of this script."""
  common.define_dataset()
  common.define_epsilon()
  common.define_seed()
  common.define_processes()
  flags.DEFINE_enum('norm', 'linf', projections.NORMS, 'Distance.')
  flags.DEFINE_string(
    'drop',
    None,
    'Training examples to leave out: "conflicts" (identical images with '
    'different labels), indices "7,11", or "closest:N" (both examples of each '
    'of the N closest pairs).',
  )
  flags.DEFINE_bool(
    'random_labels', False, 'As a control, draw all labels uniformly by --seed.'
  )
  flags.DEFINE_integer('top_k', 10, 'Closest pairs to report.', 1)
  flags.DEFINE_string(
    'workdir', 'runs/separation', 'Output folder, for any number of data sets.'
  )


def main() -> None:
  """Searches, writes, draws, prints."""
  data = common.load_dataset()
  drop = parse_drop(FLAGS.drop)
  name, folder = variant(data.name, drop), pathlib.Path(FLAGS.workdir)
  output = folder / f'separation_{name}.json'
  owner = common.owner(data, output)
  common.output_folder(folder)
  start = time.perf_counter()
  train, test = labelled(data)
  repeated = separation.duplicates(*train)
  kept = without(drop, *train, repeated)
  leaks = separation.shared(test[0], train[0])
  if len(kept) < len(train[1]):
    train = tuple(array[kept] for array in train)
  sets = {'train_train': train, 'test_train': (*test, *train)}
  began = time.perf_counter()
  found = {part: search(part, *arrays) for part, arrays in sets.items()}
  if jax.process_index():  # process 0 has it all
    return
  search_seconds = time.perf_counter() - began
  pairs = {
    part: separation.closest_pairs(
      *arrays, k=FLAGS.top_k, norm=FLAGS.norm, neighbors=found[part]
    )
    for part, arrays in sets.items()
  }
  matrix = separation.class_matrix(
    *train,
    num_classes=len(data.class_names),
    norm=FLAGS.norm,
    neighbors=found['train_train'],
  )
  epsilon = FLAGS.epsilon
  if epsilon is None and FLAGS.norm == 'linf':  # the paper's are of l-inf
    epsilon = data.epsilon
  record = {
    **owner,
    'norm': FLAGS.norm,
    'random_labels': FLAGS.random_labels,
    'dropped': np.delete(np.arange(len(data.train.labels)), kept).tolist(),
    'num_train': len(train[1]),
    'num_test': len(test[1]),
    **summary(found, epsilon),
    **listed('duplicates', repeated.groups),
    **listed('conflicts', repeated.conflicts),
    **listed('leaks', leaks),
    'closest_pairs': {
      'train_train': pair_rows(pairs['train_train'], kept, kept),
      'test_train': pair_rows(
        pairs['test_train'], np.arange(len(test[1])), kept
      ),
    },
    'search_seconds': search_seconds,
    'seconds': time.perf_counter() - start,
    **common.provenance(),
  }
  common.write_json(record, output)
  save_arrays(folder / f'separation_{name}.npz', found, matrix, kept)
  names = data.class_names
  pictures = {
    'separation': (separation_figures.histograms, found, record),
    'closest_pairs': (separation_figures.closest, train, test, pairs, names),
    'class_matrix': (separation_figures.matrix, matrix, names),
    'moved': (separation_figures.moved, train, record, names),
  }
  for kind, (function, *arguments) in pictures.items():
    common.draw(function, folder / f'{kind}_{name}', *arguments)
  row = report.shown('separation', report.described(record, output.stem))
  print(row.encode(errors='replace').decode())  # files may have any name
  common.print_json(record)


def parse_drop(text: str | None) -> str | list[int] | None:
  """The value of `--drop`: None, a word, or ascending indices.

  Raises:
    ValueError: for anything but the three forms.
  """
  if text is None or re.fullmatch(r'conflicts|closest:[1-9]\d*', text):
    return text
  try:
    return sorted({int(index) for index in text.split(',')})
  except ValueError:
    raise ValueError(
      f'--drop={text}: expected conflicts, closest:N with N from 1, or indices '
      'such as 7,11.'
    ) from None


def variant(name: str, drop: str | list[int] | None) -> str:
  """The name of a data set and the flags that change it, for file names."""
  parts = [name]
  if FLAGS.norm != 'linf':
    parts.append(FLAGS.norm)
  if FLAGS.random_labels:
    parts.append(f'random{FLAGS.seed}')
  if isinstance(drop, str):
    parts.append('without_' + drop.replace(':', '_'))
  elif drop:
    indices = '_'.join(map(str, drop))
    if len(indices) > LONGEST_NAME:
      digest = hashlib.blake2b(indices.encode(), digest_size=4).hexdigest()
      indices = f'{len(drop)}_{digest}'
    parts.append(f'without_{indices}')
  return '-'.join(parts)


def labelled(data):
  """Training and test (images, labels); draws the labels if --random_labels."""
  train, test = tuple(data.train), tuple(data.test)
  if not FLAGS.random_labels:
    return train, test
  draw = np.random.default_rng(FLAGS.seed).integers
  return tuple(
    (images, draw(len(data.class_names), size=len(labels), dtype=np.int32))
    for images, labels in (train, test)
  )


def without(
  drop: str | list[int] | None,
  images: np.ndarray,
  labels: np.ndarray,
  repeated: separation.Duplicates,
) -> np.ndarray:
  """Indices of the training examples that are left.

  Raises:
    ValueError: for indices out of range, or if none is left.
  """
  dropped = drop or []
  if drop == 'conflicts':
    dropped = [index for group in repeated.conflicts for index in group]
  elif isinstance(drop, str):
    count = int(drop.removeprefix('closest:'))
    dropped = separation.closest_pairs(
      images, labels, k=count, norm=FLAGS.norm
    )[1:]
  elif dropped and not 0 <= dropped[0] <= dropped[-1] < len(labels):
    raise ValueError(f'--drop: indices go from 0 to {len(labels) - 1}.')
  kept = np.setdiff1d(np.arange(len(labels)), dropped)
  if not kept.size:
    raise ValueError('--drop leaves no training example.')
  if len(kept) < len(labels):
    logging.info('Left out: %d training examples.', len(labels) - len(kept))
  return kept


def search(
  part: str, images: np.ndarray, labels: np.ndarray, *refs: np.ndarray
) -> separation.Neighbors:
  """The nearest opponents of one part; several processes share the queries."""
  arrays, share = (images, labels, *refs), len(labels)
  if jax.process_count() > 1:
    share = -(-len(labels) // jax.process_count())
    rows = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    arrays = (images[rows], labels[rows], *(refs or (images, labels)))
  with progress.bar(len(arrays[1]), part) as bar:
    found = separation.nearest_opposite(
      *arrays, norm=FLAGS.norm, progress=bar.update
    )
  if jax.process_count() > 1:
    parts = [np.pad(values, (0, share - len(values))) for values in found]
    parts = multihost_utils.process_allgather(parts)
    found = (values.reshape(-1)[: len(labels)] for values in parts)
  return separation.Neighbors(*found)


def summary(found, epsilon: float | None) -> dict[str, Any]:
  """Minima and means of the distances, and comparisons with the radius."""
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


def listed(name: str, groups) -> dict[str, Any]:
  """How many groups of equal images there are, and the first of them.

  Leaks are pairs of a test and a training index, the rest training indices.
  """
  return {name: len(groups), f'{name}_indices': list(groups[:LISTED])}


def pair_rows(pairs, rows, cols) -> list[dict[str, Any]]:
  """Closest pairs; `rows` and `cols` map to indices in the published files."""
  indices = np.stack([rows[pairs.rows], cols[pairs.cols]], axis=1)
  return [
    {'distance': float(distance), 'indices': both.tolist()}
    for distance, both in zip(pairs.distances, indices, strict=True)
  ]


def save_arrays(path, found, matrix, kept) -> None:
  """Writes all distances and indices."""
  arrays = {
    f'{part}_{field}': getattr(value, field)
    for part, value in found.items()
    for field in value._fields
  }
  with common.whole(path) as file:
    np.savez(file, class_matrix=matrix, kept=kept, **arrays)


if __name__ == '__main__':
  common.run(main, define)

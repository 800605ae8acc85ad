r"""How the time of the exact search grows with examples and with features.

  python -m experiments.growth --dataset=mnist

times the train-train search of `robustlip.separation` on the first n examples,
and on all of them with the first d of their features in random order, fits
time = c n^a and time = c d^b, and draws both. Writes the record and a picture
beside it.
"""

import pathlib
import time

import numpy as np
from absl import flags

from experiments import common, plots, provenance
from robustlip import datasets, progress, separation

flags.declare_key_flag(common.DATASET)
flags.declare_key_flag(common.DATA_DIR)
flags.declare_key_flag(common.SEED)
EXAMPLES = flags.DEFINE_list(
  'examples',
  ['5000', '10000', '20000', '40000', '60000'],
  'Sizes of the set; those that it does not have are left out.',
)
FEATURES = flags.DEFINE_list(
  'features',
  ['49', '98', '196', '392', '784'],
  'Numbers of features; those that the images do not have are left out.',
)
REPEATS = flags.DEFINE_integer(
  'repeats', 3, 'Searches timed for each point, after one.', lower_bound=1
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Where the record goes, and the picture beside it. Default: '
  'experiments/results/growth_<dataset>.json.',
)


def sizes(flag: flags.FlagHolder, available: int) -> list[int]:
  """The numbers of a flag up to what is available.

  Raises:
    ValueError: for what is no number, or if fewer than two remain to fit.
  """
  asked = common.numbers(flag, int)
  kept = sorted(size for size in set(asked) if 0 < size <= available)
  if len(kept) < 2:
    raise ValueError(
      f'--{flag.name} needs two sizes from 1 to {available}, got {asked}'
    )
  return kept


def exponent(points: list[dict], name: str) -> float:
  """Slope of log time over log size by least squares."""
  logs = np.log([[point[name], point['seconds']] for point in points])
  return float(np.polyfit(*logs.T, 1)[0])


def measure(images: np.ndarray, labels: np.ndarray) -> float:
  """Seconds of a train-train search: the median after a first one."""
  taken = []
  for _ in range(REPEATS.value + 1):
    start = time.perf_counter()
    separation.nearest_opposite(images, labels)
    taken.append(time.perf_counter() - start)
  return float(np.median(taken[1:]))


def draw(record: dict, path: pathlib.Path) -> None:
  """Time over examples and over features, both axes logarithmic."""
  figure = plots.figure(8, 3.2)
  for axes, name in zip(
    figure.subplots(1, 2), ('examples', 'features'), strict=True
  ):
    points, power = record[f'by_{name}'], record[f'{name}_exponent']
    x, y = np.array([[p[name], p['seconds']] for p in points]).T
    scale = np.exp(np.mean(np.log(y) - power * np.log(x)))
    axes.loglog(x, scale * x**power, '--', color='0.6', label=f'~ {power:.2f}')
    axes.loglog(x, y, 'o', color='C0')
    axes.set(xlabel=name, ylabel='seconds')
    axes.set_xticks(x, [f'{n / 1000:g}k' if n >= 1000 else f'{n:g}' for n in x])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter('{x:g}')
    if y.max() < 10 * y.min():  # else only powers of ten have labels
      axes.yaxis.set_minor_formatter('{x:g}')
    axes.legend(title='exponent', frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
  figure.suptitle(f'exact train-train search, {record["dataset"]}')
  plots.save(figure, path.with_suffix(''))


def main() -> None:
  """Times every size, fits, draws."""
  dataset = datasets.load(common.DATASET.value, data_dir=common.DATA_DIR.value)
  name = pathlib.Path(dataset.name).stem
  path = provenance.destination(OUTPUT.value, f'growth_{name}.json')
  images, labels = (np.asarray(part) for part in dataset.train)
  flat = images.reshape(len(images), -1)
  counts = sizes(EXAMPLES, len(flat))
  widths = sizes(FEATURES, flat.shape[1])
  rng = np.random.default_rng(common.SEED.value)
  order = rng.permutation(flat.shape[1])
  by_examples, by_features = [], []
  with progress.bar(len(counts) + len(widths), 'search', unit='size') as bar:
    for count in counts:
      spent = measure(images[:count], labels[:count])
      by_examples.append({'examples': count, 'seconds': spent})
      bar.update(1)
    for width in widths:
      part = np.ascontiguousarray(flat[:, order[:width]])
      spent = measure(part, labels)
      by_features.append({'features': width, 'seconds': spent})
      bar.update(1)
  record = {
    'dataset': dataset.name,
    **provenance.record(),
    'by_examples': by_examples,
    'examples_exponent': exponent(by_examples, 'examples'),
    'by_features': by_features,
    'features_exponent': exponent(by_features, 'features'),
  }
  draw(record, path)
  common.finish(record, path)


if __name__ == '__main__':
  common.run(main)

"""Data sets as NumPy arrays: uint8 images, int32 labels.

`load(name)` gives one of `NAMES`, or arrays of one's own. `mnist5k`
ships with the package: the first 500 training and the first 100 test images
of each class of MNIST, in the order of the published files. MNIST is by
Y. LeCun, C. Cortes and C. J. C. Burges, licence CC BY-SA 3.0.
"""

import os
import pathlib

import numpy as np
from absl import logging

from robustlip.datasets import arrays, cache, tfds_source
from robustlip.datasets.catalogue import FACTS, Facts
from robustlip.datasets.splits import (
  Dataset,
  Split,
  check,
  check_layout,
  checksum,
  fingerprint,
)

__all__ = [
  'NAMES',
  'Dataset',
  'Split',
  'check_layout',
  'default_data_dir',
  'load',
]

NAMES = ('mnist5k', *FACTS)
EMBEDDED = pathlib.Path(__file__).with_name('mnist5k.npz')


def default_data_dir() -> pathlib.Path:
  """$ROBUSTLIP_DATA, else ~/.cache/robustlip."""
  named = os.environ.get('ROBUSTLIP_DATA')
  return pathlib.Path(named or '~/.cache/robustlip').expanduser()


def load(
  name: str | os.PathLike,
  *,
  data_dir: str | os.PathLike | None = None,
  download: bool = True,
) -> Dataset:
  """The data set `name`, memory-mapped where it has been prepared before.

  Sources in turn: the files that the authors publish, in `<data_dir>/<name>` or
  `data_dir`; a folder prepared by TFDS; a download through TFDS. What is read
  is kept as arrays in `<data_dir>/prepared/<name>`, which are used as long as
  the files that they were made from do not change.

  Args:
    name: one of `NAMES`, or the path of an .npz file or of a folder with
      train_images, train_labels, test_images and test_labels (see
      `arrays.read`).
    data_dir: default `default_data_dir()`; it need not be writable.
    download: whether what is not on disk may be fetched.

  Raises:
    ValueError: an unknown name, or a damaged or wrong file, which it names.
    FileNotFoundError: nothing on disk and no network, after 15 seconds at
      most; it says which files would do.
  """
  name = os.fspath(name)
  path = pathlib.Path(name).expanduser().absolute()
  if name.endswith('.npz') or (name not in NAMES and path.is_dir()):
    train, test, class_names = arrays.read(path)
    digest = fingerprint(*train, *test)
    short = path.name.removesuffix('.npz')
    if short in NAMES:  # they are not the published ones
      short += path.suffix or '.npy'
    return Dataset(short, train, test, class_names, None, digest, str(path))
  if name not in NAMES:
    absent = f'; there is no {path}' if os.sep in name else ''
    raise ValueError(
      f'unknown data set {name!r}, expected one of {", ".join(NAMES)}, or the '
      f'path of an .npz file or of a folder of arrays{absent}.'
    )
  if name == 'mnist5k':
    train, test, class_names = arrays.read(EMBEDDED)
    return Dataset(name, train, test, class_names, FACTS['mnist'].epsilon)
  root = pathlib.Path(data_dir or default_data_dir()).expanduser().absolute()
  train, test = _load_published(name, root, download=download)
  facts, digest = FACTS[name], None
  if not _is_whole(facts, train, test):
    digest = fingerprint(*train, *test)  # tells one part from another
  return Dataset(name, train, test, facts.class_names, facts.epsilon, digest)


def _load_published(
  name: str, root: pathlib.Path, *, download: bool
) -> tuple[Split, Split]:
  facts = FACTS[name]
  read, paths = _find(name, root)
  stamp = cache.stamp(paths, root) if paths else None
  prepared = cache.read(name, root, stamp)
  if prepared is not None:
    return _checked(facts, *prepared, str(cache.folder(name, root)))
  if not paths:
    _download(name, root, allowed=download)
    read, paths = _find(name, root)
    stamp = cache.stamp(paths, root)
  where = os.path.commonpath((paths[0], paths[-1]))
  train, test = _checked(facts, *read(paths), where)
  if _is_whole(facts, train, test) and facts.checksum:
    if checksum(train, test) != facts.checksum:
      raise ValueError(
        f'{where}: images or labels are not the published ones; the files are '
        f'damaged or of another data set. Give a changed {name} as .npz file.'
      )
  cache.write(name, root, train, test, stamp=stamp)
  return train, test


def _find(name: str, root: pathlib.Path):
  """The reader of the first source there is and its files, if any."""
  facts = FACTS[name]
  for folder in facts.folders:
    if paths := facts.format.find(root / folder):
      return facts.format.read, paths
  return tfds_source.find(facts, root)


def _download(name: str, root: pathlib.Path, *, allowed: bool) -> None:
  """Fetches the files into `<root>/<name>`.

  Raises:
    FileNotFoundError: if that cannot be; it says what to put where.
  """
  facts = FACTS[name]
  reason = 'it has to be downloaded by hand'
  if not allowed:
    reason = 'nothing is downloaded here'
  elif facts.urls:
    try:
      return tfds_source.download(facts, root / name)
    except (OSError, ImportError) as error:
      reason = str(error)
  raise FileNotFoundError(
    f'{name} is not in {root} and {reason}; put {facts.format.wanted} into '
    f'{root / name}.'
  )


def _is_whole(facts: Facts, train: Split, test: Split) -> bool:
  sizes = len(train.labels), len(test.labels)
  return sizes == (sum(facts.train_counts), sum(facts.test_counts))


def _checked(
  facts: Facts, train: Split, test: Split, where: str
) -> tuple[Split, Split]:
  """The splits, checked to be the published set or a part of it.

  A part is accepted with a log line, so that users can subset these files.

  Raises:
    ValueError: if shapes or labels are wrong, the two splits are exchanged, or
      a whole set has other numbers of examples by class.
  """
  if _is_whole(facts, test, train) and not _is_whole(facts, train, test):
    raise ValueError(f'{where}: the training and test files are exchanged.')
  checked = []
  for part, split, counts in (
    ('train', train, facts.train_counts),
    ('test', test, facts.test_counts),
  ):
    source, num_classes = f'{where}, {part}', len(facts.class_names)
    shape = facts.image_shape
    split = check(split, source, num_classes=num_classes, image_shape=shape)
    found = np.bincount(split.labels, minlength=num_classes).tolist()
    if len(split.labels) != sum(counts):
      logging.info(
        '%s: %d images, published are %d', source, sum(found), sum(counts)
      )
    elif len(counts) > 1 and found != list(counts):  # else a total is known
      label = int(np.argmax(np.not_equal(found, counts)))
      raise ValueError(
        f'{source}: {found[label]} images of {facts.class_names[label]!r}, '
        f'expected {counts[label]}; the files are damaged, or of another data '
        'set or split.'
      )
    checked.append(split)
  return checked[0], checked[1]

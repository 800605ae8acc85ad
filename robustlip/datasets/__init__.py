"""Data sets as NumPy arrays: uint8 images, int32 labels.

`load(name)` gives one of `NAMES`, or the arrays of an .npz file. `mnist5k`
ships with the package: the first 500 training and the first 100 test images
of each class of MNIST, in the order of the published files. MNIST is by
Y. LeCun, C. Cortes and C. J. C. Burges, licence CC BY-SA 3.0;
`experiments/embed_mnist.py` made the subset.
"""

import os
import pathlib
from collections.abc import Callable

import numpy as np
from absl import logging

from robustlip.datasets import arrays, cache, files, imagenet, tfds_source
from robustlip.datasets.catalogue import FACTS, Facts
from robustlip.datasets.splits import Dataset, Split, check, fingerprint

__all__ = ['NAMES', 'Dataset', 'Split', 'default_data_dir', 'load']

NAMES = ('mnist5k', *FACTS)
EMBEDDED = pathlib.Path(__file__).with_name('mnist5k.npz')

_Found = tuple[Split, Split, str]  # train, test, where from
_READERS: dict[str, Callable[[pathlib.Path], tuple[Split, Split] | None]] = {
  'mnist': files.read_idx,
  'fashion_mnist': files.read_idx,
  'cifar10': files.read_cifar10,
  'svhn': files.read_svhn,
  'restricted_imagenet': imagenet.read,
}


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

  Sources in turn: the prepared arrays in `<data_dir>/prepared/<name>`, the
  files that the authors publish in `<data_dir>/<name>` or `data_dir`, a folder
  prepared by TFDS, and a download through TFDS.

  Args:
    name: one of `NAMES`, or the path of an .npz file with train_images,
      train_labels, test_images and test_labels (see `arrays.read`), which
      the data set keeps as its name, made absolute.
    data_dir: default `default_data_dir()`; where it can be written, the
      prepared arrays are kept there.
    download: whether what is not on disk may be fetched.

  Raises:
    ValueError: an unknown name, or a damaged or wrong file, which it names.
    FileNotFoundError: nothing on disk and no network, after 15 seconds at
      most; it says which files would do.
  """
  name = os.fspath(name)
  if name.endswith('.npz'):
    name = os.path.abspath(os.path.expanduser(name))
    train, test, class_names = arrays.read(pathlib.Path(name))
    digest = fingerprint(*train, *test)
    return Dataset(name, train, test, class_names, None, digest)
  if name not in NAMES:
    raise ValueError(
      f'unknown data set {name!r}, expected one of {", ".join(NAMES)}, or a '
      'path that ends in .npz.'
    )
  if name == 'mnist5k':
    train, test, class_names = arrays.read(EMBEDDED)
    return Dataset(name, train, test, class_names, FACTS['mnist'].epsilon)
  root = default_data_dir() if data_dir is None else pathlib.Path(data_dir)
  train, test = _load_published(name, root.expanduser(), download=download)
  facts, digest = FACTS[name], None
  if _sizes(train, test) != (facts.num_train, facts.num_test):
    digest = fingerprint(*train, *test)  # tomorrow it can be another part
  return Dataset(name, train, test, facts.class_names, facts.epsilon, digest)


def _sizes(train: Split, test: Split) -> tuple[int, int]:
  return len(train.labels), len(test.labels)


def _load_published(
  name: str, data_dir: pathlib.Path, *, download: bool
) -> tuple[Split, Split]:
  facts = FACTS[name]
  prepared = cache.read(name, data_dir)
  *splits, source = (
    prepared
    or _from_files(name, data_dir)
    or tfds_source.read(facts, data_dir)
    or _from_network(name, data_dir, download=download)
  )
  where = str(cache.folder(name, data_dir)) if prepared else source
  train, test = _checked(facts, *splits, where)
  if not prepared:
    cache.write(name, data_dir, train, test, source=source)
  logging.info(
    '%s: %d + %d images from %s%s',
    name,
    len(train.labels),
    len(test.labels),
    where,
    f', made from {source}' if prepared else '',
  )
  return train, test


def _checked(
  facts: Facts, train: Split, test: Split, where: str
) -> tuple[Split, Split]:
  """The splits, if they are what the facts say."""
  train, test = (
    check(
      split,
      f'{where}, {part}',
      num_classes=len(facts.class_names),
      image_shape=facts.image_shape,
    )
    for part, split in (('train', train), ('test', test))
  )
  _compare_with_published(facts, train, test, where)
  return train, test


def _from_files(name: str, data_dir: pathlib.Path) -> _Found | None:
  for folder in FACTS[name].folders:
    splits = _READERS[name](data_dir / folder)
    if splits is not None:
      return *splits, str(data_dir / folder)
  return None


def _from_network(
  name: str, data_dir: pathlib.Path, *, download: bool
) -> _Found:
  facts = FACTS[name]
  reason = 'it has to be downloaded by hand: ImageNet asks for a login'
  if not download:
    reason = 'nothing is downloaded here'
  elif facts.urls:
    try:
      tfds_source.download(facts, data_dir / name)
      return _from_files(name, data_dir)
    except (OSError, ImportError) as error:
      reason = str(error)
  raise FileNotFoundError(
    f'{name} is not in {data_dir} and {reason}; put {facts.files} into '
    f'{data_dir / name}.'
  )


def _compare_with_published(
  facts: Facts, train: Split, test: Split, source: str
) -> None:
  """Tells exchanged files and other data sets from the published one.

  A subset is accepted with a log line: the authors' formats are handy.

  Raises:
    ValueError: if the two splits are exchanged or the labels are another's.
  """
  sizes = _sizes(train, test)
  published = facts.num_train, facts.num_test
  zeros = int(np.sum(test.labels == 0))
  if sizes == published[::-1]:
    raise ValueError(
      f'{source}: {sizes[0]} training and {sizes[1]} test images; the files of '
      'the two are exchanged.'
    )
  if sizes == published and zeros != facts.first_class:
    raise ValueError(
      f'{source}: {zeros} test images of {facts.class_names[0]!r}, expected '
      f'{facts.first_class}; these are files of another data set or of another '
      'split.'
    )
  if sizes != published:
    logging.info(
      '%s: %d + %d images, the published set has %d + %d',
      source,
      *sizes,
      *published,
    )

"""Formats in which the authors of the data sets publish them.

A `Format` finds its files in a folder and reads them. A file that is there but
damaged raises ValueError with its path, what was expected and what was found.
"""

import contextlib
import functools
import gzip
import io
import itertools
import math
import os
import pathlib
import pickle
import struct
import tarfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from robustlip.datasets.splits import Split

Splits = tuple[Split, Split]  # train, test


class Format(NamedTuple):
  """How to find the files of a set, and how to read them."""

  # The files in the order of `read`; empty where the folder has none of them.
  find: Callable[[pathlib.Path], Sequence[pathlib.Path | str]]
  read: Callable[[Sequence[pathlib.Path | str]], Splits]
  wanted: str  # the names of the files, for error messages


@contextlib.contextmanager
def expect(path: pathlib.Path, what: str):
  """Turns any error that a damaged file causes into a ValueError about it."""
  if path.is_dir():
    raise ValueError(f'{path} is a folder, expected {what}.')
  with path.open('rb') as file:
    head = file.read(64).lstrip().lower()
  if head.startswith((b'<!doctype', b'<html')):
    raise ValueError(f'{path} is a web page, expected {what}.')
  if head.startswith(b'version https://git-lfs'):
    raise ValueError(
      f'{path} is a pointer of Git LFS, expected {what}: run `git lfs pull`.'
    )
  try:
    yield
  except Exception as error:  # gzip, tarfile, pickle, SciPy: no common base
    size = path.stat().st_size
    reason = ' '.join(str(error).split())
    raise ValueError(
      f'{path}: {size} bytes, expected {what} ({reason}).'
    ) from error


def _find_all(
  folder: pathlib.Path, names: Sequence[str], variants=lambda name: (name,)
) -> list[pathlib.Path]:
  """The files of these names, each in the first variant that is there.

  Raises:
    FileNotFoundError: if the folder holds some and lacks others.
  """
  found = [
    next((p for v in variants(name) if (p := folder / v).is_file()), None)
    for name in names
  ]
  missing = [
    name for name, path in zip(names, found, strict=True) if path is None
  ]
  if missing and len(missing) < len(names):
    raise FileNotFoundError(f'{folder} lacks {", ".join(missing)}.')
  return [] if missing else found


# Magic number by the end of a file's name: type of the elements, axes.
_IDX_MAGIC = {'idx3-ubyte': 0x803, 'idx1-ubyte': 0x801, 'idx2-int': 0xC02}


def idx(
  train: str = 'train',
  test: str = 't10k',
  *,
  labels: str = 'idx1-ubyte',
  first_label: int = 0,
  transposed: bool = False,
) -> Format:
  """MNIST and its relatives: four IDX files, plain or gzipped.

  A name may have a dot in place of the hyphen before `idx`, as in Kaggle's
  copy, and a file may lie in a folder of its own name.

  Args:
    train: what the names of the training files begin with.
    test: what the names of the test files begin with.
    labels: end of the names of the label files; the class is the first column
      of `idx2-int`, as in QMNIST.
    first_label: the label of the first class, 1 in some sets.
    transposed: whether rows and columns of an image are exchanged, as in
      EMNIST.
  """
  names = [
    f'{part}-{kind}'
    for part in (train, test)
    for kind in ('images-idx3-ubyte', f'labels-{labels}')
  ]

  def variants(name):
    dotted = name.replace('-idx', '.idx')
    plain = [name, f'{name}/{name}', dotted, f'{name}/{dotted}']
    return [f'{name}{ending}' for name in plain for ending in ('', '.gz')]

  def split(images_path, labels_path):
    images, numbers = _idx_array(images_path), _idx_array(labels_path)
    if len(images) != len(numbers):
      raise ValueError(
        f'{images_path} holds {len(images)} images but {labels_path} '
        f'{len(numbers)} labels.'
      )
    if transposed:
      images = np.ascontiguousarray(images.swapaxes(1, 2))
    numbers = numbers.reshape(len(numbers), -1)[:, 0].astype(np.int32)
    return Split(images[..., None], numbers - first_label)

  return Format(
    lambda folder: _find_all(folder, names, variants),
    lambda paths: (split(*paths[:2]), split(*paths[2:])),
    f'{", ".join(names)} (plain or .gz)',
  )


def _idx_array(path: pathlib.Path) -> np.ndarray:
  magic = next(m for end, m in _IDX_MAGIC.items() if end in path.name)
  with expect(path, f'an IDX file of magic number {magic:#x}'):
    content = path.read_bytes()
    if path.suffix == '.gz':
      content = gzip.decompress(content)
    if int.from_bytes(content[:4], 'big') != magic:
      raise ValueError(f'it begins with 0x{content[:4].hex()}')
    ndim = magic % 0x100
    head = 4 + 4 * ndim
    shape = struct.unpack(f'>{ndim}I', content[4:head])
    dtype = np.dtype('>i4' if magic >= 0xC00 else np.uint8)
    expected = head + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
      raise ValueError(
        f'{len(content)} unpacked, {expected} for the shape {shape} in its '
        'header'
      )
    return np.frombuffer(content, dtype, offset=head).reshape(shape)


def cifar(
  folders: dict[str, str], batches: Sequence[str], *, num_labels: int = 1
) -> Format:
  """CIFAR: the binary or the Python batches, unpacked or in their tar.gz.

  Args:
    folders: name of each published folder -> name of its archive; folders of
      binary batches end in `bin` or `binary`.
    batches: their names without ending, the test batch last.
    num_labels: bytes before the image in a binary record; the last is the
      class.
  """

  def names(inside):
    return [name + '.bin' * ('-bin' in inside) for name in batches]

  def find(folder):
    for inside in folders:
      for root in (folder / inside, folder):
        if paths := _find_all(root, names(inside)):
          return paths
    for archive in folders.values():
      if (folder / archive).is_file():
        return [folder / archive]
    return []

  def read(paths):
    if len(paths) == 1:
      (inside,) = (k for k, v in folders.items() if v == paths[0].name)
      contents = _members(paths[0], inside, names(inside))
    else:
      contents = {path.name: path.read_bytes() for path in paths}
    *train, test = (
      _batch(path, name, content, num_labels)
      for path, (name, content) in zip(
        itertools.cycle(paths), contents.items(), strict=False
      )
    )
    sizes = [len(batch.labels) for batch in (*train, test)]
    if len(train) > 1 and len(set(sizes)) > 1:
      raise ValueError(
        f'{paths[0].parent}: {", ".join(contents)} have {sizes} examples, '
        'expected one size.'
      )
    images, labels = map(np.concatenate, zip(*train, strict=True))
    return Split(images, labels), test

  archives, unpacked = ' or '.join(folders.values()), ' or '.join(folders)
  return Format(find, read, f'{archives}, or the folder {unpacked}')


def _members(
  archive: pathlib.Path, inside: str, names: Sequence[str]
) -> dict[str, bytes]:
  """Contents of files in a tar.gz, read in memory."""
  contents = {}
  with expect(archive, f'a tar.gz with {inside}/{", ".join(names)}'):
    with tarfile.open(archive, 'r:gz') as tar:
      for member in tar:
        folder, _, name = member.name.removeprefix('./').rpartition('/')
        if member.isfile() and folder == inside and name in names:
          contents[name] = tar.extractfile(member).read()
    return {name: contents[name] for name in names}


def _batch(
  path: pathlib.Path, name: str, content: bytes, num_labels: int
) -> Split:
  """One batch, stored as images [3, 32, 32]; `path` may be its archive."""
  with expect(path, f'a whole batch of CIFAR as {name}'):
    if name.endswith('.bin'):
      records = np.frombuffer(content, np.uint8)
      records = records.reshape(-1, num_labels + 3072)
      images, labels = records[:, num_labels:], records[:, num_labels - 1]
    else:
      images, labels = _unpickle(content)
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
      raise ValueError(f'data is {images.dtype} of shape {images.shape}')
    planes = images.reshape(-1, 3, 32, 32)
    return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


# All that a pickled NumPy array or number is made of, by Python 2 and 3.
_ARRAY_GLOBALS = {
  ('numpy', 'dtype'),
  ('numpy', 'ndarray'),
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', '_reconstruct'),
  ('numpy.core.multiarray', 'scalar'),
  ('numpy._core.multiarray', 'scalar'),
  ('numpy._core.numeric', '_frombuffer'),
  ('_codecs', 'encode'),
}


class _ArrayUnpickler(pickle.Unpickler):
  """Builds numbers, strings, containers and NumPy arrays, nothing else."""

  def find_class(self, module: str, name: str) -> Callable:
    if (module, name) not in _ARRAY_GLOBALS:
      raise pickle.UnpicklingError(f'refused to load {module}.{name}')
    return super().find_class(module, name)


def _unpickle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Data and labels of a pickled batch."""
  batch = _ArrayUnpickler(io.BytesIO(content), encoding='bytes').load()
  batch = {os.fsdecode(key): value for key, value in batch.items()}
  labels = batch['labels' if 'labels' in batch else 'fine_labels']
  return np.asarray(batch['data']), np.asarray(labels)


def _mat(path: pathlib.Path) -> Split:
  import scipy.io

  what = 'a MATLAB file with X ([32, 32, 3, N]) and y (1 to 10, [N, 1])'
  with expect(path, what):
    content = scipy.io.loadmat(path, variable_names=('X', 'y'))
    images, labels = content['X'], content['y'].reshape(-1)
    if images.ndim != 4 or images.shape[3] != len(labels):
      raise ValueError(f'X is {images.shape}, y {content["y"].shape}')
    if labels.min() < 1 or labels.max() > 10:
      raise ValueError(f'y from {labels.min()} to {labels.max()}')
    images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return Split(images, labels.astype(np.int32) % 10)


# SVHN, cropped digits; the label 10 of the files is the digit 0.
SVHN = Format(
  functools.partial(_find_all, names=('train_32x32.mat', 'test_32x32.mat')),
  lambda paths: tuple(map(_mat, paths)),
  'train_32x32.mat and test_32x32.mat',
)

"""Readers of the files that the authors of the data sets publish.

Each takes the folder and returns `(train, test)`, or None where the folder
lacks the files. A file that is there but damaged raises ValueError with its
path, what was expected and what was found.
"""

import gzip
import io
import pathlib
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable

import numpy as np

from robustlip.datasets.catalogue import IDX_FILES
from robustlip.datasets.splits import Split

Splits = tuple[Split, Split]

_CIFAR_FOLDERS = {
  'cifar-10-batches-bin': '.bin',
  'cifar-10-batches-py': '',
}
_CIFAR_ARCHIVES = {
  'cifar-10-binary.tar.gz': 'cifar-10-batches-bin',
  'cifar-10-python.tar.gz': 'cifar-10-batches-py',
}
_CIFAR_BATCHES = (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch')
_CIFAR_RECORD = 1 + 3 * 32 * 32  # label, then the planes of the image

# All that a pickled NumPy array is made of, as Python 2 and 3 write it.
_ARRAY_GLOBALS = {
  ('numpy', 'dtype'),
  ('numpy', 'ndarray'),
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', '_reconstruct'),
  ('numpy._core.numeric', '_frombuffer'),
  ('_codecs', 'encode'),
}


def find_all(
  folder: pathlib.Path,
  names: tuple[str, ...],
  *,
  endings: tuple[str, ...] = ('',),
) -> bool:
  """Whether `folder` holds all the files, False if it holds none.

  Raises:
    FileNotFoundError: if it holds some and lacks others.
  """
  missing = [
    name
    for name in names
    if not any((folder / (name + ending)).is_file() for ending in endings)
  ]
  if missing and len(missing) < len(names):
    raise FileNotFoundError(f'{folder} lacks {", ".join(missing)}.')
  return not missing


def read_idx(folder: pathlib.Path) -> Splits | None:
  """MNIST and its relatives: four IDX files, plain or gzipped."""
  if not find_all(folder, IDX_FILES, endings=('', '.gz')):
    return None
  splits = []
  for images_name, labels_name in (IDX_FILES[:2], IDX_FILES[2:]):
    images_path, images = _idx(folder / images_name, ndim=3)
    labels_path, labels = _idx(folder / labels_name, ndim=1)
    if len(images) != len(labels):
      raise ValueError(
        f'{images_path} holds {len(images)} images but {labels_path} '
        f'{len(labels)} labels.'
      )
    splits.append(Split(images[..., None], labels.astype(np.int32)))
  return splits[0], splits[1]


def _idx(path: pathlib.Path, *, ndim: int) -> tuple[pathlib.Path, np.ndarray]:
  """The file that was read, plain before gzipped, and its array."""
  if not path.is_file():
    path = path.with_name(path.name + '.gz')
  content = path.read_bytes()
  if path.suffix == '.gz':
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
      raise ValueError(
        f'{path}: {len(content)} bytes that are no whole gzip file ({error}).'
      ) from error
  head = 4 + 4 * ndim
  magic = 0x800 + ndim  # unsigned bytes, ndim axes
  found = int.from_bytes(content[:4], 'big')
  if len(content) < head or found != magic:
    raise ValueError(
      f'{path}: IDX magic number {found:#x} in {len(content)} bytes, '
      f'expected {magic:#x}.'
    )
  shape = struct.unpack(f'>{ndim}I', content[4:head])
  expected = head + int(np.prod(shape, dtype=object))
  if len(content) != expected:
    raise ValueError(
      f'{path}: {len(content)} bytes, expected {expected} for the shape '
      f'{shape} in its header.'
    )
  return path, np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def read_cifar10(folder: pathlib.Path) -> Splits | None:
  """CIFAR-10: the binary or the Python batches, unpacked or in their tar."""
  for name, suffix in _CIFAR_FOLDERS.items():
    for root in (folder / name, folder):
      names = tuple(batch + suffix for batch in _CIFAR_BATCHES)
      if find_all(root, names):
        contents = {name: (root / name).read_bytes() for name in names}
        return _cifar10(root, contents)
  for archive, inside in _CIFAR_ARCHIVES.items():
    if (folder / archive).is_file():
      names = [batch + _CIFAR_FOLDERS[inside] for batch in _CIFAR_BATCHES]
      return _cifar10(
        folder / archive, _members(folder / archive, inside, names)
      )
  return None


def _members(
  archive: pathlib.Path, inside: str, names: list[str]
) -> dict[str, bytes]:
  """Contents of files in a tar.gz, read in memory."""
  contents = {}
  try:
    with tarfile.open(archive, 'r:gz') as tar:
      for member in tar:
        folder, _, name = member.name.removeprefix('./').rpartition('/')
        if member.isfile() and folder == inside and name in names:
          contents[name] = tar.extractfile(member).read()
  except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
    raise ValueError(
      f'{archive}: {archive.stat().st_size} bytes that are no whole tar.gz '
      f'({error}).'
    ) from error
  missing = [name for name in names if name not in contents]
  if missing:
    raise ValueError(f'{archive} lacks {inside}/{", ".join(missing)}.')
  return {name: contents[name] for name in names}


def _cifar10(source: pathlib.Path, contents: dict[str, bytes]) -> Splits:
  """Six batches, which must be of one size as the published ones are."""
  batches = {
    name: (_binary if name.endswith('.bin') else _pickled)(
      source / name, content
    )
    for name, content in contents.items()
  }
  expected = max(len(batch.labels) for batch in batches.values())
  for name, batch in batches.items():
    if len(batch.labels) != expected:
      raise ValueError(
        f'{source / name}: {len(batch.labels)} examples, expected {expected} '
        'as in the other batches.'
      )
  *train, test = batches.values()
  images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
  return Split(images, labels), test


def _planes(flat: np.ndarray) -> np.ndarray:
  """[N, 3 * 32 * 32], one plane after another, to [N, 32, 32, 3]."""
  planes = flat.reshape(-1, 3, 32, 32)
  return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _binary(path: pathlib.Path, content: bytes) -> Split:
  if not content or len(content) % _CIFAR_RECORD:
    raise ValueError(
      f'{path}: {len(content)} bytes, expected a multiple of {_CIFAR_RECORD} '
      f'({10_000 * _CIFAR_RECORD} as published).'
    )
  records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
  return Split(_planes(records[:, 1:]), records[:, 0].astype(np.int32))


class _ArrayUnpickler(pickle.Unpickler):
  """Builds numbers, strings, containers and NumPy arrays, nothing else."""

  def find_class(self, module: str, name: str) -> Callable:
    if (module, name) not in _ARRAY_GLOBALS:
      raise pickle.UnpicklingError(f'refused to load {module}.{name}')
    return super().find_class(module, name)


def _pickled(path: pathlib.Path, content: bytes) -> Split:
  try:
    batch = _ArrayUnpickler(io.BytesIO(content), encoding='bytes').load()
    images, labels = (
      batch[key] if key in batch else batch[key.encode()]
      for key in ('data', 'labels')
    )
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
      raise ValueError(f'data is {images.dtype} of shape {images.shape}')
    return Split(_planes(images), labels)
  except Exception as error:  # a damaged pickle can raise anything
    raise ValueError(
      f'{path}: {len(content)} bytes, expected a pickled CIFAR-10 batch with '
      f'data (uint8, [N, 3072]) and N labels ({error}).'
    ) from error


def read_svhn(folder: pathlib.Path) -> Splits | None:
  """SVHN, cropped digits; the label 10 of the files is the digit 0."""
  names = ('train_32x32.mat', 'test_32x32.mat')
  if not find_all(folder, names):
    return None
  train, test = (_mat(folder / name) for name in names)
  return train, test


def _mat(path: pathlib.Path) -> Split:
  import scipy.io

  try:
    content = scipy.io.loadmat(path, variable_names=('X', 'y'))
    images, labels = content['X'], content['y'].reshape(-1)
    if images.ndim != 4 or images.shape[3] != len(labels):
      raise ValueError(f'X is {images.shape}, y {content["y"].shape}')
    if labels.min() < 1 or labels.max() > 10:
      raise ValueError(f'y from {labels.min()} to {labels.max()}')
  except Exception as error:  # SciPy raises what the damage happens to cause
    raise ValueError(
      f'{path}: {path.stat().st_size} bytes, expected a MATLAB file with X '
      f'([32, 32, 3, N]) and y (1 to 10, [N, 1]) ({error}).'
    ) from error
  images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
  return Split(images, labels.astype(np.int32) % 10)

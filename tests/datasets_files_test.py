import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import scipy.io

from robustlip.datasets import catalogue

IDX = {
  'train-images-idx3-ubyte': (7, 28, 28),
  'train-labels-idx1-ubyte': (7,),
  't10k-images-idx3-ubyte': (5, 28, 28),
  't10k-labels-idx1-ubyte': (5,),
}
BATCHES = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']


def read(name, folder):
  """Train and test of the published files; None where there are none."""
  published = catalogue.FACTS[name].format
  paths = published.find(folder)
  return published.read(paths) if paths else None


def pixels(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx_bytes(array):
  head = struct.pack(f'>{1 + array.ndim}I', 0x800 + array.ndim, *array.shape)
  return head + array.tobytes()


def write_idx(folder, *, gzipped=False):
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {
    name: pixels(shape) if len(shape) > 1 else pixels(shape) % 10
    for name, shape in IDX.items()
  }
  for name, array in arrays.items():
    content = idx_bytes(array)
    content = gzip.compress(content) if gzipped else content
    (folder / f'{name}{".gz" * gzipped}').write_bytes(content)
  return [x[..., None] if x.ndim == 3 else x for x in arrays.values()]


def cifar_parts(num_per_batch=3):
  """Six batches as [N, 3, 32, 32] planes and labels."""
  return {
    name: (
      pixels((num_per_batch, 3, 32, 32), seed),
      pixels(num_per_batch, seed) % 10,
    )
    for seed, name in enumerate(BATCHES)
  }


def binary(planes, labels):
  flat = planes.reshape(len(planes), -1)
  return np.concatenate([labels[:, None], flat], 1).tobytes()


def pickled(planes, labels, protocol=2):
  batch = {
    b'data': planes.reshape(len(planes), -1),
    b'labels': labels.tolist(),
    b'batch_label': b'one of six',
  }
  return pickle.dumps(batch, protocol)


CIFAR10 = [
  (binary, '.bin', 'cifar-10-batches-bin'),
  (pickled, '', 'cifar-10-batches-py'),
]


def write_cifar(root, encode, suffix, folder):
  (root / folder).mkdir(parents=True)
  parts = cifar_parts()
  for name, part in parts.items():
    (root / folder / f'{name}{suffix}').write_bytes(encode(*part))
  return parts


def check_splits(splits, *arrays):
  """That train and test have these images, labels, images and labels."""
  for split, *expected in zip(splits, arrays[::2], arrays[1::2], strict=True):
    for found, array in zip(split, expected, strict=True):
      np.testing.assert_array_equal(found, array)


def as_images(planes):
  return planes.transpose(0, 2, 3, 1)


def check_cifar(splits, parts):
  train = zip(*(parts[name] for name in BATCHES[:5]), strict=True)
  planes, labels = map(np.concatenate, train)
  last, last_labels = parts['test_batch']
  check_splits(splits, as_images(planes), labels, as_images(last), last_labels)


def write_tar(path, contents):
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


def write_svhn(folder, num=6):
  folder.mkdir(parents=True, exist_ok=True)
  for seed, part in enumerate(('train', 'test')):
    scipy.io.savemat(
      folder / f'{part}_32x32.mat',
      {
        'X': pixels((32, 32, 3, num), seed),
        'y': np.array([[10], [1], [2], [9], [10], [5]], np.uint8)[:num],
      },
      do_compression=True,
    )


def write_relative(name, folder):
  """QMNIST or EMNIST as published: images as people see them, labels from 0."""
  kind = 'int' if name == 'qmnist' else 'ubyte'
  start = name.replace('_', '-')
  first = 1 if name == 'emnist_letters' else 0
  found = []
  for seed, (part, num) in enumerate((('train', 7), ('test', 5))):
    images, labels = pixels((num, 28, 28), seed), pixels(num, seed) % 10
    found += [images[..., None], labels]
    if name == 'qmnist':
      table = np.zeros((num, 8), np.dtype('>i4'))
      table[:, 0], table[:, 1] = labels, 70_000  # the class, the writer
      content = struct.pack('>3I', 0xC02, *table.shape) + table.tobytes()
      labels_name = f'{start}-{part}-labels-idx2-{kind}'
    else:
      images = images.transpose(0, 2, 1)
      content = idx_bytes(labels + first)
      labels_name = f'{start}-{part}-labels-idx1-{kind}'
    images_name = f'{start}-{part}-images-idx3-ubyte'
    images_content = idx_bytes(np.ascontiguousarray(images))
    for file, whole in ((images_name, images_content), (labels_name, content)):
      (folder / f'{file}.gz').write_bytes(gzip.compress(whole))
  return found


def write_cifar100(folder):
  """The binary files: superclass, class, planes."""
  root = folder / 'cifar-100-binary'
  root.mkdir()
  found = []
  for seed, (part, num) in enumerate((('train', 6), ('test', 4))):
    planes, labels = pixels((num, 3, 32, 32), seed), pixels(num, seed) % 100
    found.append((planes, labels))
    columns = [labels[:, None] // 5, labels[:, None], planes.reshape(num, -1)]
    (root / f'{part}.bin').write_bytes(np.concatenate(columns, 1).tobytes())
  return found


@pytest.mark.parametrize(
  'name', ['qmnist', 'emnist_balanced', 'emnist_digits', 'emnist_letters']
)
def test_relatives_of_mnist(tmp_path, name):
  expected = write_relative(name, tmp_path)
  splits = read(name, tmp_path)
  check_splits(splits, *expected)
  assert {split.labels.dtype for split in splits} == {np.dtype(np.int32)}


@pytest.mark.parametrize('python', [False, True])
def test_cifar100(tmp_path, python):
  parts = write_cifar100(tmp_path)
  if python:
    (tmp_path / 'cifar-100-binary').rename(tmp_path / 'away')
    (tmp_path / 'cifar-100-python').mkdir()
    for name, (planes, labels) in zip(('train', 'test'), parts, strict=True):
      batch = {
        'data': planes.reshape(len(planes), -1),
        'fine_labels': labels.tolist(),
        'coarse_labels': (labels // 5).tolist(),
      }
      content = pickle.dumps(batch, 2)
      (tmp_path / 'cifar-100-python' / name).write_bytes(content)
  (planes, labels), (last, last_labels) = parts
  expected = as_images(planes), labels, as_images(last), last_labels
  check_splits(read('cifar100', tmp_path), *expected)


@pytest.mark.parametrize(
  'rename',
  [
    lambda name: name.replace('-idx', '.idx'),
    lambda name: f'{name}/{name}',
    lambda name: f'{name}/{name.replace("-idx", ".idx")}',
  ],
)
@pytest.mark.parametrize('gzipped', [False, True])
def test_other_common_names_of_idx_files(tmp_path, rename, gzipped):
  expected = write_idx(tmp_path / 'published', gzipped=gzipped)
  for name in IDX:
    new = tmp_path / f'{rename(name)}{".gz" * gzipped}'
    new.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'published' / f'{name}{".gz" * gzipped}').rename(new)
  train, test = read('mnist', tmp_path)
  np.testing.assert_array_equal(train.images, expected[0])
  np.testing.assert_array_equal(test.labels, expected[3])


@pytest.mark.parametrize('protocol', [2, 5])
def test_cifar_labels_that_are_numpy_integers(tmp_path, protocol):
  class AsTheyAre(np.ndarray):
    def tolist(self):
      return list(np.asarray(self))

  parts = write_cifar(
    tmp_path,
    lambda planes, labels: pickled(planes, labels.view(AsTheyAre), protocol),
    '',
    'cifar-10-batches-py',
  )
  content = (tmp_path / 'cifar-10-batches-py' / 'test_batch').read_bytes()
  assert b'scalar' in content
  check_cifar(read('cifar10', tmp_path), parts)


@pytest.mark.parametrize('gzipped', [False, True])
def test_idx(tmp_path, gzipped):
  expected = write_idx(tmp_path, gzipped=gzipped)
  check_splits(read('mnist', tmp_path), *expected)


def test_absent_files_are_none(tmp_path):
  assert read('mnist', tmp_path) is None
  assert read('cifar10', tmp_path) is None
  assert read('svhn', tmp_path) is None


def test_an_incomplete_set_is_named(tmp_path):
  write_idx(tmp_path)
  (tmp_path / 't10k-labels-idx1-ubyte').unlink()
  with pytest.raises(FileNotFoundError, match='t10k-labels'):
    read('mnist', tmp_path)


@pytest.mark.parametrize('gzipped', [False, True])
@pytest.mark.parametrize('name', IDX)
def test_truncated_idx(tmp_path, name, gzipped):
  write_idx(tmp_path, gzipped=gzipped)
  path = tmp_path / (name + '.gz' * gzipped)
  whole = path.read_bytes()
  for size in (0, 3, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=path.name):
      read('mnist', tmp_path)


def test_idx_says_both_sizes(tmp_path):
  write_idx(tmp_path)
  path = tmp_path / 'train-images-idx3-ubyte'
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match=f'100 unpacked, {16 + 7 * 784} for'):
    read('mnist', tmp_path)


@pytest.mark.parametrize(
  'other, message',
  [
    ('train-images-idx3-ubyte', 'expected .* number 0x801 .*with 0x00000803'),
    ('t10k-labels-idx1-ubyte', '7 images but .* 5 labels'),
  ],
)
def test_another_file_in_place_of_the_labels(tmp_path, other, message):
  write_idx(tmp_path)
  content = (tmp_path / other).read_bytes()
  (tmp_path / 'train-labels-idx1-ubyte').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    read('mnist', tmp_path)


@pytest.mark.parametrize('encode, suffix, folder', CIFAR10)
def test_cifar10_folders(tmp_path, encode, suffix, folder):
  parts = write_cifar(tmp_path, encode, suffix, folder)
  check_cifar(read('cifar10', tmp_path), parts)
  check_cifar(read('cifar10', tmp_path / folder), parts)


@pytest.mark.parametrize('encode, suffix, folder', CIFAR10)
def test_cifar10_archives(tmp_path, encode, suffix, folder):
  archive = f'cifar-10-{"binary" if suffix else "python"}.tar.gz'
  parts = cifar_parts()
  contents = {
    f'{folder}/{name}{suffix}': encode(*part) for name, part in parts.items()
  }
  write_tar(tmp_path / archive, {**contents, f'{folder}/readme.html': b'x'})
  check_cifar(read('cifar10', tmp_path), parts)
  assert os.listdir(tmp_path) == [archive]

  whole = (tmp_path / archive).read_bytes()
  (tmp_path / archive).write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=f'{archive}: .* expected a tar.gz'):
    read('cifar10', tmp_path)
  contents.popitem()
  write_tar(tmp_path / archive, contents)
  with pytest.raises(ValueError, match=f'{archive}.*test_batch{suffix}'):
    read('cifar10', tmp_path)


def test_a_python_2_batch(tmp_path):
  # Protocol 2 as Python 2 wrote it: str is SHORT_BINSTRING, not unicode.
  planes, labels = pixels((2, 3072)), [3, 4]
  state = (1, (2, 3072), np.dtype('u1'), False, planes.tobytes())
  raw = state[-1]
  content = (
    b'\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n'
    b'cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86'
    b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff'
    b'J\xff\xff\xff\xffK\x00tb\x89T' + struct.pack('<i', len(raw)) + raw + b'tb'
    b'U\x06labels](K\x03K\x04eu.'
  )
  folder = tmp_path / 'cifar-10-batches-py'
  folder.mkdir()
  for name in BATCHES:
    (folder / name).write_bytes(content)
  train, test = read('cifar10', tmp_path)
  np.testing.assert_array_equal(
    test.images.transpose(0, 3, 1, 2).reshape(2, -1), planes
  )
  assert test.labels.tolist() == labels
  assert len(train.labels) == 10


class Attack:
  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_pickle_cannot_execute(tmp_path, protocol):
  write_cifar(tmp_path, pickled, '', 'cifar-10-batches-py')
  content = pickle.dumps({b'data': Attack(tmp_path / 'owned')}, protocol)
  (tmp_path / 'cifar-10-batches-py' / 'data_batch_2').write_bytes(content)
  with pytest.raises(ValueError, match='data_batch_2.*refused.*mkdir'):
    read('cifar10', tmp_path)
  assert not (tmp_path / 'owned').exists()
  pickle.loads(content)  # the attack itself works
  assert (tmp_path / 'owned').exists()


@pytest.mark.parametrize('encode, suffix, folder', CIFAR10)
def test_truncated_cifar10(tmp_path, encode, suffix, folder):
  write_cifar(tmp_path, encode, suffix, folder)
  path = tmp_path / folder / f'data_batch_3{suffix}'
  whole = path.read_bytes()
  for size in (0, 3073, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=f'{path.name}.* expected'):
      read('cifar10', tmp_path)


def test_svhn(tmp_path):
  write_svhn(tmp_path)
  train, test = read('svhn', tmp_path)
  assert train.labels.tolist() == [0, 1, 2, 9, 0, 5]
  np.testing.assert_array_equal(
    train.images.transpose(1, 2, 3, 0), pixels((32, 32, 3, 6), 0)
  )
  np.testing.assert_array_equal(
    test.images.transpose(1, 2, 3, 0), pixels((32, 32, 3, 6), 1)
  )


def test_damaged_svhn(tmp_path):
  write_svhn(tmp_path)
  path = tmp_path / 'train_32x32.mat'
  whole = path.read_bytes()
  for size in (0, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r'train_32x32.mat: \d+ bytes, exp'):
      read('svhn', tmp_path)
  images = pixels((32, 32, 3, 2))
  for content in (
    {'X': images},
    {'X': images, 'y': np.array([[0], [1]])},
    {'X': images, 'y': np.array([[11], [1]])},
    {'X': images, 'y': np.array([[1]])},
  ):
    scipy.io.savemat(path, content)
    with pytest.raises(ValueError, match='train_32x32.mat'):
      read('svhn', tmp_path)

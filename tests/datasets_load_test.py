import logging
import os
import subprocess
import sys
import threading
import time

import datasets_files_test as published
import datasets_imagenet_test as imagenet_tree
import numpy as np
import pytest

from robustlip import datasets
from robustlip.datasets import cache, catalogue, splits, tfds_source


@pytest.fixture(autouse=True)
def _no_other_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))


def forbid(*args, **kwargs):
  raise AssertionError('an earlier source should have been used')


def write_published(name, folder):
  if name in ('mnist', 'fashion_mnist'):
    published.write_idx(folder)
  elif name == 'cifar10':
    published.write_cifar(
      folder, published.binary, '.bin', 'cifar-10-batches-bin'
    )
  elif name == 'svhn':
    published.write_svhn(folder)
  else:
    imagenet_tree.write_tree(folder)


def check_equal(one, other):
  arrays = (*one.train, *one.test), (*other.train, *other.test)
  for x, y in zip(*arrays, strict=True):
    np.testing.assert_array_equal(x, y)
  assert one.class_names == other.class_names
  assert one.epsilon == other.epsilon


@pytest.mark.parametrize('name', catalogue.FACTS)
def test_published_files_then_cache(tmp_path, monkeypatch, name):
  write_published(name, tmp_path / name)
  first = datasets.load(name, data_dir=tmp_path)
  assert first.name == name
  assert first.train.images.dtype == np.uint8
  assert first.train.labels.dtype == np.int32
  assert first.epsilon == catalogue.FACTS[name].epsilon
  monkeypatch.setattr(datasets, '_from_files', forbid)
  second = datasets.load(name, data_dir=tmp_path)
  assert isinstance(second.train.images, np.memmap)
  check_equal(first, second)


def test_parts_of_a_set_are_told_apart(tmp_path):
  found = []
  for name in ('a', 'b'):
    write_published('mnist', tmp_path / name / 'mnist')
    if name == 'b':
      folder = tmp_path / name / 'mnist'
      (path,) = folder.glob('train-images*')
      path.write_bytes(path.read_bytes()[:-1] + bytes([77]))
    found.append(datasets.load('mnist', data_dir=tmp_path / name).fingerprint)
  assert None not in found and found[0] != found[1]


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds_source, 'download', forbid)
  with pytest.raises(FileNotFoundError, match='nothing is downloaded'):
    datasets.load('mnist', data_dir=tmp_path, download=False)


@pytest.mark.parametrize('name', catalogue.FACTS)
def test_files_directly_in_the_folder(tmp_path, name):
  write_published(name, tmp_path / name)
  write_published(name, tmp_path / 'alone')
  check_equal(
    datasets.load(name, data_dir=tmp_path / 'alone'),
    datasets.load(name, data_dir=tmp_path),
  )


def test_default_folder(tmp_path, monkeypatch):
  write_published('mnist', tmp_path / 'mnist')
  monkeypatch.setenv('ROBUSTLIP_DATA', str(tmp_path))
  assert len(datasets.load('mnist').train.labels) == 7
  monkeypatch.delenv('ROBUSTLIP_DATA')
  monkeypatch.setenv('HOME', '/home/someone')
  expected = '/home/someone/.cache/robustlip'
  assert str(datasets.default_data_dir()) == expected


def test_an_interrupted_cache_leaves_nothing(tmp_path, monkeypatch):
  write_published('mnist', tmp_path / 'mnist')
  save, calls = np.save, []

  def interrupted(*args, **kwargs):
    calls.append(args)
    if len(calls) == 3:
      raise KeyboardInterrupt
    save(*args, **kwargs)

  monkeypatch.setattr(np, 'save', interrupted)
  with pytest.raises(KeyboardInterrupt):
    datasets.load('mnist', data_dir=tmp_path)
  assert len(calls) == 3
  assert list((tmp_path / 'prepared').iterdir()) == []


def test_a_damaged_cache_is_made_again(tmp_path, caplog):
  write_published('mnist', tmp_path / 'mnist')
  first = datasets.load('mnist', data_dir=tmp_path)
  path = cache.folder('mnist', tmp_path) / 'train_images.npy'
  whole = path.read_bytes()
  for size in (0, 50, len(whole) // 2):
    path.unlink()  # `first` still maps the old file
    path.write_bytes(whole[:size])
    caplog.clear()
    check_equal(first, datasets.load('mnist', data_dir=tmp_path))
    assert 'damaged prepared arrays' in caplog.text
    assert path.read_bytes() == whole


def test_prepared_arrays_of_other_shapes_are_made_again(tmp_path, caplog):
  write_published('mnist', tmp_path / 'mnist')
  first = datasets.load('mnist', data_dir=tmp_path)
  folder = cache.folder('mnist', tmp_path)
  for key in ('train_images', 'train_labels'):  # each a whole file still
    array = np.load(folder / f'{key}.npy')[:-1]
    (folder / f'{key}.npy').unlink()
    np.save(folder / f'{key}.npy', array)
  check_equal(first, datasets.load('mnist', data_dir=tmp_path))
  assert 'damaged prepared arrays' in caplog.text


def test_a_damaged_file_leaves_no_cache(tmp_path):
  write_published('mnist', tmp_path / 'mnist')
  path = tmp_path / 'mnist' / 'train-images-idx3-ubyte'
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='train-images-idx3-ubyte'):
    datasets.load('mnist', data_dir=tmp_path)
  assert not (tmp_path / 'prepared').exists()


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
  write_published('mnist', tmp_path / 'mnist')
  (tmp_path / 'prepared').write_text('a file where a folder should be')
  with caplog.at_level(logging.INFO):
    assert len(datasets.load('mnist', data_dir=tmp_path).test.labels) == 5
  assert 'prepared arrays are not kept' in caplog.text


def constant_split(num, label, shape=(2, 2, 1)):
  return splits.Split(
    np.zeros((num, *shape), np.uint8), np.full(num, label, np.int32)
  )


def test_exchanged_and_foreign_files():
  facts = catalogue.FACTS['mnist']
  train, test = constant_split(60_000, 1), constant_split(10_000, 1)
  with pytest.raises(ValueError, match='exchanged'):
    datasets._compare_with_published(facts, test, train, 'here')
  with pytest.raises(ValueError, match='0 test images .* expected 980'):
    datasets._compare_with_published(facts, train, test, 'here')
  test.labels[:980] = 0
  datasets._compare_with_published(facts, train, test, 'here')


def test_wrong_image_size(tmp_path):
  write_published('mnist', tmp_path)
  for part in ('train', 't10k'):
    num = published.IDX[f'{part}-labels-idx1-ubyte'][0]
    content = published.idx_bytes(np.zeros((num, 20, 20), np.uint8))
    (tmp_path / f'{part}-images-idx3-ubyte').write_bytes(content)
  with pytest.raises(ValueError, match=r'\(20, 20, 1\).*\(28, 28, 1\)'):
    datasets.load('mnist', data_dir=tmp_path)


def test_labels_of_published_files_out_of_range(tmp_path):
  write_published('mnist', tmp_path)
  content = published.idx_bytes(np.full(7, 10, np.uint8))
  (tmp_path / 'train-labels-idx1-ubyte').write_bytes(content)
  with pytest.raises(ValueError, match='labels from 10 to 10'):
    datasets.load('mnist', data_dir=tmp_path)
  assert not (tmp_path / 'prepared').exists()


def own_arrays(**changes):
  arrays = {
    'train_images': published.pixels((6, 5, 4, 3)),
    'train_labels': np.arange(6) % 3,
    'test_images': published.pixels((2, 5, 4, 3)),
    'test_labels': np.array([2, 0]),
  }
  arrays.update(changes)
  return {key: value for key, value in arrays.items() if value is not None}


def test_own_arrays(tmp_path):
  path = tmp_path / 'own.npz'
  arrays = own_arrays()
  np.savez(path, **arrays)
  own = datasets.load(str(path))
  np.testing.assert_array_equal(own.train.images, arrays['train_images'])
  np.testing.assert_array_equal(own.test.labels, [2, 0])
  assert own.train.labels.dtype == np.int32
  assert own.class_names == ('0', '1', '2')
  assert own.epsilon is None
  np.savez(path, **own_arrays(class_names=np.array(['a', 'b', 'c', 'd'])))
  assert datasets.load(str(path)).class_names == ('a', 'b', 'c', 'd')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'test_labels': None}, 'lacks test_labels'),
    ({'train_labels': np.array([0, 1, 2, 0, 1, -1])}, '-1 to 2'),
    ({'train_labels': np.array([0, 1, 2, 0, 1, 99])}, '0 to 99'),
    ({'test_labels': np.array([3, 0])}, 'labels from 0 to 3, .* 0 to 2'),
    ({'train_labels': np.arange(6) / 1.0}, 'labels are float64'),
    ({'train_labels': np.zeros((6, 1), int)}, r'shape \(6, 1\)'),
    ({'train_labels': np.array([0, 1])}, '6 images but 2 labels'),
    ({'train_images': np.zeros((6, 5, 4), np.uint8)}, r'\(6, 5, 4\)'),
    ({'train_images': np.zeros((6, 5, 4, 3), np.int64)}, 'int64'),
    ({'train_images': np.full((6, 5, 4, 3), np.nan)}, 'NaN'),
    ({'train_images': np.full((6, 5, 4, 3), 1.5)}, 'from 1.5 to 1.5'),
    ({'train_images': np.full((6, 5, 4, 3), 'x')}, '<U1'),
    ({'train_images': np.full((6, 5, 4, 3), None)}, 'allow_pickle'),
    ({'test_images': np.zeros((2, 5, 5, 3), np.uint8)}, 'of one shape'),
    (
      {
        'train_images': np.zeros((0, 5, 4, 3), np.uint8),
        'train_labels': np.zeros(0, int),
      },
      'no examples',
    ),
    (
      {
        'test_images': np.zeros((0, 5, 4, 3), np.uint8),
        'test_labels': np.zeros(0, int),
      },
      'no examples',
    ),
  ],
)
def test_wrong_own_arrays(tmp_path, changes, message):
  path = tmp_path / 'own.npz'
  np.savez(path, **own_arrays(**changes))
  with pytest.raises(ValueError, match=message) as error:
    datasets.load(str(path))
  assert '\n' not in str(error.value)
  assert str(path) in str(error.value)


def test_damaged_own_file(tmp_path):
  path = tmp_path / 'own.npz'
  with pytest.raises(FileNotFoundError, match='no such file'):
    datasets.load(str(path))
  np.savez_compressed(path, **own_arrays())
  whole = path.read_bytes()
  for content in (b'', b'text', whole[: len(whole) // 2], whole[:-1]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='not a whole .npz'):
      datasets.load(str(path))
  damaged = bytearray(whole)
  damaged[whole.index(b'PK\1\2') + 6] = 200  # version needed to unpack
  path.write_bytes(damaged)
  with pytest.raises(ValueError, match='not a whole .npz'):
    datasets.load(str(path))
  with path.open('wb') as file:
    np.save(file, np.zeros(3))
  with pytest.raises(ValueError, match='own.npz'):
    datasets.load(str(path))


def test_unknown_name():
  with pytest.raises(ValueError, match="unknown data set 'mnits'.*cifar10"):
    datasets.load('mnits')


@pytest.mark.parametrize('name', catalogue.FACTS)
def test_no_data_and_no_network(tmp_path, monkeypatch, name):
  for variable in ('http_proxy', 'https_proxy'):  # a closed port, everywhere
    monkeypatch.setenv(variable, 'http://127.0.0.1:9')
  start = time.monotonic()
  with pytest.raises(FileNotFoundError) as error:
    datasets.load(name, data_dir=tmp_path)
  assert time.monotonic() - start < 5
  assert str(tmp_path / name) in str(error.value)
  assert catalogue.FACTS[name].files in str(error.value)
  assert os.listdir(tmp_path) == []


def test_a_silent_network_is_given_up(monkeypatch):
  monkeypatch.setattr(tfds_source, '_PROBE_SECONDS', 0.2)
  waiting = threading.Event()

  def urlopen(*args, **kwargs):
    waiting.wait(10)
    raise OSError('too late')

  monkeypatch.setattr(tfds_source.urllib.request, 'urlopen', urlopen)
  start = time.monotonic()
  with pytest.raises(ConnectionError, match='no answer in 0.2 seconds'):
    tfds_source._probe('http://example.com')
  assert time.monotonic() - start < 1
  waiting.set()


def test_embedded_subset():
  start = time.monotonic()
  subset = datasets.load('mnist5k')
  assert time.monotonic() - start < 1
  assert datasets.EMBEDDED.stat().st_size < 2_000_000
  assert np.bincount(subset.train.labels).tolist() == [500] * 10
  assert np.bincount(subset.test.labels).tolist() == [100] * 10
  assert subset.train.images.shape == (5000, 28, 28, 1)
  assert subset.epsilon == 0.1
  # The mean of all of MNIST is .1307.
  assert abs(subset.train.images.mean() / 255 - 0.1307) < 0.003


def test_without_tensorflow_datasets(tmp_path):
  write_published('mnist', tmp_path / 'mnist')
  program = (
    'import sys; sys.modules["tensorflow_datasets"] = None\n'
    'from robustlip import datasets\n'
    f'print(len(datasets.load("mnist", data_dir={str(tmp_path)!r}).train[1]))'
  )
  for _ in range(2):
    output = subprocess.check_output([sys.executable, '-c', program])
    assert output.split() == [b'7']

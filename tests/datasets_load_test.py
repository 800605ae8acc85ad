import functools
import logging
import os
import shutil
import subprocess
import sys
import threading
import time

import datasets_files_test as published
import datasets_imagenet_test as imagenet_tree
import numpy as np
import pytest

from robustlip import datasets, separation
from robustlip.datasets import cache, catalogue, splits, tfds_source


@pytest.fixture(autouse=True)
def _no_other_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))


def forbid(*args, **kwargs):
  raise AssertionError('an earlier source should have been used')


def write_published(name, folder):
  folder.mkdir(parents=True, exist_ok=True)
  if name in ('mnist', 'fashion_mnist', 'kmnist'):
    published.write_idx(folder)
  elif name == 'qmnist' or name.startswith('emnist'):
    published.write_relative(name, folder)
  elif name == 'cifar10':
    published.write_cifar(folder, *published.CIFAR10[0])
  elif name == 'cifar100':
    published.write_cifar100(folder)
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


def home(name, root):
  """Where the files of a set are looked for first."""
  return root / catalogue.FACTS[name].folders[0]


@pytest.mark.parametrize('name', catalogue.FACTS)
def test_published_files_then_cache(tmp_path, monkeypatch, name):
  write_published(name, home(name, tmp_path))
  first = datasets.load(name, data_dir=tmp_path)
  assert first.name == first.source == name
  assert first.train.images.dtype == np.uint8
  assert first.train.labels.dtype == np.int32
  facts = catalogue.FACTS[name]
  assert first.epsilon == facts.epsilon
  write_published(name, tmp_path / 'alone')
  check_equal(datasets.load(name, data_dir=tmp_path / 'alone'), first)
  unread = facts.format._replace(read=forbid)
  monkeypatch.setitem(catalogue.FACTS, name, facts._replace(format=unread))
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
    path.unlink()
    path.write_bytes(whole[:size])
    caplog.clear()
    check_equal(first, datasets.load('mnist', data_dir=tmp_path))
    assert 'damaged prepared arrays' in caplog.text
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
  write_published('mnist', tmp_path / 'mnist')
  (tmp_path / 'prepared').write_text('a file where a folder should be')
  with caplog.at_level(logging.INFO):
    assert len(datasets.load('mnist', data_dir=tmp_path).test.labels) == 5
  assert 'prepared arrays are not kept' in caplog.text


def claim_whole(monkeypatch, name, *, num, **changes):
  """Has the catalogue say that the published set is the one just written."""
  train, test = num
  facts = catalogue.FACTS[name]._replace(
    train_counts=tuple(np.bincount(train, minlength=10)),
    test_counts=tuple(np.bincount(test, minlength=10)),
    checksum=None,
  )
  monkeypatch.setitem(catalogue.FACTS, name, facts._replace(**changes))


def test_a_whole_set_is_known_by_its_counts_and_checksum(tmp_path, monkeypatch):
  _, train_labels, _, test_labels = published.write_idx(tmp_path)
  found = datasets.load('mnist', data_dir=tmp_path)
  assert found.fingerprint  # of another size than the published one
  num = train_labels, test_labels
  claim_whole(monkeypatch, 'mnist', num=num)
  assert datasets.load('mnist', data_dir=tmp_path).fingerprint is None

  claim_whole(monkeypatch, 'mnist', num=num[::-1])
  with pytest.raises(ValueError, match='exchanged'):
    datasets.load('mnist', data_dir=tmp_path)
  for part, labels in (('train', train_labels), ('test', test_labels)):
    counts = np.bincount(labels, minlength=10)
    first, other = counts.argmax(), counts.argmin()
    moved = counts.copy()
    moved[first], moved[other] = counts[first] - 1, counts[other] + 1
    claim_whole(monkeypatch, 'mnist', num=num, **{f'{part}_counts': moved})
    with pytest.raises(
      ValueError, match=f'{part}: . images of .*, expected .; .* damaged'
    ):
      datasets.load('mnist', data_dir=tmp_path)

  shutil.rmtree(cache.folder('mnist', tmp_path))
  digest = splits.checksum(found.train, found.test)
  claim_whole(monkeypatch, 'mnist', num=num, checksum=digest)
  datasets.load('mnist', data_dir=tmp_path)
  claim_whole(monkeypatch, 'mnist', num=num, checksum=digest[::-1])
  shutil.rmtree(cache.folder('mnist', tmp_path))
  with pytest.raises(ValueError, match='not the published ones'):
    datasets.load('mnist', data_dir=tmp_path)
  assert not cache.folder('mnist', tmp_path).exists()


def test_checksum_is_of_the_examples_in_any_order():
  images = published.pixels((6, 2, 2, 1))
  labels = np.arange(6, dtype=np.int32)
  order = np.random.default_rng(0).permutation(6)
  whole = splits.Split(images, labels)
  first = splits.checksum(whole, whole)
  shuffled = splits.Split(images[order], labels[order])
  assert splits.checksum(shuffled, whole) == first
  for changed in (
    splits.Split(images[order], labels),
    splits.Split(images ^ 1, labels),
    splits.Split(images[[0, 0, 2, 3, 4, 5]], labels[[0, 0, 2, 3, 4, 5]]),
  ):
    assert splits.checksum(changed, whole) != first
    assert splits.checksum(whole, changed) != first
  assert splits.checksum(shuffled, splits.Split(images ^ 1, labels)) != (
    splits.checksum(splits.Split(images ^ 1, labels), shuffled)
  )


def test_changed_files_are_read_again(tmp_path, caplog):
  write_published('mnist', tmp_path / 'mnist')
  first = datasets.load('mnist', data_dir=tmp_path)
  path = tmp_path / 'mnist' / 'train-images-idx3-ubyte'
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)  # of the same size
  with caplog.at_level(logging.INFO):
    second = datasets.load('mnist', data_dir=tmp_path)
  assert 'mnist: its files have changed' in caplog.text
  assert second.train.images[-1, -1, -1, 0] == content[-1]
  assert first.fingerprint != second.fingerprint
  check_equal(second, datasets.load('mnist', data_dir=tmp_path))
  for name in published.IDX:  # larger ones
    num = 20 if name.startswith('train') else 10
    array = published.pixels((num, *published.IDX[name][1:])) % 10
    (tmp_path / 'mnist' / name).write_bytes(published.idx_bytes(array))
  third = datasets.load('mnist', data_dir=tmp_path)
  assert (len(third.train.labels), len(third.test.labels)) == (20, 10)


def test_a_synset_that_is_added_is_read(tmp_path):
  imagenet_tree.write_tree(tmp_path)
  load = functools.partial(
    datasets.load, 'restricted_imagenet', data_dir=tmp_path
  )
  assert len(load().train.labels) == 3
  imagenet_tree.save(tmp_path / 'train' / 'n01978287' / 'a.JPEG', (9, 9, 9))
  assert load().train.labels.tolist() == [2, 3, 3, 1]


def test_prepared_arrays_outlive_their_files_and_move(tmp_path, monkeypatch):
  write_published('mnist', tmp_path / 'a' / 'mnist')
  first = datasets.load('mnist', data_dir=tmp_path / 'a')
  (tmp_path / 'a').rename(tmp_path / 'b')
  second = datasets.load('mnist', data_dir=tmp_path / 'b')
  assert isinstance(second.train.images, np.memmap)
  shutil.rmtree(tmp_path / 'b' / 'mnist')
  check_equal(first, datasets.load('mnist', data_dir=tmp_path / 'b'))


def test_wrong_image_size(tmp_path):
  write_published('mnist', tmp_path)
  for part in ('train', 't10k'):
    num = published.IDX[f'{part}-labels-idx1-ubyte'][0]
    content = published.idx_bytes(np.zeros((num, 20, 20), np.uint8))
    (tmp_path / f'{part}-images-idx3-ubyte').write_bytes(content)
  with pytest.raises(ValueError, match=r'20, 20, 1.*, expected .*28, 28, 1'):
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
  assert own.name == 'own'
  assert own.path == own.source == str(path)
  np.savez(tmp_path / 'mnist.npz', **arrays)
  assert datasets.load(tmp_path / 'mnist.npz').name == 'mnist.npz'
  assert own.epsilon is None
  np.savez(path, **own_arrays(class_names=np.array(['a', 'b', 'c', 'd'])))
  assert datasets.load(str(path)).class_names == ('a', 'b', 'c', 'd')


def test_a_folder_of_own_arrays_is_mapped_into_memory(tmp_path):
  folder, arrays = tmp_path / 'mnist', own_arrays()
  with pytest.raises(ValueError, match='path of .* a folder of arrays'):
    datasets.load(folder)
  folder.mkdir()
  for key, array in arrays.items():
    with pytest.raises(ValueError, match=f'no {key}.npy is in it'):
      datasets.load(folder)
    np.save(folder / f'{key}.npy', array)
  own = datasets.load(folder)
  assert own.name == 'mnist.npy' and own.source == str(folder)
  assert isinstance(own.train.images, np.memmap)
  np.savez(tmp_path / 'own.npz', **arrays)
  assert own.fingerprint == datasets.load(tmp_path / 'own.npz').fingerprint
  found = separation.nearest_opposite(*own.train).distances
  in_memory = arrays['train_images'], arrays['train_labels']
  expected = separation.nearest_opposite(*in_memory).distances
  np.testing.assert_array_equal(found, expected)
  (folder / 'test_images.npy').write_bytes(b'text')
  with pytest.raises(
    ValueError, match='4 bytes, expected an array that np.sav'
  ):
    datasets.load(folder)


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'test_labels': None},
      'train_images, train_labels, test_images, not test_labels',
    ),
    (
      {'train_labels': np.array([-1, 1, 1, -1, 1, 1])},
      r'\(labels [+] 1\) // 2',
    ),
    ({'train_labels': np.array([3, 1, 2, 3, 2, 1])}, ': labels - 1'),
    (
      {'train_labels': np.uint64([2**53, 2**53 + 1, 0, 0, 0, 0])},
      'from 0 to 9007199254740993, .* np.searchsorted',
    ),
    ({'train_labels': np.eye(6)}, r'float64 .*labels.argmax\(1\)'),
    (
      {'train_images': published.pixels((6, 3, 16, 16))},
      r'channels first; .*images.transpose\(0, 2, 3, 1\)',
    ),
    ({'test_labels': np.array([3, 0])}, 'labels from 0 to 3, .* 0 to 2'),
    ({'train_labels': np.array([0, 1])}, '6 images but 2 labels'),
    ({'train_images': np.zeros((6, 5), np.uint8)}, r'\(6, 5\)'),
    ({'train_images': np.full((6, 5, 4, 3), 0.5)}, r'round\(255 \* images\)'),
    ({'train_images': np.full((6, 5, 4, 3), None)}, 'allow_pickle'),
    ({'test_images': np.zeros((2, 5, 5, 3), np.uint8)}, 'of one shape'),
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
    with pytest.raises(ValueError, match='bytes, expected an .npz') as error:
      datasets.load(str(path))
    assert 'unsafe' not in str(error.value)  # NumPy's advice for a pickle
  damaged = bytearray(whole)
  damaged[whole.index(b'PK\1\2') + 6] = 200  # version needed to unpack
  path.write_bytes(damaged)
  with pytest.raises(ValueError, match='bytes, expected an .npz'):
    datasets.load(str(path))
  with path.open('wb') as file:
    np.save(file, np.zeros(3))
  with pytest.raises(ValueError, match='own.npz'):
    datasets.load(str(path))


def test_own_data_is_known_by_its_digest_wherever_it_lies(tmp_path):
  found = []
  for folder in ('a', 'b'):
    (tmp_path / folder).mkdir()
    np.savez(tmp_path / folder / 'own.npz', **own_arrays())
    found.append(datasets.load(tmp_path / folder / 'own.npz'))
  assert found[0].fingerprint == found[1].fingerprint
  assert found[0].path != found[1].path
  np.savez(
    tmp_path / 'b' / 'own.npz', **own_arrays(test_labels=np.ones(2, int))
  )
  changed = datasets.load(tmp_path / 'b' / 'own.npz')
  assert changed.fingerprint != found[0].fingerprint


def test_keras_keys_are_named(tmp_path):
  path = tmp_path / 'mnist.npz'
  arrays = own_arrays()
  np.savez(path, x_train=arrays['train_images'], y_train=arrays['train_labels'])
  with pytest.raises(ValueError, match='it has x_train, y_train, not train_im'):
    datasets.load(path)


@pytest.mark.parametrize(
  'content, message',
  [
    (b'\n<!DOCTYPE html>\n<html></html>', 'is a web page'),
    (b'<HTML><body>404', 'is a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    (None, 'no train_images.npy is in it'),
  ],
)
def test_what_is_no_data_at_all(tmp_path, content, message):
  path = tmp_path / 'own.npz'
  path.mkdir() if content is None else path.write_bytes(content)
  with pytest.raises(ValueError, match=f'own.npz {message}|own.npz.*{message}'):
    datasets.load(path)
  if content is not None:
    for name in ('mnist', 'cifar10', 'svhn'):
      write_published(name, tmp_path / name)
      for file in (tmp_path / name).rglob('*'):
        if file.is_file():
          file.write_bytes(content)
      with pytest.raises(ValueError, match=message):
        datasets.load(name, data_dir=tmp_path)


@pytest.mark.parametrize('channels', [(), (3,)])
def test_medmnist_as_published(tmp_path, caplog, channels):
  path = tmp_path / 'somemnist.npz'
  arrays = {}
  for seed, (part, num) in enumerate((('train', 6), ('val', 2), ('test', 4))):
    arrays[f'{part}_images'] = published.pixels((num, 28, 28, *channels), seed)
    arrays[f'{part}_labels'] = np.arange(num, dtype=np.uint8)[:, None] % 3
  np.savez_compressed(path, **arrays)
  with caplog.at_level(logging.INFO):
    dataset = datasets.load(path)
  assert 'val_images are left out' in caplog.text
  assert dataset.name == 'somemnist'
  for split, part in ((dataset.train, 'train'), (dataset.test, 'test')):
    images = arrays[f'{part}_images'].reshape(-1, 28, 28, *(channels or (1,)))
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, arrays[f'{part}_labels'][:, 0])
  arrays['train_labels'] = np.zeros((6, 14), np.uint8)  # many labels at once
  np.savez_compressed(path, **arrays)
  with pytest.raises(ValueError, match=r'\(6, 14\) give images no class'):
    datasets.load(path)


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
  assert catalogue.FACTS[name].format.wanted in str(error.value)
  assert os.listdir(tmp_path) == []


def test_a_silent_network_is_given_up(monkeypatch, tmp_path):
  monkeypatch.setattr(tfds_source, 'PROBE_SECONDS', 0.2)
  waiting = threading.Event()

  def urlopen(*args, **kwargs):
    waiting.wait(10)
    raise OSError('too late')

  monkeypatch.setattr(tfds_source.urllib.request, 'urlopen', urlopen)
  start = time.monotonic()
  with pytest.raises(ConnectionError, match='no answer in 0.2 seconds'):
    tfds_source.download(catalogue.FACTS['mnist'], tmp_path)
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

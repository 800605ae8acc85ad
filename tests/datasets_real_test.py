"""The real data sets, where ROBUSTLIP_DATA has them."""

import time

import numpy as np
import pytest

from robustlip import datasets
from robustlip.datasets import imagenet

MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def fresh(name, real_data_dir, tmp_path):
  """Loaded from the published files, not from an old cache."""
  if not (real_data_dir / name).is_dir():
    pytest.skip(f'no {name} in {real_data_dir}')
  (tmp_path / name).symlink_to(real_data_dir / name)
  return datasets.load(name, data_dir=tmp_path)


def check_cached(dataset, tmp_path):
  start = time.monotonic()
  again = datasets.load(dataset.name, data_dir=tmp_path)
  assert time.monotonic() - start < 1
  arrays = dataset.train + dataset.test, again.train + again.test
  for one, other in zip(*arrays, strict=True):
    np.testing.assert_array_equal(one, other)


def test_mnist(real_data_dir, tmp_path):
  mnist = fresh('mnist', real_data_dir, tmp_path)
  assert mnist.train.images.shape == (60_000, 28, 28, 1)
  assert mnist.test.images.shape == (10_000, 28, 28, 1)
  assert np.bincount(mnist.train.labels).tolist() == MNIST_TRAIN
  assert np.bincount(mnist.test.labels).tolist() == MNIST_TEST
  assert abs(mnist.train.images.mean() / 255 - 0.1307) < 5e-5
  check_cached(mnist, tmp_path)


def test_the_embedded_subset_is_of_mnist(real_data_dir, tmp_path):
  mnist = fresh('mnist', real_data_dir, tmp_path)
  subset = datasets.load('mnist5k')
  for whole, part, per_class in (
    (mnist.train, subset.train, 500),
    (mnist.test, subset.test, 100),
  ):
    seen, chosen = [0] * 10, []
    for i, label in enumerate(whole.labels):
      seen[label] += 1
      if seen[label] <= per_class:
        chosen.append(i)
    np.testing.assert_array_equal(part.images, whole.images[chosen])
    np.testing.assert_array_equal(part.labels, whole.labels[chosen])


def test_fashion_mnist(real_data_dir, tmp_path):
  fashion = fresh('fashion_mnist', real_data_dir, tmp_path)
  assert np.bincount(fashion.train.labels).tolist() == [6000] * 10
  assert np.bincount(fashion.test.labels).tolist() == [1000] * 10
  assert abs(fashion.train.images.mean() / 255 - 0.2860) < 5e-5
  check_cached(fashion, tmp_path)


def test_mnist_is_not_taken_for_fashion_mnist(real_data_dir, tmp_path):
  (tmp_path / 'fashion_mnist').symlink_to(real_data_dir / 'mnist')
  with pytest.raises(ValueError, match='5923 images of .*, expected 6000'):
    datasets.load('fashion_mnist', data_dir=tmp_path)
  assert not (tmp_path / 'prepared').exists()


def test_images_that_are_not_the_published_ones(real_data_dir, tmp_path):
  published = real_data_dir / 'cifar10' / 'cifar-10-batches-bin'
  if not published.is_dir():
    pytest.skip(f'no {published}')
  folder = tmp_path / 'cifar10'
  folder.mkdir()
  for path in published.iterdir():
    (folder / path.name).symlink_to(path)
  damaged = folder / 'data_batch_5.bin'
  whole = bytearray(damaged.read_bytes())
  damaged.unlink()
  damaged.write_bytes(whole[:20_000_000] + bytes(len(whole) - 20_000_000))
  with pytest.raises(ValueError, match="images of 'airplane', expected 5000"):
    datasets.load('cifar10', data_dir=tmp_path)
  whole[-1] ^= 1  # one bit of one pixel
  damaged.write_bytes(whole)
  with pytest.raises(ValueError, match='not the published ones'):
    datasets.load('cifar10', data_dir=tmp_path)
  assert not (tmp_path / 'prepared').exists()


def test_exchanged_splits(real_data_dir, tmp_path):
  for path in (real_data_dir / 'mnist').iterdir():
    old, new = 'train', 't10k'
    if path.name.startswith(new):
      old, new = new, old
    (tmp_path / path.name.replace(old, new)).symlink_to(path)
  with pytest.raises(ValueError, match='exchanged'):
    datasets.load('mnist', data_dir=tmp_path)


def test_cifar10(real_data_dir, tmp_path):
  cifar = fresh('cifar10', real_data_dir, tmp_path)
  assert cifar.train.images.shape == (50_000, 32, 32, 3)
  assert cifar.test.images.shape == (10_000, 32, 32, 3)
  assert np.bincount(cifar.train.labels).tolist() == [5000] * 10
  assert np.bincount(cifar.test.labels).tolist() == [1000] * 10
  means = [cifar.train.images[..., i].mean() / 255 for i in range(3)]
  np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
  check_cached(cifar, tmp_path)


def test_restricted_imagenet(real_data_dir):
  tree = real_data_dir / 'restricted_imagenet'
  if not tree.is_dir():
    pytest.skip(f'no {tree}')
  dataset = datasets.load('restricted_imagenet', data_dir=real_data_dir)
  for split, part in ((dataset.train, 'train'), (dataset.test, 'val')):
    paths = sorted(
      path
      for path in (tree / part).glob('*/*.JPEG')
      if path.parent.name in imagenet.LABELS
    )
    assert len(split.labels) == len(paths)
    for i in range(0, len(paths), 500):
      np.testing.assert_array_equal(split.images[i], imagenet.decode(paths[i]))
      assert split.labels[i] == imagenet.LABELS[paths[i].parent.name]

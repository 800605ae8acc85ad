"""What is known of each published data set, as data."""

import functools
import string
from typing import NamedTuple

from robustlip.datasets import files, imagenet


class Facts(NamedTuple):
  """A published data set.

  The radius is that of the paper for MNIST, CIFAR-10, SVHN and Restricted
  ImageNet; sets like MNIST or CIFAR-10 have the radius of these.
  """

  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  epsilon: float
  train_counts: tuple[int, ...]  # by class, or one total if that is all we know
  test_counts: tuple[int, ...]
  folders: tuple[str, ...]  # where the published files lie, under data_dir
  format: files.Format
  checksum: str | None = None  # `splits.checksum` of train and test
  tfds_name: str | None = None
  urls: tuple[str, ...] = ()  # the same files on the network, known to TFDS


_like_mnist = functools.partial(Facts, image_shape=(28, 28, 1), epsilon=0.1)
_like_cifar10 = functools.partial(Facts, image_shape=(32, 32, 3), epsilon=0.031)

_DIGITS = tuple(string.digits)
_GARMENTS = """
  T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot
"""
_CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'
_CIFAR100 = """
  apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
  bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee
  clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
  flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
  leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
  oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
  poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
  shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
  sweet_pepper table tank telephone television tiger tractor train trout tulip
  turtle wardrobe whale willow_tree wolf woman worm
"""
_MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
_SVHN_TRAIN = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
_SVHN_TEST = (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)
_MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)


def _mnist(
  name: str, torch_name: str, url: str, class_names, train, test, checksum=None
) -> Facts:
  """MNIST, or a set of its shape under the names of its files."""
  names = [
    f'{part}-{kind}-ubyte.gz'
    for part in ('train', 't10k')
    for kind in ('images-idx3', 'labels-idx1')
  ]
  return _like_mnist(
    class_names=tuple(class_names),
    train_counts=train,
    test_counts=test,
    folders=(name, f'{name}/raw', f'{torch_name}/raw', ''),
    format=files.idx(),
    checksum=checksum,
    tfds_name=name,
    urls=tuple(f'{url}/{file}' for file in names),
  )


def _emnist(split: str, class_names, train, test, *, first_label=0) -> Facts:
  start = f'emnist-{split}'
  return _like_mnist(
    class_names=tuple(class_names),
    train_counts=train,
    test_counts=test,
    folders=('emnist', 'emnist/gzip', 'EMNIST/raw', ''),
    format=files.idx(
      f'{start}-train',
      f'{start}-test',
      transposed=True,
      first_label=first_label,
    ),
  )


_CAPITALS = string.ascii_uppercase

FACTS = {
  'mnist': _mnist(
    'mnist',
    'MNIST',
    'https://storage.googleapis.com/cvdf-datasets/mnist',
    _DIGITS,
    _MNIST_TRAIN,
    _MNIST_TEST,
    '8316ab8e3c541c065647615b0da01f39',
  ),
  'fashion_mnist': _mnist(
    'fashion_mnist',
    'FashionMNIST',
    'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com',
    _GARMENTS.strip().split(','),
    (6_000,) * 10,
    (1_000,) * 10,
    '1ffb406d27114fb6ac4026e92d48be45',
  ),
  'kmnist': _mnist(
    'kmnist',
    'KMNIST',
    'http://codh.rois.ac.jp/kmnist/dataset/kmnist',
    'o ki su tsu na ha ma ya re wo'.split(),
    (6_000,) * 10,
    (1_000,) * 10,
  ),
  'qmnist': _like_mnist(
    class_names=_DIGITS,
    train_counts=_MNIST_TRAIN,  # MNIST's training images, made again
    test_counts=(60_000,),
    folders=('qmnist', 'qmnist/raw', 'QMNIST/raw', ''),
    format=files.idx('qmnist-train', 'qmnist-test', labels='idx2-int'),
  ),
  'emnist_balanced': _emnist(
    'balanced',
    f'{string.digits}{_CAPITALS}abdefghnqrt',  # others look like capitals
    (2_400,) * 47,
    (400,) * 47,
  ),
  'emnist_digits': _emnist('digits', _DIGITS, (24_000,) * 10, (4_000,) * 10),
  'emnist_letters': _emnist(
    'letters', _CAPITALS, (4_800,) * 26, (800,) * 26, first_label=1
  ),
  'cifar10': _like_cifar10(
    class_names=tuple(_CIFAR10.split()),
    train_counts=(5_000,) * 10,
    test_counts=(1_000,) * 10,
    folders=('cifar10', ''),
    format=files.cifar(
      {
        'cifar-10-batches-bin': 'cifar-10-binary.tar.gz',
        'cifar-10-batches-py': 'cifar-10-python.tar.gz',
      },
      (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'),
    ),
    checksum='bcf6035a60cbe0efd452a302224a56fb',
    tfds_name='cifar10',
    urls=('https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',),
  ),
  'cifar100': _like_cifar10(
    class_names=tuple(_CIFAR100.split()),
    train_counts=(500,) * 100,
    test_counts=(100,) * 100,
    folders=('cifar100', ''),
    format=files.cifar(
      {
        'cifar-100-binary': 'cifar-100-binary.tar.gz',
        'cifar-100-python': 'cifar-100-python.tar.gz',
      },
      ('train', 'test'),
      num_labels=2,  # the superclass, then the class
    ),
    tfds_name='cifar100',
    urls=('https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',),
  ),
  'svhn': _like_cifar10(
    class_names=_DIGITS,
    train_counts=_SVHN_TRAIN,
    test_counts=_SVHN_TEST,
    folders=('svhn', ''),
    format=files.SVHN,
    tfds_name='svhn_cropped',
    urls=tuple(
      f'http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat'
      for part in ('train', 'test')
    ),
  ),
  'restricted_imagenet': Facts(
    image_shape=(64, 64, 3),
    class_names=tuple(imagenet.SYNSETS),
    epsilon=0.005,
    train_counts=(257_748,),
    test_counts=tuple(50 * len(wnids) for wnids in imagenet.SYNSETS.values()),
    folders=('restricted_imagenet', 'imagenet', ''),
    format=imagenet.FORMAT,
    tfds_name='imagenet2012',
  ),
}

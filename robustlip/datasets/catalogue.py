"""What is known of each published data set, as data."""

from typing import NamedTuple

DIGITS = tuple('0123456789')


class Facts(NamedTuple):
  """A published data set; the radius is that of the paper where it has one."""

  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  epsilon: float
  num_train: int
  num_test: int
  first_class: int  # test examples of class 0
  folders: tuple[str, ...]  # where the published files lie, under data_dir
  files: str  # what to put there, for people
  tfds_name: str
  urls: tuple[str, ...]  # the same files on the network


IDX_FILES = (
  'train-images-idx3-ubyte',
  'train-labels-idx1-ubyte',
  't10k-images-idx3-ubyte',
  't10k-labels-idx1-ubyte',
)
_IDX = (
  '{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, plain '
  'or .gz'
)
_MNIST_URL = 'https://storage.googleapis.com/cvdf-datasets/mnist'
_FASHION_URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com'
_SVHN_URL = 'http://ufldl.stanford.edu/housenumbers'

FACTS = {
  'mnist': Facts(
    image_shape=(28, 28, 1),
    class_names=DIGITS,
    epsilon=0.1,
    num_train=60_000,
    num_test=10_000,
    first_class=980,
    folders=('mnist', 'mnist/raw', 'MNIST/raw', ''),
    files=_IDX,
    tfds_name='mnist',
    urls=tuple(f'{_MNIST_URL}/{name}.gz' for name in IDX_FILES),
  ),
  'fashion_mnist': Facts(
    image_shape=(28, 28, 1),
    class_names=(
      'T-shirt/top',
      'Trouser',
      'Pullover',
      'Dress',
      'Coat',
      'Sandal',
      'Shirt',
      'Sneaker',
      'Bag',
      'Ankle boot',
    ),
    epsilon=0.1,  # not in the paper: that of MNIST
    num_train=60_000,
    num_test=10_000,
    first_class=1_000,
    folders=('fashion_mnist', 'fashion_mnist/raw', 'FashionMNIST/raw', ''),
    files=_IDX,
    tfds_name='fashion_mnist',
    urls=tuple(f'{_FASHION_URL}/{name}.gz' for name in IDX_FILES),
  ),
  'cifar10': Facts(
    image_shape=(32, 32, 3),
    class_names=(
      'airplane',
      'automobile',
      'bird',
      'cat',
      'deer',
      'dog',
      'frog',
      'horse',
      'ship',
      'truck',
    ),
    epsilon=0.031,
    num_train=50_000,
    num_test=10_000,
    first_class=1_000,
    folders=('cifar10', ''),
    files=(
      'cifar-10-binary.tar.gz, cifar-10-python.tar.gz, or the folder '
      'cifar-10-batches-bin or cifar-10-batches-py'
    ),
    tfds_name='cifar10',
    urls=('https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',),
  ),
  'svhn': Facts(
    image_shape=(32, 32, 3),
    class_names=DIGITS,
    epsilon=0.031,
    num_train=73_257,
    num_test=26_032,
    first_class=1_744,
    folders=('svhn', ''),
    files='train_32x32.mat and test_32x32.mat',
    tfds_name='svhn_cropped',
    urls=(f'{_SVHN_URL}/train_32x32.mat', f'{_SVHN_URL}/test_32x32.mat'),
  ),
  'restricted_imagenet': Facts(
    image_shape=(64, 64, 3),
    class_names=(
      'bird',
      'cat',
      'crab',
      'dog',
      'fish',
      'frog',
      'insect',
      'primate',
      'turtle',
    ),
    epsilon=0.005,
    num_train=257_748,
    num_test=10_150,
    first_class=1_050,  # 21 synsets of 50 images
    folders=('restricted_imagenet', 'imagenet', ''),
    files='train/<wnid>/*.JPEG and val/<wnid>/*.JPEG of ImageNet (ILSVRC 2012)',
    tfds_name='imagenet2012',
    urls=(),  # ImageNet asks for a login
  ),
}

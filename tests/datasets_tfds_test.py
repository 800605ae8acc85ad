"""Folders that TFDS prepared, and downloads through it, without TensorFlow."""

import contextlib
import functools
import hashlib
import http.server
import io
import os
import sys
import threading
import types

import datasets_files_test as published
import numpy as np
import pytest
from PIL import Image

from robustlip import datasets
from robustlip.datasets import catalogue, tfds_source

tfds = pytest.importorskip('tensorflow_datasets')
pytestmark = pytest.mark.filterwarnings('default')  # those of TFDS


def png(pixels):
  content = io.BytesIO()
  Image.fromarray(pixels.squeeze()).save(content, 'PNG')
  content.seek(0)
  return content


def prepare(root, name, *, version, shape, label, splits, file_format):
  """A folder as TFDS would write it; PNG bytes need no TensorFlow."""

  def info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {'image': tfds.features.Image(shape=shape), 'label': label}
      ),
    )

  def split_generators(self, manager):
    del manager
    return {
      part: self._generate_examples(examples)
      for part, examples in splits.items()
    }

  def generate_examples(self, examples):
    for i, (pixels, label) in enumerate(examples):
      yield i, {'image': png(pixels), 'label': label}

  builder = type(
    'Prepared',
    (tfds.core.GeneratorBasedBuilder,),
    {
      'name': name,
      'VERSION': tfds.core.Version(version),
      '_info': info,
      '_split_generators': split_generators,
      '_generate_examples': generate_examples,
    },
    skip_registration=True,
  )
  builder(data_dir=root).download_and_prepare(file_format=file_format)


def mnist_examples(num):
  return [
    (published.pixels((28, 28, 1), seed), seed % 10) for seed in range(num)
  ]


def prepare_mnist(root, file_format='array_record'):
  splits = {'train': mnist_examples(12), 'test': mnist_examples(5)}
  prepare(
    root,
    'mnist',
    version='3.0.1',
    shape=(28, 28, 1),
    label=tfds.features.ClassLabel(num_classes=10),
    splits=splits,
    file_format=file_format,
  )
  return splits


def check_split(split, examples):
  """The same examples; TFDS stores them in an order of its own."""
  assert len(split.labels) == len(examples)
  found = {
    (image.tobytes(), int(label))
    for image, label in zip(split.images, split.labels, strict=True)
  }
  assert found == {(pixels.tobytes(), label) for pixels, label in examples}


@pytest.mark.parametrize('where', ['data_dir', 'TFDS_DATA_DIR'])
def test_prepared_folder(tmp_path, monkeypatch, where):
  root = tmp_path / 'data' if where == 'data_dir' else tmp_path / 'tfds'
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  splits = prepare_mnist(root)
  loaded = datasets.load('mnist', data_dir=tmp_path / 'data')
  check_split(loaded.train, splits['train'])
  check_split(loaded.test, splits['test'])
  assert (tmp_path / 'data' / 'prepared' / 'mnist').is_dir()
  assert 'tensorflow' not in sys.modules


def test_published_files_come_first(tmp_path):
  prepare_mnist(tmp_path)
  published.write_idx(tmp_path / 'mnist')
  assert len(datasets.load('mnist', data_dir=tmp_path).train.labels) == 7


def test_damaged_folder(tmp_path):
  prepare_mnist(tmp_path)
  assert tfds_source.find(catalogue.FACTS['mnist'], tmp_path)[1]
  (shard,) = tmp_path.glob('mnist/*/mnist-train*')
  shard.write_bytes(shard.read_bytes()[:100])
  with pytest.raises(ValueError, match='mnist'):
    datasets.load('mnist', data_dir=tmp_path)
  assert not (tmp_path / 'prepared').exists()


def test_a_folder_that_only_tensorflow_reads(tmp_path, caplog):
  prepare_mnist(tmp_path)
  (info,) = tmp_path.glob('mnist/*/dataset_info.json')
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  assert not tfds_source.find(catalogue.FACTS['mnist'], tmp_path)[1]
  assert 'not prepared with file_format=array_record' in caplog.text


def test_imagenet_folder(tmp_path):
  names = tfds.core.tfds_path('datasets/imagenet2012/labels.txt')
  names = names.read_text().split()
  chosen = ['n02123045', 'n01440764', 'n02085620']
  examples = [
    (np.full((90, 80, 3), 40 * (i + 1), np.uint8), names.index(wnid))
    for i, wnid in enumerate(chosen)
  ]
  prepare(
    tmp_path,
    'imagenet2012',
    version='5.1.0',
    shape=(None, None, 3),
    label=tfds.features.ClassLabel(names=names),
    splits={'train': examples, 'validation': examples[:1]},
    file_format='array_record',
  )
  loaded = datasets.load('restricted_imagenet', data_dir=tmp_path)
  order = np.argsort(loaded.train.labels)
  assert loaded.train.labels[order].tolist() == [1, 3]
  assert loaded.train.images[order, 9, 9, 0].tolist() == [40, 120]
  assert loaded.test.labels.tolist() == [1]


class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


@contextlib.contextmanager
def serve(folder):
  handler = functools.partial(Quiet, directory=str(folder))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@pytest.mark.parametrize('damaged', [False, True])
def test_download(tmp_path, monkeypatch, damaged):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  published.write_idx(tmp_path / 'site', gzipped=True)
  with serve(tmp_path / 'site') as address:
    infos = {}
    for name in os.listdir(tmp_path / 'site'):
      content = (tmp_path / 'site' / name).read_bytes()
      infos[f'{address}/{name}'] = tfds.download.checksums.UrlInfo(
        size=len(content),
        checksum=hashlib.sha256(content + b'x' * damaged).hexdigest(),
        filename=name,
      )
    monkeypatch.setattr(
      tfds, 'builder_cls', lambda _: types.SimpleNamespace(url_infos=infos)
    )
    facts = catalogue.FACTS['mnist']._replace(urls=tuple(infos))
    monkeypatch.setitem(catalogue.FACTS, 'mnist', facts)
    if damaged:
      with pytest.raises(FileNotFoundError, match='download of .* failed'):
        datasets.load('mnist', data_dir=tmp_path / 'data')
    else:
      loaded = datasets.load('mnist', data_dir=tmp_path / 'data')
      assert len(loaded.train.labels) == 7
      assert sorted(os.listdir(tmp_path / 'data' / 'mnist')) == sorted(
        os.listdir(tmp_path / 'site')
      )


def test_checksums_of_every_url_are_known():
  for facts in catalogue.FACTS.values():
    if facts.urls:
      known = tfds.builder_cls(facts.tfds_name).url_infos
      assert set(facts.urls) <= set(known)


def test_no_folder_does_not_import_tfds(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  assert not tfds_source.find(catalogue.FACTS['mnist'], tmp_path)[1]
  (tmp_path / 'mnist' / '3.0.1').mkdir(parents=True)
  info = tmp_path / 'mnist' / '3.0.1' / 'dataset_info.json'
  info.write_text('{"fileFormat": "array_record"}')
  with pytest.raises(ValueError, match='tensorflow_datasets'):
    datasets.load('mnist', data_dir=tmp_path)

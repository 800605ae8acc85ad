"""Data through TensorFlow Datasets, without TensorFlow.

A folder that TFDS prepared as ArrayRecord is read as it is. TFDS cannot itself
prepare these sets without TensorFlow (it encodes arrays as PNG with it), so
what is not on disk is downloaded, by TFDS with its checksums, as the files
that the authors publish.
"""

import functools
import http.client
import io
import os
import pathlib
import shutil
import threading
import urllib.request
import uuid

import numpy as np
from absl import logging

from robustlip import progress
from robustlip.datasets import imagenet
from robustlip.datasets.catalogue import Facts
from robustlip.datasets.splits import Split

PROBE_SECONDS = 8.0


def find(facts: Facts, data_dir: pathlib.Path):
  """A reader and the files of a prepared set; no files where there is none.

  Looks into `data_dir`, then into $TFDS_DATA_DIR or ~/tensorflow_datasets. A
  folder in TFRecord format, which only TensorFlow reads, counts as none.
  """
  if facts.tfds_name is None:
    return None, ()
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  for root in (data_dir, pathlib.Path(default).expanduser()):
    for info in (root / facts.tfds_name).glob('**/dataset_info.json'):
      if '"array_record"' in info.read_text():
        paths = [path for path in info.parent.iterdir() if path.is_file()]
        return functools.partial(_read, facts, root), sorted(paths)
      logging.warning(
        'Ignored %s: not prepared with file_format=array_record.', info.parent
      )
  return None, ()


def _read(facts: Facts, root: pathlib.Path, paths) -> tuple[Split, Split]:
  """Train and test of a prepared set.

  Raises:
    ValueError: if it is damaged, or tensorflow_datasets is not installed.
  """
  del paths  # TFDS finds them itself
  is_imagenet = facts.tfds_name == 'imagenet2012'
  names = ['train', 'validation' if is_imagenet else 'test']
  try:
    import tensorflow_datasets as tfds

    train, test = tfds.data_source(
      facts.tfds_name,
      split=names,
      data_dir=root,
      download=False,
      decoders={'image': tfds.decode.SkipDecoding()} if is_imagenet else None,
    )
    convert = _imagenet_split if is_imagenet else _split
    return convert(train, facts), convert(test, facts)
  except Exception as error:  # TFDS raises what the damage happens to cause
    reason = ' '.join(str(error).split())
    raise ValueError(
      f'{root / facts.tfds_name} cannot be read; expected a folder that TFDS '
      f'prepared with file_format=array_record ({reason}).'
    ) from error


def _split(source, facts: Facts) -> Split:
  images = np.empty((len(source), *facts.image_shape), np.uint8)
  labels = np.empty(len(source), np.int32)
  with progress.bar(len(source), facts.tfds_name, unit='image') as bar:
    for i in range(len(source)):
      example = source[i]
      images[i], labels[i] = example['image'], example['label']
      bar.update()
  return Split(images, labels)


def _imagenet_split(source, facts: Facts) -> Split:
  """The examples of the 203 synsets; TFDS labels are indices of all 1,000.

  Examples are not grouped by class, so all labels are read first.
  """
  del facts
  wnids = source.dataset_info.features['label'].names
  labels = np.empty(len(source), np.int32)
  with progress.bar(len(source), 'labels of ImageNet', unit='image') as bar:
    for i in range(len(source)):
      labels[i] = imagenet.LABELS.get(wnids[source[i]['label']], -1)
      bar.update()
  (chosen,) = np.nonzero(labels >= 0)

  def task(i):
    return lambda: imagenet.decode(io.BytesIO(source[int(i)]['image']))

  images = imagenet.decode_all([task(i) for i in chosen])
  return Split(images, labels[chosen])


def download(facts: Facts, folder: pathlib.Path) -> None:
  """Puts the published files into `folder`, checked against TFDS's checksums.

  Raises:
    ConnectionError: if the network does not answer, within ten seconds, or
      the download breaks off.
    ImportError: if tensorflow_datasets is not installed.
  """
  _probe(facts.urls[0])
  import tensorflow_datasets as tfds

  logging.info('Downloading %s to %s', ', '.join(facts.urls), folder)
  partial = folder / f'.downloads-{uuid.uuid4().hex}'  # of this process
  try:
    manager = tfds.download.DownloadManager(
      download_dir=partial,
      url_infos=tfds.builder_cls(facts.tfds_name).url_infos,
      force_checksums_validation=True,
    )
    paths = manager.download(list(facts.urls))
    for url, path in zip(facts.urls, paths, strict=True):
      os.replace(path, folder / url.rpartition('/')[2])
  except Exception as error:  # requests, urllib3, TFDS: no common base
    raise ConnectionError(
      f'the download of {facts.urls[0]} failed ({error})'
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _probe(url: str) -> None:
  """Raises ConnectionError unless `url` answers soon.

  TFDS itself retries for minutes. The request has a thread of its own because
  a name that does not resolve is not subject to a socket's timeout.
  """
  errors = [f'no answer in {PROBE_SECONDS:g} seconds']

  def ask():
    request = urllib.request.Request(url, method='HEAD')
    try:
      with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
        errors.clear()
    except (OSError, http.client.HTTPException) as error:
      errors[:] = [error]

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(PROBE_SECONDS)
  if errors:
    raise ConnectionError(f'{url} cannot be reached ({errors[0]})')

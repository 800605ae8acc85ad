import io

import jax
import numpy as np
import pytest
from PIL import Image

from robustlip.datasets import imagenet


def test_synsets_are_the_ranges_of_the_paper():
  counts = {name: len(wnids) for name, wnids in imagenet.SYNSETS.items()}
  assert counts == {
    'bird': 21,
    'cat': 5,
    'crab': 4,
    'dog': 118,
    'fish': 9,
    'frog': 3,
    'insect': 20,
    'primate': 18,
    'turtle': 5,
  }
  assert len(imagenet.LABELS) == 203
  assert list(imagenet.SYNSETS) == sorted(imagenet.SYNSETS)
  # Tabby, Chihuahua, bullfrog.
  assert imagenet.LABELS['n02123045'] == 1
  assert imagenet.LABELS['n02085620'] == 3
  assert imagenet.LABELS['n01641577'] == 5
  assert 'n01440764' not in imagenet.LABELS  # tench, a fish out of range


def test_synsets_are_contiguous_in_ilsvrc():
  labels = pytest.importorskip('tensorflow_datasets').core.tfds_path(
    'datasets/imagenet2012/labels.txt'
  )
  everything = labels.read_text().split()
  starts = {
    'bird': 80,
    'cat': 281,
    'crab': 118,
    'dog': 151,
    'fish': 389,
    'frog': 30,
    'insect': 300,
    'primate': 365,
    'turtle': 33,
  }
  for name, wnids in imagenet.SYNSETS.items():
    start = starts[name]
    assert list(wnids) == everything[start : start + len(wnids)]


def png(array, mode=None):
  content = io.BytesIO()
  Image.fromarray(array, mode).save(content, 'PNG')
  content.seek(0)
  return content


def test_centre_crop_without_resizing():
  for height, width in ((72, 101), (101, 72), (72, 72)):
    pixels = np.random.default_rng(0).integers(
      0, 256, (height, width, 3), np.uint8
    )
    top, left = round((height - 64) / 2), round((width - 64) / 2)
    expected = pixels[top : top + 64, left : left + 64]
    np.testing.assert_array_equal(imagenet.decode(png(pixels)), expected)


@pytest.mark.parametrize('size', [(64, 64), (150, 201), (375, 500)])
def test_resize_is_bilinear_with_antialiasing(size):
  pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  height, width = (int(72 * side / min(size)) for side in size)
  whole = np.asarray(
    jax.image.resize(
      pixels.astype(np.float32), (height, width, 3), 'linear', antialias=True
    )
  )
  top, left = round((height - 64) / 2), round((width - 64) / 2)
  expected = whole[top : top + 64, left : left + 64]
  found = imagenet.decode(png(pixels)).astype(np.float32)
  np.testing.assert_allclose(found, expected, atol=1.5)


def save(path, color, *, mode='RGB', size=(90, 80)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size, color).save(path, 'JPEG', quality=95)


def write_tree(root):
  """Grey and CMYK dogs, a coloured cat, a synset that is not ours."""
  for part in ('train', 'val'):
    save(root / part / 'n02085620' / 'b.JPEG', 100, mode='L')
    save(root / part / 'n02085620' / 'a.JPEG', (0, 255, 255, 0), mode='CMYK')
    save(root / part / 'n02123045' / 'a.JPEG', (10, 200, 30))
    save(root / part / 'n01440764' / 'a.JPEG', (1, 2, 3))
    (root / part / 'n02123045' / 'notes.txt').write_text('no image')


def test_tree(tmp_path, caplog):
  write_tree(tmp_path)
  with caplog.at_level('INFO'):
    train, val = imagenet.read(imagenet.find(tmp_path))
  for split in (train, val):
    assert split.images.shape == (3, 64, 64, 3)
    assert split.images.dtype == np.uint8
    assert split.labels.tolist() == [3, 3, 1]
    centres = split.images[:, 32, 32].astype(int)
    expected = [(255, 0, 0), (100, 100, 100), (10, 200, 30)]
    np.testing.assert_allclose(centres, expected, atol=3)
  assert 'no class bird, crab, fish, frog, insect' in caplog.text


def test_no_tree(tmp_path):
  assert imagenet.find(tmp_path) == []
  save(tmp_path / 'train' / 'n02123045' / 'a.JPEG', (1, 2, 3))
  assert imagenet.find(tmp_path) == []


def test_a_broken_image_is_named(tmp_path):
  write_tree(tmp_path)
  path = tmp_path / 'val' / 'n02123045' / 'a.JPEG'
  whole = path.read_bytes()
  for size in (0, 10, len(whole) // 2):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match='n02123045/a.JPEG: not a whole'):
      imagenet.read(imagenet.find(tmp_path))

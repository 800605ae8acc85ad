"""Restricted ImageNet: 203 ImageNet synsets in nine classes, 64 x 64 pixels.

The classes are ranges of the 1,000 synsets of ILSVRC 2012 in sorted order, as
in the code of the paper; they are listed here because no file of ImageNet has
them.
"""

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from robustlip import progress
from robustlip.datasets.files import Format
from robustlip.datasets.splits import Split

SIDE = 64
_SHORTER_SIDE = 72  # resized to this, then cropped to SIDE
_SUFFIXES = {'.jpeg', '.jpg', '.png'}

_SYNSETS = {
  'bird': """
    n01795545 n01796340 n01797886 n01798484 n01806143 n01806567 n01807496
    n01817953 n01818515 n01819313 n01820546 n01824575 n01828970 n01829413
    n01833805 n01843065 n01843383 n01847000 n01855032 n01855672 n01860187
  """,
  'cat': 'n02123045 n02123159 n02123394 n02123597 n02124075',
  'crab': 'n01978287 n01978455 n01980166 n01981276',
  'dog': """
    n02085620 n02085782 n02085936 n02086079 n02086240 n02086646 n02086910
    n02087046 n02087394 n02088094 n02088238 n02088364 n02088466 n02088632
    n02089078 n02089867 n02089973 n02090379 n02090622 n02090721 n02091032
    n02091134 n02091244 n02091467 n02091635 n02091831 n02092002 n02092339
    n02093256 n02093428 n02093647 n02093754 n02093859 n02093991 n02094114
    n02094258 n02094433 n02095314 n02095570 n02095889 n02096051 n02096177
    n02096294 n02096437 n02096585 n02097047 n02097130 n02097209 n02097298
    n02097474 n02097658 n02098105 n02098286 n02098413 n02099267 n02099429
    n02099601 n02099712 n02099849 n02100236 n02100583 n02100735 n02100877
    n02101006 n02101388 n02101556 n02102040 n02102177 n02102318 n02102480
    n02102973 n02104029 n02104365 n02105056 n02105162 n02105251 n02105412
    n02105505 n02105641 n02105855 n02106030 n02106166 n02106382 n02106550
    n02106662 n02107142 n02107312 n02107574 n02107683 n02107908 n02108000
    n02108089 n02108422 n02108551 n02108915 n02109047 n02109525 n02109961
    n02110063 n02110185 n02110341 n02110627 n02110806 n02110958 n02111129
    n02111277 n02111500 n02111889 n02112018 n02112137 n02112350 n02112706
    n02113023 n02113186 n02113624 n02113712 n02113799 n02113978
  """,
  'fish': """
    n02514041 n02526121 n02536864 n02606052 n02607072 n02640242 n02641379
    n02643566 n02655020
  """,
  'frog': 'n01641577 n01644373 n01644900',
  'insect': """
    n02165105 n02165456 n02167151 n02168699 n02169497 n02172182 n02174001
    n02177972 n02190166 n02206856 n02219486 n02226429 n02229544 n02231487
    n02233338 n02236044 n02256656 n02259212 n02264363 n02268443
  """,
  'primate': """
    n02480495 n02480855 n02481823 n02483362 n02483708 n02484975 n02486261
    n02486410 n02487347 n02488291 n02488702 n02489166 n02490219 n02492035
    n02492660 n02493509 n02493793 n02494079
  """,
  'turtle': 'n01664065 n01665541 n01667114 n01667778 n01669191',
}
SYNSETS = {name: tuple(text.split()) for name, text in _SYNSETS.items()}
LABELS = {
  wnid: label for label, wnids in enumerate(SYNSETS.values()) for wnid in wnids
}


def find(folder: pathlib.Path) -> list[str]:
  """Images of `{train,val}/<wnid>/*.JPEG`; empty unless both parts are there.

  They are sorted by synset, then by file name. Other synsets are ignored, so
  that a whole ImageNet will do.
  """
  train, val = (_find_part(folder / part) for part in ('train', 'val'))
  return train + val if train and val else []


def _find_part(folder: pathlib.Path) -> list[str]:
  return [
    os.path.join(folder, wnid, name)
    for wnid in sorted(LABELS)
    if (folder / wnid).is_dir()
    for name in sorted(os.listdir(folder / wnid))
    # ._NAME is what macOS keeps beside NAME on other systems' disks.
    if os.path.splitext(name)[1].lower() in _SUFFIXES and name[0] != '.'
  ]


def read(paths: Sequence[str]) -> tuple[Split, Split]:
  """Train and val; a class without images is named in one log line.

  Each image is stored as its centre crop, on which the paper evaluates. The
  paper trains on random crops of 64 from the 72 pixels padded by 8, and so sees
  more of the border.

  Raises:
    ValueError: a file that is no whole image.
  """
  wnids = [path.split(os.sep)[-2] for path in paths]
  labels = np.array([LABELS[wnid] for wnid in wnids], np.int32)
  num_train = sum(path.split(os.sep)[-3] == 'train' for path in paths)
  parts = slice(num_train), slice(num_train, None)
  for part in parts:
    present = set(labels[part])
    absent = [name for i, name in enumerate(SYNSETS) if i not in present]
    logging.info(
      '%s: %d of %d synsets; %s',
      os.path.dirname(os.path.dirname(paths[part][0])),
      len(set(wnids[part])),
      len(LABELS),
      f'no class {", ".join(absent)}' if absent else 'every class',
    )
  images = decode_all([functools.partial(decode, path) for path in paths])
  train, val = (Split(images[part], labels[part]) for part in parts)
  return train, val


FORMAT = Format(
  find,
  read,
  'train/<wnid>/*.JPEG and val/<wnid>/*.JPEG of ImageNet (ILSVRC 2012)',
)


def decode_all(tasks: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
  """Results of `tasks`, functions that decode one image, [N, 64, 64, 3]."""
  images = np.empty((len(tasks), SIDE, SIDE, 3), np.uint8)
  with (
    concurrent.futures.ThreadPoolExecutor() as pool,
    progress.bar(len(tasks), 'decode ImageNet', unit='image') as bar,
  ):
    try:
      for i, image in enumerate(pool.map(lambda task: task(), tasks)):
        images[i] = image
        bar.update()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  return images


def decode(file) -> np.ndarray:
  """One image as uint8 [64, 64, 3]: resized to 72, centre-cropped to 64.

  The shorter side becomes 72, with antialiasing; sizes and crop are rounded as
  in torchvision's `Resize(72)` and `CenterCrop(64)`.

  Args:
    file: a path or a binary file.

  Raises:
    ValueError: if it is no whole image.
  """
  from PIL import Image

  try:
    with Image.open(file) as image:
      if image.mode[0] in 'IF':  # Pillow would cut what is above 255
        raise ValueError(f'{file} is of mode {image.mode}, not of 8 bits.')
      image = image.convert('RGB')
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f'{file}: not a whole image ({error}).') from error
  width, height = image.size
  shorter = min(width, height)
  if shorter != _SHORTER_SIDE:
    width = int(_SHORTER_SIDE * width / shorter)
    height = int(_SHORTER_SIDE * height / shorter)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
  return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))

"""The suites: functions from flags to the cases to time.

A suite has an argument for each flag that it reads, see `SUITES`. A case is
called with the number of turns, and returns its part of the record.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import optax
from absl import flags, logging

from experiments.benchmarks import autoattack, bounds, problem, timing
from experiments.benchmarks.timing import Candidate, Case
from robustlip import (
  attacks,
  datasets,
  evaluation,
  lipschitz,
  methods,
  models,
  separation,
  training,
)
from robustlip.feed import Feed, replicate

FLAGS = flags.FLAGS
ARCHS = ('cnn1', 'cnn2', 'wrn_16_4')
STEPS = 4  # in one run of a training candidate
BATCH_SIZE = 100  # of our evaluation unless given; the peers' is 64
PEERS_BATCH_SIZE = 64
NUM_QUERIES = 64  # in a peer's separation search
MOST_SEARCHING = 50_000  # queries in a large set; as in ImageNet's validation


def train(
  *,
  arch: Sequence[str] = ARCHS,
  peers: bool,
  batch_size: int | None = None,
  precision: str,
  compile_peer: bool,
) -> list[Case]:
  """Images a second of the RST step, with PGD-10, at 64 or (wrn) 32 a batch."""
  cases, tasks = [], []
  for name in arch:
    size = batch_size or (64 if name.startswith('cnn') else 32)
    tasks.append((size, problem.make(name, STEPS * size, precision)))
  for size, task in tasks:
    title = f'{task.arch}, batch {size}'
    if precision != 'float32':
      title += f', {precision}'
    candidates = {'robustlip': trained(task, size)}
    if peers:
      from experiments.benchmarks import torch_peer

      candidates |= torch_peer.candidates(
        task, size, torch_peer.training, compiled=compile_peer
      )
    cases.append(Case(title, 'images', candidates))
  return cases


def trained(task: problem.Problem, batch_size: int) -> Candidate:
  """The program that `experiments.train` runs, over the examples once.

  Raises:
    ValueError: if the devices do not share a batch evenly.
  """
  if batch_size % jax.local_device_count():
    raise ValueError(
      f'{jax.local_device_count()} devices cannot share a batch of {batch_size}'
    )
  method = methods.rst(epsilon=problem.EPSILON, lam=problem.LAM)
  recipe = training.Recipe(task.module, method, optax.sgd(1e-3, 0.9))
  key = jax.random.key(0)
  order = np.arange(len(task.split.labels), dtype=np.int32)
  order = order.reshape(-1, batch_size)
  (dispatch,) = Feed(task.split).dispatches(order)
  state = training.initial_state(recipe, key, task.image_shape)
  kept, arguments = [replicate(state)], ({}, key, *dispatch)
  program = training.trainer(lambda numbers: recipe)
  compiled = program.lower(*kept, *arguments).compile()

  def run():
    kept[0] = jax.block_until_ready(compiled(*kept, *arguments))

  return Candidate(run, order.size, timing.memory(compiled))


def per_image(
  work: str,
  *,
  arch: Sequence[str] = ARCHS,
  peers: bool,
  batch_size: int | None = None,
  num_images: int = 1000,
  precision: str,
  compile_peer: bool,
) -> list[Case]:
  """Images a second of one of `WORKS`, on all images, misclassified or not."""
  cases = []
  for task in [problem.make(name, num_images, precision) for name in arch]:
    candidates = {'robustlip': _evaluated(task, WORKS[work], batch_size)}
    if peers:
      from experiments.benchmarks import foolbox_peer, torch_peer

      size = batch_size or PEERS_BATCH_SIZE
      candidates |= torch_peer.candidates(
        task, size, torch_peer.WORKS[work], compiled=compile_peer
      )
      if work == 'attack':
        candidates |= foolbox_peer.candidates(task, size)
    title = f'{task.arch}, {num_images} images'
    cases.append(Case(title, 'images', candidates))
  return cases


def _withstands(network, batch, keys):
  points = attacks.pgd(network, batch, keys, epsilon=problem.EPSILON)
  return network(points).argmax(axis=-1) == batch.labels


def _ratios(network, batch, keys):
  return lipschitz.estimate(
    network, batch.inputs, keys, epsilon=problem.EPSILON
  ).ratios


WORKS = {'attack': _withstands, 'lipschitz': _ratios}


def _evaluated(task, measure, batch_size) -> Candidate:
  """Runs `measure(network, batch, keys)` on every image, like an evaluation."""
  program = evaluation.over_devices(
    lambda variables, batch, keys: measure(
      models.logits_fn(task.module, variables), batch, keys
    )
  )
  run = partial(
    evaluation.per_example,
    program,
    task.variables(),
    task.split,
    jax.random.key(0),
    batch_size=batch_size or BATCH_SIZE,
  )
  return Candidate(run, len(task.split.labels))


def nearest(*, peers: bool, num_images: int | None = None) -> list[Case]:
  """Pairs a second of the exact train-train search, ours on a whole set.

  The peers search for a sample of queries among all examples of other classes,
  as the paper's code does with scikit-learn. Sets are MNIST and CIFAR-10 if
  they are on disk, else the MNIST subset.

  Args:
    num_images: size of a synthetic large set (`enlarged`) to search instead,
      without peers.

  Raises:
    ValueError: for peers of the large set.
  """
  if num_images and peers:
    raise ValueError('--peers search the real sets: leave out --num_images')
  if num_images:
    return [_large_search(num_images)]
  found = []
  for name in ('mnist', 'cifar10'):
    try:
      found.append(datasets.load(name, data_dir=FLAGS.data_dir, download=False))
    except OSError as error:
      logging.warning('%s', error)
  return [_search(data, peers) for data in found or [datasets.load('mnist5k')]]


def _search(data: datasets.Dataset, peers: bool) -> Case:
  images, labels = data.train
  search = partial(separation.nearest_opposite, images, labels)
  candidates = {'robustlip': Candidate(search, len(labels) ** 2)}
  if peers:
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    queries = flat[labels == labels[0]][:NUM_QUERIES]
    others = flat[labels != labels[0]]
    # Our work counts all pairs, so theirs counts those of one class too.
    work = len(queries) * len(labels)
    for name, run in _peers_searches(queries, others).items():
      candidates[name] = Candidate(run, work)
  return Case(f'{data.name}, {len(labels)} examples', 'pairs', candidates)


def _large_search(num_images: int) -> Case:
  """Searches all of a large set for a tenth of it, at most `MOST_SEARCHING`."""
  data = datasets.load(
    'restricted_imagenet', data_dir=FLAGS.data_dir, download=False
  )
  images, labels = enlarged(data.train, num_images)
  count = min(max(num_images // 10, 1), MOST_SEARCHING)
  search = partial(
    separation.nearest_opposite, images[:count], labels[:count], images, labels
  )
  title = f'{data.name}, {count} of {num_images} examples'
  candidate = Candidate(search, count * num_images)
  return Case(title, 'pairs', {'robustlip': candidate})


def enlarged(split: datasets.Split, count: int) -> datasets.Split:
  """`count` images: those of the split, then copies moved by up to 8 pixels.

  They are memory-mapped from a file without a name, so that they may be more
  than memory holds.
  """
  size, rng = len(split.labels), np.random.default_rng(0)
  with tempfile.TemporaryFile() as file:
    shape = count, *split.images.shape[1:]
    images = np.memmap(file, np.uint8, 'w+', shape=shape)
  for i in range(count):
    move = rng.integers(-8, 9, 2) if i >= size else (0, 0)
    images[i] = np.roll(split.images[i % size], move, (0, 1))
  return datasets.Split(images, split.labels[np.arange(count) % size])


def _peers_searches(queries, others):
  import faiss
  from sklearn import neighbors

  from experiments.benchmarks import torch_peer

  model = neighbors.NearestNeighbors(
    n_neighbors=1, metric='chebyshev', algorithm='brute', n_jobs=-1
  ).fit(others)
  index = faiss.IndexFlat(others.shape[1], faiss.METRIC_Linf)
  index.add(others)
  return {
    'scikit-learn brute': partial(model.kneighbors, queries),
    'torch.cdist': torch_peer.search(queries, others),
    'faiss flat l-inf': partial(index.search, queries, 1),
  }


def startup() -> list[Case]:
  """Seconds from a new process to the end of its first training step.

  They include imports, the embedded data, initial parameters, compilation and
  one RST step of cnn1; with a compilation cache on disk, and without.
  """
  kept = tempfile.TemporaryDirectory(prefix='robustlip-benchmark-')

  def start(cache):
    environment = {
      'JAX_COMPILATION_CACHE_DIR': cache,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
    }
    program = (
      'from experiments import common\n'
      'from experiments.benchmarks import cases\n'
      'cases.first_step()'
    )
    subprocess.run(
      [sys.executable, '-c', program], env=os.environ | environment, check=True
    )

  def cold():
    with tempfile.TemporaryDirectory(prefix='robustlip-benchmark-') as folder:
      start(folder)

  cached = Candidate(lambda: start(kept.name), 1)
  candidates = {'cached': cached, 'cold': Candidate(cold, 1)}
  return [Case('first command to first step', 'starts', candidates)]


def first_step() -> None:
  """All that a new user waits for before the progress bar moves."""
  images, labels = datasets.load('mnist5k').train
  task = problem.make('cnn1', 1)
  split = datasets.Split(images[:64], labels[:64])
  trained(task._replace(split=split), 64).run()


SUITES = {
  'separation': nearest,
  'train': train,
  'attack': partial(per_image, 'attack'),
  'lipschitz': partial(per_image, 'lipschitz'),
  'startup': startup,
  'autoattack': autoattack.cases,
  'bounds': bounds.cases,
}

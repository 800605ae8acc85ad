"""Pairs a second of the exact nearest example of another class, train-train.

Ours searches a whole set. The others search for the queries of a sample,
among all training examples of other classes, as the released code of the
paper does with scikit-learn: per class against the rest.
"""

import functools
import logging

import numpy as np

from experiments import common
from experiments.benchmarks import Candidate, Case
from robustlip import datasets, separation

NAMES = 'mnist', 'cifar10'
NUM_QUERIES = 64


def cases(peers: bool) -> list[Case]:
  """One case for each of `NAMES` that is on disk, else the MNIST subset."""
  found = []
  for name in NAMES:
    try:
      found.append(
        datasets.load(name, data_dir=common.DATA_DIR.value, download=False)
      )
    except OSError as error:
      logging.warning('%s', error)
  return [_case(data, peers) for data in found or [datasets.load('mnist5k')]]


def _case(data, peers):
  images, labels = data.train
  num_pairs = len(labels) ** 2
  candidates = {
    'robustlip': Candidate(
      lambda: separation.nearest_opposite(images, labels), num_pairs
    )
  }
  if peers:
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    label = labels[0]
    queries = flat[labels == label][:NUM_QUERIES]
    others = flat[labels != label]
    # A row of ours has all examples for partners, its own class too.
    work = len(queries) * len(labels)
    for name, build in _PEERS.items():
      candidates[name] = Candidate(build(queries, others), work)
  return Case(f'{data.name}, {len(labels)} examples', 'pairs', candidates)


def _scikit_learn(queries, others):
  from sklearn import neighbors

  model = neighbors.NearestNeighbors(
    n_neighbors=1, metric='chebyshev', algorithm='brute', n_jobs=-1
  ).fit(others)
  return functools.partial(model.kneighbors, queries)


def _torch(queries, others):
  import torch

  from experiments.benchmarks import torch_peer

  where = torch_peer.device()
  left, right = (torch.from_numpy(x).to(where) for x in (queries, others))

  def run():
    with torch_peer.computing('float32'):
      torch.cdist(left, right, p=float('inf')).min(dim=1)

  return run


def _faiss(queries, others):
  import faiss

  index = faiss.IndexFlat(others.shape[1], faiss.METRIC_Linf)
  index.add(others)
  return lambda: index.search(queries, 1)


_PEERS = {
  'scikit-learn brute': _scikit_learn,
  'torch.cdist': _torch,
  'faiss flat l-inf': _faiss,
}

"""Images a second of the evaluation under PGD-10."""

import logging
from unittest import mock

import jax
import numpy as np

from experiments.suites import Candidate, Case, problem
from robustlip import attacks, evaluation, models
from robustlip.models import convolution, layers

# The network as it is, and with the gradients that JAX has of a convolution.
FOOLBOX = {
  'foolbox': convolution.convolve,
  "foolbox, JAX's conv.": convolution.xla,
}


def case(
  arch: str, peers: bool, *, batch_size: int | None, num_images: int
) -> Case:
  """Every image is attacked, right or wrong; peers take 64 at a time."""
  task = problem.make(arch, num_images)
  candidates = {'robustlip': _ours(task, batch_size or task.fitting())}
  if peers:
    batch_size = batch_size or problem.PEERS_BATCH_SIZE
    candidates['PyTorch'] = _torch(task, batch_size)
    for name, convolve in FOOLBOX.items():
      with mock.patch.object(layers, 'convolve', convolve):
        foolbox = _foolbox(task, batch_size)
      if foolbox:
        candidates[name] = foolbox
  return Case(f'{arch}, {num_images} images', 'images', candidates)


def _ours(task, batch_size):
  def withstands(variables, batch, keys):
    logits_fn = models.logits_fn(task.module, variables)
    points = attacks.pgd(logits_fn, batch, keys, epsilon=problem.EPSILON)
    return logits_fn(points).argmax(axis=-1) == batch.labels

  program, variables = evaluation.over_devices(withstands), task.variables()
  return Candidate(
    lambda: evaluation.per_example(
      program,
      variables,
      task.split,
      jax.random.key(0),
      batch_size=batch_size,
    ),
    len(task.split.labels),
  )


def batches(count: int, batch_size: int) -> list[slice]:
  """Slices that cover `count` examples."""
  firsts = range(0, count, batch_size)
  return [slice(first, first + batch_size) for first in firsts]


def _torch(task, batch_size):
  from experiments.suites import torch_peer

  module = torch_peer.network(task.arch, task.split.images.shape[1:]).eval()
  inputs, labels = problem.to_torch(task.split)

  def run():
    for chosen in batches(len(labels), batch_size):
      points = torch_peer.pgd(
        module, inputs[chosen], labels[chosen], problem.EPSILON
      )
      (module(points).argmax(1) == labels[chosen]).numpy()

  return Candidate(run, len(labels))


def _foolbox(task, batch_size):
  try:
    import eagerpy
    import foolbox

    network = jax.jit(models.logits_fn(task.module, task.variables()))
    model = foolbox.models.JAXModel(network, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=10)
    inputs = jax.numpy.asarray(task.split.images) / np.float32(255)
    labels = jax.numpy.asarray(task.split.labels)

    def run():
      for chosen in batches(len(labels), batch_size):
        attack(
          model,
          eagerpy.astensor(inputs[chosen]),
          eagerpy.astensor(labels[chosen]),
          epsilons=problem.EPSILON,
        )

    run()
  except Exception as error:  # whatever breaks a library older than this jax
    logging.warning('foolbox left out: %s', str(error).split('\n')[0])
    return None
  return Candidate(run, len(task.split.labels))

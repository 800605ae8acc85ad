"""Images a second of the evaluation under PGD-10."""

import logging

import jax

from experiments.suites import Candidate, Case, batches, problem
from robustlip import attacks, evaluation, models

# Ten steps, each with the gradient of the inputs, and the logits at the end.
PASSES = 10 * 2 + 1


def case(
  arch: str,
  peers: bool,
  *,
  batch_size: int | None,
  num_images: int,
  precision: str,
) -> Case:
  """Every image is attacked, right or wrong; peers take 64 at a time."""
  task = problem.make(arch, num_images, precision)
  candidates = {'robustlip': _ours(task, batch_size or task.fitting())}
  if peers:
    batch_size = batch_size or problem.PEERS_BATCH_SIZE
    candidates['PyTorch'] = _torch(task, batch_size)
    for name, plain in (('foolbox', False), ('foolbox, plain Flax', True)):
      if foolbox := _foolbox(task, batch_size, plain=plain):
        candidates[name] = foolbox
  flops = PASSES * task.forward_flops()
  return Case(f'{arch}, {num_images} images', 'images', candidates, flops)


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


def _torch(task, batch_size):
  from experiments.suites import torch_peer

  module = torch_peer.network(task).eval()
  inputs, labels = torch_peer.examples(task)

  def run():
    with torch_peer.computing(task.precision):
      for chosen in batches(len(labels), batch_size):
        points = torch_peer.pgd(
          module, inputs[chosen], labels[chosen], problem.EPSILON
        )
        (module(points).argmax(1) == labels[chosen]).cpu()

  return Candidate(run, len(labels))


def _foolbox(task, batch_size, *, plain):
  """On our network, or on Flax's in a process apart; None if it fails."""
  try:
    from experiments.suites import foolbox_peer

    start = foolbox_peer.attack_apart if plain else foolbox_peer.attack
    run = start(task, batch_size)
    run()
  except Exception as error:  # whatever breaks a library older than this jax
    logging.warning('foolbox left out: %s', str(error).split('\n')[0])
    return None
  return Candidate(run, len(task.split.labels))

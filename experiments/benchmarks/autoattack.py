"""The standard AutoAttack of ours beside the original, on the same networks.

The original is `pyautoattack`, which packages the authors' code for PyTorch
(not compared with their repository); its networks are twins with our weights.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
import optax

from experiments.benchmarks.problem import EPSILON, Problem
from experiments.benchmarks.timing import Candidate, Case
from robustlip import attacks, datasets, methods, models, training
from robustlip.datasets import Split
from robustlip.evaluation import UNBROKEN, Attacked, Evaluator

METHODS = ('natural', 'at')
EPOCHS = 1  # of 5,000 images: many images are then close to a boundary
THEIRS = {
  'apgd_ce': 'apgd-ce',
  'apgd_targeted': 'apgd-t',
  'fab_targeted': 'fab-t',
  'square': 'square',
}


def cases(
  *,
  arch: Sequence[str] = ('cnn1',),
  peers: bool,
  method: Sequence[str] = METHODS,
  attack: Sequence[str] = (*attacks.AUTOATTACK, 'autoattack'),
  batch_size: int = 100,
  num_images: int = 100,
  num_queries: int = 5000,
) -> list[Case]:
  """Images a second of each attack alone and of cascades, and who withstands.

  Raises:
    ValueError: for a network that has no twin, or another unknown name.
  """
  if not {*arch} <= {'cnn1', 'cnn2'}:
    raise ValueError(f'--arch takes cnn1 and cnn2, got {",".join(arch)}')
  if not {*method} <= {*METHODS}:
    raise ValueError(f'--method takes {METHODS}, got {",".join(method)}')
  if not {*attack} <= {*THEIRS, 'autoattack'}:
    raise ValueError(
      f'--attack takes {",".join(THEIRS)},autoattack, got {",".join(attack)}'
    )
  data = datasets.load('mnist5k')
  test = Split(*(part[:num_images] for part in data.test))
  found = []
  for name in arch:
    task = Problem(name, models.build(name, 10), test, 'float32')
    for way in method:
      variables = trained(task, way, data.train)
      mine = partial(ours, task, variables, num_queries, batch_size)
      theirs = None
      if peers:
        theirs = original(task, variables, num_queries, batch_size)
      for which in attack:
        candidates = {'robustlip': mine(which)}
        if which == 'autoattack':
          candidates['robustlip strong'] = mine('strong')
        if theirs:
          candidates['pyautoattack'] = theirs(which)
        title = f'{name} {way}, {which}, {num_images} images'
        found.append(Case(title, 'images', candidates))
  return found


def trained(task: Problem, method: str, split: Split):
  """The variables of a network trained for a little while."""
  recipe = training.Recipe(
    task.module,
    methods.METHODS[method](epsilon=EPSILON),
    optax.sgd(0.02, 0.9),
  )
  key = jax.random.key(0)
  state = training.fit(recipe, split, key, batch_size=64, epochs=EPOCHS)
  return state.variables


def expanded(attack: str) -> Sequence[str]:
  """The names of the attacks of a cascade, or the one attack."""
  return attacks.SEQUENCES.get(attack, (attack,))


def ours(task, variables, num_queries, batch_size, attack) -> Candidate:
  """Our evaluation, compiled beforehand."""
  stages = ()
  for name in expanded(attack):
    steps = num_queries if name == 'square' else None
    stages += attacks.cascade(
      name, epsilon=EPSILON, num_classes=10, num_steps=steps
    )
  evaluator = Evaluator(
    partial(models.logits_fn, task.module),
    cascade=stages,
    batch_size=batch_size,
  )
  run = partial(evaluator.accuracies, variables, task.split, jax.random.key(0))

  def compile_all():
    """Every program, on a ball so large that each attack ends at once."""
    run(epsilon=1.0)
    everyone = np.ones(len(task.split.labels), bool)
    untouched = Attacked(everyone, everyone, np.full(len(everyone), UNBROKEN))
    compiled = {stages[0].attack}
    for place, stage in enumerate(stages):
      if stage.attack not in compiled:
        run(epsilon=1.0, done=(place, untouched))
        compiled.add(stage.attack)

  return Candidate(
    lambda: run().robust,
    len(task.split.labels),
    prepare=compile_all,
    found=described,
  )


def original(task, variables, num_queries, batch_size):
  """From the name of an attack to the original of it."""
  import pyautoattack

  from experiments.benchmarks import torch_peer

  network = torch_peer.twin(task, variables)
  images, labels = torch_peer.examples(task)

  def candidate(attack):
    peer = pyautoattack.AutoAttack(
      network, eps=EPSILON, seed=0, device=images.device
    )
    peer.attacks_to_run = [THEIRS[name] for name in expanded(attack)]
    peer.square.n_queries = num_queries

    def run():
      _, predicted = peer.run_standard_evaluation(
        images, labels, batch_size=batch_size
      )
      return (predicted == labels).cpu().numpy()

    return Candidate(run, len(labels), prepare=lambda: None, found=described)

  return candidate


def described(robust: np.ndarray) -> dict[str, object]:
  """How many withstand, and the places of those that do not."""
  return {
    'robust': int(robust.sum()),
    'taken': np.flatnonzero(~robust).tolist(),
  }

"""Imports point strictly downwards."""

import ast
import pathlib

import robustlip

ROOT = pathlib.Path(robustlip.__file__).parent
LAYERS = [
  {'types', 'progress'},
  {'projections'},
  {'augmentations', 'datasets', 'models', 'separation'},
  {'losses', 'attacks', 'theory'},
  {'lipschitz', 'methods'},
  {'reference'},
  {'training', 'evaluation', 'checkpoints'},
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def imported(tree):
  """Top-level names of robustlip that a module's syntax tree imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split('.')
      if parts == ['robustlip']:
        yield from (alias.name for alias in node.names)
      elif parts[0] == 'robustlip':
        yield parts[1]
      assert parts[0] != 'experiments', 'the package imports a script'


def test_every_import_points_down():
  for path in ROOT.rglob('*.py'):
    name = path.relative_to(ROOT).parts[0].removesuffix('.py')
    if name == '__init__':
      continue
    for other in imported(ast.parse(path.read_text())):
      if other != name:
        assert LEVEL[other] < LEVEL[name], f'{path} imports {other}'

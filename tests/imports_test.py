"""Imports point strictly downwards; what `help` shows can be read."""

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import experiments
import robustlip

LAYERS = {
  robustlip: [
    {'types', 'progress', 'drawing'},
    {'images', 'projections'},
    {'augmentations', 'datasets', 'models', 'parameters', 'separation'},
    {'losses', 'theory', 'feed'},
    {'attacks', 'bounds'},
    {'lipschitz', 'methods', 'distance_attack'},
    {'released'},
    {'training', 'evaluation', 'checkpoints'},
    {'doubts'},
  ],
  experiments: [
    {'common', 'findings', 'paper', 'plots'},
    {'config', 'staircase_fits'},
    {'separation_figures', 'theory_figures'},
    {'measure', 'report', 'table_rows'},
    {'benchmarks', 'table_figures'},
    {'evaluate', 'runs'},
  ],  # the scripts above
}


def imported(tree, package):
  """Top-level names of a package that a module's syntax tree imports."""
  for node in ast.walk(tree):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      first, *rest = name.split('.')
      if first == package and rest:
        yield rest[0]


def modules(package):
  """Top-level name and syntax tree of each module but the package's own."""
  root = pathlib.Path(package.__file__).parent
  for path in root.rglob('*.py'):
    name = path.relative_to(root).parts[0].removesuffix('.py')
    if name != '__init__':
      yield name, ast.parse(path.read_text())


@pytest.mark.parametrize('package', LAYERS, ids=lambda x: x.__name__)
def test_every_import_points_down(package):
  layers = LAYERS[package]
  level = {name: i for i, layer in enumerate(layers) for name in layer}
  for name, tree in modules(package):
    for other in imported(tree, package.__name__):
      if other != name:
        below = level.get(other, len(layers)) < level.get(name, len(layers))
        assert below, f'{package.__name__}.{name} imports {other}'


def test_the_package_imports_no_script():
  known = set().union(*LAYERS[robustlip])
  for name, tree in modules(robustlip):
    assert name in known
    assert not list(imported(tree, 'experiments')), name


def test_importing_the_library_changes_nothing():
  program = (
    'import os, importlib, jax\n'
    'before = dict(os.environ), dict(jax.config.values)\n'
    f'for name in {sorted(set().union(*LAYERS[robustlip]))!r}:\n'
    "  importlib.import_module(f'robustlip.{name}')\n"
    'assert (dict(os.environ), dict(jax.config.values)) == before'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_signatures_name_types_instead_of_spelling_them_out():
  for name in sorted(set().union(*LAYERS[robustlip])):
    module = importlib.import_module(f'robustlip.{name}')
    for key, function in inspect.getmembers(module, inspect.isfunction):
      if function.__module__.startswith('robustlip') and key[0] != '_':
        assert 'Union' not in str(inspect.signature(function)), key

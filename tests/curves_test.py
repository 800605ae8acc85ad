"""Evaluations of several networks as one record and one picture."""

import json

import pytest

from experiments import curves
from experiments.config import Config


def write(folder, name, **changes):
  of_radius = {'0.05': 90.0, '0.1': 80.0}
  measured = {f'{x}_at': of_radius for x in curves.CURVES + curves.BRACKET}
  run = Config(**changes).to_json() | measured | {'test_acc': 99.0}
  path = folder / f'{name}.json'
  path.write_text(json.dumps(run))
  return path


def test_runs_are_joined_and_drawn(tmp_path):
  paths = [
    write(tmp_path, 'a', method='natural'),
    write(tmp_path, 'b', method='trades', beta=6.0),
  ]
  record = curves.joined(paths)
  labels = [run['label'] for run in record['runs']]
  assert labels == ['Natural', 'TRADES(6)']
  g = {'epsilons': [0.0, 0.05, 0.5], 'certified': [0.7, 0.5, 0.1]}
  curves.draw(record | {'g': g}, tmp_path / 'both')
  assert (tmp_path / 'both.png').stat().st_size > 10_000


def test_what_cannot_be_drawn_is_refused(tmp_path):
  one, other = write(tmp_path, 'a'), write(tmp_path, 'b', dataset='mnist')
  with pytest.raises(ValueError, match='2 data sets'):
    curves.joined([one, other])
  other.write_text(json.dumps(Config().to_json()))
  with pytest.raises(ValueError, match='--certify'):
    curves.joined([other])

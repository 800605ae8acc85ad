"""The notebook runs from start to end, at a small size."""

import json
import pathlib

import experiments

NOTEBOOK = pathlib.Path(experiments.__file__).with_name('quickstart.ipynb')
SMALL = 'TRAIN_EXAMPLES, TEST_EXAMPLES, EPOCHS, RADII = 128, 10, 1, [0.1, 0.2]'


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  names = {}
  for cell in json.loads(NOTEBOOK.read_text())['cells']:
    tags = cell['metadata'].get('tags', [])
    if cell['cell_type'] == 'code' and 'install' not in tags:
      exec(''.join(cell['source']), names)  # noqa: S102
    if 'parameters' in tags:
      exec(SMALL, names)  # noqa: S102
  assert 'mean losses of four runs' in capsys.readouterr().out
  assert len(names['curves']['robust']) == len(names['RADII'])

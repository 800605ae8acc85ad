"""Every script refuses what it does not know, in one line."""

import pathlib

import pytest

import experiments

FOLDER = pathlib.Path(experiments.__file__).parent
NAMES = sorted(
  path.stem
  for path in FOLDER.glob('*.py')
  if '\n  common.run(main, define)\n' in path.read_text()
)


def test_there_are_scripts():
  assert {'train', 'evaluate', 'separation', 'theory', 'tables'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('argument', ['--no_such_flag=1', 'stray', '--seed=-1'])
def test_wrong_arguments_are_one_line(name, argument, call):
  finished = call(f'experiments.{name}', argument)
  assert finished.code == 1
  (line,) = finished.err.splitlines()
  assert line.startswith('error: ')
  assert argument.strip('-').split('=')[0] in line


def test_help_has_the_flags_that_are_read_and_is_no_failure(call):
  finished = call('experiments.train', '--help')
  assert finished.code == 0
  for flag in ('--lam', '--dataset', '--epsilon', '--workdir', '--stream'):
    assert f'{flag}:' in finished.out or f'[no]{flag[2:]}:' in finished.out
  assert '--num_restarts' not in finished.out


def test_flags_that_a_script_does_not_read_are_refused(call):
  finished = call('experiments.staircase', '--epsilon=1')
  assert finished.code == 1
  assert finished.err.splitlines()[-1].startswith(
    "error: Unknown command line flag 'epsilon'"
  )


@pytest.mark.parametrize(
  'name, flag',
  [
    ('separation', 'workdir'),
    ('theory', 'workdir'),
    ('staircase', 'workdir'),
    ('tables', 'workdir'),
    ('benchmark', 'output'),
  ],
)
def test_a_folder_that_cannot_be_is_found_out_first(name, flag, tmp_path, call):
  (tmp_path / 'file').write_text('')
  where = f'{tmp_path}/file/below' + '/record.json' * (flag == 'output')
  finished = call(f'experiments.{name}', f'--{flag}={where}')
  assert finished.code == 1
  line = finished.err.splitlines()[-1]
  assert line.startswith('error: cannot write to') and 'below' in line

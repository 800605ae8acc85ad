"""Progress in a log, where nobody watches a bar."""

from robustlip import progress


def test_short_work_is_one_line(capsys):
  with progress.bar(7, 'quick', initial=4) as bar:
    for _ in range(3):
      bar.set_postfix_str('loss 0.5', refresh=False)
      bar.update()
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('quick: 7 of 7, ') and line.endswith(', loss 0.5')


def test_work_that_breaks_off_says_how_far_it_came(capsys):
  try:
    with progress.bar(7, 'broken') as bar:
      bar.update(2)
      raise ValueError
  except ValueError:
    pass
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('broken: 2 of 7, ')

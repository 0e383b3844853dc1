"""Serves the page on which a person answers the questions of a run.

  saw annotate --run=runs/care

Open the address that it prints, which holds a token. The page and the run may
be started in any order once the run has made its ledger, on one machine or on
two that share its folder; either may be stopped and started again. Ctrl-C ends
the page, and keeps every answer.

The page is for this machine alone. From another one, forward the port:
ssh -L 8765:127.0.0.1:8765 machine

With Label Studio in place of the page, the questions that wait go out and the
answers come back as its JSON:

  saw annotate --run=runs/care --export=questions.json \
    --labeling_config=labeling.xml
  saw annotate --run=runs/care --import=answers.json
"""

import contextlib

from absl import flags

from saw_jax.run import command_line, store


def main() -> int:
  given = flags.FLAGS
  from saw_jax.annotate import ledger, page

  if (given.run is None) == (given.ledger is None):
    raise command_line.UsageError(
      "give --run=DIRECTORY or --ledger=FILE, and not both"
    )
  path = store.folder_of(given.ledger or given.run, "--run")
  if given.run is not None:
    if not path.is_dir():
      raise command_line.UsageError(f"there is no run directory {path}")
    path = path / ledger.LEDGER_NAME
  answers = given["import"].value
  if given.export and answers or given.labeling_config and not given.export:
    raise command_line.UsageError(
      "give --export=FILE, which --labeling_config goes with, or --import=FILE"
    )
  with command_line.checking_input():
    if given.export or answers:
      from saw_jax.annotate import label_studio

      opened = ledger.LabelLedger(path, creates=False)
      if answers:
        print(label_studio.read(opened, answers))
      else:
        print(label_studio.write(opened, given.export, given.labeling_config))
      return 0
    with contextlib.suppress(KeyboardInterrupt):
      page.serve(path, host=given.host, port=given.port, who=given.name)
    print(f"the page is closed; the answers are in {path}")
  return 0

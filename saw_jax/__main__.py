"""Trains a policy: the command of an installed package.

  python -m saw_jax train --workdir=runs/gdpo_saw --seeds=0,1 \
    --config=saw/tool_calling:row=gdpo_saw,scale=tiny

Override any key with --config.section.key=value, and see --help.
"""

import sys

from saw_jax.run import command_line

if __name__ == "__main__":
  if sys.argv[1:2] == ["train"]:
    sys.argv[0] += " " + sys.argv.pop(1)
    command_line.define_train()
    command_line.run(command_line.train)
  else:
    print(__doc__)
    sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)

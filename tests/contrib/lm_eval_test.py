"""Tests of saw_jax/contrib/lm_eval.py.

`make harness` runs all of them, in an environment with the extra `lm-eval`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.contrib import lm_eval
from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import generate
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import build, config, registry, run_directory
from saw_jax.tokenizer import ByteTokenizer
from tests import helpers
from tests.run import script_runs

CONFIG = DecoderConfig(259, 16, 1, 2, 1, 8, 32)
GREEDY = SamplingConfig(greedy=True)
CHAT = [
  {"role": "user", "content": "a\x03<|im_end|>"},
  {"role": "assistant", "content": "be"},
]


@pytest.fixture(scope="module")
def harness():
  """Without it, what compiles is left out, too."""
  return pytest.importorskip("lm_eval", reason="the extra `lm_eval`")


@pytest.fixture(scope="module")
def reader(harness):
  params = decoder.init_params(CONFIG, jax.random.key(1))
  sizes = {"max_length": 80, "batch_size": 2}
  return lm_eval.Reader(CONFIG, params, ByteTokenizer(), **sizes)


def whole_forward(reader, context, continuation):
  """One row without padding, and logits of everything: the other road."""
  ids = [*context, *continuation]
  tokens = jnp.array([ids[:-1]])
  (logits,) = helpers.logits(reader.config, reader.params, tokens)
  values = jax.nn.log_softmax(logits, axis=-1)
  places = range(len(context) - 1, len(ids) - 1)
  total = sum(float(values[i, ids[i + 1]]) for i in places)
  return total, all(int(values[i].argmax()) == ids[i + 1] for i in places)


def test_log_likelihoods_are_those_of_a_plain_forward_pass(reader):
  rng = np.random.default_rng(0)
  sizes = [(3, 4), (60, 9), (5, 0)]
  pairs = [
    tuple(rng.integers(0, 256, n).tolist() for n in pair) for pair in sizes
  ]
  # What greedy decoding writes is found to be that.
  context, (text,) = pairs[0][0], reader.write([pairs[0][0]], 5, GREEDY)
  pairs.append((context, reader.tokenizer.encode(text)))
  found = reader.score(pairs)
  for pair, (value, is_greedy) in zip(pairs, found, strict=True):
    want, greedy = whole_forward(reader, *pair)
    assert value == pytest.approx(want, abs=1e-4) and is_greedy == greedy
  assert [greedy for _, greedy in found][-2:] == [True, True]
  assert not found[0][1]


def test_the_beginning_of_what_is_too_long_is_left_out(reader):
  rng = np.random.default_rng(1)
  context, more = rng.integers(0, 256, (2, 70)).tolist()
  (long,) = reader.score([(context, more)])
  (cut,) = reader.score([(context[-11:], more)])  # 80 read, 1 more guessed
  assert long == cut
  texts = [reader.write([ids], 30, GREEDY) for ids in (context, context[-50:])]
  assert texts[0] == texts[1]
  with pytest.raises(ValueError, match="max_length"):
    reader.write([context], 80, GREEDY)


def test_few_programs_are_compiled(reader):
  before = lm_eval._score._cache_size()
  rng = np.random.default_rng(2)
  for size in (1, 9, 30, 63, 2, 65, 79):
    reader.score([(rng.integers(0, 256, size).tolist(), [7])] * 3)
  assert lm_eval._score._cache_size() <= max(before, 2)


def test_what_is_written_is_what_the_command_generate_writes(reader):
  prompts = [reader.tokenizer.encode(text) for text in ("a", "bc" * 30, "d")]
  for sampling in (GREEDY, SamplingConfig(temperature=0.7, top_k=5)):
    texts = reader.write(prompts, 8, sampling, seed=3)
    for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
      key = generate.row_keys(jax.random.key(3), 0, np.array([place]), 1)[0]
      how = generate.GenerateConfig(
        8, 1, reader.tokenizer.eos_ids, sampling=sampling
      )
      tokens = generate.stream(CONFIG, how, reader.params, prompt, key)
      assert reader.tokenizer.decode(tokens) == text


@pytest.mark.parametrize("name", ["bytes", "knights"])
def test_a_chat_is_encoded_as_in_training(name):
  tokenizer = registry.make_tokenizer(name)

  def written(has_prompt):
    chat = lm_eval.write_chat(CHAT, has_prompt)
    return lm_eval.encode(tokenizer, chat + " 7")

  after = tokenizer.encode(" 7")
  assert written(True) == [*tokenizer.encode_chat(CHAT), *after]
  # An answer that has been begun goes on.
  begun = [*tokenizer.encode_chat(CHAT[:1]), *tokenizer.encode("be 7")]
  assert written(False) == begun
  assert lm_eval.encode(tokenizer, "a\x03b") == tokenizer.encode("a\x03b")


def test_without_the_extra_the_error_names_it():
  lm_eval.model_class.cache_clear()
  with helpers.lacking("lm-eval", "lm_eval"):
    lm_eval.evaluate("no run")


@pytest.mark.parametrize(
  ("given", "word"),
  [
    ({}, "workdir"),
    ({"workdir": "a", "model": "b"}, "both"),
    ({"workdir": "no_such"}, "run.json"),
    ({"model": "no_such"}, "no_such"),
  ],
)
def test_what_is_to_be_opened(given, word):
  with pytest.raises((ValueError, FileNotFoundError), match=word):
    lm_eval.open_reader(**given)


# --- with lm-eval ----------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(harness, tmp_path_factory):
  """A run of one step and two seeds, whose policies are small."""
  folder = tmp_path_factory.mktemp("run")
  run = config.typed(config.load(script_runs.TOOLS))
  changes = {**script_runs.SMALL, "loop.num_steps": 1}
  for key, value in changes.items():
    run = config.replace(run, key, value)
  document = {**config.to_config(run).to_dict(), "seeds": [0, 5]}
  run_directory.open_run(folder, document)
  build.train(build.build(run), [0, 5], directory=folder)
  return folder


ROWS = [
  {"question": f"{a} + {b} =", "answer": str(a + b), "wrong": str(a * b + 7)}
  for a, b in [(1, 2), (4, 4), (3, 9), (5, 1), (2, 2)]
]
TASKS = {
  "own_choice": {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{[answer, wrong]}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
  },
  "own_written": {
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 7},
    "metric_list": [{"metric": "exact_match"}],
  },
  "own_text": {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question * 40}}",
    "metric_list": [{"metric": "word_perplexity"}],
  },
}


@pytest.fixture(scope="module")
def manager(harness, tmp_path_factory):
  import yaml
  from lm_eval import tasks

  folder = tmp_path_factory.mktemp("tasks")
  data = folder / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  for name, task in TASKS.items():
    document = {
      "task": name,
      "dataset_path": "json",
      "dataset_kwargs": {"data_files": {"test": str(data)}},
      "test_split": "test",
      "doc_to_text": "{{question}}",
      **task,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
  return tasks.TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.parametrize("is_chat", [False, True])
def test_tasks_with_rows_of_a_file(workdir, manager, is_chat):
  found = lm_eval.evaluate(
    str(workdir),
    list(TASKS)[: 2 if is_chat else 3],
    model_args={"seed": 5, "batch_size": 4, "max_length": 128},
    task_manager=manager,
    apply_chat_template=is_chat,
    bootstrap_iters=0,
  )
  reader = lm_eval.open_reader(str(workdir), seed=5, max_length=128)
  encode = reader.tokenizer.encode
  samples = found["samples"]
  for row, sample in zip(ROWS, samples["own_choice"], strict=True):
    message = [{"role": "user", "content": row["question"]}]
    prompt = encode(row["question"])
    if is_chat:
      prompt = reader.tokenizer.encode_chat(message)
    for answer, said in zip(
      (row["answer"], row["wrong"]), sample["filtered_resps"], strict=True
    ):
      both = encode("" if is_chat else row["question"] + " " + answer)
      more = both[len(prompt) :] if not is_chat else encode(answer)
      want, is_greedy = whole_forward(reader, prompt, more)
      assert float(said[0]) == pytest.approx(want, abs=1e-3)
      assert said[1] in (is_greedy, str(is_greedy))
  for row, sample in zip(ROWS, samples["own_written"], strict=True):
    message = [{"role": "user", "content": row["question"]}]
    prompt = encode(row["question"])
    if is_chat:
      prompt = reader.tokenizer.encode_chat(message)
    (want,) = reader.write([prompt], 7, GREEDY)
    (said,) = sample["resps"][0]
    assert said == want.split("e")[0].split("\n")[0]
  assert {"own_choice", "own_written"} <= set(found["results"])


def test_a_text_is_scored_once_whole(workdir):
  from lm_eval.api import instance

  made = lm_eval.model_class()(str(workdir), max_length=16)
  text = "call the timer " * 20
  ids = made.tok_encode(text)
  assert len(ids) > 40
  request = instance.Instance("loglikelihood_rolling", {}, (text,), 0)
  (total,) = made.loglikelihood_rolling([request])
  # Windows of 16, each token in one of them.
  want, row = 0.0, [made.prefix_token_id, *ids]
  for begin in range(0, len(ids), 16):
    end = min(begin + 16, len(ids))
    context = row[max(0, end - 16) : begin + 1]
    want += whole_forward(made.reader, context, ids[begin:end])[0]
  assert total == pytest.approx(want, abs=1e-3)


def test_policies_of_seeds_differ_and_names_are_checked(workdir):
  (one,), (other,) = (
    lm_eval.open_reader(str(workdir), seed=seed).score([([1, 2], [3, 4])])
    for seed in (None, 5)
  )
  assert one[0] != other[0]
  with pytest.raises(ValueError, match="seed=7"):
    lm_eval.open_reader(str(workdir), seed=7)
  with pytest.raises(TypeError, match="checkpint"):
    lm_eval.model_class()(str(workdir), checkpint="best")

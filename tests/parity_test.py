"""The decoder against transformers on torch, with weights that both read.

Each family at small random weights and settings that are nobody's default. The
tensors go through files: written by transformers and read here, then written
here and read by transformers.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from saw_jax.models.hub import pretrained
from saw_jax.models.hub import tokenizer as hub_tokenizer
from saw_jax.rollout import generate, transcript
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import registry
from tests import helpers

pytestmark = [pytest.mark.slow, pytest.mark.parity]

LENGTH = 600
# Logits of these models have a deviation of about 1.
TOLERANCE = 1e-4

SIZES = dict(
  **dict(vocab_size=97, hidden_size=48, intermediate_size=80),
  **dict(num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2),
  **dict(initializer_range=0.15, max_position_embeddings=1024),
  **dict(bos_token_id=1, eos_token_id=2, pad_token_id=0),
)
FIRST = "original_max_position_embeddings"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, FIRST: 128} | {
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, FIRST: 160}
LINEAR = {"rope_type": "linear", "factor": 2.5}
# 8 entries of a head, of which 6 rotate.
LONGROPE = {
  "rope_type": "longrope",
  "short_factor": [1.0, 1.5, 2.25],
  "long_factor": [1.25, 3.5, 17.0],
}
LONG = dict(
  **dict(num_key_value_heads=3, partial_rotary_factor=0.75),
  **dict(rope_theta=2e4, rope_scaling=LONGROPE),
)
SLIDING, TIED = {"use_sliding_window": True}, {"tie_word_embeddings": True}
WINDOW = {"sliding_window": 33}
CASES = {
  "qwen2_tied": ("Qwen2", {"rope_theta": 5e5, **TIED}),
  "qwen2_yarn": ("Qwen2", {"rope_theta": 2e4, "rope_scaling": YARN}),
  "qwen2_sliding": (
    "Qwen2",
    dict(rope_theta=3e4, sliding_window=37, max_window_layers=1, **SLIDING),
  ),
  "qwen3_untied": ("Qwen3", {"rope_theta": 7e5, "head_dim": 14}),
  "qwen3_sliding": (
    "Qwen3",
    dict(sliding_window=50, max_window_layers=0, **SLIDING, **TIED)
    | dict(head_dim=8, rope_theta=1e5),
  ),
  "llama3": ("Llama", {"rope_theta": 1e5, "rope_scaling": LLAMA3}),
  "llama3_tied": (
    "Llama",
    dict(rope_theta=5e4, rope_scaling={**LLAMA3, "factor": 32.0}, **TIED)
    | {"head_dim": 12},
  ),
  "llama_linear": ("Llama", {"rope_theta": 3e3, "rope_scaling": LINEAR}),
  # SmolLM2's shape: three query heads to a key head, tied.
  "smollm2": (
    "Llama",
    dict(hidden_size=72, num_attention_heads=9, num_key_value_heads=3)
    | dict(rope_theta=1e5, rms_norm_eps=1e-5, **TIED),
  ),
  "mistral": ("Mistral", {"rope_theta": 3e4, "head_dim": 12, **WINDOW}),
  "olmo2": ("Olmo2", {"rope_theta": 4e4, "num_key_value_heads": 3}),
  "smollm3": ("SmolLM3", {"rope_theta": 6e4, "no_rope_layers": [1, 0], **TIED}),
  "smollm3_sliding": (
    "SmolLM3",
    {**WINDOW, **SLIDING, "no_rope_layers": [0, 1], "rope_theta": 6e4},
  ),
  "phi3_sliding": ("Phi3", {"rope_theta": 2e4, "sliding_window": 41}),
  "phi3_long": ("Phi3", {**LONG, FIRST: 256, **TIED}),
  "phi3_short": (
    "Phi3",
    {**LONG, "max_position_embeddings": 4096, FIRST: 1024},
  ),
}


@functools.cache
def hub():
  """torch and transformers, imported once and only if they are there."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  transformers.utils.logging.set_verbosity_error()
  torch.set_num_threads(1)
  return torch, transformers


def random_model(family: str, changes: dict):
  """A model of theirs with nothing at its initial 0 or 1."""
  torch, transformers = hub()
  # Their classes change the dictionaries that they are given.
  settings = json.loads(json.dumps({**SIZES, **changes}))
  config = getattr(transformers, f"{family}Config")(**settings)
  torch.manual_seed(0)
  model = getattr(transformers, f"{family}ForCausalLM")(config)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if "norm" in name or name.endswith("bias"):
        value += 0.3 * torch.randn_like(value)
  return model.eval()


def read(path, **options):
  _, transformers = hub()
  read = transformers.AutoModelForCausalLM.from_pretrained
  return read(path, dtype="float32", **options).eval()


def their_logits(model, tokens: np.ndarray) -> np.ndarray:
  torch, _ = hub()
  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.numpy()


def draw_tokens(vocab_size: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, vocab_size, (1, LENGTH))


@pytest.mark.parametrize("name", ["bytes", "math", "tool_calling"])
def test_our_own_tokenizers_are_opened_there(name, tmp_path):
  (_, transformers), ours = hub(), registry.make_tokenizer(name)
  ours.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  said = [
    {"role": "system", "content": "1+2"},
    {"role": "user", "content": "3"},
  ]
  ids = theirs.apply_chat_template(
    said, add_generation_prompt=True, return_dict=False
  )
  assert ids == ours.encode_chat(said)
  ends = theirs.eos_token_id, theirs.pad_token_id
  assert ends == (ours.eos_ids[0], ours.pad_id)


@pytest.mark.parametrize("case", CASES)
def test_a_family_agrees_there_and_back(case, tmp_path):
  family, changes = CASES[case]
  theirs = random_model(family, changes)
  # Several shards for some, one file for the others.
  theirs.save_pretrained(
    tmp_path / "theirs", max_shard_size="20KB" if "3" in family else "1GB"
  )
  tokens = draw_tokens(SIZES["vocab_size"])
  expected = their_logits(theirs, tokens)
  assert 0.3 < expected.std() < 10

  found = pretrained.open_checkpoint(tmp_path / "theirs", max_length=LENGTH)
  params = found.load()
  logits = helpers.logits(found.config, params, tokens)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)

  for name, document in (("own", None), ("kept", found.document)):
    if name == "own" and case in ("phi3_long", "phi3_short"):
      continue  # What it was loaded with says more: short and long factors.
    how = {"document": document, "dtype": "float32", "max_bytes": 30_000}
    pretrained.save_checkpoint(tmp_path / name, params, found.config, **how)
    back = read(tmp_path / name)
    assert type(back) is type(theirs)
    weights = back.state_dict()
    for key, value in theirs.state_dict().items():
      np.testing.assert_array_equal(weights[key], value, err_msg=key)
    np.testing.assert_allclose(
      their_logits(back, tokens), expected, rtol=0, atol=1e-5
    )


def test_scanned_layers_and_halved_weights_read_the_same(tmp_path):
  halved = random_model(*CASES["llama3"]).bfloat16()
  halved.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
  # Read again, as bfloat16() has rounded their rotary frequencies too.
  theirs = read(tmp_path / "theirs")
  found = pretrained.open_checkpoint(tmp_path / "theirs")
  tokens = draw_tokens(SIZES["vocab_size"])
  expected = their_logits(theirs, tokens)
  scanned = dataclasses.replace(found.config, scan_layers=True)
  logits = helpers.logits(scanned, found.load(scanned), tokens)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


NEW_TOKENS = 24


def continue_as_theirs(source, theirs, ids, eos_ids, pad_id, atol):
  """Greedy answers to prompts, padded on the left and read from a cache.

  If each token of ours is what their logits prefer behind the prompt and the
  tokens before it, then their greedy continuation is ours.
  """
  config = generate.GenerateConfig(
    sampling=SamplingConfig(greedy=True),
    max_new_tokens=NEW_TOKENS,
    group_size=1,
    eos_ids=eos_ids,
    pad_id=pad_id,
  )
  sample = generate.make_generate(source.config, config)
  keys = jax.random.split(jax.random.key(0), len(ids))
  prompts = transcript.pad_prompts(ids, multiple=1)
  ours = jax.device_get(sample(source.load(), prompts, keys))
  chosen = [
    row[roles == transcript.POLICY].tolist()
    for row, roles in zip(ours.tokens, ours.roles, strict=True)
  ]
  rows = [[*prompt, *row] for prompt, row in zip(ids, chosen, strict=True)]
  size = max(map(len, rows))
  padded = np.array([row + [0] * (size - len(row)) for row in rows])
  log_probs = np.asarray(jax.nn.log_softmax(their_logits(theirs, padded)))
  for i, (prompt, row) in enumerate(zip(ids, chosen, strict=True)):
    said = log_probs[i, len(prompt) - 1 : len(prompt) - 1 + len(row)]
    assert said.argmax(-1).tolist() == row, prompt
    np.testing.assert_allclose(
      ours.behave_log_probs[i, : len(row)], said.max(-1), rtol=0, atol=atol
    )
  return chosen


@pytest.mark.parametrize(
  "case", ["mistral", "olmo2", "smollm3", "qwen3_sliding"]
)
def test_greedy_answers_from_a_cache_are_theirs(case, tmp_path):
  theirs = random_model(*CASES[case])
  theirs.save_pretrained(tmp_path)
  source = pretrained.open_checkpoint(tmp_path)
  tokens = draw_tokens(SIZES["vocab_size"])[0].tolist()
  ids = [tokens[:50], tokens[50:57], tokens[60:90]]
  rows = continue_as_theirs(source, theirs, ids, (), 0, TOLERANCE)
  assert [len(row) for row in rows] == [NEW_TOKENS] * 3


PROMPTS = (
  "What is the capital of France?",
  "12 + 7 = ?",
  "Write a haiku about the sea.",
  "Name three primary colours.",
  "Translate to Spanish: good morning.",
  "Why is the sky blue? Answer in one sentence.",
  "def add(a, b):",
  "List the first 5 even numbers.",
  "Who wrote Hamlet?",
  "Sum up: cats sleep a lot, and dogs do not.",
)


@pytest.fixture(scope="module")
def smollm2():
  """Its file, and our tokenizer of it, which takes seconds to read."""
  try:
    path = registry.find_checkpoint("smollm2")
  except ImportError as error:
    pytest.skip(str(error))
  return path, hub_tokenizer.open_tokenizer(path)


def test_smollm2_continues_ten_prompts_as_theirs_does(smollm2):
  (torch, _), (path, tokenizer) = hub(), smollm2
  ids = [
    tokenizer.encode_chat([{"role": "user", "content": prompt}])
    for prompt in PROMPTS
  ]
  source = pretrained.open_checkpoint(path)
  theirs = read(path.parent, gguf_file=path.name)
  torch.set_num_threads(2)
  ends = tokenizer.eos_ids, tokenizer.pad_id
  # Through 30 layers, of logits up to 20.
  rows = continue_as_theirs(source, theirs, ids, *ends, 1e-3)
  for row in rows:
    assert len(row) == NEW_TOKENS or row[-1] in tokenizer.eos_ids


def test_smollm2_writes_a_conversation_as_theirs_does(smollm2, tmp_path):
  # Theirs reads what ours has rebuilt: from a GGUF file it would itself lose
  # the rule that each digit is a token.
  (_, transformers), (_, ours) = hub(), smollm2
  ours.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for messages in (
    [{"role": "user", "content": "What is 12 + 345?"}],
    [
      {"role": "system", "content": "Be brief.\nBe kind."},
      {"role": "user", "content": "What now?"},
      {"role": "assistant", "content": "Wait, and see!"},
      {"role": "user", "content": "And then?  Après ça… 漢字"},
    ],
  ):
    text = theirs.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=True
    )
    assert ours.render(messages) == text
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode_chat(messages) == expected
    digits = [theirs.decode([i]) for i in expected]
    assert all(len(word) == 1 for word in digits if word.strip().isdigit())
  assert theirs.eos_token_id in ours.eos_ids
  assert theirs.pad_token_id == ours.pad_id


# What templates of released models do: SmolLM3's and TRL's, and Qwen's.
TEMPLATES = (
  "{%- for m in messages %}<|im_start|>{{ m.role }}\n{%- generation -%}\n"
  "{% set x = 1 %}{{ m.content }}<|im_end|>{% endgeneration %}\n{{ x }}"
  "{% endfor %}{{ messages | tojson(ensure_ascii=true, separators='+:') }}"
  "{% if add_generation_prompt and not thinks %}<think>\n\n</think>{% endif %}",
  "{%- set ns = namespace(last=thinks) %}{%- for m in messages[::-1] %}\n"
  "  {%- if m.content is string %}{%- set ns.last = loop.last %}{%- break %}\n"
  "  {%- endif %}\n{%- endfor %}{{ ns.last }}\n{% for m in messages %}\n"
  "    {% if m.content is string %}\n{{ m.content.split('</think>')[-1] }}\n"
  "    {% else %}\n{%- for part in m.content or [] %}{{ part.text | trim }}"
  "{% endfor %}\n    {% endif %}\n{% for call in m.tool_calls or [] %}\n"
  "{{ call | tojson(indent=1, sort_keys=true) }}{% endfor %}\n{% endfor %}",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_rendered_as_theirs_are(template, tmp_path):
  (_, transformers), own = hub(), registry.make_tokenizer("tool_calling")
  own.save(tmp_path)
  (tmp_path / "chat_template.jinja").write_text(template)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = hub_tokenizer.open_tokenizer(tmp_path, {"thinks": False})
  call = {"name": "f", "arguments": {"b": "é<a>", "a": [1, None]}}
  messages = [
    {"role": "user", "content": " hi  "},
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "content": [{"type": "text", "text": " 2\n"}]},
    {"role": "assistant", "content": "<think>\nt</think>\n\nyes"},
  ]
  for prompt in (True, False):
    how = {"tokenize": False, "add_generation_prompt": prompt, "thinks": False}
    expected = theirs.apply_chat_template(messages, **how)
    assert ours.render(messages, prompt) == expected


def test_smollm2_is_cut_as_theirs_is_where_theirs_has_the_rule(smollm2):
  # Text without digits: there theirs is right about the file.
  (_, transformers), (path, ours) = hub(), smollm2
  theirs = transformers.AutoTokenizer.from_pretrained(
    path.parent, gguf_file=path.name
  )
  for text in (
    "Hello there, Ms. O'Neill -- it's late!",
    "def f(x):\n\treturn {**x}\n\n\n  # done…",
    "Après ça, 漢字と仮名; привет 🙂",
  ):
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == expected

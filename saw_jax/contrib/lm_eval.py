"""The policy of a run as a model of EleutherAI's lm-eval.

    from saw_jax.contrib import lm_eval

    lm_eval.evaluate("runs/a", ["gsm8k"], model_args={"checkpoint": "best"})

    python -m saw_jax.contrib.lm_eval run --model saw_jax \
      --model_args workdir=runs/a,checkpoint=best,seed=0 --tasks gsm8k

`model=smollm2`, a Hugging Face directory or a `.gguf` file in place of
`workdir` evaluates that. Batches have one number of rows and widths that
double, so that few programs are compiled. A chat is encoded as in training: a
text cannot forge the template's markers. Stop strings cut what was sampled up
to `max_gen_toks` or an end token. This is the extra `lm-eval`.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import naming
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import pretrained
from saw_jax.rollout import generate, transcript
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import build, registry
from saw_jax.tokenizer import Tokenizer
from saw_jax.types import Array, PyTree

_CHUNK = 64  # tokens whose logits are in memory at once, in each program
_LONGEST = 2048  # of a pretrained model, in tokens, unless told otherwise
# Around the messages of a chat, where lm-eval wants a text.
_BEGIN, _END = "\x02", "\x03"

Ids = Sequence[int]


class Reader:
  """A policy that scores and continues texts, in batches of few shapes."""

  def __init__(
    self,
    config: DecoderConfig,
    params: PyTree,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    batch_size: int,
  ):
    self.config, self.params = config, jax.device_put(params)
    self.tokenizer, self.max_length = tokenizer, max_length
    self._batch_size = batch_size
    make = functools.partial(generate.make_generate, config)
    self._make_generate = functools.cache(make)

  def score(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
    """Log-prob of each continuation, and whether greedy decoding writes it.

    Of what is longer than `max_length`, the beginning is left out.
    """
    longest = self.max_length + 1
    rows = [[*context, *rest][-longest:] for context, rest in pairs]
    found: dict[int, tuple[float, bool]] = {}
    for chosen, width in self._batches([len(row) - 1 for row in rows]):
      tokens_BS, targets_BS = np.zeros((2, len(chosen), width), np.int32)
      sizes_B = np.int32([len(rows[index]) - 1 for index in chosen])
      for place, size in enumerate(sizes_B):
        row = rows[chosen[place]]
        tokens_BS[place, :size], targets_BS[place, :size] = row[:-1], row[1:]
      values_BS, greedy_BS = jax.device_get(
        _score(self.config, self.params, tokens_BS, targets_BS, sizes_B)
      )
      for place, index in enumerate(chosen):
        end, size = sizes_B[place], len(pairs[index][1])
        part = slice(max(end - size, 0), end)
        total = values_BS[place, part].sum(dtype=np.float64)
        found[index] = float(total), bool(greedy_BS[place, part].all())
    return [found[index] for index in range(len(pairs))]

  def write(
    self,
    prompts: Sequence[Ids],
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int = 0,
  ) -> list[str]:
    """Continues prompts, whose beginning is left out where they are long."""
    most = self.max_length - max_new_tokens
    if most < 1:
      raise ValueError(
        f"{max_new_tokens} new tokens leave no room for a prompt in "
        f"{self.max_length} (max_length): raise that, or lower max_gen_toks"
      )
    prompts = [list(prompt)[-most:] for prompt in prompts]
    tokenizer, texts = self.tokenizer, {}
    settings = generate.GenerateConfig(
      *(max_new_tokens, 1, tokenizer.eos_ids),
      pad_id=tokenizer.pad_id,
      sampling=sampling,
    )
    for chosen, width in self._batches(list(map(len, prompts))):
      batch = transcript.pad_prompts(
        [prompts[index] for index in chosen], ids=chosen, multiple=width
      )
      keys = generate.row_keys(jax.random.key(seed), 0, batch.ids, 1)
      written = self._make_generate(settings)(self.params, batch, keys)
      tokens, roles = jax.device_get((written.tokens, written.roles))
      ours = (roles == transcript.POLICY) & ~np.isin(tokens, tokenizer.eos_ids)
      for index, row, mask in zip(chosen, tokens, ours, strict=True):
        texts[index] = tokenizer.decode(row[mask].tolist())
    return [texts[index] for index in range(len(prompts))]

  def _batches(self, lengths: list[int]) -> Iterator[tuple[list[int], int]]:
    """Which rows go together, the longest first, and how wide they get."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for begin in range(0, len(order), self._batch_size):
      chosen = order[begin : begin + self._batch_size]
      width = _CHUNK
      while width < lengths[chosen[0]]:
        width *= 2
      chosen += chosen[-1:] * (self._batch_size - len(chosen))
      yield chosen, width


@functools.partial(jax.jit, static_argnums=0)
def _score(
  config: DecoderConfig,
  params: PyTree,
  tokens_BS: Array,
  targets_BS: Array,
  sizes_B: Array,
) -> tuple[Array, Array]:
  """Log-probs of the targets, and whether they are the likeliest, `[B, S]`."""
  order_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
  hidden_BSD, _ = decoder.Decoder(config).apply(
    {"params": params}, tokens_BS, order_BS, order_BS < sizes_B[:, None]
  )
  head_DV = decoder.head_kernel(params, config)

  def chunk(inputs):
    hidden_CD, targets_C = inputs
    logits_CV = log_probs.head_logits(hidden_CD, head_DV)
    values_C, _ = log_probs.log_probs_of(logits_CV, targets_C)
    return values_C, jnp.argmax(logits_CV, axis=-1) == targets_C

  hidden = hidden_BSD.reshape(-1, _CHUNK, hidden_BSD.shape[-1])
  found = jax.lax.map(chunk, (hidden, targets_BS.reshape(-1, _CHUNK)))
  return jax.tree.map(lambda x: x.reshape(tokens_BS.shape), found)


def open_reader(
  workdir: str = "",
  *,
  checkpoint: str | int = "last",
  seed: int | None = None,
  model: str = "",
  max_length: int | None = None,
  batch_size: int | str = 8,
) -> Reader:
  """Opens the policy of a run's seed, the first by default, or a model.

  `checkpoint` is last, best or the number of a step. `max_length` is by default
  what the run's prompts and responses may have together.
  """
  if bool(workdir) == bool(model):
    raise ValueError(
      "give workdir=DIRECTORY of a run, or model= a Hugging Face directory, a "
      ".gguf file or smollm2, and not both"
    )
  if model:
    path = registry.find_checkpoint(model)
    tokenizer, most = registry.make_tokenizer(str(path)), max_length or _LONGEST
    source = pretrained.open_checkpoint(path, max_length=most)
    config, params = source.config, source.load(source.config)
  else:
    run, made, _, _, params = build.read_policy(workdir, checkpoint, seed)
    config, tokenizer = made.decoder, made.tokenizer
    most = max_length or run.rollout.max_tokens
  sizes = {"max_length": most, "batch_size": int(batch_size)}
  return Reader(config, params, tokenizer, **sizes)


@functools.cache
def model_class() -> type:
  """Makes lm-eval's class of models, and registers it there as `saw_jax`."""
  with naming.needs_extra("lm-eval", "lm-eval is missing"):
    import lm_eval.models.utils
    from lm_eval import utils
    from lm_eval.api import model as model_lib
    from lm_eval.api import registry as model_registry

  @model_registry.register_model("saw_jax")
  class PolicyLM(model_lib.TemplateLM):
    """A policy, as lm-eval asks for texts and log-likelihoods."""

    def __init__(
      self,
      workdir: str = "",
      *,
      max_gen_toks: int | None = None,
      sampling_seed: int = 0,
      max_batch_size: None = None,
      device: None = None,
      **others: Any,  # of `open_reader`
    ):
      super().__init__()
      del max_batch_size, device  # lm-eval gives them to every model.
      self._name = f"saw_jax({workdir}, {others})"
      self._sampling_seed = sampling_seed
      self.reader = open_reader(workdir, **others)
      self._max_gen_toks = max_gen_toks or min(self.reader.max_length // 2, 256)

    @property
    def eot_token_id(self) -> int:
      return self.reader.tokenizer.eos_ids[0]

    @property
    def tokenizer_name(self) -> str:
      return self._name

    def chat_template(self, chat_template: bool | str = False) -> str:
      del chat_template
      return getattr(self.reader.tokenizer, "template", "chatml")

    def apply_chat_template(
      self, chat_history: list[dict], add_generation_prompt: bool = True
    ) -> str:
      return write_chat(chat_history, add_generation_prompt)

    def tok_encode(
      self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
      del add_special_tokens  # The tokenizers here add none.
      return encode(self.reader.tokenizer, string)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
      del disable_tqdm
      return self.reader.score([pair for _, *pair in requests])

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
      totals = []
      for (text,) in (request.args for request in requests):
        windows = utils.get_rolling_token_windows(
          self.tok_encode(text), self.prefix_token_id, self.reader.max_length, 1
        )
        pairs = list(map(utils.make_disjoint_window, windows))
        totals.append(sum(value for value, _ in self.reader.score(pairs)))
      return totals

    def generate_until(self, requests, disable_tqdm=False):
      # Requests with the same settings are one call.
      groups: dict[tuple, list[int]] = {}
      for index, request in enumerate(requests):
        options = lm_eval.models.utils.normalize_gen_kwargs(
          request.args[1], self._max_gen_toks
        )
        how = options["max_gen_toks"], _sampling(options)
        groups.setdefault(how, []).append(index)
      texts: dict[int, str] = {}
      for how, chosen in groups.items():
        prompts = [self.tok_encode(requests[i].args[0]) for i in chosen]
        written = self.reader.write(prompts, *how, seed=self._sampling_seed)
        texts |= dict(zip(chosen, written, strict=True))
      cut = lm_eval.models.utils.postprocess_generated_text
      return [
        cut(texts[index], request.args[1].get("until"), None)
        for index, request in enumerate(requests)
      ]

  return PolicyLM


def write_chat(messages: Sequence[Mapping], add_generation_prompt: bool) -> str:
  """A chat as a text from which `encode` makes what training would."""
  chat = [messages, add_generation_prompt]
  return _BEGIN + json.dumps(chat, ensure_ascii=False) + _END


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
  """Encodes a text, which may begin with one of `write_chat`."""
  chat, end, rest = text.partition(_END)
  if not end or not chat.startswith(_BEGIN):
    return list(tokenizer.encode(text))
  messages, has_prompt = json.loads(chat.removeprefix(_BEGIN))
  begun = ""
  if not has_prompt and messages[-1]["role"] == "assistant":
    begun = messages.pop()["content"]
  return [*tokenizer.encode_chat(messages), *tokenizer.encode(begun + rest)]


def _sampling(options: dict[str, Any]) -> SamplingConfig:
  if not options["do_sample"]:
    return SamplingConfig(greedy=True)
  names = ("temperature", "top_k", "top_p", "min_p")
  return SamplingConfig(**{n: options[n] for n in names if n in options})


def evaluate(
  workdir: str = "",
  tasks: Sequence[str] = (),
  *,
  model_args: Mapping[str, Any] | None = None,
  **options: Any,
) -> dict[str, Any]:
  """Evaluates the policy of a run on tasks of lm-eval, by their names there.

  `model_args` are what `--model_args` may say beside the `workdir`; `options`
  those of `lm_eval.simple_evaluate`, such as `num_fewshot`, `limit`,
  `apply_chat_template=True` and `gen_kwargs`. Its results are returned:
  `found["results"]["gsm8k"]`.
  """
  made = model_class()(workdir, **(model_args or {}))
  import lm_eval

  return lm_eval.simple_evaluate(made, tasks=list(tasks), **options)


def main() -> None:
  """The command of lm-eval, which knows the model `saw_jax`."""
  model_class()
  import lm_eval.__main__

  lm_eval.__main__.cli_evaluate()


if __name__ == "__main__":
  main()

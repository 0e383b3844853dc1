"""TRL as a worker: its GRPOTrainer on transformers' Qwen2, on torch's CPU."""

import importlib.metadata
import os
import tempfile

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl

from benchmarks.peer_workers import protocol

datasets.disable_progress_bars()
torch.set_num_threads(os.cpu_count() or 1)


class TRL(protocol.Worker):
  """The trainer's own log-probs, loss, optimizer and sampling."""

  def load(self, directory: str) -> None:
    self._start(
      transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32
      )
    )

  def _start(self, model: torch.nn.Module) -> None:
    self._trainer = self._make_trainer(model)
    self._optimizer = None

  def versions(self) -> dict[str, str]:
    return {
      name: importlib.metadata.version(name)
      for name in ("trl", "transformers", "torch", "numpy")
    }

  def _make_trainer(self, model: torch.nn.Module) -> trl.GRPOTrainer:
    words = {"<pad>": protocol.PAD, "<eos>": protocol.EOS, "<unk>": 2}
    tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer(
        tokenizers.models.WordLevel(words, unk_token="<unk>")
      ),
      pad_token="<pad>",
      eos_token="<eos>",
      unk_token="<unk>",
    )
    trainer = trl.GRPOTrainer(
      model=model,
      reward_funcs=lambda completions, **_: [0.0] * len(completions),
      args=trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=self.shape.rows,
        num_generations=self.shape.group_size,
        max_completion_length=self.shape.new_tokens,
        temperature=1.0,
        beta=0.0,
        epsilon=protocol.CLIP,
        loss_type="bnpo",  # the mean over the batch's tokens
        learning_rate=protocol.LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=protocol.WEIGHT_DECAY,
        max_grad_norm=protocol.CLIP_NORM,
      ),
      train_dataset=datasets.Dataset.from_dict({"prompt": ["x"]}),
      processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = self.parts["train"]
    return trainer

  def logits(self, rows: int) -> np.ndarray:
    with torch.no_grad():
      found = self._trainer.model(input_ids=self._tokens()[:rows])
    return found.logits.numpy()

  def log_probs(self) -> np.ndarray:
    tokens = self._tokens()
    with torch.no_grad():
      found, _, _ = self._trainer._get_per_token_logps_and_entropies(
        self._trainer.model,
        tokens,
        torch.ones_like(tokens),
        self.shape.new_tokens,
        batch_size=self.shape.rows // self.parts["forward"],
      )
    return found.numpy()

  def forward(self) -> dict[str, float]:
    return {"log_prob": float(self.log_probs().mean())}

  def train(self) -> dict[str, float]:
    trainer = self._trainer
    if self._optimizer is None:
      self._optimizer = trainer.create_optimizer()
    size, parts = self.shape.prompt_size, self.parts["train"]
    trainer.model.train()
    losses, entropies = [], []
    for part in range(parts):
      rows = slice(part, None, parts)
      tokens = self._tokens()[rows]
      prompts, completions = tokens[:, :size], tokens[:, size:]
      old = np.ascontiguousarray(self.data["old_log_probs"][rows])
      advantages = np.ascontiguousarray(self.data["advantages"][rows])
      loss = trainer.compute_loss(
        trainer.model,
        {
          "prompt_ids": prompts,
          "prompt_mask": torch.ones_like(prompts),
          "completion_ids": completions,
          "completion_mask": torch.ones_like(completions),
          "advantages": torch.from_numpy(advantages),
          "old_per_token_logps": torch.from_numpy(old),
        },
      )
      trainer.accelerator.backward(loss)
      losses.append(float(loss))
      entropies.append(trainer._metrics["train"]["entropy"][-1])
    norm = trainer.accelerator.clip_grad_norm_(
      trainer.model.parameters(), protocol.CLIP_NORM
    )
    self._optimizer.step()
    self._optimizer.zero_grad()
    return {
      "loss": sum(losses),
      "entropy": float(np.mean(entropies)),
      "gradient_norm": float(norm),
    }

  def generate(self) -> dict[str, float]:
    prompts = self._tokens()[:, : self.shape.prompt_size].tolist()
    completions, _ = self._trainer._generate_single_turn(
      prompts, None, {}, self.shape.group_size
    )
    return {"tokens": sum(len(row) for row in completions)}

  def small_train(self, rows: int, variant: str):
    raise RuntimeError("Nothing is compiled here.")

  def _tokens(self) -> torch.Tensor:
    return torch.from_numpy(self.data["tokens"].astype(np.int64))


if __name__ == "__main__":
  protocol.serve(TRL())

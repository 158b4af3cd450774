"""What trainers leave beside an adapter, and what they write into its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRANSFORMERS = (
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "optimizer.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "scaler.pt",
    "scheduler.pt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.bin",
    "vocab.json",
    "runs/Jan01_00-00-00_host/events.out.tfevents.1.host.1.0",
    "checkpoint-10/adapter_config.json",
    "checkpoint-10/adapter_model.safetensors",
    "checkpoint-10/optimizer.pt",
    "checkpoint-10/training_args.bin",
    "checkpoint-20/global_step20/mp_rank_00_model_states.pt",
    "checkpoint-20/adapter_model.bin",
    "checkpoint-20/latest",
    "checkpoint-20/zero_to_fp32.py",
)

TRAINERS: dict[str, tuple[str, ...]] = {
    "trl": (*TRANSFORMERS, "completions/completions_00001.parquet"),
    "unsloth": (*TRANSFORMERS, "preprocessor_config.json", "processor_config.json", "model-Q8_0.gguf"),
    "axolotl": (*TRANSFORMERS, "config.json", "debug.log", "tokens_state.json",
                "last-checkpoint/optimizer.pt", "merged/pytorch_model-00001-of-00002.bin"),
    "llama_factory": (*TRANSFORMERS, "all_results.json", "train_results.json", "eval_results.json",
                      "trainer_log.jsonl", "training_loss.png", "training_eval_loss.png"),
    "ms_swift": (*TRANSFORMERS, "args.json", "additional_config.json", "configuration.json", "logging.jsonl",
                 "val_dataset.jsonl", "images/train_loss.png"),
    "peft_and_pickle": ("README.md", "adapter_model.bin", "pytorch_model.bin", "model.pkl"),
}  # fmt: skip


def leave(folder: Path, names: tuple[str, ...]) -> Path:
    """Put files under these names into `folder`; none of them would survive being read."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x80\x04 not to be opened: auto_map")
    return folder


PEFT_0_3: dict[str, Any] = {"enable_lora": None, "merge_weights": False, "init_lora_weights": True}
PEFT_NEWER: dict[str, Any] = {
    "alora_invocation_tokens": None, "arrow_config": None, "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_bias": False, "lora_ga_config": None,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "peft_version": "0.21.2", "qalora_group_size": 16, "target_parameters": None,
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False,
    "velora_config": None,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "peft_0_3": PEFT_0_3,
    "peft_newer": PEFT_NEWER,
    "trl": PEFT_NEWER | {"modules_to_save": [], "inference_mode": True},
    "unsloth": PEFT_NEWER | {
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True,
                         "parent_library": "transformers.models.llama.modeling_llama"},
        "base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit",
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
                          r".*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\."
                          r"(?:(?:q_proj|v_proj)))",
    },
    "axolotl": PEFT_NEWER | {"fan_in_fan_out": None, "use_rslora": None, "loftq_config": None},
    "llama_factory": PEFT_NEWER | {"task_type": "CAUSAL_LM", "rank_pattern": {}, "alpha_pattern": {}},
    "ms_swift": PEFT_NEWER | {"lora_dtype": "bf16", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6},
    "no_task": {"task_type": None,
                "auto_mapping": {"base_model_class": "PeftModel", "parent_library": "peft.peft_model"}},
    "training_only": {"eva_config": {"rho": 2.0}, "layers_to_transform": [0, 1], "layers_pattern": "layers"},
    "to_come": {"a_newer_switch": False, "a_newer_table": {"on": False, "of": [], "n": 0}, "name": ""},
}  # fmt: skip
"""Fields that differ from a plain adapter's, in configurations that mean plain LoRA all the same."""

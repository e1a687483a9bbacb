"""Ways to train one model."""

VARIANTS = {
    "full": "full",
    "full_checkpointing": "full + checkpointing",
    "lora": "LoRA",
    "lora_checkpointing": "LoRA + checkpointing",
    "qlora": "QLoRA",
    "qlora_checkpointing": "QLoRA + checkpointing",
}
"""Ways to train one model, which a plan compares: by their names in the command, what they are called."""

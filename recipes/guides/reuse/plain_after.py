"""The same loop with exact accumulation: each label of a step counts the same, whatever batch it is in."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification

from hf_accum import accumulate, windows_of


def rows(number):  # texts of 4 to 19 tokens, of which some labels do not count
    torch.manual_seed(0)
    ids = [torch.randint(1, 100, (4 + index % 16,)) for index in range(number)]
    return [{"input_ids": i, "labels": torch.where(torch.rand(len(i)) < 0.7, i % 3, -100)} for i in ids]


def collate(rows):
    ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
    pad = torch.nn.utils.rnn.pad_sequence
    return {"input_ids": pad(ids, batch_first=True), "labels": pad(labels, batch_first=True, padding_value=-100)}


def token_loss(model, batch, reduction="mean"):
    logits = model(batch["input_ids"], attention_mask=(batch["input_ids"] > 0).long()).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction=reduction)


def main(folder="checkpoint", resume=False, num_rows=60, batch_size=4):
    torch.manual_seed(1)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), gradient_accumulation_steps=4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=100, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes)
    model = BertForTokenClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(rows(num_rows), batch_size=batch_size, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if resume:
        accelerator.load_state(folder)
    for _ in range(2):
        for window in windows_of(accelerator, loader, batches_per_step=4, weight=lambda b: (b["labels"] >= 0).sum()):
            for micro_batch in window.micro_batches():
                with accumulate(accelerator, model, micro_batch):
                    accelerator.backward(micro_batch.scaled(token_loss(model, micro_batch.batch, "sum")))
            optimizer.step()
            optimizer.zero_grad()
            accelerator.save_state(folder)
    return model


if __name__ == "__main__":
    main()

"""A hub-like dataset, streamed, shuffled in blocks, tokenised and padded in the background: `hf_accum.recipe`."""

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_accum import accumulate
from hf_accum.recipe import Example, Pipeline, WindowStream, of_dataset, ranks_of, start_accelerator

MODEL, DATA = "emilyalsentzer/Bio_ClinicalBERT", "notes.jsonl"  # rows of a text and a label, 0 or 1
accelerator = start_accelerator()  # accelerate's Accelerator, as `accelerate launch` configured it
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2).train().to(accelerator.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)


def encode(rows):  # (id, row) pairs to examples; `weight` is how many items an example adds to the loss
    texts = tokenizer([row["text"] for _, row in rows], truncation=True, max_length=512)["input_ids"]
    return [
        Example(id, len(tokens), 1.0, {"input_ids": tokens, "label": row["label"]})
        for (id, row), tokens in zip(rows, texts, strict=True)
    ]


def collate(examples, length):  # a batch on the CPU, padded to `length`
    inputs = [{"input_ids": example.features["input_ids"]} for example in examples]
    batch = tokenizer.pad(inputs, padding="max_length", max_length=length, return_tensors="pt")
    return dict(batch), torch.tensor([example.features["label"] for example in examples])


def summed_loss(model, batch):  # a sum in float32: the window divides it
    inputs, labels = batch
    return torch.nn.functional.cross_entropy(model(**inputs).logits.float(), labels, reduction="sum")


source = of_dataset(load_dataset("json", data_files=DATA, split="train", streaming=True))
stream = WindowStream(source, lambda row: row, encode, ranks=ranks_of(accelerator), effective_batch_size=32, seed=0)
windows = Pipeline(stream, 8, collate, accelerator.device)  # at most 8 examples in one forward
for window in windows:
    for micro_batch in window.micro_batches(windows.cutter):
        with accumulate(accelerator, model, micro_batch):
            accelerator.backward(micro_batch.scaled(summed_loss(model, micro_batch.batch)))
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()

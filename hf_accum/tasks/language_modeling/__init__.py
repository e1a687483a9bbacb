"""What masked and causal language models share: the loss in chunks, the perplexity."""

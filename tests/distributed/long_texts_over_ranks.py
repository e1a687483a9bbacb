"""Run by `accelerate launch`: gradients of long texts spread over ranks, against one graph over all their windows.

Prints one JSON line from rank 0: for each case the largest relative difference on any rank.
"""

import json

from gradients_over_ranks import spread
from long_text_cases import POOLINGS, make_classifier, make_long_texts, run_window, unsplit
from window_cases import largest_relative_difference

from hf_accum.recipe import ranks_of, start_accelerator


def main() -> None:
    accelerator = start_accelerator()
    ranks = ranks_of(accelerator)
    differences: dict[str, float] = {}
    for pooling in POOLINGS:
        model = make_classifier(pooling)
        for counts in ([1, 4, 1, 2], [7], [1, 1, 1, 1, 3]):
            texts = make_long_texts(counts)
            reference, _ = unsplit(model, texts, pooling)
            for how in ("evenly", "all on the last rank", "at random"):
                mine = spread(how, texts, ranks.count)[ranks.index]
                for size in (1, 3):
                    model.zero_grad()
                    run_window(accelerator, model, mine, texts, size, pooling, rank=ranks.index)
                    found = max(ranks.gather_objects(largest_relative_difference(model, reference)))
                    differences[f"{pooling} {counts} {how}, micro-batches of {size}"] = found
    if accelerator.is_main_process:
        print(json.dumps({"num_ranks": ranks.count, "differences": differences}))
    accelerator.end_training()


if __name__ == "__main__":
    main()

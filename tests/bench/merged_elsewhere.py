"""Whether a merged language model tells in vLLM and llama.cpp what its adapter tells: log-probabilities of tokens.

    hf-accum merge RUN MERGED
    python tests/bench/merged_elsewhere.py RUN MERGED --vllm VENV/bin/python
    python convert_hf_to_gguf.py MERGED --outfile FILE --outtype f32     (llama.cpp's own)
    python tests/bench/merged_elsewhere.py RUN MERGED --llama_cpp VENV/bin/python FILE

RUN is one of `recipes.medical_lm` on the embedded SmolLM2. The oracle is the adapter as plain peft loads it, in
float64. Beside it: the same in float32, and the merged folder in both, by plain transformers; vLLM (or llama.cpp, by
llama-cpp-python) in float32, each in the Python that has it. The log-probabilities are those of the 20 most likely
tokens at each place of a few texts; 24 tokens are written, each the most likely one, behind a text and behind a
question by the chat template.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, print_header, print_table, use_threads
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.embedded.models import smollm2

TEXTS = (
    "Cholera is an acute diarrhoeal disease",
    "An abnormally increased pulmonary artery pressure",
    "Question: what is a seizure? Answer: a seizure is",
)
QUESTION = [{"role": "user", "content": "What is cholera?"}]
NEW_TOKENS, BEST = 24, 20
IN_VLLM = """
import json, sys
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    folder, asked, told, new, best = sys.argv[1:]
    texts, question = json.load(open(asked))
    how = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "enforce_eager": True}
    llm = LLM(model=folder, max_logprobs=int(best), **how)
    greedy = {"temperature": 0, "max_tokens": int(new)}
    found = llm.generate(texts, SamplingParams(**greedy, prompt_logprobs=int(best)))
    told_at = lambda at: {} if at is None else {k: v.logprob for k, v in at.items()}
    places = [[told_at(at) for at in one.prompt_logprobs] for one in found]
    chat = llm.chat(question, SamplingParams(**greedy))[0]
    written = [list(found[0].outputs[0].token_ids), list(chat.outputs[0].token_ids)]
    ids = [list(one.prompt_token_ids) for one in found]
    json.dump([ids, places, written, list(chat.prompt_token_ids)], open(told, "w"))
"""
IN_LLAMA_CPP = """
import json, sys
import numpy as np
from llama_cpp import Llama
file, asked, told, new, best = sys.argv[1:]
texts, question = json.load(open(asked))
llm = Llama(model_path=file, n_ctx=256, logits_all=True, type_k=0, type_v=0, verbose=False)  # its cache in float32
ids, places = [], []
for text in texts:
    tokens = llm.tokenize(text.encode(), add_bos=False)
    llm.reset()
    llm.eval(tokens)
    scores = np.array(llm.scores[: len(tokens)], dtype=np.float64)
    scores -= scores.max(-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    ids.append(tokens)
    places.append([{}, *[{int(k): float(row[k]) for k in np.argsort(row)[-int(best):]} for row in scores[:-1]]])

def write(tokens):
    llm.reset()
    llm.eval(tokens)
    written = []
    for _ in range(int(new)):
        written.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
        if written[-1] == llm.token_eos():
            break
        llm.eval(written[-1:])
    return written

chat = llm.tokenize(question.encode(), add_bos=False, special=True)
json.dump([ids, places, [write(ids[0]), write(chat)], chat], open(told, "w"))
"""


def log_probabilities(model: Any, ids: list[list[int]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([one])).logits[0].double().log_softmax(-1) for one in ids]


def written_by(model: Any, prompt: list[int]) -> list[int]:
    tokens = torch.tensor([prompt])
    how = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    return model.generate(tokens, **how)[0, len(prompt) :].tolist()


def ask(python: str, code: str, what: str, question: Any) -> Any:
    """What another Python says of a folder or a file."""
    with tempfile.TemporaryDirectory() as place:
        asked, told, program = (Path(place) / name for name in ("asked.json", "told.json", "program.py"))
        asked.write_text(json.dumps([TEXTS, question]))
        program.write_text(code)
        command = [python, str(program), what, str(asked), str(told), str(NEW_TOKENS), str(BEST)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{python}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return json.loads(told.read_text())


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("merged", type=Path)
    parser.add_argument("--vllm", help="the Python of an environment that has vLLM")
    parser.add_argument("--llama_cpp", nargs=2, help="the Python of one that has llama-cpp-python, and the GGUF file")
    flags = parser.parse_args()
    use_threads(flags.threads)
    print_header(flags.threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(flags.run / "adapter")
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    chat = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    base = AutoModelForCausalLM.from_pretrained(str(smollm2()), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(flags.run / "adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(flags.merged, dtype=torch.float32).eval()
    expected_texts = [written_by(adapted, prompt) for prompt in (ids[0], chat)]
    of: dict[str, list[torch.Tensor]] = {}
    of["the adapter, float32"] = log_probabilities(adapted, ids)
    of["merged, transformers, float32"] = log_probabilities(merged, ids)
    with torch.no_grad():
        largest = max(float(adapted(torch.tensor([one])).logits.abs().max()) for one in ids)
    of["merged, transformers, float64"] = log_probabilities(merged.double(), ids)
    with adapted.disable_adapter():
        of["the base without its adapter"] = log_probabilities(adapted, ids)
    exact = log_probabilities(adapted.double(), ids)
    best = [at.topk(BEST).indices for at in exact]
    rows = []
    for name, found in of.items():
        differences = [
            (one - other).gather(1, k)[:-1].abs().max() for one, other, k in zip(found, exact, best, strict=True)
        ]
        rows.append([name, f"{max(map(float, differences)):.2g}", ""])
    elsewhere = [("vLLM", flags.vllm, IN_VLLM, str(flags.merged), QUESTION)] if flags.vllm else []
    if flags.llama_cpp:
        talk = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
        elsewhere.append(("llama.cpp", flags.llama_cpp[0], IN_LLAMA_CPP, flags.llama_cpp[1], talk))
    for name, python, code, what, question in elsewhere:
        read, places, written, prompt = ask(python, code, what, question)
        if read != ids or prompt != chat:
            raise SystemExit(f"{name} reads other tokens: {read} {prompt}, and not {ids} {chat}")
        told = [
            (value, float(exact[text][at - 1, int(token)]))
            for text, of_text in enumerate(places)
            for at, tokens in enumerate(of_text)
            for token, value in tokens.items()
        ]
        same = [list(one) == other for one, other in zip(written, expected_texts, strict=True)]
        rows.append([f"merged, {name}", f"{max(abs(a - b) for a, b in told):.2g}", f"{sum(same)} of {len(same)}"])
    print(f"largest logit: {largest:.1f}; {sum(map(len, ids))} places of {len(ids)} texts\n")
    print_table(["", "from the adapter in float64, at most", "texts written alike"], rows)


if __name__ == "__main__":
    main()

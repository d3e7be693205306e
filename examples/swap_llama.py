"""Give a Llama fast feedforward layers: swap them in, generate, save, load with Transformers alone.

python examples/swap_llama.py
python examples/swap_llama.py --model FOLDER --layer ultra:depth=11   # weights elsewhere are kept, the new are new
"""

import argparse
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from fastff.hf import feedforward_modules, replace_feedforward


def tokens_per_second(model: PreTrainedModel, new: int = 32) -> float:
    """Greedy generation with cache, one sequence."""
    prompt = torch.randint(3, model.config.vocab_size, (1, 16))
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    model.generate(prompt, **options)  # the first call is slower
    began = time.perf_counter()
    model.generate(prompt, **options)
    return new / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of a decoder; by default a new one")
    parser.add_argument("--layer", default="tree:depth=8,leaf_width=4", help="see fastff.nn.parse_layer")
    parser.add_argument("--hidden", type=int, default=512, help="of the new one")
    arguments = parser.parse_args()

    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
    else:
        hidden = arguments.hidden
        shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": 4}
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=8, vocab_size=8000)).eval()
    print(f"found {', '.join(feedforward_modules(model))}")
    print(f"dense: {model.num_parameters():,} parameters, {tokens_per_second(model):.0f} tokens/s")

    replace_feedforward(model, arguments.layer)  # all of them; modules=["model.layers.[2-3].mlp"] for some
    print(f"{arguments.layer}: {model.num_parameters():,} parameters, {tokens_per_second(model):.0f} tokens/s")

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(3, model.config.vocab_size, (2, 9))
    print(f"saved, loaded: the same logits: {torch.equal(again(ids).logits, model(ids).logits)}")


if __name__ == "__main__":
    main()

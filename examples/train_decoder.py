"""Train a small decoder with tree layers on text, then let it write.

python examples/train_decoder.py novels.txt "It was a dark"   # a text file, a folder, or a hub id
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastff.hf.pretrain import PretrainConfig, pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="text to learn from")
    parser.add_argument("prompt", help="what it is to go on from")
    parser.add_argument("--out", type=Path, default=Path("runs/decoder"))
    parser.add_argument("--tokens", type=int, default=4_000_000, help="to train on: an hour on one core")
    parser.add_argument("--shape", default="hidden_size=128,num_hidden_layers=3,num_attention_heads=4")
    parser.add_argument("--layer", default="tree:depth=6,leaf_width=1,trees=8,gradient=chosen")
    arguments = parser.parse_args()

    config = PretrainConfig(
        data=arguments.data,
        objective="causal",
        model="llama",
        shape=arguments.shape,
        feedforward=arguments.layer,
        balance=0.01,  # keeps the leaves in use
        vocab_size=2048,
        tokens=arguments.tokens,
        start_batch=32,
        end_batch=32,
        lr=3e-3,
    )
    result = pretrain(config, arguments.out, resume=True)  # goes on where it was stopped
    print(f"validation loss {result['validation_loss']:.3f}")

    model = AutoModelForCausalLM.from_pretrained(arguments.out / "model")
    tokenizer = AutoTokenizer.from_pretrained(arguments.out / "model")
    torch.manual_seed(0)
    inputs = tokenizer(arguments.prompt, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=60, do_sample=True, top_k=40, temperature=0.8)
    print(tokenizer.decode(written[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()

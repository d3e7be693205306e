"""Fill a gap with UltraFastBERT, from the authors' checkpoint as it is, without their code.

python examples/fill_mask.py "Paris is the [MASK] of France."
python examples/fill_mask.py "Paris is the [MASK] of France." --model FOLDER
"""

import argparse
import time

import torch
from transformers import AutoTokenizer, pipeline

import fastff.hf  # registers UltraFastBERT, and the authors' format, with Transformers
from fastff import UltraFFF


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="with one [MASK]")
    parser.add_argument("--model", default="pbelcak/UltraFastBERT-1x11-long", help="hub id or folder")
    arguments = parser.parse_args()

    model = fastff.hf.UltraFastBertForMaskedLM.from_pretrained(arguments.model)
    fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(arguments.model))
    layers = [module for module in model.modules() if isinstance(module, UltraFFF)]
    print(f"{len(layers)} layers, {layers[0].inference_width} of {layers[0].training_width} neurons run for a token")

    fill(arguments.text)  # the first call is slower
    with torch.inference_mode():
        began = time.perf_counter()
        guesses = fill(arguments.text)
        seconds = time.perf_counter() - began
    for guess in guesses:
        print(f"{guess['score']:6.1%}  {guess['sequence']}")
    print(f"in {1000 * seconds:.1f} ms")


if __name__ == "__main__":
    main()

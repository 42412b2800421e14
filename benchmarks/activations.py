"""The largest value that each layer of the bundled models gives over the evaluation, beside fp16's limit.

`python benchmarks/activations.py [--scenes N]` prints a Markdown table, the largest first. A model of which one layer
is beyond the limit cannot be offered in fp16.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch

from microcinema_core.checkpoint import resolve
from microcinema_core.demo import evaluate
from microcinema_core.pipeline import Pipeline

LIMIT = torch.finfo(torch.float16).max  # 65,504


def watch(pipeline: Pipeline, largest: dict[str, float]) -> None:
    """Keep in `largest` the greatest magnitude of every leaf module's output, under model/part.layer."""
    for part in ("network", "autoencoder", "text"):
        for name, module in (getattr(pipeline, part) or torch.nn.Module()).named_modules():
            if not list(module.children()):

                def note(module, args, output, key=f"{pipeline.config.name}/{part}.{name}"):
                    if isinstance(output, torch.Tensor) and output.is_floating_point():
                        largest[key] = max(largest[key], output.detach().abs().max().item())

                module.register_forward_hook(note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--rows", type=int, default=12, help="of the table")
    arguments = parser.parse_args()
    largest: dict[str, float] = defaultdict(float)
    base, between = (Pipeline.from_file(resolve(name)) for name in ("demo-base", "demo-interpolation"))
    for pipeline in (base, between):
        watch(pipeline, largest)
    evaluate.evaluate(base, between, scenes=arguments.scenes)
    print(f"{len(largest)} layers, {sum(value > LIMIT for value in largest.values())} beyond {LIMIT:,.0f}\n")
    print("| layer | largest value | of fp16's limit |\n|---|---|---|")
    for key, value in sorted(largest.items(), key=lambda item: -item[1])[: arguments.rows]:
        print(f"| `{key}` | {value:,.0f} | {value / LIMIT:.2g} |")


if __name__ == "__main__":
    main()

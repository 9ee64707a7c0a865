"""Training with networks from CUDA graphs against training without; a program.

python tests/reference/recorded.py METHOD ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from reference.jets import random_batch, tiny_encoder

from jetssl_cli.data.tokenizer import Tokenizer
from jetssl_cli.encoder.blocks import Recordable, compile_parts
from jetssl_cli.objectives.dino import DINOConfig
from jetssl_cli.objectives.gpt import GPTConfig
from jetssl_cli.objectives.jepa import JEPAConfig
from jetssl_cli.objectives.mpm import MPMConfig
from jetssl_cli.objectives.objective import Objective
from jetssl_cli.objectives.ssfm import SSFMConfig

STEPS = 8
CONFIGS = {
    "ssfm": SSFMConfig(),
    "mpm": MPMConfig(),
    "gpt": GPTConfig(clusters=10),
    "dino": DINOConfig(prototypes=12),
    "jepa": JEPAConfig(),
}


def train(
    method: str, prepare: Callable[[Objective], None]
) -> tuple[list[float], torch.Tensor, int]:
    """Losses of all steps, the weights behind them, and how many graphs were recorded.

    Each step adds up two batches of the same sizes, and validates on one of others.
    """
    torch.manual_seed(0)
    encoder = tiny_encoder(width=32, depth=2, causal=method == "gpt")
    centres = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    objective = CONFIGS[method].build(encoder, Tokenizer(centres) if method == "gpt" else None)
    objective.to("cuda")
    prepare(objective)
    sizes = torch.randint(41, (3, 100), generator=torch.Generator().manual_seed(0)).tolist()
    cuda = torch.device("cuda")
    batches = [random_batch(some, seed).to(cuda) for seed, some in enumerate(sizes)]
    batches[1] = random_batch(sizes[0], 1).to(cuda)
    rng = torch.Generator(cuda).manual_seed(0)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, fused=True)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for batch in batches[:2]:
            with torch.autocast("cuda", torch.bfloat16):
                total = torch.stack(list(objective.loss(batch, rng).values())).sum()
            total.backward()
            losses.append(float(total.detach()))
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        objective.after_step(step / STEPS)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            losses.append(float(torch.stack(list(objective.loss(batches[2], rng).values())).sum()))
    weights = torch.cat([p.detach().flatten() for p in objective.parameters()])
    networks = (part for part in objective.modules() if isinstance(part, Recordable))
    graphs = [len(network.graphs or ()) for network in networks]
    return losses, weights, sum(graphs)


def main() -> None:
    """Compare losses and weights, and look whether there were graphs at all."""
    for method in sys.argv[1:]:
        wanted, weights, none = train(method, lambda _: None)
        found, others, graphs = train(method, compile_parts)
        assert none == 0
        assert graphs >= 2, graphs
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
        away = ((others - weights).norm() / weights.norm()).item()
        assert away < 1e-2, away
        worst = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
        sys.stdout.write(f"{method}: {graphs} graphs, {worst:.1e} {away:.1e}\n")


if __name__ == "__main__":
    main()

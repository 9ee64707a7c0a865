"""Blocks under torch.compile against the same blocks, with several numbers of tokens; a program."""

from __future__ import annotations

import sys

import torch
from reference.jets import SIZES, assert_equal_gradients, gradients, random_batch, tiny_encoder

from jetssl_cli.encoder.blocks import compile_parts


def main() -> None:
    """Compare values and gradients, in single and in half precision."""
    plain, compiled = tiny_encoder(), tiny_encoder()
    compile_parts(compiled)
    for batch in (random_batch(SIZES), random_batch([5, 1, 0, 9], seed=1)):
        wanted = gradients(plain, lambda b=batch: plain(b).tokens)
        found = gradients(compiled, lambda b=batch: compiled(b).tokens)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
        assert_equal_gradients(found[1], wanted[1])
        with torch.autocast("cpu", torch.bfloat16):
            half = compiled(batch).tokens.float()
        error = (half - wanted[0]).square().mean().sqrt()
        assert error < 0.1 * wanted[0].square().mean().sqrt(), error
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()

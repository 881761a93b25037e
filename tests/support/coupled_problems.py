"""Candidates for `coupled_log_probs`, and their float64 results."""

import torch

from specdec_kernels.pick_tokens.noise import philox


def make_candidates(batch, beams, count, seed, device="cpu"):
    """Log-probabilities that are not normalised, ids in no order, streams and positions of any size."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = -3 * torch.rand(batch, beams, count, generator=generator) ** 2
    ids = torch.randint(0, 2**32, (batch, beams, count), generator=generator)
    streams, positions = torch.randint(0, 2**32, (2, batch), generator=generator)
    return tuple(x.to(device) for x in (log_probs, ids, streams, positions))


def exactly(log_probs, ids, streams, positions, seed, temperature, sharpness):
    """Write out the formula; of the noise only its uniform number is float32, as the noise is defined."""
    blocks, words = ids.cpu() >> 2, ids.cpu() & 3
    key = (x.cpu()[:, None, None] for x in (positions, streams))
    bits = philox(seed, (blocks, *key, torch.tensor(0))).gather(0, words[None])[0]
    v = ((bits.float() + 0.5) * 2**-32).clamp(max=1 - 2**-24).double()
    scores = sharpness * (log_probs.cpu().double() / temperature - torch.log(-torch.log1p(-v)))
    return scores - scores.exp().sum(-1, keepdim=True).log()

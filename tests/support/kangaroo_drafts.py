"""Recorded drafts of a Kangaroo drafter, and the authors' stop rule."""

import torch

from specdec.pickers import Greedy


class Recorder:
    """Keeps what a drafter proposes and what the target picks, round by round."""

    def __init__(self, drafter, monkeypatch):
        self.drafts, self.picked = [], []
        draft, pick = drafter.draft, Greedy.pick

        def recorded_draft(state, budget):
            self.drafts.append(draft(state, budget))
            return self.drafts[-1]

        def recorded_pick(*args, **options):
            self.picked.append(pick(*args, **options))
            return self.picked[-1]

        monkeypatch.setattr(drafter, "draft", recorded_draft)
        monkeypatch.setattr(Greedy, "pick", recorded_pick)

    @property
    def confidences(self):
        """Per round and row, of every draft."""
        steps = [p.scores.diff(dim=1, prepend=torch.zeros(len(p.scores), 1)) for p in self.drafts]
        return [
            [row[keep].exp().tolist() for row, keep in zip(step, p.valid, strict=True)]
            for step, p in zip(steps, self.drafts, strict=True)
        ]

    @property
    def tokens(self):
        return [
            [row[keep].tolist() for row, keep in zip(p.tokens, p.valid, strict=True)]
            for p in self.drafts
        ]


def follows_the_rule(confidences, eta, most):
    """The authors' rule: a draft ends with its first unsure token, which it keeps, or is as long as it may be."""
    *sure, last = confidences
    return all(c >= eta for c in sure) and (last < eta or len(confidences) == most)

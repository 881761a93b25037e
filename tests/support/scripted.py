"""A drafter that knows the target's text and proposes trees of any quality."""

import random

import torch

from specdec.drafters import Drafter, Proposals
from tree_invariants import check_tree


class ScriptedDrafter(Drafter):
    """Random trees in which a proposal on the right path is right with a given probability.

    `right` 0 proposes garbage, 1 trees that hold the true continuation as deep as they go.
    """

    def __init__(self, texts, *, right, seed, most_proposals, vocabulary):
        self.texts, self.right, self.vocabulary = texts, right, vocabulary
        self.random = random.Random(seed)
        self.most_proposals = most_proposals
        self.sizes, self.accepted = [], []

    def observe(self, state, tree, accepted, verified):
        check_tree(tree)
        self.sizes += tree.sizes.tolist()
        self.accepted += accepted.lengths.tolist()

    def draft(self, state, budget):
        rows = []
        for row, length in zip(state.rows.host, state.lengths.tolist(), strict=True):
            truth = self.texts[row][length + 1 :]
            assert self.texts[row][: length + 1] == state.text.ids[row, : length + 1].tolist()
            rows.append(self._tree(truth))
        most = max(map(len, rows))
        pad = (0, -1, 0.0, False, 0)
        shape = (len(rows), most)
        fields = [
            torch.tensor([[p[i] for p in row + [pad] * (most - len(row))] for row in rows])
            for i in range(5)
        ]
        tokens, parents, scores, valid, source = (field.reshape(shape) for field in fields)
        return Proposals(tokens.long(), parents.long(), scores.float(), valid.bool(), source.long())

    def _tree(self, truth):
        proposals = []  # token, parent, score, valid, source
        on_path = {-1: 0}  # proposals whose whole path is right, and how deep they are
        for index in range(self.random.randint(0, self.most_proposals)):
            deepest = max(on_path, key=on_path.get)
            parent = deepest if self.random.random() < 0.6 else self.random.randint(-1, index - 1)
            token = self.random.randrange(self.vocabulary)
            depth = on_path.get(parent)
            if depth is not None and depth < len(truth):
                if self.random.random() < self.right:
                    token = truth[depth]
                if token == truth[depth]:
                    on_path[index] = depth + 1
            above = 0.0 if parent < 0 else proposals[parent][2]
            proposals.append(
                (token, parent, above - self.random.random(), self.random.random() < 0.95, index)
            )
        return proposals

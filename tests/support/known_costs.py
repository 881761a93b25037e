"""A fixed cost table, so that drafts do not depend on the machine."""

from specdec.costs.table import Costs, name_of, parts_of
from specdec.drafters.protocol import DraftCost

# Two cores of a server's CPU, bfloat16, the default model.
PASSES = ((1, 17.0), (2, 17.6), (4, 17.5), (8, 20.1), (16, 23.7), (32, 32.7))
DRAFT = DraftCost(fixed=0.3, step=0.6)


def known_costs(target, drafter):
    """Stand in for `costs_of`."""
    return Costs(PASSES, {name_of(part): DRAFT for part in parts_of(drafter)}, tree=0.5)

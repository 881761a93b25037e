from .module import RecurrentDraftStep
from .ops import DraftStepWeights, draft_step
from .reference import draft_features, recurrent_state

__all__ = [
    "DraftStepWeights",
    "RecurrentDraftStep",
    "draft_features",
    "draft_step",
    "recurrent_state",
]

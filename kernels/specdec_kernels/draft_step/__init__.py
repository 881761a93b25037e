from .module import RecurrentDraftStep
from .reference import draft_features, recurrent_state

__all__ = ["RecurrentDraftStep", "draft_features", "recurrent_state"]

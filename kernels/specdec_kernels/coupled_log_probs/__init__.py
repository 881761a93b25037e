from .ops import coupled_log_probs

__all__ = ["coupled_log_probs"]

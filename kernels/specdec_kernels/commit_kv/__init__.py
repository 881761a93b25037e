from .ops import commit_kv

__all__ = ["commit_kv"]

"""Speculative decoding with the interface of transformers' `model.generate`."""
